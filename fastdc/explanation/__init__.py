"""Why an image gets its class: where its errors differ, and what would change the answer."""

from fastdc.explanation.arrays import ExplanationArrays, ImageExplanation
from fastdc.explanation.counterfactual_result import Counterfactuals, ImageCounterfactual
from fastdc.explanation.counterfactuals import counterfactuals, runner_up
from fastdc.explanation.edits import EDITS, Edit
from fastdc.explanation.error_maps import BANDS, ErrorMaps, error_maps
from fastdc.explanation.explain import check_explanation, explain
from fastdc.explanation.explanation import Explanation
from fastdc.explanation.level_curves import level_curves
from fastdc.explanation.map_pictures import overlay_picture, scale_of, signed_picture
from fastdc.explanation.page import MOST_IMAGES
from fastdc.explanation.paired_pixels import CONTROLS, p_values, significant_pixels
from fastdc.explanation.region import Region, region_of

__all__ = [
    "BANDS",
    "CONTROLS",
    "MOST_IMAGES",
    "ErrorMaps",
    "Explanation",
    "ExplanationArrays",
    "ImageExplanation",
    "Region",
    "check_explanation",
    "error_maps",
    "explain",
    "level_curves",
    "overlay_picture",
    "p_values",
    "region_of",
    "scale_of",
    "signed_picture",
    "EDITS",
    "Counterfactuals",
    "Edit",
    "ErrorMaps",
    "ImageCounterfactual",
    "counterfactuals",
    "error_maps",
    "p_values",
    "runner_up",
    "significant_pixels",
]
