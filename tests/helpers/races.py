"""Races in tests: one image at a time, with every error known beforehand, and rules for them.

A plain version of the work that scheduler and engine do for many images at once.
"""

from collections.abc import Sequence

import numpy as np

from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.full import Full
from fastdc.rules.paired import Paired
from fastdc.rules.protocol import AbstractRule, Look
from fastdc.rules.sift import Sift
from fastdc.rules.staged import Staged
from fastdc.rules.ttest import TTest
from fastdc.rules.votes import Votes
from fastdc.support import Float32

DRAWS = 12
RULES = ("full", "staged", "ttest", "paired", "betting", "calibrated", "sift", "votes")


def rule_of(name: str, n_classes: int, *, scale: float = 1.0) -> AbstractRule:
    """A rule for DRAWS draws that drops some classes early and some late, if errors differ by about `scale`."""
    rivals = max(n_classes - 1, 1)
    rules: dict[str, AbstractRule] = {
        "full": Full(),
        "staged": Staged((1, 3, 7, DRAWS), (4, 3, 2, 1)),
        "ttest": TTest(3, 0.2, max_scores=10, every=2),
        "paired": Paired(0.5, rivals=rivals),
        "betting": Betting(0.5, bound=3 * scale, rivals=rivals, every=2),
        "calibrated": Calibrated(1.5),
        "sift": Sift(2 * scale, 5, keep_at_most=2),
        "votes": Votes((3, 7, DRAWS), (3, 2, 1)),
    }
    return rules[name]


def slow_race(rule: AbstractRule, errors: Float32, candidates: Sequence[int] | None = None) -> list[int]:
    """The draws at which each class of one image is evaluated under a rule that never adds classes.

    Args:
        rule: The rule.
        errors: (K, J), the errors that the evaluations would find.
        candidates: Classes to consider; None: all.
    """
    n_classes, draws = errors.shape
    alive = list(range(n_classes)) if candidates is None else sorted(candidates)
    counts = [0] * n_classes
    for index, m in enumerate(rule.looks(draws)):
        for k in alive:
            counts[k] = m
        if len(alive) == 1 or m == draws:
            break
        classes = np.array([alive], np.int32)
        seen = np.array([[errors[k, :m] for k in alive]], np.float32)
        keep = rule.keep(Look(index=index, draws=m, last=False, classes=classes, errors=seen))[0]
        alive = [k for k, stays in zip(alive, keep, strict=True) if stays]
        if len(alive) == 1:
            break
    return counts


def winner(errors: Float32, counts: Sequence[int]) -> int:
    """The class with the smallest mean among those with the most draws; of equal ones, the first."""
    most = max(counts)
    means = {k: float(np.mean(errors[k, :most].astype(np.float64))) for k in range(len(counts)) if counts[k] == most}
    return min(means, key=lambda k: (means[k], k))


def tables(n: int, n_classes: int, draws: int, *, seed: int, ties: bool = False) -> Float32:
    """Errors (n, K, J) of easy and hard images; with ties, multiples of 1/4 that are often equal."""
    rng = np.random.default_rng(seed)
    apart = rng.exponential(1.0, (n, 1, 1)) * rng.random((n, n_classes, 1))
    errors = rng.exponential(1.0, (n, 1, draws)) + apart + rng.exponential(0.4, (n, n_classes, draws)) + 0.25
    return (np.round(errors * 4) / 4 if ties else errors).astype(np.float32)
