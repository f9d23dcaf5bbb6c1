"""Plans: a nested, evenly spread order of noise levels inside the band, with the rows that belong to them."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

from fastdc import InputError
from fastdc.ops import ROW_FIELDS
from fastdc.parameterization import Parameterization
from fastdc.plan import MAX_DRAWS, PlanConfig, make_plan, van_der_corput
from fastdc.schedules import AbstractSchedule, DiscreteSchedule, EDMSchedule, FlowSchedule
from fastdc.weighting import WEIGHTINGS, weighting

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


@given(st.sampled_from(MODELS), st.integers(1, 300), st.integers(1, 300))
def test_a_longer_plan_starts_with_the_shorter(
    model: tuple[AbstractSchedule, Parameterization], a: int, b: int
) -> None:
    short, long = (make_plan(*model, PlanConfig(draws=draws, levels=(0.1, 3.0))) for draws in sorted((a, b)))
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


configs = st.builds(
    PlanConfig,
    draws=st.integers(1, MAX_DRAWS),
    levels=st.none() | st.tuples(st.floats(1e-6, 1), st.floats(1.5, 1e6)),
    weighting=st.sampled_from(WEIGHTINGS),
    loss=st.sampled_from(["l2", "l1", "huber"]),
    delta=st.floats(1e-6, 1e6),
)


@given(configs)
def test_a_config_is_plain_values(config: PlanConfig) -> None:
    entry = json.loads(json.dumps(config.to_dict()))
    levels = None if entry["levels"] is None else tuple(entry["levels"])
    assert PlanConfig(**{**entry, "levels": levels}) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"draws": 0}, "draws must be 1 to"),
        ({"draws": MAX_DRAWS + 1}, "draws must be 1 to"),
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
    ],
)
def test_bad_configs_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        PlanConfig(**{"draws": 4, **changed})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
