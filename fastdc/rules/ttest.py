"""Successive elimination by paired t-tests (Clark & Jaini, arXiv 2303.15233, algorithm 1).

With d_j = e_k,j - e_a,j, the errors of class k minus those of the best class so far at the same m draws, class k is
dropped if the t statistic

    t = sqrt(m) mean(d) / sd(d),    sd with m - 1 degrees of freedom,

has a two-sided p-value below the cut-off. The best class has the smallest mean, so t is never negative and the test is
t > c(m), with c(m) the upper cutoff / 2 point of Student's distribution. Tests begin after `min_scores` draws and
follow at every draw.
"""

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, check_draws
from fastdc.support import Float64, InputError, Mask, checks


@dataclass(frozen=True)
class TTest(AbstractRule):
    """Drops a class if a paired t-test finds it worse than the best class. The defaults are the paper's.

    The p-value is corrected neither for the many looks nor for the many rivals, and the best class is chosen from the
    same errors. So `cutoff_pval` is a tuning parameter, not a guarantee: the probability that the best class is dropped
    may be many times larger. ``Paired`` and ``Betting`` control that probability.

    Attributes:
        min_scores: Number of draws before the first test, at least 2.
        cutoff_pval: Two-sided p-value below which a class is dropped, in (0, 1).
        max_scores: Number of draws after which only the best class stays, at least `min_scores`; None: no such limit.
        every: Number of draws from one test to the next, at least 1.
    """

    name = "ttest"

    min_scores: int = 20
    cutoff_pval: float = 2e-3
    max_scores: int | None = field(default=None, kw_only=True)
    every: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_scores", checks.whole(f"rule {self.name}: min_scores", self.min_scores, low=2))
        object.__setattr__(self, "cutoff_pval", checks.fraction(f"rule {self.name}: cutoff_pval", self.cutoff_pval))
        object.__setattr__(self, "every", checks.whole(f"rule {self.name}: every", self.every))
        if self.max_scores is not None:
            object.__setattr__(
                self, "max_scores", checks.whole(f"rule {self.name}: max_scores", self.max_scores, low=2)
            )
            if self.max_scores < self.min_scores:
                raise InputError(
                    f"rule ttest: max_scores must be at least min_scores {self.min_scores}, got {self.max_scores}"
                )

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks whenever a test is due, and after the last draw. With fewer than `min_scores` draws no test is made."""
        check_draws(self.name, draws)
        end = draws if self.max_scores is None else min(draws, self.max_scores)
        tests = tuple(range(self.min_scores, end, self.every))
        return (*tests, end) if end == draws else (*tests, end, draws)

    def keep(self, look: Look) -> Mask:
        """Keeps the classes that the tests do not find worse than the best class."""
        leaders = look.leaders(look.means)
        if self.max_scores is not None and look.draws >= self.max_scores:
            return np.asarray(np.arange(look.classes.shape[1]) == leaders[:, None])
        if look.draws < self.min_scores:
            return look.alive
        return look.alive & ~beaten(look.paired(leaders), critical_value(self.cutoff_pval / 2, look.draws))


@functools.cache
def critical_value(tail: float, draws: int) -> float:
    """Returns the number that Student's t with draws - 1 (at least 1) degrees of freedom exceeds at a probability.

    Args:
        tail: The probability, in (0, 1).
        draws: Number of draws, at least 2.
    """
    from scipy.stats import t

    return float(t.isf(tail, draws - 1))


def beaten(differences: Float64, critical: float | Float64) -> Mask:
    """Says whether the t statistic of each row exceeds a critical value, bool (r, A).

    A constant difference has no spread: above 0 it exceeds any critical value, at 0 it exceeds none.

    Args:
        differences: float64 (r, A, m) with m >= 2; rows of NaN are never beaten.
        critical: Critical value, positive: a number, or (r, 1).
    """
    # Not scipy.stats.ttest_rel: it divides 0 by 0 for constant differences, and a p-value per class costs more.
    draws = differences.shape[2]
    mean = differences.mean(axis=2)
    # Around the mean, not by the difference of two sums: errors of rivals may agree to many digits.
    squares = ((differences - mean[:, :, None]) ** 2).sum(axis=2)
    return np.asarray(math.sqrt(draws) * mean > critical * np.sqrt(squares / (draws - 1)), dtype=np.bool_)
