"""Pictures of errors and certificates, drawn by matplotlib."""

from fastdc.figures.certified_curve import plot_curves
from fastdc.figures.error_sheet import error_sheet

__all__ = [
    "error_sheet",
    "plot_curves",
]
