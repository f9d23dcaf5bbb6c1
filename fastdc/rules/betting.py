"""Elimination by betting: anytime-valid, without a normal distribution (Waudby-Smith & Ramdas, arXiv 2010.09686).

For classes k and a, whoever doubts that k's expected error is at most a's bets on the differences d_j = e_k,j - e_a,j,
before each draw the fraction lambda_j that the draws before suggest, and starts with a wealth of 1:

    W_m = prod over j <= m of (1 + lambda_j min(d_j, bound)) ,    0 <= lambda_j < 1 / bound .

If d_j >= -bound, W never goes negative, and if k's expected error is at most a's at every draw, given the past, W does
not grow in expectation. By Ville's inequality it then ever reaches rivals / alpha with probability at most
alpha / rivals, with rivals = K - 1. Class k is dropped when its wealth against the class with the smallest mean so far
has reached that at any draw up to now. Which class has the smallest mean depends on the errors, hence the union bound
over all rivals of the best class.

The fraction is the approximately growth-optimal plug-in of the source (aGRAPA) for a null mean of 0, mean over second
moment, of the past and one imagined difference of bound / 2:

    lambda_j = clip( (S + bound / 2) / (Q + bound^2 / 4), 0, 0.95 / bound ),   S, Q = sums of d_i and d_i^2 over i < j .

Most differences are small beside the largest, so bets near 1 / bound are the ones that end a run: with at most
0.5 / bound the digits models need nearly twice the draws. At 1 / bound itself one difference of -bound loses all.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.rules.paired import known_rivals
from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws, geometric_looks
from fastdc.support import InputError, checks

LARGEST_BET = 0.95
"""The largest lambda, in units of 1 / bound: wealth at most times 1.95 and at least times 0.05 at a draw."""


@dataclass(frozen=True)
class Betting(AbstractRule):
    """Drops a class when betting on its being worse than the best one has made rivals / alpha out of 1.

    Guarantee: let b be a class whose expected error is smallest at every draw's level, and let no difference
    e_b,j - e_a,j fall below -bound. With independent noise, b is ever dropped, at whatever looks and whenever the run
    stops, with probability at most alpha. Where the levels themselves are independent and identically distributed (a
    plan of order "random" that begins with no chosen levels), it is enough that b has the smallest expected error on
    average over levels. The joint distribution of the classes does not matter, nor does that of the errors. Of several
    best classes it holds for each.

    An observed difference below -bound counts as -bound; the guarantee is then void, as `bound` was not one.

    Attributes:
        alpha: Probability of a wrong elimination in one request.
        bound: The largest difference between two classes' errors at one draw, positive, in the units of the errors.
            Needed, and fixed before the run; the smaller, the sooner classes leave.
        rivals: K - 1, the number of candidate classes of a request less one, or any larger number. Needed: it may not
            be taken from the classes alive, see :mod:`fastdc.rules.paired`.
        every: Draws from one look to the next; None: geometric looks. The guarantee is the same.
    """

    name = "betting"
    assumes_independence = True

    alpha: float = 0.01
    bound: float | None = None
    rivals: int | None = field(default=None, kw_only=True)
    every: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.fraction(f"rule {self.name}: alpha", self.alpha))
        if self.bound is not None:
            object.__setattr__(self, "bound", checks.positive(f"rule {self.name}: bound", self.bound))
        for option in ("rivals", "every"):
            value = getattr(self, option)
            if value is not None:
                object.__setattr__(self, option, checks.whole(f"rule {self.name}: {option}", value))

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        self._known_bound()
        known_rivals(self.name, self.rivals)
        if self.every is None:
            return geometric_looks(draws)
        return (*range(self.every, draws, self.every), draws)

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        threshold = known_rivals(self.name, self.rivals, look) / self.alpha
        earned = wealth(look.paired(look.leaders(look.means)), self._known_bound())
        return np.asarray(look.alive & ~np.any(earned >= threshold, axis=2))

    def _known_bound(self) -> float:
        if self.bound is None:
            raise InputError(
                "rule betting needs bound=..., the largest difference between two classes' errors at a draw; "
                "fastdc calibrate stores one"
            )
        return self.bound


def wealth(differences: npt.NDArray[np.float64], bound: float) -> npt.NDArray[np.float64]:
    """What 1 has become after each draw of betting that the differences are positive on average.

    Sums and products run over draws in order, so that a row's wealth depends on nothing but the row.

    Args:
        differences: (..., m), clipped to [-bound, bound].
        bound: Positive.

    Returns:
        float64 (..., m), W_1 ... W_m; infinite where it leaves the range of float64, NaN from a NaN on.
    """
    scaled = np.clip(differences / bound, -1.0, 1.0)
    first, second = _sums_before(scaled), _sums_before(scaled**2)
    bets = np.clip((first + 0.5) / (second + 0.25), 0.0, LARGEST_BET)
    with np.errstate(over="ignore"):
        return np.asarray(np.cumprod(1.0 + bets * scaled, axis=-1), dtype=np.float64)


def _sums_before(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sum of all values before each one, along the last axis; 0 before the first."""
    sums = np.zeros_like(values)
    np.cumsum(values[..., :-1], axis=-1, out=sums[..., 1:])
    return sums
