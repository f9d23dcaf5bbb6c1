"""Staged pruning (Li et al., arXiv 2303.16203, algorithm 2): a fixed budget of draws for a fixed number of classes.

After n_samples[i] draws of every class alive, the to_keep[i] classes with the smallest mean error so far stay. What a
request costs is known before it runs, whatever the errors:

    sum over i of (classes alive in stage i) * (n_samples[i] - n_samples[i - 1]) .

That is the algorithm of the paper, whose stages nest. The released code evaluates stage i on an evenly spaced grid of
timesteps of its own, less those already evaluated. Its grids do not nest, so that the code spends more than the paper
says: 124500 network evaluations for an ImageNet image where the published table has 100000. ``compat="li"`` repeats it.
"""

from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import numpy as np
import numpy.typing as npt

from fastdc.rules.protocol import AbstractRule, Look, Mask, check_draws
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class Staged(AbstractRule):
    """Keeps a given number of classes after a given number of draws.

    No statement about errors goes with it: a class that is second after the first stage is as lost as the last one.

    Attributes:
        n_samples: Draws after which a stage ends, counted from the first draw; increasing, the last one is the run's.
        to_keep: Classes that stay after each stage, never increasing; usually ends with 1. Ties go to the smaller
            class index. Requests may have fewer classes than that.
        compat: None: the paper's nested stages. "li": the draws of the released code, whose n_samples count the
            timesteps of a stage's grid, also those that earlier stages have evaluated, up to 1000; the rule brings
            its own plan. See :func:`li_stages`.
    """

    name = "staged"

    n_samples: tuple[int, ...]
    to_keep: tuple[int, ...]
    compat: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_samples = checks.wholes(f"rule {self.name}: n_samples", self.n_samples)
        to_keep = checks.wholes(f"rule {self.name}: to_keep", self.to_keep)
        if len(n_samples) != len(to_keep):
            raise InputError(
                f"rule staged: n_samples and to_keep must be equally many, got {len(n_samples)} and {len(to_keep)}"
            )
        if any(a >= b for a, b in pairwise(n_samples)):
            raise InputError(f"rule staged: n_samples must increase, got {n_samples}")
        if any(a < b for a, b in pairwise(to_keep)):
            raise InputError(f"rule staged: to_keep must never increase, got {to_keep}")
        if self.compat not in (None, "li"):
            raise InputError(f"rule staged: compat must be 'li' or None, got {self.compat!r}")
        object.__setattr__(self, "n_samples", n_samples)
        object.__setattr__(self, "to_keep", to_keep)
        object.__setattr__(self, "draws", n_samples[-1])  # also of the released code, whose last stage fills its grid
        ends = (0, *self._ends)
        if any(a == b for a, b in pairwise(ends)):
            stage = next(i for i in range(1, len(ends)) if ends[i] == ends[i - 1])
            raise InputError(f"rule staged: stage {stage} of n_samples {n_samples} has no timestep of its own")

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """See :class:`AbstractRule`. Those of the released code, which knows models of 1000 timesteps only."""
        return None if self.compat is None else tuple(chain.from_iterable(li_stages(self.n_samples)))

    def evaluations(self, n_classes: int) -> int:
        """Network evaluations that a request with `n_classes` candidate classes costs, exactly.

        It ends with the stage that leaves one class; with one candidate, with the first stage.

        Raises:
            InputError: `n_classes` is not a whole number of at least 1.
        """
        alive, before, total = checks.whole(f"rule {self.name}: n_classes", n_classes), 0, 0
        for end, keep in zip(self._ends, self.to_keep, strict=True):
            total += alive * (end - before)
            alive, before = min(alive, keep), end
            if alive == 1:
                break
        return total

    def looks(self, draws: int) -> tuple[int, ...]:
        """See :class:`AbstractRule`."""
        check_draws(self.name, draws)
        if draws != self.n_samples[-1]:
            raise InputError(
                f"rule staged with n_samples {self.n_samples} needs draws={self.n_samples[-1]}, got {draws}"
            )
        return self._ends

    def keep(self, look: Look) -> Mask:
        """See :class:`AbstractRule`."""
        return smallest(look.means, self.to_keep[look.index]) & look.alive

    @property
    def _ends(self) -> tuple[int, ...]:
        """Draws evaluated when each stage ends."""
        if self.compat is None:
            return self.n_samples
        return tuple(accumulate(map(len, li_stages(self.n_samples))))


def smallest(values: npt.NDArray[np.float64], count: int) -> Mask:
    """Which are the `count` smallest values of each row (r, A), bool (r, A); of equal ones the first."""
    ranks = np.empty(values.shape, np.intp)
    np.put_along_axis(ranks, np.argsort(values, axis=1, kind="stable"), np.arange(values.shape[1])[None, :], axis=1)
    return ranks < count


def li_stages(n_samples: tuple[int, ...], timesteps: int = 1000) -> tuple[tuple[int, ...], ...]:
    """The timesteps that the released code of Li et al. evaluates anew in each stage.

    With M = n_samples[-1] and step = timesteps // M, its grid is the first M of step // 2, step // 2 + step, ...; stage
    i takes n = n_samples[i] of them, those at M // n // 2, M // n // 2 + M // n, ..., less what it has already taken.
    If n does not divide M the stage leaves out the end of the grid: (75, 200) evaluates nothing above t = 747 first.

    Args:
        n_samples: Timesteps of each stage's grid, increasing.
        timesteps: T of the model, 0 ... T - 1.

    Returns:
        For each stage its new timesteps, increasing. One after the other they are the plan of
        ``Staged(..., compat="li")``, and their running totals are its looks.

    Raises:
        InputError: n_samples are not increasing whole numbers up to `timesteps`.
    """
    counts = checks.wholes("rule staged: n_samples", n_samples)
    if any(a >= b for a, b in pairwise(counts)) or counts[-1] > checks.whole("rule staged: timesteps", timesteps):
        raise InputError(f"rule staged: n_samples must increase up to at most {timesteps} timesteps, got {counts}")
    step = timesteps // counts[-1]
    taken: set[int] = set()
    stages = []
    for count in counts:
        stride = counts[-1] // count
        stage = [i for i in range(stride // 2, counts[-1], stride)[:count] if i not in taken]
        taken.update(stage)
        stages.append(tuple(step // 2 + step * i for i in stage))
    return tuple(stages)
