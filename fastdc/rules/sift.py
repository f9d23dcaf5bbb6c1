"""Sift and refine, for many classes (Chen et al., arXiv 2402.02316, the ImageNet classifier of the released code).

Sifting: after each of the first draws, a class is dropped when its summed error S_k = sum over j of e_k,j exceeds the
smallest by more than a threshold. It ends when at most `keep_at_most` classes are left, or with the last sift draw,
after which the `keep_at_most` classes with the smallest sums stay. Refining: all of these run to the last draw.

The threshold is one on sums, as in the source: it grows no looser with more draws, while noise does, so a class may be
dropped later for noise that would not have dropped it early. In means it is threshold / m after m draws. Its unit is
that of the weighted errors; the source has 5e-5 and 5e-4, fixed, in its own weights.

Departures. The source sifts and refines on different noise levels and decides by the refining ones; here they are the
first and all draws of one plan, and the decision uses every draw. A request that has no more than `keep_at_most`
classes to begin with is not sifted, where the source sifts it once.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws
from fastdc.rules.staged import smallest
from fastdc.support import checks


@dataclass(frozen=True)
class Sift(AbstractRule):
    """Drops classes by their summed error over a few draws, then runs the rest to the end.

    Whether a request is still being sifted follows from what a look shows: it has more than `keep_at_most` classes
    until sifting ends, and never after. No statement about errors goes with it.

    Attributes:
        threshold: How far a class's summed error may lie above the smallest; from 0 on, in units of the errors.
        sift_draws: Draws of the sifting. In a run of no more draws than that, there is no refining.
        keep_at_most: Classes that are refined.
    """

    name = "sift"

    threshold: float
    sift_draws: int = 16
    keep_at_most: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "threshold", checks.positive(f"rule {self.name}: threshold", self.threshold, zero=True)
        )
        object.__setattr__(self, "sift_draws", checks.whole(f"rule {self.name}: sift_draws", self.sift_draws))
        object.__setattr__(self, "keep_at_most", checks.whole(f"rule {self.name}: keep_at_most", self.keep_at_most))

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        return (*range(1, min(self.sift_draws + 1, draws)), draws)

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        alive = look.alive
        sums = np.where(alive, look.errors.sum(axis=2, dtype=np.float64), np.inf)
        sifting = alive.sum(axis=1, keepdims=True) > self.keep_at_most
        stays = sums - sums.min(axis=1, keepdims=True) <= self.threshold
        if look.draws >= self.sift_draws:
            stays &= smallest(sums, self.keep_at_most)
        return np.asarray(alive & (stays | ~sifting))
