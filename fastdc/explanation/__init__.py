"""Why an image gets its class: where its errors differ, what would change the answer, and how good explanations are."""

from fastdc.explanation.arrays import ExplanationArrays, ImageExplanation
from fastdc.explanation.attributions import ATTRIBUTIONS, attributions
from fastdc.explanation.counterfactual_result import Counterfactuals, ImageCounterfactual
from fastdc.explanation.counterfactuals import counterfactuals
from fastdc.explanation.distances import MapSimilarity, flipped, l1_distance, map_similarity, ssim
from fastdc.explanation.edits import EDITS, Edit
from fastdc.explanation.error_maps import BANDS, ErrorMaps, error_maps
from fastdc.explanation.explain import check_explanation, explain
from fastdc.explanation.explanation import Explanation
from fastdc.explanation.judging import (
    Interval,
    average_precision,
    best_share,
    bootstrap_mean,
    energy_inside,
    iou,
    pointing_game,
)
from fastdc.explanation.level_curves import level_curves
from fastdc.explanation.map_pictures import brightness_picture, overlay_picture, scale_of, signed_picture
from fastdc.explanation.named_classes import runner_up
from fastdc.explanation.page import MOST_IMAGES
from fastdc.explanation.paired_pixels import CONTROLS, p_values, significant_pixels
from fastdc.explanation.perturbing import BASELINES, Curves, deletion, insertion
from fastdc.explanation.region import Region, region_of
from fastdc.explanation.shuffled import shuffled_bundle, shuffled_module

__all__ = [
    "ATTRIBUTIONS",
    "BANDS",
    "BASELINES",
    "CONTROLS",
    "EDITS",
    "MOST_IMAGES",
    "Counterfactuals",
    "Curves",
    "Edit",
    "ErrorMaps",
    "Explanation",
    "ExplanationArrays",
    "ImageCounterfactual",
    "ImageExplanation",
    "Interval",
    "MapSimilarity",
    "Region",
    "attributions",
    "average_precision",
    "best_share",
    "bootstrap_mean",
    "brightness_picture",
    "check_explanation",
    "counterfactuals",
    "deletion",
    "energy_inside",
    "error_maps",
    "explain",
    "flipped",
    "insertion",
    "iou",
    "l1_distance",
    "level_curves",
    "map_similarity",
    "overlay_picture",
    "p_values",
    "pointing_game",
    "region_of",
    "runner_up",
    "scale_of",
    "shuffled_bundle",
    "shuffled_module",
    "signed_picture",
    "significant_pixels",
    "ssim",
]
