"""What one error is: kernels, schedules, parameterisations, weightings, noisy methods, the plan of draws."""

from fastdc.diffusion import kernels
from fastdc.diffusion.kernels import (
    LOSSES,
    PURPOSE_DIFFUSION,
    PURPOSE_ESTIMATION,
    PURPOSE_SELECTION,
    ROW_FIELDS,
    Ledger,
)
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.noisy_copies import noisy_copies, one_copy_each
from fastdc.diffusion.noisy_methods import METHODS, Method, method_of
from fastdc.diffusion.parameterization import Parameterization, parameterization_from_dict
from fastdc.diffusion.plan import MAX_DRAWS, ORDERS, Plan, PlanConfig, make_plan, random_positions
from fastdc.diffusion.schedules import (
    BETA_SCHEDULES,
    MAX_TABLE,
    AbstractSchedule,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Levels,
    SteppedSchedule,
    TableSchedule,
    schedule_from_dict,
)
from fastdc.diffusion.weighting import WEIGHTINGS, weighting

__all__ = [
    "BETA_SCHEDULES",
    "LOSSES",
    "MAX_DRAWS",
    "MAX_TABLE",
    "METHODS",
    "ORDERS",
    "PURPOSE_DIFFUSION",
    "PURPOSE_ESTIMATION",
    "PURPOSE_SELECTION",
    "ROW_FIELDS",
    "WEIGHTINGS",
    "AbstractSchedule",
    "DiscreteSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "Ledger",
    "LevelWeights",
    "Levels",
    "Method",
    "Parameterization",
    "Plan",
    "PlanConfig",
    "SteppedSchedule",
    "TableSchedule",
    "kernels",
    "make_plan",
    "method_of",
    "noisy_copies",
    "one_copy_each",
    "parameterization_from_dict",
    "random_positions",
    "schedule_from_dict",
    "weighting",
]
