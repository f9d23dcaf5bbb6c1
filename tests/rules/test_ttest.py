"""Elimination by paired t-tests against scipy.stats.ttest_rel, class by class."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.rules.ttest import TTest, beaten, critical_value
from helpers.rule_runs import Request, batches, check_alone, kept, pack, run, single
from helpers.worlds import fails_with


def slow(request: Request, cutoff: float) -> list[int]:
    """The classes that scipy's test does not find worse than the best one."""
    classes, errors = request
    values = errors.astype(np.float64)
    means = [math.fsum(row) / len(row) for row in values]
    leader = means.index(min(means))
    stays = []
    for k, name in enumerate(classes.tolist()):
        difference = values[k] - values[leader]
        if np.all(difference == difference[0]):  # scipy divides 0 by 0 here, and warns
            worse = difference[0] > 0
        else:
            worse = stats.ttest_rel(values[k], values[leader]).pvalue < cutoff
        if not worse:
            stays.append(name)
    return stays


@given(batches(), st.sampled_from([0.002, 0.05, 0.3]))
def test_drops_the_classes_that_scipy_finds_worse(requests: list[Request], cutoff: float) -> None:
    if requests[0][1].shape[1] < 2:
        return
    rule = TTest(2, cutoff)
    assert kept(rule, pack(requests)) == [slow(request, cutoff) for request in requests]


def test_a_known_case_on_both_sides_of_the_cut_off() -> None:
    errors = np.array([[1.0, 2.0, 3.0, 4.0], [1.5, 2.5, 4.5, 4.5]])
    p = stats.ttest_rel(errors[1], errors[0]).pvalue  # t = 3, 3 degrees of freedom
    assert p == pytest.approx(0.0577, abs=1e-4)
    assert kept(TTest(4, p * 1.0001), single(errors)) == [[0]]
    assert kept(TTest(4, p * 0.9999), single(errors)) == [[0, 1]]


def test_no_spread() -> None:
    """Identical errors stay; a constant positive difference leaves, also if it is constant only up to rounding."""
    base = np.random.default_rng(0).normal(5, 1, 8).astype(np.float32)
    errors = np.stack([base, base, base + 1, base + np.float32(1e-3)])
    assert kept(TTest(2), single(errors)) == [[0, 1]]
    tied = np.array([[1, 3, 1, 3], [3, 1, 3, 1], [2, 2, 2, 2]])
    assert kept(TTest(2, 0.5), single(tied)) == [[0, 1, 2]]


@given(batches(longest=12), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], padding: int) -> None:
    check_alone(TTest(3, 0.2), requests, 0, padding)
    check_alone(TTest(3, 0.2, max_scores=6), requests, 0, padding)


def test_nothing_is_dropped_before_min_scores() -> None:
    errors = np.array([[0.0, 0.0, 0.1], [9.0, 9.0, 9.1]])
    assert kept(TTest(4, 0.5), single(errors)) == [[0, 1]]
    assert kept(TTest(3, 0.5), single(errors)) == [[0]]
    assert kept(TTest(2, 0.5), single(errors[:, :1])) == [[0, 1]]  # one draw has no spread


def test_looks() -> None:
    assert TTest(3).looks(6) == (3, 4, 5, 6)
    assert TTest(3, every=4).looks(14) == (3, 7, 11, 14)
    assert TTest(3, every=4).looks(11) == (3, 7, 11)
    assert TTest(3).looks(3) == (3,)
    assert TTest().looks(19) == (19,)
    assert TTest().looks(22) == (20, 21, 22)
    assert TTest(3, max_scores=5).looks(9) == (3, 4, 5, 9)
    assert TTest(3, max_scores=9).looks(5) == (3, 4, 5)
    assert TTest(3, max_scores=3).looks(9) == (3, 9)
    assert TTest(3, every=4, max_scores=8).looks(30) == (3, 7, 8, 30)
    fails_with(lambda: TTest().looks(0), "at least one draw", kind=InputError)


def test_max_scores_end_a_run() -> None:
    """Equal classes cannot be distinguished; the smallest mean decides after max_scores draws."""
    errors = np.random.default_rng(1).normal(5, 1, (20, 4, 40))
    result = run(TTest(5, 1e-9, max_scores=12), errors)
    assert (result.evaluations == 4 * 12).all()
    best = errors[:, :, :12].astype(np.float32).mean(axis=2, dtype=float).argmin(axis=1)
    np.testing.assert_array_equal(result.alive, np.eye(4, dtype=bool)[best])


def test_hopeless_classes_leave_early_and_the_best_stays() -> None:
    rng = np.random.default_rng(2)
    errors = rng.normal(5, 1, (200, 1, 60)) + rng.normal([[0], [2], [2], [2]], 0.3, (200, 4, 60))
    result = run(TTest(), errors)
    assert result.alive[:, 0].all()
    assert (result.evaluations == 4 * 20).all()


@given(st.floats(1e-12, 0.49), st.integers(2, 200))
def test_critical_values_have_their_tail(tail: float, draws: int) -> None:
    assert stats.t.sf(critical_value(tail, draws), draws - 1) == pytest.approx(tail, rel=1e-6)


def test_beaten_survives_a_large_common_offset() -> None:
    """Differences of 1e6 with a spread of 1e-3: a variance from sums of squares would have no correct digit."""
    rng = np.random.default_rng(3)
    differences = 1e6 + 1e-3 * rng.normal(size=(1, 5, 20))
    statistics = np.asarray(stats.ttest_1samp(differences, 0, axis=2).statistic)
    for factor, expected in [(0.999, True), (1.001, False)]:
        for k in range(5):
            critical = float(statistics[0, k]) * factor
            assert beaten(differences[:, k : k + 1], critical).item() is expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_scores": 1}, "min_scores must be a whole number of at least 2, got 1"),
        ({"min_scores": 2.5}, "2.5"),
        ({"cutoff_pval": 0}, "cutoff_pval must lie strictly between 0 and 1, got 0"),
        ({"cutoff_pval": 1.0}, "1.0"),
        ({"cutoff_pval": float("nan")}, "nan"),
        ({"cutoff_pval": "small"}, "'small'"),
        ({"every": 0}, "every"),
        ({"max_scores": 1}, "max_scores"),
        ({"max_scores": 19}, "at least min_scores 20, got 19"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: TTest(**options), "rule ttest", says, kind=InputError)


def test_defaults_are_the_papers() -> None:
    rule = TTest()
    assert (rule.min_scores, rule.cutoff_pval, rule.max_scores, rule.every) == (20, 2e-3, None, 1)
