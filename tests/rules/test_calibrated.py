"""The race against a constant: the formula class by class, changes that do not matter, and refusals."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion.plan import MAX_DRAWS
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.protocol import geometric_looks
from helpers.rule_runs import Request, batches, check_alone, kept, pack, run, single
from helpers.worlds import fails_with


@given(batches(), st.integers(0, 5), st.sampled_from([0.05, 0.5, 3.0]))
def test_drops_by_the_lead_summed_over_draws_in_units_of_the_best_mean(
    requests: list[Request], index: int, limit: float
) -> None:
    for (classes, errors), stays in zip(requests, kept(Calibrated(limit), pack(requests, index=index)), strict=True):
        draws = errors.shape[1]
        means = [math.fsum(row) / draws for row in errors.astype(np.float64).tolist()]
        best = min(means)
        assume(best > 0)
        for name, mean in zip(classes.tolist(), means, strict=True):
            lead = draws * (mean - best) / best
            assume(not math.isclose(lead, limit, rel_tol=1e-9))
            assert (name in stays) is (lead <= limit)


@given(batches(), st.sampled_from([2.0**-20, 2.0**7]), st.floats(0, 10))
def test_units_do_not_matter(requests: list[Request], unit: float, limit: float) -> None:
    scaled = [(classes, np.float32(unit) * errors) for classes, errors in requests]
    assert kept(Calibrated(limit), pack(scaled)) == kept(Calibrated(limit), pack(requests))


@given(batches(), st.floats(0, 10), st.floats(0, 10))
def test_a_larger_limit_keeps_the_classes_that_a_smaller_one_keeps(
    requests: list[Request], one: float, other: float
) -> None:
    look = pack(requests)
    few, many = Calibrated(min(one, other)).keep(look), Calibrated(max(one, other)).keep(look)
    assert not np.any(few & ~many)


def test_a_limit_of_nothing_keeps_only_ties() -> None:
    assert kept(Calibrated(0), single([[1.0, 2.0], [2.0, 1.0], [1.5, 1.75]])) == [[0, 1]]


def test_the_same_gap_weighs_more_after_more_draws() -> None:
    errors = np.array([[1.0] * 8, [1.25] * 8])
    rule = Calibrated(1.0)
    assert [len(kept(rule, single(errors[:, :m]))[0]) for m in (1, 2, 4, 5, 8)] == [2, 2, 2, 1, 1]


def test_a_class_without_any_error_beats_all_others() -> None:
    assert kept(Calibrated(1e9), single([[1e-30], [0.0], [0.0]])) == [[1, 2]]


@given(st.integers(1, MAX_DRAWS))
def test_looks_are_geometric(draws: int) -> None:
    looks = Calibrated(1).looks(draws)
    assert looks == geometric_looks(draws)
    assert looks[-1] == draws
    assert len(looks) <= 4 + math.log2(draws)
    assert all(b <= 2 * a for a, b in pairwise(looks))
    assert set(looks[:-1]) == {look for look in (1, 2, 3, *(2**i for i in range(2, 21))) if look < draws}


def test_a_longer_run_than_calibrated_is_refused() -> None:
    rule = Calibrated(0.5, draws=64)
    assert rule.looks(64)[-1] == 64
    assert rule.looks(3) == (1, 2, 3)
    fails_with(lambda: rule.looks(65), "rule calibrated is calibrated for up to 64 draws, got 65", kind=InputError)
    fails_with(lambda: Calibrated(0.5).looks(0), "at least one draw", kind=InputError)


@given(batches(), st.integers(0, 3), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], index: int, padding: int) -> None:
    check_alone(Calibrated(0.5), requests, index, padding)


def test_clear_losers_leave_early_and_near_ties_stay() -> None:
    rng = np.random.default_rng(0)
    errors = np.abs(rng.normal(1, 0.05, (50, 4, 64))) + np.array([0.0, 0.0005, 0.5, 2.0])[:, None]
    result = run(Calibrated(1.0), errors)
    assert result.alive[:, :2].all(axis=1).mean() > 0.8
    assert not result.alive[:, 2:].any()
    assert result.evaluations.max() < 4 * 64 * 0.6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": -0.1}, "limit must be 0 or positive and finite, got -0.1"),
        ({"limit": float("nan")}, "nan"),
        ({"limit": float("inf")}, "inf"),
        ({"limit": "1"}, "'1'"),
        ({"limit": 1, "draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"limit": 1, "draws": 2.0}, "2.0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: Calibrated(**options), "rule calibrated", says, kind=InputError)
