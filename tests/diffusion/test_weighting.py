"""Weightings against their sources: the formulas, the bounds that define them, and invariance between spaces."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from fastdc import InputError
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.parameterization import SPACES, Parameterization
from fastdc.diffusion.schedules import ContinuousSchedule, EDMSchedule, FlowSchedule
from fastdc.diffusion.stepped_schedules import DiscreteSchedule
from fastdc.diffusion.weighting import WEIGHTINGS, weighting
from helpers.parameterizations import PAIRS, image_said, make

VP, VE, FLOW = DiscreteSchedule(), EDMSchedule(), FlowSchedule()
SCHEDULES: list[AbstractSchedule] = [VP, VE, FLOW]
U = np.linspace(0.02, 0.98, 25)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_positive_numbers_in_a_known_space(name: str, schedule: AbstractSchedule) -> None:
    rule = weighting(name)
    weights = rule.weight(schedule.levels(U))
    assert rule.name == name
    assert rule.space in SPACES
    assert weights.shape == U.shape
    assert np.isfinite(weights).all()
    assert (weights > 0).all()


def test_every_weighting_is_described_here() -> None:
    assert WEIGHTINGS == ("uniform", "edm", "vlb", "exp", "min_snr", "velocity")


def test_uniform() -> None:
    assert weighting("uniform").space == "eps"
    assert (weighting("uniform").weight(VP.levels(U)) == 1).all()


@given(st.floats(0.1, 2.0))
def test_edm_is_the_inverse_of_the_squared_output_scale(sigma_data: float) -> None:
    """Karras et al., table 1: lambda = 1 / c_out^2, with which the raw network is trained with weight 1."""
    levels = VE.levels(U)
    c_out = Parameterization("edm", sigma_data).rows(levels, 1.0)[:, 2].astype(float)
    assert weighting("edm").space == "x0"
    np.testing.assert_allclose(weighting("edm").weight(levels, sigma_data), 1 / c_out**2, rtol=1e-5)


def test_edm_uses_the_noise_to_signal_ratio_of_other_schedules() -> None:
    for schedule in (VP, FLOW):
        levels = schedule.levels(U)
        ratio = levels.sigma / levels.alpha
        np.testing.assert_allclose(weighting("edm").weight(levels, 0.5), 1 / 0.25 + 1 / ratio**2, rtol=1e-12)


def test_edm_falls_back_to_the_published_sigma_data() -> None:
    levels = VE.levels(U)
    np.testing.assert_array_equal(weighting("edm").weight(levels), weighting("edm").weight(levels, 0.5))
    assert not np.array_equal(weighting("edm").weight(levels), weighting("edm").weight(levels, 1.0))


def test_vlb_is_the_discrete_bound_of_ddpm() -> None:
    """KL(q(x_{t-1} | x_t, x) || p) = beta_t^2 / (2 s_t^2 (1 - beta_t) (1 - alpha_bar_t)) ||e - e_hat||^2.

    Ho et al., eq. 12; s_t^2 is the posterior's variance; the sum over t is T times the mean over a uniform position.
    """
    steps = VP.num_train_timesteps
    betas = np.linspace(VP.beta_start, VP.beta_end, steps)
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    t = np.arange(1, steps)  # the first term of the bound is the likelihood, not a KL
    posterior = betas * (1 - before) / (1 - alpha_bar)
    in_eps = betas[t] ** 2 / (2 * posterior[t] * (1 - betas[t]) * (1 - alpha_bar[t]))
    levels = VP.levels((t + 0.5) / steps)
    in_x0 = in_eps * (levels.alpha / levels.sigma) ** 2
    assert weighting("vlb").space == "x0"
    np.testing.assert_allclose(weighting("vlb").weight(levels) / steps, in_x0, rtol=1e-6)


def test_vlb_is_the_continuous_bound() -> None:
    """1/2 int -SNR'(u) ||x - D||^2 du does not depend on the schedule (Kingma et al., eq. 18).

    With the best denoiser of a Gaussian of variance s^2 the mean squared error is s^2 / (1 + s^2 SNR), and the integral
    over SNR from a to b is ln((1 + s^2 b) / (1 + s^2 a)) / 2.
    """
    spread = 0.3
    wide = EDMSchedule(sigma_min=0.01, sigma_max=50.0)
    for schedule, (low, high) in ((wide, (0.0, 1.0)), (FLOW, (0.01, 0.99)), (FlowSchedule(shift=3.0), (0.01, 0.99))):

        def integrand(u: float, schedule: AbstractSchedule = schedule) -> float:
            levels = schedule.levels([u])
            return float(weighting("vlb").weight(levels)[0] * spread**2 / (1 + spread**2 * levels.snr[0]))

        ends = schedule.levels([low, high]).snr
        expected = math.log((1 + spread**2 * ends[0]) / (1 + spread**2 * ends[1])) / 2
        assert integrate.quad(integrand, low, high, limit=200)[0] == pytest.approx(expected, rel=1e-6)


def test_exp() -> None:
    """Clark & Jaini: w(t) = exp(-7 t) on the squared error of the image."""
    assert weighting("exp").space == "x0"
    np.testing.assert_allclose(weighting("exp").weight(VE.levels([0.0, 0.5, 1.0])), [1, math.exp(-3.5), math.exp(-7)])


def test_min_snr() -> None:
    """Hang et al.: min(SNR, 5) on the squared error of the image is min(SNR, 5) / SNR on that of the noise."""
    levels = VP.levels(U)
    snr = levels.alpha**2 / levels.sigma**2
    assert weighting("min_snr").space == "eps"
    np.testing.assert_allclose(
        weighting("min_snr").weight(levels), [min(value, 5.0) / value for value in snr.tolist()], rtol=1e-12
    )
    assert (snr > 5).any()
    assert (snr < 5).any()


def velocity(x: float, e: float, alpha: float, sigma: float, schedule: AbstractSchedule) -> float:
    """The derivative of x_t = alpha x + sigma e: by t on straight paths, by the angle on VP ones, by sigma on VE."""
    if isinstance(schedule, FlowSchedule):
        return e - x
    exploding = isinstance(schedule, EDMSchedule) and not isinstance(schedule, ContinuousSchedule)
    return e if exploding else alpha * e - sigma * x


@pytest.mark.parametrize(("kind", "schedule"), PAIRS, ids=repr)
@given(x=st.floats(-1, 1), e=st.floats(-3, 3), f=st.floats(-3, 3))
def test_velocity_is_the_squared_error_of_the_velocity(
    kind: str, schedule: AbstractSchedule, x: float, e: float, f: float
) -> None:
    levels = schedule.levels(np.array([0.1, 0.5, 0.9]))
    rule = weighting("velocity")
    rows = make(kind).rows(levels, rule.weight(levels), rule.space).astype(float)
    for (_, _, a, b, c, _, weight, _), alpha, sigma in zip(
        rows, levels.alpha.tolist(), levels.sigma.tolist(), strict=True
    ):
        x_t = alpha * x + sigma * e
        said = image_said(kind, f, x_t, alpha, sigma)
        e_said = (x_t - alpha * said) / sigma
        error = velocity(said, e_said, alpha, sigma, schedule) - velocity(x, e, alpha, sigma, schedule)
        rounding = 2e-7 * (abs(a * f) + abs(b * x) + abs(c * e))  # coefficients are float32
        rounding += 1e-14 * (abs(x) + abs(e) + abs(said) + abs(e_said)) / sigma  # and the differences here float64
        got = math.sqrt(weight) * abs(a * f + b * x + c * e)
        assert math.isclose(got, abs(error), rel_tol=1e-12, abs_tol=rounding + 1e-300)  # subnormals have few bits


def test_the_velocity_of_a_flow_network_counts_as_it_is() -> None:
    levels = FLOW.levels(U)
    row = Parameterization("flow").rows(levels, weighting("velocity").weight(levels), "v")
    assert (row[:, 2:7] == [1, 1, -1, 0, 1]).all()  # F + x - e, with weight 1


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", ["sample", "epsilon"])
def test_a_weighted_squared_error_is_the_same_in_every_space(name: str, schedule: AbstractSchedule, kind: str) -> None:
    """sqrt(weight) (a, b, c) in the weighting's space is that in x0, up to one sign, with the weight converted."""
    levels = schedule.levels(U)
    rule = weighting(name)
    weights = rule.weight(levels)
    to_x0 = {"x0": np.ones_like(U), "eps": (levels.alpha / levels.sigma) ** 2, "v": 1 / levels.sigma**2}[rule.space]
    here, there = (
        np.sqrt(rows[:, 6:7]) * rows[:, 2:5]
        for rows in (
            Parameterization(kind).rows(levels, weights, rule.space).astype(float),
            Parameterization(kind).rows(levels, weights * to_x0, "x0").astype(float),
        )
    )
    np.testing.assert_allclose(here * np.sign(here[:, :1]), there * np.sign(there[:, :1]), rtol=1e-6)


def test_uniform_in_eps_is_one_over_sigma_squared_in_the_image() -> None:
    levels = VE.levels(U)
    in_eps = Parameterization("sample").rows(levels, weighting("uniform").weight(levels), "eps").astype(float)
    in_x0 = Parameterization("sample").rows(levels, 1 / levels.sigma**2, "x0").astype(float)
    np.testing.assert_allclose(in_eps[:, 6] * in_eps[:, 2] ** 2, in_x0[:, 6] * in_x0[:, 2] ** 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "Uniform", "snr", "none"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^weighting must be one of uniform, edm, vlb, exp, min_snr, velocity, got "):
        weighting(name)
