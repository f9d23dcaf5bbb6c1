"""The released grids and weights against the formulas of the code, evaluated level by level."""

import math
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.diffusion.plan import Plan, make_plan
from fastdc.inference import plan_config
from fastdc.inference.released_plans import released_plan
from helpers.worlds import fails_with, gaussian

MODEL = gaussian(3).model
TAU = 0.5


def plan(method: str, steps: int = 126) -> Plan:
    config = plan_config(MODEL, released_plan(MODEL, method, TAU / 2, steps=steps))
    return make_plan(MODEL.schedule, MODEL.parameterization, config)


def p(s: float) -> float:
    return 1 / (s * 1.2 * math.sqrt(2 * math.pi)) * math.exp(-((math.log(s) + 1.2) ** 2) / 2 * 1.2**2)


def edm(s: float) -> float:
    return (s * s + 0.25) / (0.5 * s) ** 2  # their sigma_data, and this model's, which has none of its own


def test_apndc_has_124_levels_with_the_density_of_the_one_before() -> None:
    made = plan("apndc")
    grid = np.linspace(TAU, 3, 126)
    assert made.draws == 124
    np.testing.assert_allclose(made.levels.sigma, grid[1:125], rtol=1e-9)
    expected = [edm(grid[i + 1]) * p(grid[i]) * (grid[i + 1] - grid[i]) for i in range(124)]
    np.testing.assert_allclose(made.rows[:, 6], expected, rtol=1e-5)


def test_epndc_weighs_the_posteriors_as_the_code_does() -> None:
    made = plan("epndc", 60)
    grid = np.linspace(TAU, 3, 60)
    assert made.draws == 53
    rng = np.random.default_rng(0)
    for j, i in enumerate(range(5, 58)):
        s, following, dt = grid[i], grid[i + 1], grid[i + 1] - grid[i]
        x_tau, e, h = rng.normal(size=3)
        x_next = x_tau + math.sqrt(following**2 - TAU**2) * e
        q = ((following**2 - s**2) * x_tau + (s**2 - TAU**2) * x_next) / (following**2 - TAU**2)
        posterior = ((following**2 - s**2) * h + s**2 * x_next) / following**2
        ratio = following**2 * (following**2 - TAU**2) / (4 * dt**2 * (s**2 - TAU**2))
        expected = edm(s) * p(s) * dt * ratio * (posterior - q) ** 2
        gx, ge, a, b, c, d, weight, _ = made.rows[j].astype(np.float64)
        assert math.isclose(gx * x_tau + ge * e, x_next, rel_tol=1e-5)
        ours = weight * (a * h + b * x_tau + c * e) ** 2
        assert math.isclose(ours, expected, rel_tol=1e-3, abs_tol=1e-9)
        assert d == 0


@pytest.mark.parametrize(
    ("method", "sigma", "steps", "named"),
    [
        ("dc", 0.25, 126, "apndc and epndc"),
        ("apndc", 0, 126, "sigma"),
        ("apndc", 1.5, 126, "sigma"),
        ("apndc", "0.25", 126, "sigma"),
        ("epndc", 0.25, 7, "steps"),
        ("apndc", 0.25, 1.5, "steps"),
    ],
)
def test_what_has_no_released_form_is_refused(method: str, sigma: Any, steps: Any, named: str) -> None:
    fails_with(lambda: released_plan(MODEL, method, sigma, steps=steps), named, kind=InputError)
