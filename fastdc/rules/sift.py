"""Sift and refine, for many classes (Chen et al., arXiv 2402.02316, the ImageNet classifier of the released code).

Sifting: after each of the first draws, a class is dropped if its summed error S_k = sum over j of e_k,j exceeds the
smallest sum by more than a threshold. Sifting ends when at most `keep_at_most` classes are left, or with the last sift
draw, after which the `keep_at_most` classes with the smallest sums stay. Refining: these classes run to the last draw.

The threshold applies to sums, as in the source. It stays the same with more draws while the noise of a sum grows, so a
class may be dropped late for noise that would not have dropped it early. On means it is threshold / m after m draws.
Its unit is that of the weighted errors; the source has 5e-5 and 5e-4, fixed, in its own weights.

Departures. The source sifts and refines on different noise levels and decides by those of refining; here sifting uses
the first draws of a plan, and the decision uses all draws. A request that begins with at most `keep_at_most` classes is
not sifted; the source sifts it once.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, check_draws
from fastdc.rules.staged import smallest
from fastdc.support import Mask, checks


@dataclass(frozen=True)
class Sift(AbstractRule):
    """Drops classes by their summed error over a few draws, then runs the rest to the end.

    A look shows whether a request is still being sifted: it has more than `keep_at_most` classes until sifting ends,
    and never after. The rule gives no guarantee about errors.

    Attributes:
        threshold: Largest excess of a class's summed error over the smallest sum, from 0, in units of the errors.
        sift_draws: Number of draws of the sifting. A run of at most that many draws has no refining.
        keep_at_most: Largest number of classes that are refined.
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
        """Looks after every draw of the sifting, and after the last draw."""
        check_draws(self.name, draws)
        return (*range(1, min(self.sift_draws + 1, draws)), draws)

    def keep(self, look: Look) -> Mask:
        """Keeps the classes within the threshold while sifting, and all classes while refining."""
        alive = look.alive
        sums = np.where(alive, look.errors.sum(axis=2, dtype=np.float64), np.inf)
        sifting = alive.sum(axis=1, keepdims=True) > self.keep_at_most
        stays = sums - sums.min(axis=1, keepdims=True) <= self.threshold
        if look.draws >= self.sift_draws:
            stays &= smallest(sums, self.keep_at_most)
        return np.asarray(alive & (stays | ~sifting))
