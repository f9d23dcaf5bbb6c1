"""Backends, which run a model's network. :func:`open_network` picks one by name.

The modules import the packages of their backend only when it is used.
"""

from fastdc.backends.choice import (
    Choice,
    chosen_by,
    find_choice,
    forget_choices,
    keep_choice,
    open_chosen,
    usable_choice,
)
from fastdc.backends.function import FunctionNetwork
from fastdc.backends.host import usable_cpus
from fastdc.backends.machine import backend_versions, machine_facts
from fastdc.backends.onnx import OnnxNetwork, firsts_of_texts, widen, with_prompts
from fastdc.backends.options import PRECISIONS, NetworkOptions
from fastdc.backends.prompt_tokens import PromptTokenizer, check_prompts
from fastdc.backends.protocol import AbstractDecoder, AbstractEncoder, AbstractNetwork, AbstractSlot, Buffer
from fastdc.backends.registry import BACKENDS, check_usable_here, default_backend, open_encoder, open_network
from fastdc.backends.reopening import check_pickles, copied
from fastdc.backends.rounding import rounding_tolerance
from fastdc.backends.step_sizes import halves
from fastdc.backends.torch import ModuleEncoder, TorchNetwork

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "AbstractDecoder",
    "AbstractEncoder",
    "AbstractNetwork",
    "AbstractSlot",
    "Buffer",
    "Choice",
    "FunctionNetwork",
    "ModuleEncoder",
    "NetworkOptions",
    "OnnxNetwork",
    "PromptTokenizer",
    "TorchNetwork",
    "backend_versions",
    "check_pickles",
    "check_prompts",
    "check_usable_here",
    "chosen_by",
    "copied",
    "default_backend",
    "find_choice",
    "firsts_of_texts",
    "forget_choices",
    "halves",
    "keep_choice",
    "machine_facts",
    "open_chosen",
    "open_encoder",
    "open_network",
    "rounding_tolerance",
    "usable_choice",
    "usable_cpus",
    "widen",
    "with_prompts",
]
