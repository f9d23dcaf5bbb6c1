"""Backends: what runs the network. :func:`open_network` picks one by name; each module imports its own packages."""

from fastdc.backends.function import FunctionNetwork
from fastdc.backends.protocol import AbstractEncoder, AbstractNetwork, AbstractSlot, NetworkOptions
from fastdc.backends.registry import BACKENDS, open_encoder, open_network

__all__ = [
    "BACKENDS",
    "AbstractEncoder",
    "AbstractNetwork",
    "AbstractSlot",
    "FunctionNetwork",
    "NetworkOptions",
    "open_encoder",
    "open_network",
]
