"""Images in, answers out: jobs, the table of errors, decisions, results."""

from fastdc.inference.decide import DECISIONS, Decision, by_class, decide, decide_table, posterior
from fastdc.inference.error_table import ErrorTable, mean_errors
from fastdc.inference.images import check_streams, streams_of, to_model_range
from fastdc.inference.job import Candidates, Job, PlanOptions, Rows, Settings, check_candidates, plan_config
from fastdc.inference.released_plans import released_plan
from fastdc.inference.results import Classification, OnProgress, Progress

__all__ = [
    "DECISIONS",
    "Candidates",
    "Classification",
    "Decision",
    "ErrorTable",
    "Job",
    "OnProgress",
    "PlanOptions",
    "Progress",
    "Rows",
    "Settings",
    "by_class",
    "check_candidates",
    "check_streams",
    "decide",
    "decide_table",
    "mean_errors",
    "plan_config",
    "posterior",
    "released_plan",
    "streams_of",
    "to_model_range",
]
