"""The definition of one error: kernels, schedules, parameterisations, weightings, noisy methods and plans of draws."""

from fastdc.diffusion import kernels
from fastdc.diffusion.cosine_schedule import CosineSchedule
from fastdc.diffusion.kernels import (
    LOSSES,
    PURPOSE_DIFFUSION,
    PURPOSE_ESTIMATION,
    PURPOSE_SAMPLING,
    PURPOSE_SELECTION,
    ROW_FIELDS,
    Ledger,
)
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.levels import AbstractSchedule, Levels
from fastdc.diffusion.noisy_copies import noisy_copies, one_copy_each
from fastdc.diffusion.noisy_methods import MEAN, METHODS, Method, method_of
from fastdc.diffusion.parameterization import Parameterization, parameterization_from_dict
from fastdc.diffusion.plan import MAX_DRAWS, ORDERS, Plan, PlanConfig, make_plan, random_positions
from fastdc.diffusion.schedules import ContinuousSchedule, EDMSchedule, FlowSchedule, VPSchedule, schedule_from_dict
from fastdc.diffusion.stepped_schedules import (
    BETA_SCHEDULES,
    MAX_TABLE,
    DiscreteSchedule,
    SteppedSchedule,
    TableSchedule,
)
from fastdc.diffusion.weighting import MIN_SNR_GAMMA, WEIGHTINGS, weighting

__all__ = [
    "BETA_SCHEDULES",
    "LOSSES",
    "MAX_DRAWS",
    "MAX_TABLE",
    "MEAN",
    "METHODS",
    "MIN_SNR_GAMMA",
    "ORDERS",
    "PURPOSE_DIFFUSION",
    "PURPOSE_ESTIMATION",
    "PURPOSE_SAMPLING",
    "PURPOSE_SELECTION",
    "ROW_FIELDS",
    "WEIGHTINGS",
    "AbstractSchedule",
    "ContinuousSchedule",
    "CosineSchedule",
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
    "VPSchedule",
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
