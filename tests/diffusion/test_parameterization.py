"""Coefficient rows against the textbook: a network's output converted to x0, e or v by its own formula, then compared.

The oracle works on one pixel in float64: it makes x_t, takes any F, computes the x0, e and v that F means by the
formulas of the sources, and subtracts the truth. The row must give the same number as a F + b x + c e.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion.kernels import ROW_FIELDS
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.parameterization import KINDS, SPACES, Parameterization, parameterization_from_dict
from fastdc.diffusion.schedules import EDMSchedule
from helpers.parameterizations import FLOW, PAIRS, SCHEDULES, SIGMA_DATA, VE, VP, image_said, make

value = st.floats(-3, 3)


def error_said(space: str, x_said: float, x: float, e: float, alpha: float, sigma: float) -> float:
    """The error of that estimate in x0, in e, or in the velocity of the path at this x_t."""
    if space == "x0":
        return x_said - x
    e_said = (alpha * x + sigma * e - alpha * x_said) / sigma
    if space == "eps":
        return e_said - e
    if math.isclose(alpha + sigma, 1):  # flow: v = e - x
        return (e_said - x_said) - (e - x)
    if math.isclose(alpha**2 + sigma**2, 1):
        return (alpha * e_said - sigma * x_said) - (alpha * e - sigma * x)
    return -(x_said - x) / sigma  # no path is standard: the factor that both of the others have


@given(st.sampled_from(PAIRS), st.sampled_from(SPACES), st.floats(0.01, 0.99), value, value, value)
def test_rows_give_the_error_of_the_networks_estimate(
    pair: tuple[str, AbstractSchedule], space: str, u: float, x: float, e: float, f: float
) -> None:
    kind, schedule = pair
    levels = schedule.levels([u])
    alpha, sigma = float(levels.alpha[0]), float(levels.sigma[0])
    row = dict(zip(ROW_FIELDS, make(kind).rows(levels, [2.5], space)[0].astype(float).tolist(), strict=True))
    x_t = alpha * x + sigma * e
    said = image_said(kind, f, x_t, alpha, sigma)
    terms = row["a"] * f, row["b"] * x, row["c"] * e
    # Coefficients are float32; the terms cancel. The conversions divide by sigma and alpha.
    slack = 2.0**-23 * sum(map(abs, terms)) + 1e-12 * (1 + abs(said)) * (1 + alpha / sigma) * (1 + 1 / sigma)
    assert abs(sum(terms) - error_said(space, said, x, e, alpha, sigma)) <= slack
    assert row["d"] == 0
    assert row["weight"] == 2.5
    assert row["timestep"] == pytest.approx(float(levels.timestep[0]), rel=2.0**-23)


@pytest.mark.parametrize(("kind", "schedule"), PAIRS, ids=str)
def test_the_network_sees_x_t_scaled_as_its_source_says(kind: str, schedule: AbstractSchedule) -> None:
    levels = schedule.levels(np.linspace(0.01, 0.99, 9))
    rows = make(kind).rows(levels, 1.0)
    scale = 1 / np.sqrt(levels.sigma**2 + SIGMA_DATA**2) if kind == "edm" else np.ones(9)
    np.testing.assert_allclose(rows[:, 0], scale * levels.alpha, rtol=2.0**-23)
    np.testing.assert_allclose(rows[:, 1], scale * levels.sigma, rtol=2.0**-23)
    assert rows.dtype == np.float32
    assert rows.shape == (9, len(ROW_FIELDS))


@pytest.mark.parametrize(("kind", "schedule"), PAIRS, ids=str)
@pytest.mark.parametrize("space", SPACES)
def test_a_perfect_network_makes_no_error(kind: str, schedule: AbstractSchedule, space: str) -> None:
    x, e = 0.3, -1.2
    levels = schedule.levels(np.linspace(0.05, 0.95, 7))
    for level, row in enumerate(make(kind).rows(levels, 1.0, space).astype(float)):
        alpha, sigma = levels.alpha[level], levels.sigma[level]
        root = math.sqrt(sigma**2 + SIGMA_DATA**2)
        answer = {
            "epsilon": e,
            "score": -e,
            "v_prediction": alpha * e - sigma * x,
            "sample": x,
            "flow": e - x,
            "edm": (x - SIGMA_DATA**2 / root**2 * (x + sigma * e)) * root / (sigma * SIGMA_DATA),
        }[kind]
        terms = np.array([row[2] * answer, row[3] * x, row[4] * e])
        assert abs(terms.sum()) <= 2.0**-23 * np.abs(terms).sum() + 1e-14


@pytest.mark.parametrize(("kind", "schedule"), PAIRS, ids=str)
def test_the_target_is_what_a_perfect_network_says(kind: str, schedule: AbstractSchedule) -> None:
    levels = schedule.levels(np.linspace(0.05, 0.95, 7))
    x0, eps = 0.7, -1.3
    gx, ge, x, e = make(kind).target(levels)
    for j in range(len(levels)):
        alpha, sigma = levels.alpha[j], levels.sigma[j]
        x_t = alpha * x0 + sigma * eps
        assert math.isclose(image_said(kind, x[j] * x0 + e[j] * eps, x_t, alpha, sigma), x0, rel_tol=1e-6)
        scale = (sigma**2 + SIGMA_DATA**2) ** -0.5 if kind == "edm" else 1
        assert math.isclose(gx[j] * x0 + ge[j] * eps, scale * x_t, rel_tol=1e-9, abs_tol=1e-12)


def test_edm_is_the_published_preconditioning() -> None:
    """Karras et al., table 1, at sigma_data = 0.5 and sigma = 1: c_skip = 1/5, c_out = 1/sqrt(5), c_in = 2/sqrt(5)."""
    levels = EDMSchedule(sigma_min=0.01, sigma_max=100.0).levels([0.5])
    assert levels.sigma[0] == pytest.approx(1, rel=1e-12)
    assert levels.timestep[0] == pytest.approx(0, abs=1e-12)
    row = Parameterization("edm", 0.5).rows(levels, 1.0)[0]
    expected = [2 / math.sqrt(5), 2 / math.sqrt(5), 1 / math.sqrt(5), 0.2 - 1, 0.2, 0, 1, 0]
    np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-12)


@given(st.floats(-20, 20), st.floats(0.01, 10))
def test_edm_keeps_its_invariants(log_sigma: float, sigma_data: float) -> None:
    """The network's input has unit variance, and so has its training target (eq. 114 to 117 there)."""
    sigma = math.exp(log_sigma / 4)
    levels = EDMSchedule(sigma_min=sigma, sigma_max=2 * sigma).levels([0.0])
    gx, ge, a, b, c = Parameterization("edm", sigma_data).rows(levels, 1.0)[0, :5].astype(float)
    assert (gx * sigma_data) ** 2 + ge**2 == pytest.approx(1, rel=1e-6)
    assert (b * sigma_data) ** 2 + c**2 == pytest.approx(a**2, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_space_needs_no_conversion(kind: str) -> None:
    levels = SCHEDULES[kind][0].levels([0.3, 0.6])
    parameterization = make(kind)
    assert parameterization.space in SPACES
    np.testing.assert_array_equal(
        parameterization.rows(levels, 1.0), parameterization.rows(levels, 1.0, parameterization.space)
    )


def test_kinds_refuse_schedules_that_do_not_fit() -> None:
    for kind in KINDS:
        for schedule in (VP, VE, FLOW):
            levels = schedule.levels([0.3, 0.6])
            if schedule in SCHEDULES[kind]:
                make(kind).rows(levels, 1.0)
            else:
                with pytest.raises(InputError, match=f"^parameterization {kind} needs a schedule with alpha"):
                    make(kind).rows(levels, 1.0)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0], r"^weight must have shape \(2,\), got \(1,\)"),
        ([[1.0, 1.0]], r"^weight must have shape \(2,\), got \(1, 2\)"),
        ([1.0, math.nan], "^weight of draw 1 is not finite"),
        ([math.inf, 1.0], "^weight of draw 0 is not finite"),
        ([1e39, 1.0], "^weight of draw 0 is not finite"),
        ([1.0, -0.5], "^weights must not be negative, got -0.5"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_weights_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Parameterization("sample").rows(VE.levels([0.3, 0.6]), weight)


def test_bad_spaces_are_refused() -> None:
    with pytest.raises(InputError, match=r"^space must be one of eps, x0, v, got 'x'"):
        Parameterization("sample").rows(VE.levels([0.3]), 1.0, "x")


@given(st.sampled_from(KINDS), st.floats(1e-3, 1e3))
def test_dictionaries_round_trip(kind: str, sigma_data: float) -> None:
    parameterization = Parameterization(kind, sigma_data if kind == "edm" else None)
    assert parameterization_from_dict(parameterization.to_dict()) == parameterization


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"kind": "noise"},
        {"kind": None},
        {"kind": ["edm"]},
        {"kind": "edm"},
        {"kind": "edm", "sigma_data": 0},
        {"kind": "edm", "sigma_data": -1.0},
        {"kind": "edm", "sigma_data": math.nan},
        {"kind": "edm", "sigma_data": math.inf},
        {"kind": "edm", "sigma_data": "0.5"},
        {"kind": "edm", "sigma_data": True},
        {"kind": "sample", "sigma_data": 0.5},
        {"kind": "sample", "scale": 1},
    ],
)
def test_bad_entries_are_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^parameterization [^\n]*$"):
        parameterization_from_dict(entry)
