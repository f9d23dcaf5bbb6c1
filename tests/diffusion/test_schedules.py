"""Schedules against diffusers, closed forms and numerical derivatives; positions invert; dictionaries round-trip."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion.cosine_schedule import CosineSchedule
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.diffusion.schedules import ContinuousSchedule, EDMSchedule, FlowSchedule, VPSchedule, schedule_from_dict
from fastdc.diffusion.stepped_schedules import BETA_SCHEDULES, DiscreteSchedule, TableSchedule

discrete = st.builds(
    lambda name, start, ratio, steps: DiscreteSchedule(name, start, min(0.03, start * ratio), steps),
    st.sampled_from(BETA_SCHEDULES),
    st.floats(1e-6, 0.01),
    st.floats(1, 200),
    st.integers(1, 2000),
)
edm = st.builds(
    lambda low, ratio, scale, offset: EDMSchedule(low, low * ratio, scale, offset),
    st.floats(1e-4, 1),
    st.floats(1.5, 1e5),
    st.floats(-1000, 1000),
    st.floats(-1000, 1000),
)
continuous = edm.map(lambda like: ContinuousSchedule(like.sigma_min, like.sigma_max, like.timestep_scale))
vp = st.builds(VPSchedule, st.floats(0, 40), st.floats(1e-3, 1), st.floats(1e-6, 0.1), st.floats(-1000, 1000))
cosine = st.builds(
    lambda low, length, shift, scale, offset: CosineSchedule(low, low + length, shift, scale, offset),
    st.floats(-25, 5),
    st.floats(0.5, 30),
    st.floats(-10, 10),
    st.floats(-1000, 1000),
    st.floats(-1000, 1000),
)
flow = st.builds(FlowSchedule, st.floats(0.1, 20), st.floats(-1000, 1000))
table = discrete.map(lambda schedule: TableSchedule(tuple(schedule.alphas_cumprod.tolist())))
schedules = st.one_of(discrete, table, edm, continuous, vp, cosine, flow)
positions = st.lists(st.floats(0, 1), min_size=1, max_size=20)

EXAMPLES: list[AbstractSchedule] = [
    *(DiscreteSchedule(beta_schedule=name) for name in BETA_SCHEDULES),
    EDMSchedule(),
    ContinuousSchedule(),
    VPSchedule(),
    CosineSchedule(),
    FlowSchedule(),
    FlowSchedule(shift=3.0),
]


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize(("start", "end", "steps"), [(1e-4, 0.02, 1000), (0.00085, 0.012, 1000), (1e-3, 0.2, 50)])
def test_alphas_cumprod_are_those_of_diffusers(name: str, start: float, end: float, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=steps, beta_start=start, beta_end=end, beta_schedule=name
    ).alphas_cumprod.numpy()
    ours = DiscreteSchedule(name, start, end, steps).alphas_cumprod
    # Theirs are float32: 1 - beta is off by 2^-25 and each product by 2^-24, both relative to 1 - beta >= 0.001.
    factors = ours / np.concatenate([[1.0], ours[:-1]])
    tolerance = np.cumsum(2.0**-25 / factors + 2.0**-24) + 2.0**-20
    assert (np.abs(theirs / ours - 1) <= tolerance).all()


def test_alphas_cumprod_by_hand() -> None:
    linear = DiscreteSchedule("linear", 0.1, 0.3, 3).alphas_cumprod
    np.testing.assert_allclose(linear, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-14)
    scaled = DiscreteSchedule("scaled_linear", 0.04, 0.16, 3).alphas_cumprod
    np.testing.assert_allclose(scaled, [0.96, 0.96 * 0.91, 0.96 * 0.91 * 0.84], rtol=1e-14)
    assert DiscreteSchedule("linear", 0.1, 0.1, 1).alphas_cumprod.tolist() == [0.9]


def test_the_cosine_telescopes_where_no_beta_is_capped() -> None:
    steps = 200
    alpha_bar = DiscreteSchedule("squaredcos_cap_v2", num_train_timesteps=steps).alphas_cumprod
    t = np.arange(1, steps)  # the last beta is capped

    def f(u: Any) -> Any:
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(alpha_bar[:-1], f(t / steps) / f(0), rtol=1e-10)
    assert alpha_bar[-1] == pytest.approx(alpha_bar[-2] * 0.001)


@given(discrete, positions)
def test_discrete_levels(schedule: DiscreteSchedule, u: list[float]) -> None:
    levels = schedule.levels(u)
    steps, alpha_bar = schedule.num_train_timesteps, schedule.alphas_cumprod
    assert (np.diff(alpha_bar) < 0).all()
    assert ((alpha_bar > 0) & (alpha_bar < 1)).all()
    for j, position in enumerate(u):
        t = min(math.floor(position * steps), steps - 1)
        assert levels.timestep[j] == t
        assert levels.alpha[j] == pytest.approx(math.sqrt(alpha_bar[t]), rel=1e-15)
        assert levels.sigma[j] == pytest.approx(math.sqrt(1 - alpha_bar[t]), rel=1e-15)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-14)


def test_neighbours_are_never_equal() -> None:
    """Products below the normal floats stop falling: 0.7 times the smallest float is that float again."""
    products = np.cumprod(np.full(2500, 0.7))
    assert products[-1] == products[-2] > 0
    for steps in (1, 2, 1000):
        assert np.all(np.diff(DiscreteSchedule("linear", 0.3, 0.3, steps).alphas_cumprod) < 0)
    assert TableSchedule((0.5, np.nextafter(0.5, 0))).alphas_cumprod.tolist() == [0.5, np.nextafter(0.5, 0)]


@given(discrete)
def test_discrete_positions_invert(schedule: DiscreteSchedule) -> None:
    steps = schedule.num_train_timesteps
    for t in {0, steps // 3, steps - 1}:
        levels = schedule.levels([(t + 0.5) / steps])
        u = schedule.position_of(float(levels.sigma[0] / levels.alpha[0]))
        assert schedule.levels([u]).timestep[0] == t
    assert schedule.position_of(1e-30) == 0.5 / steps
    assert schedule.position_of(1e30) == (steps - 0.5) / steps


@given(discrete)
def test_the_discrete_slope_is_the_drop_of_snr(schedule: DiscreteSchedule) -> None:
    steps = schedule.num_train_timesteps
    levels = schedule.levels((np.arange(steps) + 0.5) / steps)
    assert levels.snr_slope[0] == 0
    assert (levels.snr_slope >= 0).all()
    np.testing.assert_allclose(np.cumsum(levels.snr_slope) / steps, levels.snr[0] - levels.snr, rtol=1e-9, atol=1e-9)


@given(discrete, positions)
def test_a_table_has_the_levels_of_what_it_lists(schedule: DiscreteSchedule, u: list[float]) -> None:
    listed = TableSchedule(tuple(schedule.alphas_cumprod.tolist()))
    ours, theirs = listed.levels(u), schedule.levels(u)
    for name in ("position", "alpha", "sigma", "timestep", "snr_slope"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert listed.position_of(0.7) == schedule.position_of(0.7)


def test_a_plan_takes_steps_of_a_table() -> None:
    config = PlanConfig(draws=2, timesteps=(2, 0))
    plan = make_plan(TableSchedule((0.9, 0.5, 0.1)), Parameterization("epsilon"), config)
    assert plan.levels.timestep.tolist() == [2, 0]
    np.testing.assert_allclose(plan.levels.alpha**2, [0.1, 0.9])
    with pytest.raises(InputError, match="timesteps must be below 3, got 3"):
        make_plan(TableSchedule((0.9, 0.5, 0.1)), Parameterization("epsilon"), PlanConfig(draws=1, timesteps=(3,)))


@given(edm, positions)
def test_edm_levels(schedule: EDMSchedule, u: list[float]) -> None:
    levels = schedule.levels(u)
    expected = schedule.sigma_min ** (1 - np.array(u)) * schedule.sigma_max ** np.array(u)
    np.testing.assert_allclose(levels.sigma, expected, rtol=1e-12)
    told = schedule.timestep_scale * np.log(expected) + schedule.timestep_offset
    np.testing.assert_allclose(levels.timestep, told, rtol=1e-9, atol=1e-9)
    assert (levels.alpha == 1).all()
    for sigma, position in zip(levels.sigma.tolist(), u, strict=True):
        assert schedule.position_of(sigma) == pytest.approx(position, abs=1e-9)
    assert schedule.position_of(schedule.sigma_min / 2) == 0
    assert schedule.position_of(schedule.sigma_max * 2) == 1


@given(vp, positions)
def test_vp_levels(schedule: VPSchedule, u: list[float]) -> None:
    """alpha solves d ln alpha / dt = -beta(t) / 2 with beta(t) = beta_min + t beta_d; the ratio is Karras et al.'s."""
    levels = schedule.levels(u)
    t = schedule.epsilon_t + np.array(u) * (1 - schedule.epsilon_t)
    np.testing.assert_allclose(levels.timestep, schedule.timestep_scale * t, rtol=1e-12)
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(5)
    inside = t[:, None] * (nodes + 1) / 2
    area = ((schedule.beta_min + schedule.beta_d * inside) * weights).sum(axis=1) * t / 2
    np.testing.assert_allclose(levels.alpha, np.exp(-area / 2), rtol=1e-12)
    np.testing.assert_allclose(levels.ratio, np.sqrt(np.expm1(area)), rtol=1e-9)
    for ratio, position in zip(levels.ratio.tolist(), u, strict=True):
        assert schedule.position_of(ratio) == pytest.approx(position, abs=1e-9)
    assert schedule.position_of(1e-30) == 0
    assert schedule.position_of(1e30) == 1


@given(cosine, positions)
def test_cosine_levels(schedule: CosineSchedule, u: list[float]) -> None:
    """Hoogeboom et al., arXiv 2301.11093, appendix A, in long doubles."""
    levels, t = schedule.levels(u), np.array(u, np.longdouble)
    a, b = (np.arctan(np.exp(-np.longdouble(end) / 2)) for end in (schedule.logsnr_max, schedule.logsnr_min))
    logsnr = -2 * np.log(np.tan(a + t * (b - a))) + np.longdouble(schedule.shift)
    np.testing.assert_allclose(np.log(levels.snr), logsnr, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(levels.alpha, np.sqrt(1 / (1 + np.exp(-logsnr))), rtol=1e-9)
    np.testing.assert_allclose(levels.sigma, np.sqrt(1 / (1 + np.exp(logsnr))), rtol=1e-9)
    told = schedule.timestep_scale * logsnr + schedule.timestep_offset
    np.testing.assert_allclose(levels.timestep, told, rtol=1e-9, atol=1e-9)
    # d lambda / dt = -2 (b - a) / (sin cos), and the slope is -d exp(lambda) / dt.
    slope = np.exp(logsnr) * 2 * (b - a) / (np.sin(a + t * (b - a)) * np.cos(a + t * (b - a)))
    np.testing.assert_allclose(levels.snr_slope, slope, rtol=1e-9)
    for ratio, position in zip(levels.ratio.tolist(), u, strict=True):
        assert schedule.position_of(ratio) == pytest.approx(position, abs=1e-9)
    assert schedule.position_of(1e-30) == 0
    assert schedule.position_of(1e30) == 1


def test_a_shifted_cosine_has_the_ends_of_the_medical_classifier() -> None:
    """Limits of +-15 + ln(64 / 256), and 2 ln(64 / 256) added: three times ln(1 / 4) in all."""
    quarter = math.log(64 / 256)
    schedule = CosineSchedule(-15 + quarter, 15 + quarter, 2 * quarter)
    levels = schedule.levels([0.0, 0.5, 1.0])
    middle = (math.atan(math.exp(-(15 + quarter) / 2)) + math.atan(math.exp((15 - quarter) / 2))) / 2
    wanted = [15 + 3 * quarter, -2 * math.log(math.tan(middle)) + 2 * quarter, -15 + 3 * quarter]
    np.testing.assert_allclose(levels.timestep, wanted, rtol=1e-12)
    np.testing.assert_allclose(levels.alpha**2, 1 / (1 + np.exp(-levels.timestep)), rtol=1e-12)
    plain = CosineSchedule().levels([0.3])  # pi u / 2 but for the ends, which the limits of 15 hardly move
    assert math.atan(plain.ratio[0]) == pytest.approx(0.3 * math.pi / 2, abs=2e-3)


@given(flow, positions)
def test_flow_levels(schedule: FlowSchedule, u: list[float]) -> None:
    levels = schedule.levels(u)
    np.testing.assert_allclose(levels.alpha + levels.sigma, 1, rtol=1e-15)
    assert ((levels.sigma >= 1e-4) & (levels.sigma <= 1 - 1e-4)).all()
    np.testing.assert_allclose(levels.timestep, schedule.timestep_scale * levels.sigma, rtol=1e-15)
    for j, position in enumerate(u):
        t = position if schedule.shift == 1 else schedule.shift * position / (1 + (schedule.shift - 1) * position)
        if 2e-4 < t < 1 - 2e-4:
            assert levels.sigma[j] == pytest.approx(t, rel=1e-9)
            ratio = float(levels.sigma[j] / levels.alpha[j])
            assert schedule.position_of(ratio) == pytest.approx(position, abs=1e-9)


def test_the_shift_of_flow_levels_is_that_of_its_source() -> None:
    """Esser et al., eq. 23: a shift of sqrt(m / n) multiplies the noise-to-signal ratio by it."""
    plain, shifted = FlowSchedule(), FlowSchedule(shift=3.0)
    u = np.linspace(0.05, 0.95, 19)
    a, b = plain.levels(u), shifted.levels(u)
    np.testing.assert_allclose(b.sigma / b.alpha, 3 * a.sigma / a.alpha, rtol=1e-12)


@given(st.one_of(edm, vp, cosine, flow), st.floats(0.02, 0.98))
def test_the_slope_is_the_derivative_of_snr(schedule: AbstractSchedule, u: float) -> None:
    step = 1e-5
    low, here, high = (schedule.levels([at]) for at in (u - step, u, u + step))
    if isinstance(schedule, FlowSchedule) and not 1e-3 < here.sigma[0] < 1 - 1e-3:
        return  # t is held away from its ends
    numerical = -(high.snr[0] - low.snr[0]) / (2 * step)
    # The error of a central difference is step^2 / 6 times the third derivative, which is at most (slope / SNR)^2 or
    # so of the first for an exponential, plus rounding of the difference.
    assert here.snr_slope[0] == pytest.approx(numerical, rel=1e-4)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_noise_grows_with_position(schedule: AbstractSchedule) -> None:
    levels = schedule.levels(np.linspace(0, 1, 101))
    assert len(levels) == 101
    assert (np.diff(levels.snr) < 0).all()
    np.testing.assert_allclose(levels.snr, levels.alpha**2 / levels.sigma**2)
    assert (levels.sigma > 0).all()
    for field in (levels.position, levels.alpha, levels.sigma, levels.timestep, levels.snr_slope):
        assert field.dtype == np.float64
        assert field.shape == (101,)
        assert np.isfinite(field).all()


@given(schedules)
def test_dictionaries_round_trip(schedule: AbstractSchedule) -> None:
    entry = json.loads(json.dumps(schedule.to_dict()))
    assert schedule_from_dict(entry) == schedule


BAD_ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({}, "schedule kind must be one of ddpm, edm, continuous, vp, cosine, flow, ddpm_table, got None"),
    "unknown kind": ({"kind": "sine"}, "schedule kind must be one of"),
    "unhashable kind": ({"kind": []}, "schedule kind must be one of"),
    "unknown option": ({"kind": "edm", "beta": 1.0}, "schedule edm has no option 'beta'"),
    "private option": ({"kind": "flow", "_margin": 0.1}, "schedule flow has no option '_margin'"),
    "text": ({"kind": "edm", "sigma_min": "0.1"}, "schedule option sigma_min must be float, got '0.1'"),
    "bool": ({"kind": "edm", "sigma_min": True}, "schedule option sigma_min must be float, got True"),
    "float steps": ({"kind": "ddpm", "num_train_timesteps": 10.0}, "num_train_timesteps must be int"),
    "no steps": (
        {"kind": "ddpm", "num_train_timesteps": 0},
        "must be a whole number from 1 to 1000000, got 0",
    ),
    "many steps": (
        {"kind": "ddpm", "num_train_timesteps": 1_000_001},
        "must be a whole number from 1 to 1000000",
    ),
    "unknown betas": ({"kind": "ddpm", "beta_schedule": "sigmoid"}, "beta_schedule must be one of linear"),
    "betas swapped": ({"kind": "ddpm", "beta_start": 0.02, "beta_end": 1e-4}, "betas must satisfy"),
    "beta of 1": ({"kind": "ddpm", "beta_end": 1.0}, "betas must satisfy"),
    "beta NaN": ({"kind": "ddpm", "beta_start": math.nan}, "betas must satisfy"),
    "vanishing image": ({"kind": "ddpm", "num_train_timesteps": 1_000_000}, "alpha_bar must stay inside"),
    "image that stops vanishing": (
        {"kind": "ddpm", "beta_start": 0.3, "beta_end": 0.3, "num_train_timesteps": 2500},
        "alpha_bar must stay inside (0, 1), got 0.7 to ",
    ),
    "vanishing noise": ({"kind": "ddpm", "beta_start": 1e-300}, "alpha_bar must stay inside"),
    "no table": ({"kind": "ddpm_table"}, "alphas_cumprod must be a list of numbers, got None"),
    "empty table": ({"kind": "ddpm_table", "alphas_cumprod": []}, "must be 1 to 10000 numbers, got 0"),
    "long table": ({"kind": "ddpm_table", "alphas_cumprod": [0.5] * 10_001}, "1 to 10000 numbers, got 10001"),
    "table of text": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, "0.1"]}, "must be a list of numbers"),
    "table of bools": ({"kind": "ddpm_table", "alphas_cumprod": [True]}, "must be a list of numbers"),
    "rising table": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, 0.4, 0.4]}, "got 0.4 at step 2"),
    "table of equals": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, 0.5, 0.4]}, "got 0.5 at step 1"),
    "table below floats": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, 1e-310]}, "got 1e-310 at step 1"),
    "table of 1": ({"kind": "ddpm_table", "alphas_cumprod": [1.0, 0.4]}, "got 1.0 at step 0"),
    "table of 0": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, 0.0]}, "got 0.0 at step 1"),
    "table of NaN": ({"kind": "ddpm_table", "alphas_cumprod": [0.5, math.nan]}, "got nan at step 1"),
    "table option": ({"kind": "ddpm_table", "alphas_cumprod": [0.5], "a": 1}, "ddpm_table has no option 'a'"),
    "sigma of 0": ({"kind": "edm", "sigma_min": 0.0}, "sigmas must satisfy 0 < min < max"),
    "sigmas equal": ({"kind": "edm", "sigma_min": 1.0, "sigma_max": 1.0}, "sigmas must satisfy"),
    "sigma infinite": ({"kind": "edm", "sigma_max": math.inf}, "sigmas must satisfy"),
    "edm scale": ({"kind": "edm", "timestep_scale": math.nan}, "timestep_scale must be a finite number, got nan"),
    "edm offset": ({"kind": "edm", "timestep_offset": math.inf}, "timestep_offset must be a finite number, got inf"),
    "vp without noise": ({"kind": "vp", "beta_min": 0.0}, "beta_min must be positive"),
    "vp falling": ({"kind": "vp", "beta_d": -1.0}, "beta_d must be 0 or positive"),
    "vp from 0": ({"kind": "vp", "epsilon_t": 0.0}, "epsilon_t must lie strictly between 0 and 1"),
    "vp without an image": ({"kind": "vp", "beta_d": 1000.0}, "exponent of vp levels must stay in (1e-12, 100.0)"),
    "vp vanishing noise": ({"kind": "vp", "epsilon_t": 1e-200}, "exponent of vp levels must stay in"),
    "vp scale": ({"kind": "vp", "timestep_scale": math.nan}, "timestep_scale must be a finite number"),
    "shift of 0": ({"kind": "flow", "shift": 0.0}, "shift must be positive"),
    "shift NaN": ({"kind": "flow", "shift": math.nan}, "shift must be positive"),
    "cosine upside down": (
        {"kind": "cosine", "logsnr_min": 15.0, "logsnr_max": -15.0},
        "logsnr_min and logsnr_max must satisfy min < max and stay in [-60, 60], also with the shift, got 15 and -15",
    ),
    "cosine too far": ({"kind": "cosine", "logsnr_max": 61.0}, "stay in [-60, 60]"),
    "cosine shifted too far": ({"kind": "cosine", "shift": 50.0}, "got -15 and 15 with shift 50"),
    "cosine NaN": ({"kind": "cosine", "logsnr_min": math.nan}, "must satisfy min < max"),
    "cosine shift": ({"kind": "cosine", "shift": math.inf}, "shift must be a finite number, got inf"),
    "flow scale": ({"kind": "flow", "timestep_scale": math.inf}, "timestep_scale must be a finite number, got inf"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_bad_entries_are_refused(name: str) -> None:
    entry, message = BAD_ENTRIES[name]
    with pytest.raises(InputError) as caught:
        schedule_from_dict(entry)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("position", [[-1e-9], [1.0000001], [math.nan], 0.5, [[0.5]]])
@pytest.mark.parametrize("schedule", EXAMPLES[2:5], ids=repr)
def test_bad_positions_are_refused(schedule: AbstractSchedule, position: Any) -> None:
    with pytest.raises(InputError, match=r"^positions must be"):
        schedule.levels(position)
