"""Diffusion models as people have them, brought to one form: see :mod:`fastdc.sources.base`."""

from fastdc.sources.base import FAMILIES, Source, WithTables

__all__ = ["FAMILIES", "Source", "WithTables"]
