"""Plans: nested orders of noise levels, spread evenly or drawn at random, and their rows."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, qmc

from fastdc import InputError
from fastdc.diffusion.kernels import ROW_FIELDS
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.levels import AbstractSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.diffusion.plan import (
    MAX_DRAWS,
    ORDERS,
    PlanConfig,
    make_plan,
    random_positions,
    van_der_corput,
)
from fastdc.diffusion.schedules import EDMSchedule, FlowSchedule
from fastdc.diffusion.stepped_schedules import DiscreteSchedule
from fastdc.diffusion.weighting import WEIGHTINGS, weighting
from fastdc.support.arrays import Float64
from fastdc.support.checks import MAX_SEED
from fastdc.testing import reference

MODELS: list[tuple[AbstractSchedule, Parameterization]] = [
    (DiscreteSchedule(), Parameterization("epsilon")),
    (DiscreteSchedule("squaredcos_cap_v2"), Parameterization("v_prediction")),
    (EDMSchedule(), Parameterization("edm", 0.75)),
    (EDMSchedule(), Parameterization("sample")),
    (FlowSchedule(shift=3.0), Parameterization("flow")),
]
IDS = [f"{schedule.to_dict()['kind']}-{parameterization.kind}" for schedule, parameterization in MODELS]


def test_van_der_corput_is_that_of_scipy() -> None:
    np.testing.assert_array_equal(van_der_corput(4097), qmc.Halton(1, scramble=False).random(4098)[1:, 0])
    assert van_der_corput(7).tolist() == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_longer_sequence_starts_with_the_shorter(a: int, b: int) -> None:
    short, long = sorted((a, b))
    np.testing.assert_array_equal(van_der_corput(long)[:short], van_der_corput(short))


@pytest.mark.parametrize("m", range(1, 13))
def test_full_prefixes_are_the_dyadic_points(m: int) -> None:
    """The first 2^m - 1 elements are the multiples of 2^-m inside (0, 1): with 0, one in each cell of that width."""
    points = np.sort(van_der_corput(2**m - 1))
    np.testing.assert_array_equal(points, np.arange(1, 2**m) / 2**m)
    assert set(np.floor(points * 2**m)) == set(range(1, 2**m))


@given(st.integers(1, 5000))
def test_every_prefix_is_evenly_spread(count: int) -> None:
    """Gaps differ by no more than a factor of two, up to the ends, and every large interval gets its share."""
    points = np.concatenate([[0.0], np.sort(van_der_corput(count)), [1.0]])
    gaps = np.diff(points)
    assert gaps.max() <= 2 * gaps.min()
    edges = np.linspace(0, 1, 9)
    shares = np.histogram(points[1:-1], edges)[0]
    assert shares.max() - shares.min() <= 2


def test_the_longest_plan_stays_inside() -> None:
    points = van_der_corput(MAX_DRAWS)
    assert points.min() > 0
    assert points.max() < 1
    assert len(np.unique(points)) == MAX_DRAWS


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_rows_are_those_of_the_levels(model: tuple[AbstractSchedule, Parameterization], name: str) -> None:
    schedule, parameterization = model
    plan = make_plan(schedule, parameterization, PlanConfig(draws=31, weighting=name))
    levels = schedule.levels(van_der_corput(31))
    rule = weighting(name)
    weights = rule.weight(levels, parameterization.sigma_data)
    assert plan.draws == len(plan.levels) == len(plan.rows) == 31
    assert plan.config.weighting == name
    np.testing.assert_array_equal(plan.levels.sigma, levels.sigma)
    np.testing.assert_array_equal(plan.rows, parameterization.rows(levels, weights, rule.space))
    np.testing.assert_allclose(plan.rows[:, ROW_FIELDS.index("weight")], weights, rtol=2.0**-23)
    np.testing.assert_allclose(plan.rows[:, ROW_FIELDS.index("timestep")], levels.timestep, rtol=2.0**-23)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_the_band_holds_every_level_and_is_filled(model: tuple[AbstractSchedule, Parameterization]) -> None:
    schedule, parameterization = model
    low, high = 0.2, 2.0
    plan = make_plan(schedule, parameterization, PlanConfig(draws=255, levels=(low, high)))
    ratio = plan.levels.sigma / plan.levels.alpha
    step = 1.02 if isinstance(schedule, DiscreteSchedule) else 1 + 1e-9  # half a timestep of a thousand
    assert low / step <= ratio.min() < low * 1.1
    assert high / 1.1 < ratio.max() <= high * step


@given(
    st.sampled_from(MODELS),
    st.integers(1, 300),
    st.integers(1, 300),
    st.lists(st.floats(0.05, 20), max_size=3),
    st.sampled_from(ORDERS),
    st.booleans(),
)
def test_a_longer_plan_starts_with_the_shorter(
    model: tuple[AbstractSchedule, Parameterization], a: int, b: int, first: list[float], order: str, pairs: bool
) -> None:
    options: dict[str, Any] = {"levels": (0.1, 3.0), "first": tuple(first), "order": order, "antithetic": pairs}
    short, long = (make_plan(*model, PlanConfig(draws=draws, **options)) for draws in sorted((a, b)))
    np.testing.assert_array_equal(long.rows[: short.draws], short.rows)
    np.testing.assert_array_equal(long.levels.position[: short.draws], short.levels.position)


@pytest.mark.parametrize("band", [(1e-9, 1e-6), (1e6, 1e9)])
@pytest.mark.parametrize("model", [MODELS[0], MODELS[2]], ids=[IDS[0], IDS[2]])
def test_a_band_outside_the_schedule_is_refused(
    model: tuple[AbstractSchedule, Parameterization], band: tuple[float, float]
) -> None:
    with pytest.raises(InputError, match=r"^levels \(.*\) lie outside the schedule"):
        make_plan(*model, PlanConfig(draws=4, levels=band))


def test_a_band_that_reaches_over_an_end_is_cut_there() -> None:
    plan = make_plan(EDMSchedule(), Parameterization("sample"), PlanConfig(draws=127, levels=(1e-9, 1.0)))
    assert 0.002 <= plan.levels.sigma.min() < 0.0022
    assert 0.95 < plan.levels.sigma.max() <= 1


# --- random order ----------------------------------------------------------------------------------------------------


def philox4x64_words(key: int, count: int) -> list[int]:
    """The words of NumPy's Philox: Philox4x64-10 at the counters 1, 2, ... (Salmon et al., SC'11, section 3.2)."""
    mask, words = 2**64 - 1, []
    for block in range(1, -(-count // 4) + 1):
        c, k0, k1 = [block, 0, 0, 0], key, 0
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(p1 >> 64) ^ c[1] ^ k0, p1 & mask, (p0 >> 64) ^ c[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += c
    return words[:count]


@given(st.integers(0, MAX_SEED), st.integers(0, 20))
def test_random_positions_are_philox(seed: int, count: int) -> None:
    words = philox4x64_words(seed, count)
    expected = [((word >> 12) + 0.5) / 2**52 for word in words]
    assert random_positions(count, seed).tolist() == expected


def test_random_positions_are_independent_uniform_numbers() -> None:
    """Uniform, and uncorrelated with the next number and between seeds: 1e-4 and 4 sigma, on one fixed sample."""
    points = random_positions(20_000, 7)
    assert kstest(points, "uniform").pvalue > 1e-4
    assert 0 < points.min() < points.max() < 1
    for other in (np.roll(points, 1), random_positions(20_000, 8)):
        assert abs(np.corrcoef(points, other)[0, 1]) < 4 / np.sqrt(20_000)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_random_levels_fill_the_band_in_the_order_of_the_seed(model: tuple[AbstractSchedule, Parameterization]) -> None:
    schedule = model[0]
    plan = make_plan(*model, PlanConfig(draws=50, levels=(0.2, 2.0), order="random", order_seed=3))
    low, high = schedule.position_of(0.2), schedule.position_of(2.0)
    expected = schedule.levels([low + (high - low) * u for u in random_positions(50, 3).tolist()])
    np.testing.assert_array_equal(plan.levels.sigma, expected.sigma)
    other = make_plan(*model, PlanConfig(draws=50, levels=(0.2, 2.0), order="random", order_seed=4))
    assert not (other.levels.position == plan.levels.position).any()


# --- antithetic pairs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("draws", [1, 2, 3, 16, 17])
def test_pairs_share_the_levels_of_half_as_many_draws(draws: int, order: str) -> None:
    for model in MODELS:
        options: dict[str, Any] = {"levels": (0.2, 2.0), "order": order, "first": (0.5,), "weighting": "edm"}
        plan = make_plan(*model, PlanConfig(draws=draws, antithetic=True, **options))
        single = make_plan(*model, PlanConfig(draws=(draws + 1) // 2, **options))
        assert plan.antithetic
        assert not single.antithetic
        for j in range(draws):
            assert plan.levels.position[j] == single.levels.position[j // 2]
            sign = np.where(np.isin(ROW_FIELDS, ["ge", "c"]), (-1) ** j, 1)
            np.testing.assert_array_equal(plan.rows[j], sign * single.rows[j // 2])


def perfect_output(kind: str, x: Float64, e: Float64, alpha: float, sigma: float) -> Float64:
    """The output of a network that knows x and e, by the kinds' definitions; sigma_data of "edm" is 0.75."""
    if kind == "edm":  # Karras et al., table 1
        c_skip, c_out = 0.75**2 / (sigma**2 + 0.75**2), sigma * 0.75 / math.sqrt(sigma**2 + 0.75**2)
        return (x - c_skip * (x + sigma * e)) / c_out
    return {"epsilon": e, "v_prediction": alpha * e - sigma * x, "sample": x, "flow": e - x}[kind]


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_second_of_a_pair_sees_the_negative_noise(
    model: tuple[AbstractSchedule, Parameterization], name: str
) -> None:
    """The input is that of x and -e, and a network that predicts perfectly from x and -e has no residual."""
    rng = np.random.default_rng(0)
    x, e = rng.uniform(-1, 1, 50), rng.standard_normal(50)
    plan = make_plan(*model, PlanConfig(draws=14, levels=(0.2, 2.0), weighting=name, antithetic=True))
    for j, row in enumerate(plan.rows.astype(np.float64)):
        alpha, sigma, seen = float(plan.levels.alpha[j]), float(plan.levels.sigma[j]), e if j % 2 == 0 else -e
        scale = row[0] / alpha  # EDM networks are given c_in x_t
        np.testing.assert_allclose(reference.noisy_image(x, row, e), scale * (alpha * x + sigma * seen), atol=1e-5)
        output = perfect_output(model[1].kind, x, seen, alpha, sigma)
        size = np.abs(row[2:5]).sum() * 5
        np.testing.assert_allclose(reference.residual(output, x, row, e), 0, atol=2.0**-21 * size)
        assert np.abs(reference.residual(output + 0.1, x, row, e)).min() > 0.05 * abs(row[2])


# --- levels that are given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_the_first_levels_precede_the_order(model: tuple[AbstractSchedule, Parameterization], order: str) -> None:
    """They may lie outside the band; after them, the order starts from its beginning."""
    config = PlanConfig(draws=20, levels=(0.2, 2.0), order=order, first=(0.5, 7.0))
    plan, without = make_plan(*model, config), make_plan(*model, PlanConfig(draws=18, levels=(0.2, 2.0), order=order))
    ratio = plan.levels.sigma / plan.levels.alpha
    nearest = 0.01 if isinstance(model[0], DiscreteSchedule) else 1e-12  # half a timestep of a thousand
    np.testing.assert_allclose(ratio[:2], [0.5, 7.0], rtol=nearest)
    np.testing.assert_array_equal(plan.rows[2:], without.rows)


def test_the_first_levels_may_be_the_ends_of_the_schedule() -> None:
    for schedule, parameterization in MODELS:
        ends = schedule.levels([0.0, 1.0])
        first = tuple((ends.sigma / ends.alpha).tolist())
        plan = make_plan(schedule, parameterization, PlanConfig(draws=2, first=first))
        np.testing.assert_allclose(plan.levels.sigma, ends.sigma, rtol=1e-9)


@pytest.mark.parametrize("ratio", [1e-9, 1e9])
@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_first_levels_outside_the_schedule_are_refused(
    model: tuple[AbstractSchedule, Parameterization], ratio: float
) -> None:
    with pytest.raises(InputError, match=r"^first must lie in the schedule's .* got 1e[-+]09$"):
        make_plan(*model, PlanConfig(draws=4, first=(0.5, ratio)))


@pytest.mark.parametrize("steps", [1, 7, 1000, 999_983])
def test_timesteps_are_those_of_the_network(steps: int) -> None:
    schedule = DiscreteSchedule(beta_end=0.02 if steps < 10_000 else 2e-4, num_train_timesteps=steps)
    wanted = (*np.random.default_rng(steps).integers(0, steps, 500).tolist(), 0, steps - 1)
    plan = make_plan(schedule, Parameterization("epsilon"), PlanConfig(draws=502, timesteps=wanted))
    assert plan.rows[:, ROW_FIELDS.index("timestep")].tolist() == list(wanted)
    alpha_bar = schedule.alphas_cumprod[list(wanted)]
    np.testing.assert_allclose(plan.levels.snr, alpha_bar / (1 - alpha_bar), rtol=1e-9)
    assert ((plan.levels.position > 0) & (plan.levels.position < 1)).all()


def test_timesteps_need_a_discrete_schedule_that_has_them() -> None:
    config = PlanConfig(draws=2, timesteps=(0, 1000))
    with pytest.raises(InputError, match=r"^timesteps must be below 1000, got 1000$"):
        make_plan(*MODELS[0], config)
    with pytest.raises(InputError, match=r"^timesteps need a discrete schedule, got "):
        make_plan(*MODELS[2], config)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_level_weights_multiply_the_weighting(model: tuple[AbstractSchedule, Parameterization], name: str) -> None:
    """Linear in the logarithm: with weights 1 and 3 at ratios 0.1 and 10, the weight at ratio r is 2 + log10 r."""
    curve = LevelWeights(ratio=(0.1, 10.0), weight=(1.0, 3.0))
    plain = make_plan(*model, PlanConfig(draws=40, levels=(0.2, 2.0), weighting=name))
    plan = make_plan(*model, PlanConfig(draws=40, levels=(0.2, 2.0), weighting=name, level_weights=curve))
    factor = 2 + np.log10(plan.levels.sigma / plan.levels.alpha)
    np.testing.assert_array_equal(np.delete(plan.rows, 6, axis=1), np.delete(plain.rows, 6, axis=1))
    np.testing.assert_allclose(plan.rows[:, 6], plain.rows[:, 6] * factor, rtol=1e-6)


# --- configs ---------------------------------------------------------------------------------------------------------


configs = st.builds(
    PlanConfig,
    draws=st.integers(1, MAX_DRAWS),
    levels=st.none() | st.tuples(st.floats(1e-6, 1), st.floats(1.5, 1e6)),
    weighting=st.sampled_from(WEIGHTINGS),
    loss=st.sampled_from(["l2", "l1", "huber"]),
    delta=st.floats(1e-6, 1e6),
    first=st.lists(st.floats(1e-6, 1e6), max_size=3).map(tuple),
    order=st.just("random"),
    order_seed=st.integers(0, MAX_SEED),
    antithetic=st.booleans(),
    level_weights=st.none() | st.just(LevelWeights((0.1, 1 / 3), (0.0, 2.0))),
) | st.lists(st.integers(0, 10**9), min_size=1, max_size=9).map(
    lambda steps: PlanConfig(draws=len(steps), timesteps=tuple(steps))
)


@given(configs)
def test_a_config_is_plain_values(config: PlanConfig) -> None:
    entry = json.loads(json.dumps(config.to_dict()))
    assert PlanConfig.from_dict(entry) == config
    assert hash(PlanConfig.from_dict(entry)) == hash(config)


def test_numpy_values_become_plain_ones() -> None:
    config = PlanConfig(draws=np.int32(2), first=[np.float32(0.5)], order="random", order_seed=np.uint64(5))  # type: ignore[arg-type]
    listed = PlanConfig(draws=2, timesteps=[np.int64(3), np.int32(4)])  # type: ignore[arg-type]
    for made in (config, listed):
        assert PlanConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_stored_plan_of_an_older_version_means_the_same() -> None:
    """The plan that version 0.1 wrote into an error table."""
    stored = {"draws": 9, "levels": [0.1, 3.0], "weighting": "edm", "loss": "l1", "delta": 2.0}
    old = PlanConfig.from_dict(stored)
    assert old == PlanConfig(draws=9, levels=(0.1, 3.0), weighting="edm", loss="l1", delta=2.0)
    position = EDMSchedule().position_of
    expected = position(0.1) + (position(3.0) - position(0.1)) * van_der_corput(9)
    np.testing.assert_array_equal(make_plan(*MODELS[3], old).levels.position, expected)
    assert stored.items() <= old.to_dict().items()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"draws": 4, "colour": 1}, "a plan has no option 'colour'"),
        ({"draws": 4, 5: 1}, "a plan has no option 5"),
        ({"levels": None}, "a plan needs a number of draws"),
        ({"draws": "4"}, "draws must be a whole number from 1 to 1000000, got '4'"),
        ({"draws": 4, "level_weights": 5}, "level weights must be {ratio, weight}, got 5"),
    ],
)
def test_other_stored_entries_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PlanConfig.from_dict(entry)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"draws": 0}, "draws must be a whole number from 1 to"),
        ({"draws": MAX_DRAWS + 1}, "draws must be a whole number from 1 to"),
        ({"draws": 2.0}, "draws must be a whole number"),
        ({"draws": True}, "draws must be a whole number"),
        ({"levels": (0.0, 1.0)}, "levels must be"),
        ({"levels": (1.0, 1.0)}, "levels must be"),
        ({"levels": (2.0, 1.0)}, "levels must be"),
        ({"levels": (0.1, math.inf)}, "levels must be"),
        ({"levels": (math.nan, 1.0)}, "levels must be"),
        ({"levels": (0.1, 1.0, 2.0)}, "levels must be"),
        ({"levels": ("a", "b")}, "levels must be"),
        ({"levels": 0.5}, "levels must be"),
        ({"weighting": "none"}, "weighting must be"),
        ({"weighting": None}, "weighting must be"),
        ({"loss": "l3"}, "loss must be one of"),
        ({"loss": None}, "loss must be one of"),
        ({"delta": 0.0}, "delta must be positive"),
        ({"delta": math.nan}, "delta must be positive"),
        ({"delta": math.inf}, "delta must be positive"),
        ({"delta": "1"}, "delta must be positive"),
        ({"first": (0.0,)}, "first must be positive"),
        ({"first": (1.0, math.nan)}, "first must be positive"),
        ({"first": (math.inf,)}, "first must be positive"),
        ({"first": ("1",)}, "first must be positive"),
        ({"first": 1.0}, "first must be positive"),
        ({"first": None}, "first must be positive"),
        ({"order": "sobol"}, "order must be one of van_der_corput, random"),
        ({"order": None}, "order must be one of"),
        ({"order": "random", "order_seed": -1}, "order_seed must be a whole number"),
        ({"order": "random", "order_seed": 2**64}, "order_seed must be a whole number"),
        ({"order": "random", "order_seed": 1.0}, "order_seed must be a whole number"),
        ({"order": "random", "order_seed": True}, "order_seed must be a whole number"),
        ({"order_seed": 1}, "order_seed is for order 'random'"),
        ({"level_weights": {"ratio": [1.0], "weight": [1.0]}}, "level_weights must be LevelWeights or None"),
        ({"timesteps": (1, 2, 3)}, "timesteps must be one for each of 4 draws, got 3"),
        ({"timesteps": (1, 2, 3, -1)}, "timesteps must be whole numbers"),
        ({"timesteps": (1, 2, 3, 4.0)}, "timesteps must be whole numbers"),
        ({"timesteps": (1, 2, 3, True)}, "timesteps must be whole numbers"),
        ({"timesteps": 5}, "timesteps must be whole numbers"),
        ({"timesteps": (1, 2, 3, 4), "levels": (0.1, 1.0)}, "timesteps are the whole plan"),
        ({"timesteps": (1, 2, 3, 4), "first": (0.1,)}, "timesteps are the whole plan"),
        ({"timesteps": (1, 2, 3, 4), "order": "random"}, "timesteps are the whole plan"),
        ({"timesteps": (1, 2, 3, 4), "antithetic": True}, "timesteps are the whole plan"),
        ({"antithetic": 1}, "antithetic must be True or False, got 1"),
    ],
)
def test_bad_configs_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PlanConfig(**{"draws": 4, **changed})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
