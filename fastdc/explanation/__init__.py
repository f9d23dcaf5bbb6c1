"""Why an image gets its class: where its errors differ, and what would change the answer."""

from fastdc.explanation.error_maps import BANDS, ErrorMaps, error_maps
from fastdc.explanation.paired_pixels import CONTROLS, p_values, significant_pixels

__all__ = ["BANDS", "CONTROLS", "ErrorMaps", "error_maps", "p_values", "significant_pixels"]
