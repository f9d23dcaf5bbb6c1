"""Fits to validation images: the race's limit, informative noise levels, the posterior's temperature, and evidence."""

from fastdc.calibration.evidence import beyond_doubt, within_noise
from fastdc.calibration.levels import (
    LevelAccuracy,
    fit_level_weights,
    informative_band,
    informative_levels,
    most_informative,
)
from fastdc.calibration.race import (
    calibrate_errors,
    check_level,
    controlled_limit,
    needed_limits,
    race_evaluations,
    supported_delta,
)
from fastdc.calibration.temperature import fit_temperature, with_doubt

__all__ = [
    "LevelAccuracy",
    "beyond_doubt",
    "calibrate_errors",
    "check_level",
    "controlled_limit",
    "fit_level_weights",
    "fit_temperature",
    "informative_band",
    "informative_levels",
    "most_informative",
    "needed_limits",
    "race_evaluations",
    "supported_delta",
    "with_doubt",
    "within_noise",
]
