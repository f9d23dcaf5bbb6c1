"""Successive elimination by paired t-tests (Clark & Jaini, arXiv 2303.15233, algorithm 1).

With d_j = e_k,j - e_a,j, the errors of class k less those of the best class so far at the same m draws, k is dropped
when the t statistic

    t = sqrt(m) mean(d) / sd(d),    sd with m - 1 degrees of freedom,

has a two-sided p-value below the cut-off. The best class has the smallest mean, so t is never negative and the test is
t > c(m), with c(m) the upper cutoff / 2 point of Student's distribution. From `min_scores` draws on, at every draw.
"""

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class TTest(AbstractRule):
    """Drops a class when a paired t-test finds it worse than the best one; the defaults are the paper's.

    The p-value is corrected neither for the many looks nor for the many rivals, and the class tested against is chosen
    from the same errors. `cutoff_pval` is a knob, then, and no guarantee: the probability to drop the best class may
    exceed it many times over. ``Paired`` and ``Betting`` control that probability.

    Attributes:
        min_scores: Draws before the first test, at least 2.
        cutoff_pval: Two-sided p-value below which a class is dropped.
        max_scores: Draws after which only the best class stays; None: those of the run.
        every: Draws from one test to the next.
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
        """See :class:`AbstractRule`. With fewer draws than `min_scores` there is no test at all."""
        check_draws(self.name, draws)
        end = draws if self.max_scores is None else min(draws, self.max_scores)
        tests = tuple(range(self.min_scores, end, self.every))
        return (*tests, end) if end == draws else (*tests, end, draws)

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        leaders = look.leaders(look.means)
        if self.max_scores is not None and look.draws >= self.max_scores:
            return np.asarray(np.arange(look.classes.shape[1]) == leaders[:, None])
        if look.draws < self.min_scores:
            return look.alive
        return look.alive & ~beaten(look.paired(leaders), critical_value(self.cutoff_pval / 2, look.draws))


@functools.cache
def critical_value(tail: float, draws: int) -> float:
    """What Student's t with draws - 1 (at least 1) degrees of freedom exceeds with probability `tail`."""
    from scipy.stats import t

    return float(t.isf(tail, draws - 1))


def beaten(differences: npt.NDArray[np.float64], critical: float) -> Mask:
    """Whether the t statistic of each row exceeds `critical`, bool (r, A).

    A constant difference has no spread: above 0 it exceeds any critical value, at 0 none.

    Args:
        differences: (r, A, m) with m >= 2; rows of NaN are never beaten.
        critical: Positive.
    """
    draws = differences.shape[2]
    mean = differences.mean(axis=2)
    # Around the mean, not by the difference of two sums: rivals may be alike to many digits.
    squares = ((differences - mean[:, :, None]) ** 2).sum(axis=2)
    return np.asarray(math.sqrt(draws) * mean > critical * np.sqrt(squares / (draws - 1)), dtype=np.bool_)
