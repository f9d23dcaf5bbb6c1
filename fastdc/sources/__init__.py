"""Diffusion models as people have them, brought to one form: see :mod:`fastdc.sources.base`."""

from fastdc.sources.base import FAMILIES, Source, WithTables
from fastdc.sources.choose import open_source

__all__ = ["FAMILIES", "Source", "WithTables", "open_source"]
