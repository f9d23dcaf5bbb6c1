"""Backends: what runs the network. :func:`open_network` picks one by name; each module imports its own packages."""

from fastdc.backends.function import FunctionNetwork
from fastdc.backends.onnx.cpu import OnnxNetwork, usable_cpus
from fastdc.backends.onnx.image_encoder import ModuleEncoder, OnnxEncoder
from fastdc.backends.onnx.text_encoder import with_prompts
from fastdc.backends.onnx.widen import widen, widened_session
from fastdc.backends.protocol import (
    CAPTURING,
    DEFAULT_BATCH,
    ELEMENT_BYTES,
    MAX_BATCH,
    PRECISIONS,
    AbstractEncoder,
    AbstractNetwork,
    AbstractSlot,
    Buffer,
    HostArrays,
    HostBuffers,
    NetworkOptions,
    device_batch,
    first_cause,
    halves,
    one_line,
)
from fastdc.backends.registry import BACKENDS, open_encoder, open_network
from fastdc.backends.rounding import rounding_tolerance
from fastdc.backends.torch import TorchNetwork

__all__ = [
    "BACKENDS",
    "CAPTURING",
    "DEFAULT_BATCH",
    "ELEMENT_BYTES",
    "MAX_BATCH",
    "PRECISIONS",
    "AbstractEncoder",
    "AbstractNetwork",
    "AbstractSlot",
    "Buffer",
    "FunctionNetwork",
    "HostArrays",
    "HostBuffers",
    "ModuleEncoder",
    "NetworkOptions",
    "OnnxEncoder",
    "OnnxNetwork",
    "TorchNetwork",
    "device_batch",
    "first_cause",
    "halves",
    "one_line",
    "open_encoder",
    "open_network",
    "rounding_tolerance",
    "usable_cpus",
    "widen",
    "widened_session",
    "with_prompts",
]
