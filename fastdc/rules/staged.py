"""Staged pruning (Li et al., arXiv 2303.16203, algorithm 2): a fixed budget of draws for a fixed number of classes.

After n_samples[i] draws of every class alive, the to_keep[i] classes with the smallest mean error so far stay. The cost
of a request is known before it runs and does not depend on the errors:

    sum over i of (classes alive in stage i) * (n_samples[i] - n_samples[i - 1]) .

This is the algorithm of the paper, whose stages are nested. The released code evaluates stage i on an evenly spaced
grid of timesteps, without those already evaluated. Its grids are not nested, so the code costs more than the paper
says: 124500 network evaluations per ImageNet image, where the published table has 100000. ``compat="li"`` reproduces
the code.
"""

from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look, check_draws
from fastdc.support import Float64, InputError, Mask, checks, shown


@dataclass(frozen=True)
class Staged(AbstractRule):
    """Keeps a given number of classes after a given number of draws.

    The rule gives no guarantee about errors: with to_keep[0] = 1, a class that is second after the first stage is lost.

    Attributes:
        n_samples: Numbers of draws after which the stages end, counted from the first draw; increasing. The last one is
            the run's number of draws.
        to_keep: Number of classes that stay after each stage, never increasing; usually ends with 1. Ties go to the
            smaller class index. Requests may have fewer classes.
        compat: None for the paper's nested stages. "li" for the draws of the released code: its n_samples count all
            timesteps of a stage's grid, up to 1000, also those that earlier stages have evaluated, and the rule defines
            the plan's timesteps (:func:`li_stages`).
    """

    name = "staged"

    n_samples: tuple[int, ...]
    to_keep: tuple[int, ...]
    compat: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_samples, to_keep = checked_stages(self.name, self.n_samples, self.to_keep)
        if self.compat not in (None, "li"):
            raise InputError(f"rule staged: compat must be 'li' or None, got {shown(self.compat)}")
        object.__setattr__(self, "n_samples", n_samples)
        object.__setattr__(self, "to_keep", to_keep)
        object.__setattr__(self, "draws", n_samples[-1])  # with "li", too: its last stage completes the grid
        ends = (0, *self._ends)
        if any(a == b for a, b in pairwise(ends)):
            stage = next(i for i in range(1, len(ends)) if ends[i] == ends[i - 1])
            raise InputError(f"rule staged: stage {stage} of n_samples {n_samples} has no timestep of its own")

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """Timesteps of the released code, which knows only models of 1000 timesteps; None for the paper's stages."""
        return None if self.compat is None else tuple(chain.from_iterable(li_stages(self.n_samples)))

    def evaluations(self, n_classes: int) -> int:
        """Computes the exact number of network evaluations of a request.

        A request ends with the stage that leaves one class. With one candidate, it ends with the first stage.

        Args:
            n_classes: Number of candidate classes.

        Raises:
            InputError: `n_classes` is not a whole number of at least 1.
        """
        return evaluations_of(self.name, n_classes, self._ends, self.to_keep)

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks at the end of each stage.

        Raises:
            InputError: `draws` is not the number of draws of the last stage.
        """
        check_last_stage(self.name, self.n_samples, draws)
        return self._ends

    def keep(self, look: Look) -> Mask:
        """Keeps the stage's number of classes with the smallest means."""
        return smallest(look.means, self.to_keep[look.index]) & look.alive

    @property
    def _ends(self) -> tuple[int, ...]:
        """Number of draws evaluated when each stage ends."""
        if self.compat is None:
            return self.n_samples
        return tuple(accumulate(map(len, li_stages(self.n_samples))))


def checked_stages(
    name: str, n_samples: tuple[int, ...], to_keep: tuple[int, ...], *, grows: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of draws and of kept classes of a rule's stages, as whole numbers.

    Args:
        name: Name of the rule, for the message.
        n_samples: Numbers of draws after which the stages end; a number alone is one stage.
        to_keep: Numbers of classes that stay.
        grows: Whether to_keep may increase.

    Raises:
        InputError: They are no whole numbers, not equally many, or not in order.
    """
    n_samples, to_keep = (
        checks.wholes(f"rule {name}: {field}", (values,) if checks.is_number(values) else values)
        for field, values in (("n_samples", n_samples), ("to_keep", to_keep))
    )
    if len(n_samples) != len(to_keep):
        raise InputError(
            f"rule {name}: n_samples and to_keep must be equally many, got {len(n_samples)} and {len(to_keep)}"
        )
    if any(a >= b for a, b in pairwise(n_samples)):
        raise InputError(f"rule {name}: n_samples must increase, got {n_samples}")
    if not grows and any(a < b for a, b in pairwise(to_keep)):
        raise InputError(f"rule {name}: to_keep must never increase, got {to_keep}")
    return n_samples, to_keep


def evaluations_of(name: str, n_classes: int, ends: tuple[int, ...], to_keep: tuple[int, ...]) -> int:
    """Network evaluations of a request whose stages end at these draws and keep these numbers of classes.

    Raises:
        InputError: `n_classes` is not a whole number of at least 1.
    """
    alive, before, total = checks.whole(f"rule {name}: n_classes", n_classes), 0, 0
    for end, keep in zip(ends, to_keep, strict=True):
        total += alive * (end - before)
        alive, before = min(alive, keep), end
        if alive == 1:
            break
    return total


def check_last_stage(name: str, n_samples: tuple[int, ...], draws: int) -> None:
    """Refuses a run whose draws are not those of the last stage.

    Raises:
        InputError: See above.
    """
    check_draws(name, draws)
    if draws != n_samples[-1]:
        raise InputError(f"rule {name} with n_samples up to {n_samples[-1]} needs draws={n_samples[-1]}, got {draws}")


def smallest(values: Float64, count: int) -> Mask:
    """Marks the `count` smallest values of each row (r, A), bool (r, A). Of equal values, the first are marked."""
    ranks = np.empty(values.shape, np.intp)
    np.put_along_axis(ranks, np.argsort(values, axis=1, kind="stable"), np.arange(values.shape[1])[None, :], axis=1)
    return ranks < count


def li_stages(n_samples: tuple[int, ...], timesteps: int = 1000) -> tuple[tuple[int, ...], ...]:
    """Lists the timesteps that the released code of Li et al. newly evaluates in each stage.

    With M = n_samples[-1] and step = timesteps // M, its grid is the first M of step // 2, step // 2 + step, ... Stage
    i takes n = n_samples[i] of them, at M // n // 2, M // n // 2 + M // n, ..., without those already taken. If n does
    not divide M, the stage omits the end of the grid: the first stage of (75, 200) evaluates nothing above t = 747.

    Args:
        n_samples: Numbers of timesteps of the stages' grids, increasing.
        timesteps: Number of timesteps T of the model, 0 ... T - 1.

    Returns:
        The new timesteps of each stage, increasing. Concatenated, they are the plan of ``Staged(..., compat="li")``,
        and the running totals of their numbers are its looks.

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
