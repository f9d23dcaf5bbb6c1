"""Parameterisations with schedules that fit them, and the clean image that a network's output means in each."""

import math

from fastdc.diffusion.cosine_schedule import CosineSchedule
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.schedules import ContinuousSchedule, EDMSchedule, FlowSchedule, VPSchedule
from fastdc.diffusion.stepped_schedules import DiscreteSchedule

SIGMA_DATA = 0.6
VP, VE, FLOW = DiscreteSchedule("scaled_linear", 0.00085, 0.012), EDMSchedule(), FlowSchedule(shift=2.0)
# The schedules that fit each kind.
SCHEDULES: dict[str, list[AbstractSchedule]] = {
    "epsilon": [VP, VE, FLOW, VPSchedule()],
    "v_prediction": [VP, ContinuousSchedule(), CosineSchedule(shift=-1.4)],
    "sample": [VP, VE, FLOW],
    "edm": [VE],
    "flow": [FLOW],
    "score": [VP, VE, FLOW],
}
PAIRS = [(kind, schedule) for kind, known in SCHEDULES.items() for schedule in known]


def make(kind: str) -> Parameterization:
    return Parameterization(kind, SIGMA_DATA if kind == "edm" else None)


def image_said(kind: str, f: float, x_t: float, alpha: float, sigma: float) -> float:
    """The estimate of x0 by a network of that kind whose raw output is f."""
    if kind == "epsilon":
        return (x_t - sigma * f) / alpha
    if kind == "score":  # sigma times the score of x_t, which is -(x_t - alpha x0) / sigma^2
        return (x_t + sigma * f) / alpha
    if kind == "v_prediction":  # v = alpha e - sigma x
        return alpha * x_t - sigma * f
    if kind == "sample":
        return f
    if kind == "flow":  # v = e - x, and x_t = x + t v
        return x_t - sigma * f
    root = math.sqrt(sigma**2 + SIGMA_DATA**2)
    return SIGMA_DATA**2 / root**2 * x_t + sigma * SIGMA_DATA / root * f
