"""Backends: what runs the network. :func:`open_network` picks one by name; each module imports its own packages."""

from fastdc.backends.base import AbstractEncoder, AbstractNetwork, AbstractSlot, NetworkOptions
from fastdc.backends.choose import BACKENDS, open_encoder, open_network
from fastdc.backends.function import FunctionNetwork

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
