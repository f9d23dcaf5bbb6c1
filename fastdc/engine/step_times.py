"""The time of a step by its size, measured as the engine runs it.

A step is timed alone and side by side with others on all slots, since slots share their hardware: on the CPU its cores
and memory, on a device all of it. The table takes the median of the rounds, and then for every size the smallest time
of any size that is not smaller: fewer cells never take longer than more, and a timing that says so was disturbed, or
the larger size is the one to use.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractNetwork, halves
from fastdc.engine.arrays import Pool
from fastdc.engine.loop import evaluate
from fastdc.engine.requests import Work
from fastdc.engine.scheduler import Scheduler
from fastdc.support import InputError, shown

_WARMUP = 3  # rounds of a size that are not timed: captured steps run differently in their first two rounds


@dataclass(frozen=True)
class StepTable:
    """The time of a step by its size.

    Attributes:
        sizes: Numbers of cells in a step, increasing up to the batch.
        seconds: Time of a step of each size, alone.
        together: Time of steps of each size on all slots, side by side; empty if there is one slot.
        slots: Number of slots.
        fixed: Whether a step has one of these sizes; otherwise it has any, and seconds are interpolated.

    Raises:
        InputError: There are no sizes, sizes do not increase, or a time is not positive.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    together: tuple[float, ...] = field(default=(), kw_only=True)
    slots: int = field(default=1, kw_only=True)
    fixed: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        steps = [b - a for a, b in zip((0, *self.sizes), self.sizes, strict=False)]
        if not steps or min(steps) < 1 or self.slots < 1:
            raise InputError(f"a table of steps needs increasing sizes and a slot, got {shown(self.sizes)}")
        for times in (self.seconds, *([self.together] if self.slots > 1 else [])):
            if len(times) != len(steps) or not all(0 < seconds < float("inf") for seconds in times):
                raise InputError(f"a table of steps needs a positive time for each of its sizes, got {shown(times)}")

    def cheapest(self, cells: int) -> int:
        """The size that is done soonest of those that hold a number of cells, at most a batch."""
        if not self.fixed:
            return cells
        able = range(bisect_left(self.sizes, cells), len(self.sizes))
        return self.sizes[min(able, key=lambda i: self.seconds[i])]

    def in_one(self, cells: int) -> bool:
        """Whether one step is done as soon with these cells as an even share on every slot."""
        if self.slots == 1 or cells > self.sizes[-1]:
            return False
        return self._alone[cells] <= self._together[-(-cells // self.slots)]

    def round(self, cells: int) -> float:
        """T: seconds until a number of cells is evaluated, in one step or shared evenly by the slots."""
        whole, rest = divmod(cells, len(self._rounds) - 1)
        return whole * self._rounds[-1] + self._rounds[rest]

    @cached_property
    def _rounds(self) -> list[float]:
        """Seconds of 0, 1, ... cells, up to a full step on every slot."""
        cells = range(self.sizes[-1] * self.slots + 1)
        return [self._alone[n] if self.in_one(n) else self._together[-(-n // self.slots)] for n in cells]

    @cached_property
    def _alone(self) -> list[float]:
        """Seconds of a step of 0, 1, ... cells."""
        return self._by_cells(self.seconds)

    @cached_property
    def _together(self) -> list[float]:
        """Seconds of steps of 0, 1, ... cells on all slots."""
        return self._by_cells(self.together if self.slots > 1 else self.seconds)

    def _by_cells(self, seconds: tuple[float, ...]) -> list[float]:
        cells = np.arange(1, self.sizes[-1] + 1)
        soonest = np.minimum.accumulate(np.array(seconds)[::-1])[::-1]
        known = soonest[np.searchsorted(self.sizes, cells)] if self.fixed else np.interp(cells, self.sizes, soonest)
        return [0.0, *known.tolist()]


class _Rehearsal:
    """Takes the place of a scheduler: rounds of steps of one size, each begun when the one before has ended.

    Args:
        pool: Arrays without images; its cells are as those of a race: classes fastest.
        draws: J.
    """

    def __init__(self, pool: Pool, draws: int) -> None:
        self._pool, self._draws = pool, draws
        self._cells = np.zeros((0, 3), np.int32)
        self._steps = self._unproposed = self._rounds = 0
        self.flying = 0
        self._begun = 0.0
        self.seconds: list[float] = []

    def begin(self, size: int, steps: int, rounds: int) -> None:
        """Prepares a number of rounds, each with a number of steps of one size."""
        index = np.arange(size, dtype=np.int32)
        classes, draws = index % self._pool.n_classes, index // self._pool.n_classes % self._draws
        self._cells = np.stack([np.zeros_like(index), classes, draws], axis=1)
        self._steps, self._rounds, self.seconds = steps, rounds, []

    def key(self, place: int) -> int:
        """The methods from here on are those of ``scheduler.Scheduler``."""
        return place

    def prepare(self) -> int:
        if not self._unproposed and not self.flying and self._rounds:
            self._rounds -= 1
            self._unproposed = self._steps
            self._begun = time.perf_counter()
        return self._unproposed * len(self._cells)

    def propose(self, room: int) -> Work:
        if not self.prepare():
            return Work(None, self._cells[:0])
        self._unproposed -= 1
        self.flying += len(self._cells)
        return Work(None, self._cells)

    def observe(self, work: Work, errors: npt.NDArray[np.float32]) -> None:
        self.flying -= len(work.cells)
        if not self.flying and not self._unproposed:
            self.seconds.append(time.perf_counter() - self._begun)


def measure_steps(
    network: AbstractNetwork,
    pool: Pool,
    sizes: Sequence[int] | None = None,
    *,
    draws: int = 1,
    repeats: int = 7,
    limit: float = 1.0,
) -> StepTable:
    """The median times of steps of each size as the engine runs them, alone and on all slots.

    Args:
        network: The network; the call waits for its turn.
        pool: Arrays on this network, without images yet. Steps are captured on the way if the network captures.
        sizes: Sizes to time, increasing; default: the network's fixed sizes, or the batch and its halves.
        draws: J, draws of the plan.
        repeats: Rounds that are timed for each size.
        limit: Seconds after which no larger size is timed; its time per cell is taken from the last one timed. Fixed
            sizes are always timed.

    Example:
        >>> from fastdc.engine import measure_steps
        >>> pool, _ = clf.settings().job.scheduler(clf.network, lambda: None, 1)
        >>> measure_steps(clf.network, pool, (1, 2), repeats=1).sizes
        (1, 2)

    Raises:
        InputError: A size is below 1 or larger than the network's batch.
        BackendError: The network fails.
    """
    chosen = tuple(network.sizes or halves(network.batch)) if sizes is None else tuple(sizes)
    if not chosen or min(chosen) < 1 or max(chosen) > network.batch or repeats < 1:
        raise InputError(f"sizes of steps must be from 1 to the network's {network.batch} rows, got {shown(chosen)}")
    rehearsal = _Rehearsal(pool, draws)

    def median(size: int, steps: int) -> float:
        rehearsal.begin(size, steps, _WARMUP + repeats)
        for _ in evaluate(network, pool, cast(Scheduler, rehearsal)):
            pass
        return float(np.median(rehearsal.seconds[_WARMUP:]))

    slots, fixed = len(network.slots), network.sizes is not None
    timed: list[tuple[float, float]] = []
    start = time.perf_counter()
    for size in chosen:
        if timed and not fixed and time.perf_counter() - start > limit:
            times = size / chosen[len(timed) - 1]
            timed.append((timed[-1][0] * times, timed[-1][1] * times))
        else:
            together = median(size, slots)
            timed.append((median(size, 1) if slots > 1 else together, together))
    alone, together_all = zip(*timed, strict=True)
    return StepTable(chosen, alone, together=together_all if slots > 1 else (), slots=slots, fixed=fixed)


_tables: "WeakKeyDictionary[AbstractNetwork, StepTable]" = WeakKeyDictionary()


def steps_of(network: AbstractNetwork, pool: Pool, *, draws: int) -> StepTable:
    """The table of a network, measured the first time and kept while the network lives.

    Args:
        network: The network.
        pool: Arrays on this network, without images yet.
        draws: J, draws of the plan.

    Example:
        >>> from fastdc.engine import steps_of
        >>> pool, _ = clf.settings().job.scheduler(clf.network, lambda: None, 1)
        >>> steps_of(clf.network, pool, draws=4).sizes[-1] == clf.network.batch
        True
    """
    table = _tables.get(network)
    if table is None:  # two threads may both measure: a lock, held while the network is in use, could lock others out
        table = _tables.setdefault(network, measure_steps(network, pool, draws=draws))
    return table
