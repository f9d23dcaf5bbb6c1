"""Fits to validation images: the race's limit, informative noise levels, and the posterior's temperature."""

from fastdc.calibration.levels import (
    LevelAccuracy,
    fit_level_weights,
    informative_band,
    informative_levels,
    most_informative,
)
from fastdc.calibration.race import calibrate_errors, check_level, controlled_limit, needed_limits, supported_delta
from fastdc.calibration.temperature import fit_temperature, with_doubt

__all__ = [
    "LevelAccuracy",
    "calibrate_errors",
    "check_level",
    "controlled_limit",
    "fit_level_weights",
    "fit_temperature",
    "informative_band",
    "informative_levels",
    "most_informative",
    "needed_limits",
    "supported_delta",
    "with_doubt",
]
