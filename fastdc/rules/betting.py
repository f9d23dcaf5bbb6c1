"""Elimination by betting: anytime-valid, without a normal distribution (Waudby-Smith & Ramdas, arXiv 2010.09686).

The null hypothesis about classes k and a is that k's expected error is at most a's. A gambler bets against it on the
differences d_j = e_k,j - e_a,j. The initial wealth is 1, and before each draw the gambler bets a fraction lambda_j that
depends on the earlier draws:

    W_m = prod over j <= m of (1 + lambda_j min(d_j, bound)) ,    0 <= lambda_j < 1 / bound .

If d_j >= -bound, W never becomes negative. If k's expected error is at most a's at every draw, given the past, W does
not grow in expectation. By Ville's inequality, the probability that it ever reaches rivals / alpha is then at most
alpha / rivals, with rivals = K - 1. Class k is dropped if its wealth against the class with the smallest mean so far
has reached that value at any draw up to now. The errors determine which class has the smallest mean, hence the union
bound over all rivals of the best class.

The fraction is the approximately growth-optimal plug-in of the source (aGRAPA) for a null mean of 0, mean over second
moment, of the past and one imagined difference of bound / 2:

    lambda_j = clip( (S + bound / 2) / (Q + bound^2 / 4), 0, 0.95 / bound ),   S, Q = sums of d_i and d_i^2 over i < j .

Most differences are much smaller than the largest one, so bets near 1 / bound end a run. With bets of at most
0.5 / bound, the digits models need nearly twice the draws. With 1 / bound itself, one difference of -bound loses all.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from fastdc.rules.paired import checked_rivals, known_rivals
from fastdc.rules.protocol import AbstractRule, Look, check_draws, geometric_looks
from fastdc.support import Float64, InputError, Mask, checks

LARGEST_BET = 0.95
"""The largest lambda, in units of 1 / bound: a draw multiplies the wealth by 0.05 to 1.95."""


@dataclass(frozen=True)
class Betting(AbstractRule):
    """Drops a class if betting that it is worse than the best class has turned a wealth of 1 into rivals / alpha.

    Guarantee: let b be a class whose expected error is smallest at every draw's level, and let no difference
    e_b,j - e_a,j fall below -bound. With independent noise, the probability that b is ever dropped is at most alpha,
    for any looks and any end of the run. If the levels themselves are independent and identically distributed (a plan
    of order "random" without `first`), it is enough that b has the smallest expected error on average over levels.
    Neither the joint distribution of the classes nor that of the errors matters. If several classes are best, the
    guarantee holds for each of them.

    An observed difference below -bound counts as -bound. The guarantee is then void, because `bound` was too small.

    Attributes:
        alpha: Probability of a wrong elimination in one request, in (0, 1).
        bound: Largest difference between two classes' errors at one draw, positive, in the units of the errors.
            Required, and fixed before the run. The smaller it is, the earlier classes are dropped.
        rivals: K - 1, the number of candidate classes of a request minus one, or any larger number. Required: it may
            not be the number of classes alive, see :mod:`fastdc.rules.paired`.
        every: Number of draws from one look to the next; None: geometric looks. The guarantee is the same.
    """

    name = "betting"
    assumes_independence = True

    alpha: float = 0.01
    bound: float | None = None
    rivals: int | str | None = field(default=None, kw_only=True)
    every: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.fraction(f"rule {self.name}: alpha", self.alpha))
        if self.bound is not None:
            object.__setattr__(self, "bound", checks.positive(f"rule {self.name}: bound", self.bound))
        object.__setattr__(self, "rivals", checked_rivals(self.name, self.rivals))
        if self.every is not None:
            object.__setattr__(self, "every", checks.whole(f"rule {self.name}: every", self.every))

    def for_shifts(self, spread: float) -> "Betting":
        """The rule with a bound on the shifted differences."""
        return self if self.bound is None else replace(self, bound=self.bound + spread)

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks geometrically (:func:`geometric_looks`), or at every multiple of `every`.

        Raises:
            InputError: The bound or the number of rivals is unknown.
        """
        check_draws(self.name, draws)
        self._known_bound()
        known_rivals(self.name, self.rivals)
        if self.every is None:
            return geometric_looks(draws)
        return (*range(self.every, draws, self.every), draws)

    def keep(self, look: Look) -> Mask:
        """Keeps the classes against which no bet has won enough at any draw so far."""
        threshold = known_rivals(self.name, self.rivals, look) / self.alpha
        earned = wealth(look.paired(look.leaders(look.means)), self._known_bound())
        return np.asarray(look.alive & ~np.any(earned >= threshold[:, None, None], axis=2))

    def _known_bound(self) -> float:
        if self.bound is None:
            raise InputError(
                "rule betting needs bound=..., the largest difference between two classes' errors at a draw; "
                "fastdc calibrate stores one"
            )
        return self.bound


def wealth(differences: Float64, bound: float) -> Float64:
    """Computes the wealth after each draw of betting that the differences are positive on average.

    Sums and products run over draws in order, so that a row's wealth depends only on the row.

    Args:
        differences: float64 (..., m); they are clipped to [-bound, bound].
        bound: Largest difference, positive.

    Returns:
        float64 (..., m), W_1 ... W_m; infinite if it leaves the range of float64, NaN from a NaN on.
    """
    scaled = np.clip(differences / bound, -1.0, 1.0)
    first, second = _sums_before(scaled), _sums_before(scaled**2)
    bets = np.clip((first + 0.5) / (second + 0.25), 0.0, LARGEST_BET)
    with np.errstate(over="ignore"):
        return np.asarray(np.cumprod(1.0 + bets * scaled, axis=-1), dtype=np.float64)


def _sums_before(values: Float64) -> Float64:
    """Returns the sum of all values before each value along the last axis; 0 before the first."""
    sums = np.zeros_like(values)
    np.cumsum(values[..., :-1], axis=-1, out=sums[..., 1:])
    return sums
