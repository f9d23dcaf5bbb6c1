"""Diffusion models as people have them, brought to one form: see :mod:`fastdc.sources.base`."""

from fastdc.sources import edm_networks
from fastdc.sources.base import FAMILIES, Source, WithTables
from fastdc.sources.choose import is_text_conditional, open_source
from fastdc.sources.edm_options import SongOptions, options_from
from fastdc.sources.lora import Lora

__all__ = [
    "FAMILIES",
    "Lora",
    "SongOptions",
    "Source",
    "WithTables",
    "edm_networks",
    "is_text_conditional",
    "open_source",
    "options_from",
]
