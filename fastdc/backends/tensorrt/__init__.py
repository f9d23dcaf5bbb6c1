"""TensorRT engines, built from a bundle's graph, cached, tested against the CPU, and run on fastdc's own streams.

``driver`` asks the GPU, ``module`` opens TensorRT or TensorRT-RTX, ``graph`` reads what an engine depends on, ``build``
makes plans, ``cache`` keeps them, ``engine`` loads them, ``selftest`` compares them with the CPU, and ``network`` runs
them.
"""

from fastdc.backends.tensorrt.build import BATCH, EngineOptions, Range, build_plan, check_range
from fastdc.backends.tensorrt.cache import EngineCache
from fastdc.backends.tensorrt.module import use_module
from fastdc.backends.tensorrt.network import TensorRTNetwork, check_usable

__all__ = [
    "BATCH",
    "EngineCache",
    "EngineOptions",
    "Range",
    "TensorRTNetwork",
    "build_plan",
    "check_range",
    "check_usable",
    "use_module",
]
