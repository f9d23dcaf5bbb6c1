"""Sift and refine: the sums, the end of sifting, and that refining drops nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.rules.sift import Sift
from helpers.rule_runs import Request, batches, check_alone, kept, run, single
from helpers.worlds import fails_with


def slow(errors: Any, rule: Sift, draws: int) -> tuple[set[int], int]:
    """One image as in the source, draw by draw, with sums in a dictionary: the classes refined, and the cost."""
    sums = dict.fromkeys(range(len(errors)), 0.0)
    cost = 0
    done = 0
    while done < min(rule.sift_draws, draws) and len(sums) > rule.keep_at_most:
        for k in sums:
            sums[k] += float(errors[k, done])
            cost += 1
        done += 1
        if done < draws:
            least = min(sums.values())
            sums = {k: total for k, total in sums.items() if total - least <= rule.threshold}
    if len(sums) > rule.keep_at_most and done < draws:
        sums = dict(sorted(sums.items(), key=lambda item: (item[1], item[0]))[: rule.keep_at_most])
    if len(sums) > 1:
        cost += len(sums) * (draws - done)
    return set(sums), cost


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 12),
    st.integers(1, 20),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.25, 1.0, 4.0]),
)
def test_runs_as_the_source_does(
    seed: int, n_classes: int, draws: int, sift_draws: int, keep_at_most: int, threshold: float
) -> None:
    """Errors are multiples of 1/8, so that sums are exact in any order and ties occur."""
    errors = np.random.default_rng(seed).integers(0, 12, (4, n_classes, draws)) / 8
    rule = Sift(threshold, sift_draws, keep_at_most=keep_at_most)
    result = run(rule, errors)
    for image, alive, cost in zip(errors, result.alive, result.evaluations, strict=True):
        assert (set(np.flatnonzero(alive).tolist()), int(cost)) == slow(image, rule, draws)


def test_the_threshold_is_one_on_sums() -> None:
    errors = np.array([[1.0, 1.0, 1.0], [1.25, 1.25, 1.25], [1.5, 1.5, 1.5]])
    rule = Sift(0.5, keep_at_most=1)
    assert kept(rule, single(errors[:, :1])) == [[0, 1, 2]]
    assert kept(rule, single(errors[:, :2], index=1)) == [[0, 1]]
    assert kept(rule, single(errors, index=2)) == [[0]]


def test_sums_keep_what_float32_would_lose() -> None:
    errors = np.array([[2.0**24, 0.0], [2.0**24, 1.0]])
    assert kept(Sift(0.5, keep_at_most=1), single(errors, index=1)) == [[0]]


def test_few_classes_are_not_sifted() -> None:
    errors = np.array([[0.0], [9.0], [8.0]])
    assert kept(Sift(0.1, keep_at_most=3), single(errors)) == [[0, 1, 2]]
    assert kept(Sift(0.1, keep_at_most=2), single(errors)) == [[0]]
    assert kept(Sift(0.1, keep_at_most=1), single(errors[1:2])) == [[0]]


def test_the_last_sift_draw_leaves_the_best() -> None:
    errors = np.array([[3.0, 1.0], [1.0, 1.0], [2.0, 2.0], [1.0, 1.5]])
    assert kept(Sift(99, 2, keep_at_most=2), single(errors, index=1)) == [[1, 3]]
    assert kept(Sift(99, 3, keep_at_most=2), single(errors, index=1)) == [[0, 1, 2, 3]]
    tied = np.array([[2.0, 2.0], [1.0, 1.0], [2.0, 2.0]])
    assert kept(Sift(99, 2, keep_at_most=2), single(tied, index=1)) == [[0, 1]]


def test_looks() -> None:
    assert Sift(1, 3).looks(10) == (1, 2, 3, 10)
    assert Sift(1, 3).looks(4) == (1, 2, 3, 4)
    assert Sift(1, 3).looks(3) == (1, 2, 3)
    assert Sift(1, 3).looks(1) == (1,)
    assert Sift(1).looks(64) == (*range(1, 17), 64)
    fails_with(lambda: Sift(1).looks(0), "at least one draw", kind=InputError)


@given(batches(longest=9), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], padding: int) -> None:
    check_alone(Sift(1.0, 5, keep_at_most=3), requests, requests[0][1].shape[1] - 1, padding)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": -1}, "threshold must be 0 or positive and finite, got -1"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": float("inf")}, "inf"),
        ({"threshold": None}, "None"),
        ({"threshold": 1, "sift_draws": 0}, "sift_draws"),
        ({"threshold": 1, "keep_at_most": 2.5}, "keep_at_most"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: Sift(**options), "rule sift", says, kind=InputError)
