"""Images in, answers out: options, jobs, the table of errors, decisions, results."""

from fastdc.inference.candidates import Candidates, check_candidates
from fastdc.inference.choosing_images import (
    LEAST_CALIBRATING,
    LEAST_CHOOSING,
    choice_size,
    choosing_half,
    declined_note,
    size_note,
    split_images,
)
from fastdc.inference.class_names import class_indices, named_indices
from fastdc.inference.decide import DECISIONS, Decision, by_class, decide, decide_table, posterior, prior_shifts
from fastdc.inference.denoisers import AbstractDenoiser
from fastdc.inference.error_table import ErrorTable, mean_errors
from fastdc.inference.fits import CALIBRATION_SEEDS, Fits, fit_runs, full_runs
from fastdc.inference.images import (
    Images,
    check_streams,
    images_with_labels,
    seen_through,
    streams_of,
    to_model_range,
)
from fastdc.inference.job import Job
from fastdc.inference.options import ImageOptions, Options, PlanOptions, RunOptions, TableOptions, merged
from fastdc.inference.plan_choice import CHOICES, PlanChoice, Trial, band_words
from fastdc.inference.plan_options import plan_config
from fastdc.inference.plan_search import check_choosable, choose_plan, choose_plan_of
from fastdc.inference.prior import Prior
from fastdc.inference.released_plans import released_plan
from fastdc.inference.results import Classification, ImageResult, OnProgress, Progress, class_keys
from fastdc.inference.self_calibration import FULL, SelfCalibration
from fastdc.inference.settings import Settings
from fastdc.inference.stream import stream_results
from fastdc.inference.validation import CALIBRATION_DRAWS, ValidationRuns
from fastdc.inference.whole_progress import WholeProgress
from fastdc.inference.wide_errors import WideErrors, bands, wide_band, wide_errors, wide_of_tables

__all__ = [
    "CALIBRATION_DRAWS",
    "CALIBRATION_SEEDS",
    "CHOICES",
    "DECISIONS",
    "FULL",
    "LEAST_CALIBRATING",
    "LEAST_CHOOSING",
    "AbstractDenoiser",
    "Candidates",
    "Classification",
    "Decision",
    "ErrorTable",
    "Fits",
    "ImageOptions",
    "ImageResult",
    "Images",
    "Job",
    "OnProgress",
    "Options",
    "PlanChoice",
    "PlanOptions",
    "Prior",
    "Progress",
    "RunOptions",
    "SelfCalibration",
    "Settings",
    "TableOptions",
    "Trial",
    "ValidationRuns",
    "WholeProgress",
    "WideErrors",
    "band_words",
    "bands",
    "by_class",
    "check_candidates",
    "check_choosable",
    "check_streams",
    "choice_size",
    "choose_plan",
    "choose_plan_of",
    "choosing_half",
    "class_indices",
    "class_keys",
    "decide",
    "decide_table",
    "declined_note",
    "fit_runs",
    "full_runs",
    "images_with_labels",
    "mean_errors",
    "merged",
    "named_indices",
    "plan_config",
    "posterior",
    "prior_shifts",
    "released_plan",
    "seen_through",
    "size_note",
    "split_images",
    "stream_results",
    "streams_of",
    "to_model_range",
    "wide_band",
    "wide_errors",
    "wide_of_tables",
]
