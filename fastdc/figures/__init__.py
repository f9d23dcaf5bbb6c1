"""Pictures of errors and certificates, drawn by matplotlib."""

from fastdc.figures.error_sheet import error_sheet

__all__ = [
    "error_sheet",
]
