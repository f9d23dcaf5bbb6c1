"""Why an image gets its class: where its errors differ, and what would change the answer."""

from fastdc.explanation.error_maps import BANDS, ErrorMaps, error_maps
from fastdc.explanation.explain import explain
from fastdc.explanation.explanation import Explanation, ImageExplanation
from fastdc.explanation.paired_pixels import CONTROLS, p_values, significant_pixels
from fastdc.explanation.region import Region, region_of

__all__ = [
    "BANDS",
    "CONTROLS",
    "ErrorMaps",
    "Explanation",
    "ImageExplanation",
    "Region",
    "error_maps",
    "explain",
    "p_values",
    "region_of",
    "significant_pixels",
]
