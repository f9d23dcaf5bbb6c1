"""Rules on shifted errors: the decision that they serve, and what each of them still promises."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.inference import decide
from fastdc.rules import (
    AbstractRule,
    Betting,
    Calibrated,
    ClassTree,
    Full,
    Hierarchy,
    Paired,
    Shifted,
    Sift,
    Staged,
    TTest,
)
from fastdc.testing import replay
from helpers.races import tables
from helpers.worlds import Float32, fails_with

RULES: list[AbstractRule] = [
    Full(),
    Staged((2, 8, 16), (3, 2, 1)),
    TTest(3, 0.1),
    Paired(0.1, rivals=4),
    Betting(0.1, 6.0, rivals=4),
    Calibrated(2.0),
    Sift(4.0, 8, keep_at_most=2),
]
SHIFTS = (0.3, 0.0, 1.2, 0.1, 0.7)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_shifted_rule_is_the_rule_on_shifted_errors(rule: AbstractRule) -> None:
    errors = tables(200, 5, 16, seed=1)
    made = Shifted(rule, SHIFTS)
    want = replay(rule.for_shifts(1.2), (errors + np.array(SHIFTS)[None, :, None]).astype(np.float64))
    found = replay(made, errors)
    np.testing.assert_array_equal(found.counts, want.counts)
    assert made.looks(16) == rule.looks(16)
    assert (made.name, made.expands, made.assumes_independence) == (rule.name, rule.expands, rule.assumes_independence)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.name != "calibrated"], ids=lambda rule: rule.name)
def test_equal_shifts_change_nothing_but_for_a_rule_of_relative_errors(rule: AbstractRule) -> None:
    errors = tables(200, 5, 16, seed=2, ties=True)  # quarters, to which a half is added without rounding
    np.testing.assert_array_equal(replay(Shifted(rule, (0.5,) * 5), errors).counts, replay(rule, errors).counts)


def test_a_class_with_an_infinite_shift_does_not_begin() -> None:
    errors = tables(50, 5, 16, seed=3)
    found = replay(Shifted(Paired(0.1, rivals=4), (0.0, math.inf, 0.5, 0.0, math.inf)), errors)
    assert not found.counts[:, [1, 4]].any()
    want = replay(Shifted(Paired(0.1, rivals=4), (0.0, 0.5, 0.0)), errors[:, [0, 2, 3]])
    np.testing.assert_array_equal(found.counts[:, [0, 2, 3]], want.counts)


@pytest.mark.parametrize("shifts", [(), (math.inf,), (math.nan, 0.0), (-math.inf, 0.0)])
def test_shifts_of_no_class_are_refused(shifts: tuple[float, ...]) -> None:
    fails_with(partial(Shifted, Full(), shifts), "rule shifted needs shifts", kind=InputError)


def test_rules_inside_rules_grow_their_bounds() -> None:
    tree = ClassTree.from_nested([[0, 1], [2, 3, 4]])
    made = Shifted(Hierarchy(tree, Betting(0.1, 6.0, rivals=4)), SHIFTS)
    inner = made.inner
    assert isinstance(inner, Hierarchy)
    assert inner.inner == Betting(0.1, 7.2, rivals=4)
    assert made.expands
    assert Shifted(Betting(0.1, rivals=4), SHIFTS).inner == Betting(0.1, rivals=4)  # no bound to grow


# --- promises, simulated ---------------------------------------------------------------------------------------------


def lost(rule: AbstractRule, errors: Float32, best: int) -> float:
    """How often the rule drops the class that is best after the shift."""
    return float(np.mean(replay(rule, errors).counts[:, best] < errors.shape[2]))


def test_paired_tests_keep_their_promise_about_the_class_that_is_best_after_the_shift() -> None:
    """Five classes that the shift makes equally good: the hardest case, in which each is best."""
    rng, n, alpha = np.random.default_rng(5), 4000, 0.1
    shifts = np.array(SHIFTS)
    errors = rng.normal(3 - shifts[:, None], 0.5, (n, 5, 32)).astype(np.float32)
    rule = Paired(alpha, rivals=4)
    made = replay(Shifted(rule, SHIFTS), errors)
    dropped = (made.counts < 32) & (made.counts.max(axis=1, keepdims=True) > made.counts)
    assert dropped.mean(axis=0).max() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / n)
    unaware = replay(rule, errors)
    assert np.mean(unaware.counts[:, 1] < unaware.counts.max(axis=1)) > 0.9  # which the prior favours most


def bets(n: int, *, seed: int) -> Float32:
    """Two classes: 0 trails by 1 nine times of ten and leads by 1 otherwise, 0.8 on average. It is best at a shift of
    -0.8, and no difference is below -1."""
    rng = np.random.default_rng(seed)
    errors = np.full((n, 2, 64), 2.0, np.float32)
    errors[:, 0] += np.where(rng.random((n, 64)) < 0.9, 1, -1)
    return errors


def test_betting_keeps_its_promise_only_with_a_bound_on_the_shifted_differences() -> None:
    alpha, n = 0.1, 3000
    rule = Betting(alpha, 1.0, rivals=1, every=1)
    errors, shifts = bets(n, seed=6), (0.0, 0.8)
    kept = lost(Shifted(rule, shifts), errors, 0)
    assert kept <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / n)
    unaware = (errors + np.array(shifts, np.float32)[None, :, None]).astype(np.float32)
    assert lost(rule, unaware, 0) > 2 * alpha


@pytest.mark.parametrize("rule", [Paired(0.05, rivals=4), Betting(0.05, 12.0, rivals=4)], ids=lambda rule: rule.name)
def test_races_under_a_prior_answer_as_the_full_run_under_it(rule: AbstractRule) -> None:
    errors, prior = tables(1500, 5, 32, seed=7), [5, 1, 0.2, 1, 2]
    how: dict[str, Any] = {"temperature": 0.4, "prior": prior}
    full = decide(errors, **how).labels
    shifts = tuple((-0.4 * np.log(np.array(prior) / 5)).tolist())
    made = replay(Shifted(rule, shifts), errors)
    wrong = float(np.mean(made.labels(**how) != full))
    assert wrong <= 0.05
    assert made.evaluations.mean() < 0.9 * 5 * 32 or rule.name == "betting"
    unaware = float(np.mean(replay(rule, errors).labels(**how) != full))
    assert wrong < unaware or rule.name == "betting"


def test_a_calibrated_race_holds_under_the_prior_that_it_was_calibrated_with() -> None:
    from fastdc.calibration import controlled_limit, needed_limits

    errors, shifts = tables(3000, 5, 32, seed=8), np.array(SHIFTS)
    shifted = errors + shifts[:, None]
    limit = controlled_limit(needed_limits(shifted[:1000])[:, None], 0.02)
    made = replay(Shifted(Calibrated(limit), SHIFTS), errors[1000:])
    best = shifted[1000:].mean(axis=2).argmin(axis=1)
    gone = made.counts[np.arange(2000), best] < made.counts.max(axis=1)
    assert gone.mean() <= 0.02 + 4 * math.sqrt(0.02 / 1000)


def test_a_rule_without_bounds_is_the_same_for_shifts() -> None:
    for rule in RULES:
        same = rule.for_shifts(3.0)
        assert same == (replace(rule, bound=9.0) if isinstance(rule, Betting) else rule)
