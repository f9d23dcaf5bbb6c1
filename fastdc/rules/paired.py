"""Paired t-tests that control their error over all looks and all rivals.

The rule is like ``ttest``, but one-sided and with few looks. Union bounds divide the total probability alpha of a wrong
elimination: over the looks i = 0, 1, ... as alpha / ((i + 1) (i + 2)), which adds up to less than alpha for any number
of looks; and over the K - 1 rivals to which the best class may lose. Class k is dropped at look i, after m draws, if
its paired difference to the class a with the smallest mean so far has

    sqrt(m) mean(d) / sd(d) > t(m - 1; alpha / ((i + 1) (i + 2) (K - 1))),    d_j = e_k,j - e_a,j .

K must be given: the divisor may not be the number of rivals still alive. A lucky rival could drop the others, and would
then meet the best class alone at a level K - 1 times as large. Any of the K - 1 rivals may be the lucky one, so alpha
could be exceeded by up to that factor. A look shows only the classes alive, hence the option `rivals`.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, check_draws, geometric_looks
from fastdc.rules.ttest import beaten, critical_value
from fastdc.support import InputError, Int64, Mask, checks

OWN = "own"
"""The value of the option `rivals` that divides the error of each request over its own candidates."""


@dataclass(frozen=True)
class Paired(AbstractRule):
    """Drops a class if a paired t-test, corrected for looks and rivals, finds it worse than the best class.

    Guarantee: let b be the class with the smallest expected error. If, for each rival a, the differences e_b,j - e_a,j
    are independent over draws and normal with one mean (at most 0, as b is best) and one variance, then the probability
    that b is dropped at any look is at most alpha. Neither dependence between classes nor the end of the run matters.
    If several classes are best, the guarantee holds for each of them.

    A plan with more than one noise level meets these conditions only roughly, because means and variances change with
    the level. With few draws the test relies on normality. ``Betting`` needs neither condition.

    Attributes:
        alpha: Probability of a wrong elimination in one request, over all looks and rivals; in (0, 1).
        first: Number of draws before the first look, at least 2; the later looks are geometric.
        rivals: K - 1, the number of candidate classes of a request minus one, or any larger number. "own": that of each
            request, for requests with candidates of their own. Required.
    """

    name = "paired"
    assumes_independence = True

    alpha: float = 0.01
    first: int = 3
    rivals: int | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.fraction(f"rule {self.name}: alpha", self.alpha))
        object.__setattr__(self, "first", checks.whole(f"rule {self.name}: first", self.first, low=2))
        object.__setattr__(self, "rivals", checked_rivals(self.name, self.rivals))

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks after `first` draws, then geometrically (:func:`geometric_looks`).

        Raises:
            InputError: The number of rivals is unknown.
        """
        check_draws(self.name, draws)
        known_rivals(self.name, self.rivals)
        return (min(self.first, draws), *(look for look in geometric_looks(draws) if look > self.first))

    def keep(self, look: Look) -> Mask:
        """Keeps the classes that the tests of this look do not find worse than the best class."""
        rivals = known_rivals(self.name, self.rivals, look)
        if look.draws < 2:
            return look.alive
        tails = [self.alpha / ((look.index + 1) * (look.index + 2) * of_one) for of_one in rivals.tolist()]
        critical = np.array([critical_value(tail, look.draws) for tail in tails])
        return look.alive & ~beaten(look.paired(look.leaders(look.means)), critical[:, None])


def checked_rivals(rule: str, rivals: int | str | None) -> int | str | None:
    """Returns the option `rivals`: a whole number, "own", or None.

    Raises:
        InputError: It is something else.
    """
    if rivals is None or (isinstance(rivals, str) and rivals == OWN):
        return rivals
    return checks.whole(f"rule {rule}: rivals", rivals)


def known_rivals(rule: str, rivals: int | str | None, look: Look | None = None) -> Int64:
    """Returns the number of rivals of each request, int64 (r,) or (1,), if it is known and as large as a look shows.

    Raises:
        InputError: The number was not given, or a request has more rivals.
    """
    if rivals is None:
        raise InputError(f"rule {rule} needs rivals=..., the number of candidate classes less one")
    if isinstance(rivals, str):
        if look is None:
            return np.ones(1, np.int64)
        if look.began is None:
            raise InputError(
                f"rule {rule} with rivals={OWN} needs looks that say how many classes a request began with"
            )
        return np.maximum(look.began.astype(np.int64) - 1, 1)
    if look is not None and look.classes.shape[1] > rivals + 1:
        shown = int(look.alive.sum(axis=1).max())
        if shown > rivals + 1:
            raise InputError(f"rule {rule} with rivals={rivals} takes up to {rivals + 1} classes, got {shown}")
    return np.array([rivals], np.int64)
