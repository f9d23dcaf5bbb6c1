"""TensorRT: engines built from a bundle's graph, cached, tested against the CPU, and run on streams of our own.

``module`` opens TensorRT or TensorRT-RTX, ``graph`` reads what an engine depends on, ``build`` makes plans, ``cache``
keeps them, ``selftest`` compares them with the CPU, and ``network`` runs them.
"""

from fastdc.backends.tensorrt.build import (
    BATCH,
    Built,
    EngineOptions,
    Range,
    build_engine,
    build_plan,
    check_range,
    merge_timing_caches,
)
from fastdc.backends.tensorrt.cache import EngineCache, Maker
from fastdc.backends.tensorrt.module import Gpu, TensorRT, check_driver, gpu, open_tensorrt, use_device, use_module
from fastdc.backends.tensorrt.network import TensorRTNetwork, check_usable

__all__ = [
    "BATCH",
    "Built",
    "EngineCache",
    "EngineOptions",
    "Gpu",
    "Maker",
    "Range",
    "TensorRT",
    "TensorRTNetwork",
    "build_engine",
    "build_plan",
    "check_driver",
    "check_range",
    "check_usable",
    "gpu",
    "merge_timing_caches",
    "open_tensorrt",
    "use_device",
    "use_module",
]
