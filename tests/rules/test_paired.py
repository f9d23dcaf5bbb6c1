"""Corrected t-tests: the levels spent, the tests taken, and the rate of wrong eliminations in simulated worlds."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.diffusion.plan import MAX_DRAWS
from fastdc.rules.betting import Betting
from fastdc.rules.paired import Paired
from fastdc.rules.protocol import geometric_looks
from fastdc.rules.ttest import TTest
from helpers.rule_runs import Request, assert_rate_below, batches, check_alone, kept, pack, run, single, ties
from helpers.worlds import fails_with


@given(batches(), st.integers(0, 5), st.sampled_from([0.05, 0.5]))
def test_drops_by_one_sided_tests_at_the_level_spent(requests: list[Request], index: int, alpha: float) -> None:
    if requests[0][1].shape[1] < 2:
        return
    level = alpha / ((index + 1) * (index + 2)) / 12
    for (classes, errors), stays in zip(
        requests, kept(Paired(alpha, rivals=12), pack(requests, index=index)), strict=True
    ):
        values = errors.astype(np.float64)
        means = [math.fsum(row) / len(row) for row in values]
        leader = means.index(min(means))
        for k, name in enumerate(classes.tolist()):
            difference = values[k] - values[leader]
            if np.all(difference == difference[0]):
                worse = difference[0] > 0
            else:
                worse = stats.ttest_rel(values[k], values[leader], alternative="greater").pvalue < level
            assert (name in stays) is not worse


@given(st.integers(1, MAX_DRAWS), st.integers(2, 30))
def test_levels_never_sum_to_more_than_alpha(draws: int, first: int) -> None:
    """Each look spends 1 / ((i + 1) (i + 2)) of alpha, see the test above."""
    looks = Paired(0.1, first, rivals=1).looks(draws)
    assert looks[-1] == draws
    assert all(a < b for a, b in pairwise(looks))
    assert looks[0] == min(first, draws)
    assert set(looks[1:]) <= set(geometric_looks(draws))
    assert sum(1 / ((i + 1) * (i + 2)) for i in range(len(looks))) < 1


def test_looks() -> None:
    for first in (3, 4, 5):
        later = tuple(look for look in geometric_looks(40) if look > first)
        assert Paired(0.1, first, rivals=9).looks(40) == (first, *later)
    assert Paired(rivals=9).looks(4) == (3, 4)
    assert Paired(rivals=9).looks(3) == (3,)
    assert Paired(rivals=9).looks(1) == (1,)
    fails_with(lambda: Paired(rivals=9).looks(0), "at least one draw", kind=InputError)


def test_the_first_look_tests() -> None:
    """At the first look of a run, of two draws or more, the first share of alpha, alpha / 2, is spent on its test."""
    apart = np.array([[0.0, 1.0, 2.0, 4.0], [4.0, 5.5, 5.0, 9.0]])
    for m in (2, 3, 4):
        errors = apart[:, :m]
        p = stats.ttest_rel(errors[1], errors[0], alternative="greater").pvalue
        assert kept(Paired(2.0001 * p, m, rivals=1), single(errors)) == [[0]]
        assert kept(Paired(1.9999 * p, m, rivals=1), single(errors)) == [[0, 1]]
        assert kept(Paired(2.0001 * p, m, rivals=1), single(errors, index=1)) == [[0, 1]]
    assert Paired(0.1, 2, rivals=1).looks(9) == (2, 3, 4, 8, 9)
    assert Paired(0.1, 2, rivals=1).looks(2) == (2,)


def test_one_draw_has_no_test() -> None:
    """A run of one draw looks at it; without a spread nothing is dropped, and nothing is divided by zero."""
    with np.errstate(all="raise"):
        assert kept(Paired(0.5, rivals=1), single([[0.0], [9.0]])) == [[0, 1]]


@pytest.mark.parametrize("first", [2, 3, 6])
def test_equal_classes_are_dropped_with_probability_at_most_alpha(first: int) -> None:
    """All classes are best, so the guarantee must hold for each of them; much of the corrected level is used."""
    alpha, n_classes = 0.2, 4
    result = run(Paired(alpha, first, rivals=n_classes - 1), ties(5000, n_classes, 64, seed=first))
    for k in range(n_classes):
        assert_rate_below(~result.alive[:, k], alpha)
    assert result.alive.mean() < 0.99  # and not because nothing is ever dropped


def test_near_ties_and_clear_losers() -> None:
    """Class 0 is slightly better than one rival and much better than others; only the clear losers must leave."""
    alpha = 0.1
    errors = ties(4000, 5, 64, seed=1) + np.array([0, 0.005, 0.02, 1.0, 2.0])[:, None]
    result = run(Paired(alpha, rivals=4), errors)
    assert_rate_below(~result.alive[:, 0], alpha)
    assert not result.alive[:, 3:].any()
    assert result.evaluations.mean() < 0.8 * 5 * 64


def test_the_uncorrected_test_breaks_what_this_one_keeps() -> None:
    """The same worlds at the same level: the simulation distinguishes a controlled error from an uncontrolled one."""
    errors = ties(2000, 4, 64, seed=7)
    wrong = ~run(TTest(3, 2 * 0.1), errors).alive[:, 0]  # two-sided: 0.1 in the tail that matters
    assert wrong.mean() > 0.25
    assert_rate_below(~run(Paired(0.1, rivals=3), errors).alive[:, 0], 0.1)


def test_the_number_of_rivals_must_be_known() -> None:
    fails_with(lambda: Paired().looks(8), "rule paired needs rivals=...", kind=InputError)
    look = single(np.zeros((4, 6)))
    fails_with(lambda: Paired().keep(look), "rule paired needs rivals=...", kind=InputError)
    fails_with(lambda: Paired(rivals=2).keep(look), "up to 3 classes, got 4", kind=InputError)
    assert kept(Paired(rivals=3), look) == [[0, 1, 2, 3]]
    padded = pack([(np.arange(3, dtype=np.int32), np.zeros((3, 6), np.float32))], padding=5)
    assert kept(Paired(rivals=2), padded) == [[0, 1, 2]]


@given(batches(), st.integers(0, 3), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], index: int, padding: int) -> None:
    check_alone(Paired(0.4, rivals=8), requests, index, padding)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 0}, "alpha must lie strictly between 0 and 1, got 0"),
        ({"alpha": float("nan")}, "nan"),
        ({"first": 1}, "first must be a whole number of at least 2, got 1"),
        ({"first": 3.0}, "3.0"),
        ({"rivals": 0}, "rivals"),
        ({"rivals": "all"}, "'all'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: Paired(**options), "rule paired", says, kind=InputError)


def test_requests_may_each_divide_over_their_own_rivals() -> None:
    errors = np.array([[0.0, 0.1, 0.0, 0.1], [0.21, 0.34, 0.25, 0.3], [0.1, 0.3, 0.2, 0.4]], np.float32)
    look = pack([(np.arange(3, dtype=np.int32), errors)] * 2, index=1)
    began = np.array([3, 400], np.int32)
    for rule in (Paired(0.05, rivals="own"), Betting(0.05, 0.3, rivals="own")):
        together = rule.keep(replace(look, began=began))
        alone = [replace(rule, rivals=max(int(k) - 1, 1)).keep(look)[0] for k in began]
        np.testing.assert_array_equal(together, np.array(alone))
        if isinstance(rule, Paired):
            assert not np.array_equal(*together)
        assert rule.looks(8)
        fails_with(lambda rule=rule: rule.keep(look), "how many classes a request began with", kind=InputError)  # type: ignore[misc]
    fails_with(lambda: Paired(rivals="all"), "rivals must be a whole number", kind=InputError)
