"""Low latency: one image decided as soon as possible, from a table of step times.

A race is a chain of looks, each waiting for the errors of the one before. For one image the steps of that chain are
small, and a device takes about as long for a step of eight cells as for one of two. So errors are evaluated *ahead of
the decision*: beside the cells that the rule waits for, those of the next looks, under all classes that are still
alive. The rule still decides at its looks, one after another, from the errors that it would have seen; errors that
turn out not to be needed are dropped. Labels, counts and errors are therefore those of the plain race, to the bit, at
any depth. Only time is at stake, and cells that were evaluated for nothing.

The depth minimises the expected time to the decision. With T(n) the seconds of n cells in steps side by side on all
slots, measured (``steps.StepTable``), m_l the draws at look l, a_l the classes alive when its cells are asked for and
p_l the probability that the race goes on after it,

    V_i = min over t >= i of   T(a_i (m_t - m_{i-1})) + p_i ... p_t V_{t+1}

is the time from look i on when the cells up to look t are evaluated at once. a_l and p_l are averages over the requests
seen so far, beginning with one imagined request that loses half its classes and ends every other time. At a look, the
number of classes actually alive replaces a_i, and cells of other images in the same step are counted in T.

Let V'_0 be the same sum without looking ahead. If T is nearly proportional to the cells, V_0 is nearly V'_0 and the
bookkeeping is not worth it: the plain scheduler then serves a request better (:attr:`Foresight.gain`).

Looking ahead spends work to gain time, and pays for few images at once. With many images, steps are full of cells that
are needed, and the plain scheduler, which evaluates no others, finishes them all sooner.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdc.engine.requests import Cells, Work
from fastdc.engine.scheduler import Scheduler
from fastdc.engine.step_times import StepTable
from fastdc.support import Float32, Int32

_REMEMBERED = 4096  # requests after which the averages are no longer refreshed

WORTH = 0.2
"""The least :attr:`Foresight.gain` for which looking ahead pays for its bookkeeping."""

AHEAD_BYTES = 2**26
"""The most memory of errors that may be known ahead of the decisions."""


class Foresight:
    """The depth to look ahead, from step times and from how races went; see the module.

    Args:
        looks: m_l.
        n_classes: K.
        steps: Step times.
    """

    def __init__(self, looks: Sequence[int], n_classes: int, steps: StepTable) -> None:
        self._looks = (0, *looks)
        self._steps = steps
        self._reached = [0.5**i for i in range(len(looks))]
        self._alive = [max(2.0, n_classes * 0.5**i) * reached for i, reached in enumerate(self._reached)]
        self._seen = 0
        self._refresh()

    @property
    def gain(self) -> float:
        """The part of the expected time to a decision that looking ahead saves, in [0, 1)."""
        plain = sum(
            reached * self._steps.round(round(alive / reached * (self._looks[i + 1] - self._looks[i])))
            for i, (reached, alive) in enumerate(zip(self._reached, self._alive, strict=True))
        )
        return 1 - self._value[0] * self._reached[0] / plain

    def begin(self, look: int, classes: int) -> None:
        """Counts a request that asks for the cells of a look."""
        self._reached[look] += 1
        self._alive[look] += classes
        if look == 0:
            self._seen += 1
            if self._seen <= _REMEMBERED and self._seen & (self._seen - 1) == 0:
                self._refresh()

    def depth(self, look: int, classes: int, *, missing: int, beside: int = 0) -> int:
        """The look up to which cells are best evaluated at once.

        Args:
            look: Index of the look that the rule waits for.
            classes: Number of classes alive.
            missing: Number of cells that the rule waits for.
            beside: Number of other cells in the step.
        """
        return self._best(look, classes, missing + beside)[1]

    def _best(self, look: int, classes: float, cells: float) -> tuple[float, int]:
        """(expected seconds, the look to go up to), given `cells` that are evaluated in any case."""
        best, depth, goes_on = float("inf"), look, 1.0
        for end in range(look, len(self._value) - 1):
            goes_on *= self._goes_on[end]
            more = classes * (self._looks[end + 1] - self._looks[look + 1])
            step = self._steps.round(round(cells + more))
            seconds = step + goes_on * self._value[end + 1]
            if step > best:  # and so is every step of still more cells
                break
            if seconds < best:
                best, depth = seconds, end
        return best, depth

    def _refresh(self) -> None:
        """V, from the last look to the first."""
        reached, count = self._reached, len(self._reached)
        self._goes_on = [min(1.0, reached[i + 1] / reached[i]) for i in range(count - 1)] + [0.0]
        self._value = [0.0] * (count + 1)
        for look in range(count - 1, -1, -1):
            classes = self._alive[look] / reached[look]
            cells = classes * (self._looks[look + 1] - self._looks[look])
            self._value[look] = self._best(look, classes, cells)[0]


class LookAhead(Scheduler):
    """A scheduler for few requests that evaluates errors ahead of the decisions; see the module.

    The blocks of cells that the rule waits for are taken from the ledger as soon as they are there, and told when all
    their errors are known, whichever step brought them. A place of the pool is used again when no cell of its last
    request is in flight.

    Args:
        *args: Arguments of :class:`Scheduler`.
        steps: Step times.
        **options: Keywords of :class:`Scheduler`.
    """

    def __init__(self, *args: Any, steps: StepTable, **options: Any) -> None:
        super().__init__(*args, **options)
        capacity, classes, draws = len(self._keys), len(self._all), self._looks[-1]
        self._steps = steps
        self._foresight = Foresight(self._looks, classes, steps)
        self._known = np.full((capacity, classes, draws), np.nan, np.float32)
        self._asked = np.zeros((capacity, classes, draws), np.bool_)  # given to the engine, or about to be
        self._blocks: list[Work] = []  # taken from the ledger and not told
        self._wanted: list[Cells] = []  # of the blocks, not proposed yet
        self._ahead: dict[int, Cells] = {}  # by place, not proposed yet
        self._steps_out: dict[int, int] = {}  # cells of the steps in flight, by number
        self._step = 0
        self._out = np.zeros(capacity, np.int64)  # cells in flight, by place
        self._leaving: set[int] = set()  # places whose request is over and that still have some
        self._computed = 0

    @classmethod
    def capacity_for(cls, capacity: int, n_classes: int, draws: int) -> int:
        """The requests that may be in flight, at most `capacity`, within :data:`AHEAD_BYTES`."""
        return max(1, min(capacity, AHEAD_BYTES // (5 * n_classes * draws)))

    @property
    def evaluated(self) -> int:
        """Cells evaluated so far, including those that were not needed."""
        return self._computed

    @property
    def flying(self) -> int:
        """See :class:`Scheduler`."""
        return sum(self._steps_out.values())

    def prepare(self) -> int:
        """See :class:`Scheduler`."""
        self._admit()
        if self._ledger.waiting:
            self._settle()
        return self._denoising.waiting + sum(map(len, (*self._wanted, *self._ahead.values())))

    def propose(self, room: int) -> Work:
        """See :class:`Scheduler`. If sizes are fixed, cells are repeated up to the size that is done soonest."""
        pending = self.prepare()
        if not pending:
            return Work(None, self._denoising.propose(0))
        if not self._steps_out and self._steps.in_one(pending):
            room = pending
        first = self._denoising.propose(room)
        parts = [first]
        left = room - len(first)
        while left and (self._wanted or self._ahead):
            place = None if self._wanted else next(iter(self._ahead))
            cells = self._wanted.pop(0) if place is None else self._ahead.pop(place)
            parts.append(cells[:left])
            if len(cells) > left and place is None:
                self._wanted.insert(0, cells[left:])
            elif len(cells) > left and place is not None:
                self._ahead[place] = cells[left:]
            left -= len(parts[-1])
        cells = np.concatenate(parts)
        count = len(cells)
        own = cells[len(first) :]
        self._asked[own[:, 0], own[:, 1], own[:, 2]] = True
        self._out += np.bincount(cells[:, 0], minlength=len(self._out))
        self._step += 1
        self._steps_out[self._step] = count
        if count > len(first) and (size := self._steps.cheapest(count)) > count:
            cells = np.concatenate([cells, np.repeat(cells[-1:], size - count, axis=0)])
        return Work(self._step, cells, len(first))

    def observe(self, work: Work, errors: Float32) -> None:
        """See :class:`Scheduler`."""
        assert work.ticket is not None
        count = self._steps_out.pop(work.ticket)
        self._computed += count
        cells = work.cells[:count]
        self._out -= np.bincount(cells[:, 0], minlength=len(self._out))
        if work.denoising:
            self._begin(cells[: work.denoising, 0])
        places, classes, draws = cells[work.denoising :].T
        self._known[places, classes, draws] = errors[work.denoising : count]
        for place in [place for place in self._leaving if not self._out[place]]:
            self._leaving.remove(place)
            self._vacate(place)
        self._settle()

    def _settle(self) -> None:
        """Tells the ledger every block whose errors are known, until it waits for unknown ones."""
        while True:
            self._take_blocks()
            blocks, self._blocks = self._blocks, []
            for block in blocks:
                places, classes, draws = block.cells.T
                errors = self._known[places, classes, draws]
                if np.isnan(errors).any():
                    self._blocks.append(block)
                else:
                    super().observe(block, errors)
            if len(self._blocks) == len(blocks):
                return

    def _take_blocks(self) -> None:
        """Takes the blocks that wait in the ledger, and chooses the cells to evaluate for them and ahead of them."""
        if not self._ledger.waiting:
            return
        ticket, cells = self._ledger.propose(self._ledger.waiting)
        self._blocks.append(Work(ticket, cells))
        places = cells[:, 0]
        missing = cells[~self._asked[places, cells[:, 1], cells[:, 2]]]
        if len(missing):
            self._asked[missing[:, 0], missing[:, 1], missing[:, 2]] = True
            self._wanted.append(missing)
        for place in dict.fromkeys(places.tolist()):
            self._look_ahead(place, cells[places == place], int(np.count_nonzero(missing[:, 0] == place)))

    def _look_ahead(self, place: int, block: Cells, missing: int) -> None:
        """Chooses the cells to evaluate beside a block; `missing` cells of the block are not being evaluated yet."""
        look = int(self._look[place])
        classes = block[: np.count_nonzero(block[:, 2] == block[0, 2]), 1]  # which run fastest
        self._foresight.begin(look, len(classes))
        self._ahead.pop(place, None)
        if not missing:
            return
        beside = sum(map(len, (*self._wanted, *self._ahead.values()))) - missing
        end = self._foresight.depth(look, len(classes), missing=missing, beside=beside)
        if end == look:
            return
        draws = np.arange(self._looks[look], self._looks[end], dtype=np.int32)
        grid = np.stack(np.meshgrid(draws, classes, indexing="ij"), axis=-1).reshape(-1, 2)  # classes fastest
        ahead = np.column_stack([np.full(len(grid), place, np.int32), grid[:, 1], grid[:, 0]])
        ahead = ahead[~self._asked[place, ahead[:, 1], ahead[:, 2]]]
        if len(ahead):
            self._ahead[place] = np.ascontiguousarray(ahead, np.int32)

    def _close(self, places: Int32) -> None:
        super()._close(places)
        del self._free[len(self._free) - len(places) :]  # which may have cells in flight
        for place in places.tolist():
            self._ahead.pop(place, None)
            if self._out[place]:
                self._leaving.add(place)
            else:
                self._vacate(place)

    def _vacate(self, place: int) -> None:
        """Makes a place ready for the next request."""
        self._known[place] = np.nan
        self._asked[place] = False
        self._free.append(place)
