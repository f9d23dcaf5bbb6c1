"""The Gaussian world on any schedule and as any kind of network, with the exact paths of its probability flow ODE."""

from dataclasses import replace

import numpy as np

from fastdc import DiffusionClassifier
from fastdc.backends import FunctionNetwork, NetworkOptions
from fastdc.diffusion import AbstractSchedule, EDMSchedule
from fastdc.sampling import Point
from fastdc.support import Float32, Float64, Int64
from helpers.parameterizations import SIGMA_DATA, make
from helpers.worlds import SHAPE, gaussian

WORLD = gaussian(3)
SPREAD = WORLD.spread


def world_as(kind: str, schedule: AbstractSchedule) -> DiffusionClassifier:
    """The Gaussian world's optimal denoiser, as a network of any kind on any schedule, in float64."""
    grid = schedule.levels(np.linspace(0, 1, 1001))
    order = np.argsort(grid.timestep)

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        sigma, alpha = (
            np.interp(timestep, grid.timestep[order], values[order])[:, None, None, None]
            for values in (grid.sigma, grid.alpha)
        )
        if type(schedule) is EDMSchedule:  # interpolation is not exact there
            sigma = np.exp(timestep.astype(np.float64) / schedule.timestep_scale)[:, None, None, None]
        scale = (sigma**2 + SIGMA_DATA**2) ** -0.5 if kind == "edm" else 1.0
        x_t = sample.astype(np.float64) / scale
        inside = (alpha * SPREAD) ** 2
        x0 = WORLD.means[labels] + alpha * SPREAD**2 * (x_t - alpha * WORLD.means[labels]) / (inside + sigma**2)
        e = (x_t - alpha * x0) / sigma
        if kind == "edm":
            c_skip = SIGMA_DATA**2 * scale**2
            return np.asarray((x0 - c_skip * x_t) / (sigma * SIGMA_DATA * scale))
        outputs = {"epsilon": e, "score": -e, "sample": x0, "flow": e - x0, "v_prediction": alpha * e - sigma * x0}
        return np.asarray(outputs[kind])

    model = replace(WORLD.model, schedule=schedule, parameterization=make(kind))
    return DiffusionClassifier(model, FunctionNetwork(function, SHAPE, NetworkOptions(batch=64)))


def exact(x: Float64, start: Point, end: Point, label: int = 1) -> Float64:
    """x at another level of its path: x / alpha keeps its place in units of the deviation of x_t / alpha."""
    grown = np.sqrt((SPREAD**2 + end.ratio**2) / (SPREAD**2 + start.ratio**2))
    return np.asarray(end.alpha * (WORLD.means[label] + grown * (x / start.alpha - WORLD.means[label])))
