"""Diffusion models in the formats of other tools, brought to one form, :class:`Source`."""

from fastdc.sources.base import Source, WithTables
from fastdc.sources.choose import is_text_conditional, open_source
from fastdc.sources.edm_networks import edm_network
from fastdc.sources.lora import Lora

__all__ = [
    "Lora",
    "Source",
    "WithTables",
    "edm_network",
    "is_text_conditional",
    "open_source",
]
