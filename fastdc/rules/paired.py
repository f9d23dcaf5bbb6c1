"""Paired t-tests that keep their error over all looks and all rivals.

As ``ttest``, but one-sided, at few looks, and with the total probability alpha of a wrong elimination divided by union
bounds: over the looks i = 0, 1, ... as alpha / ((i + 1) (i + 2)), which stays below alpha however many there are; and
over the K - 1 rivals that the best class may lose to. Class k is dropped at look i, after m draws, when its paired
difference to the class a with the smallest mean so far has

    sqrt(m) mean(d) / sd(d) > t(m - 1; alpha / ((i + 1) (i + 2) (K - 1))),    d_j = e_k,j - e_a,j .

Why K must be given. The divisor may not be the number of rivals still alive. A lucky rival drops the others, and would
then meet the best class alone at a level K - 1 times as large; any of the K - 1 may be the lucky one, so alpha may be
exceeded by up to that factor. Looks show the living only, hence the option `rivals`.
"""

from dataclasses import dataclass, field

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws, geometric_looks
from fastdc.rules.ttest import beaten, critical_value
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class Paired(AbstractRule):
    """Drops a class when a paired t-test, corrected for looks and rivals, finds it worse than the best one.

    Guarantee: let b be the class with the smallest expected error. If, for each rival a, the differences e_b,j - e_a,j
    are independent over draws and normal with one mean (at most 0, as b is best) and one variance, then b is ever
    dropped, at whatever look, with probability at most alpha. Dependence between classes does not matter, nor when the
    run ends. Of several best classes it holds for each.

    A plan of more than one noise level fits that only roughly: means and variances change with the level. And with few
    draws the test leans on normality. ``Betting`` needs neither.

    Attributes:
        alpha: Probability of a wrong elimination in one request, over all looks and rivals.
        first: Draws before the first look, at least 2; the later looks are geometric.
        rivals: K - 1, the number of candidate classes of a request less one, or any larger number. Needed.
    """

    name = "paired"
    assumes_independence = True

    alpha: float = 0.01
    first: int = 3
    rivals: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", checks.fraction(f"rule {self.name}: alpha", self.alpha))
        object.__setattr__(self, "first", checks.whole(f"rule {self.name}: first", self.first, low=2))
        if self.rivals is not None:
            object.__setattr__(self, "rivals", checks.whole(f"rule {self.name}: rivals", self.rivals))

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        known_rivals(self.name, self.rivals)
        if draws <= self.first:
            return (draws,)
        return (self.first, *(look for look in geometric_looks(draws) if look > self.first))

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        rivals = known_rivals(self.name, self.rivals, look)
        if look.draws < 2:
            return look.alive
        tail = self.alpha / ((look.index + 1) * (look.index + 2) * rivals)
        return look.alive & ~beaten(look.paired(look.leaders(look.means)), critical_value(tail, look.draws))


def known_rivals(rule: str, rivals: int | None, look: Look | None = None) -> int:
    """The number of rivals, once it is known and no smaller than what a look shows.

    Raises:
        InputError: It was not given, or a request has more.
    """
    if rivals is None:
        raise InputError(f"rule {rule} needs rivals=..., the number of candidate classes less one")
    if look is not None and look.classes.shape[1] > rivals + 1:
        shown = int(look.alive.sum(axis=1).max())
        if shown > rivals + 1:
            raise InputError(f"rule {rule} with rivals={rivals} takes up to {rivals + 1} classes, got {shown}")
    return rivals
