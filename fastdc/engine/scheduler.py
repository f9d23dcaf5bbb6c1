"""The scheduler: requests in, steps out. It keeps the cells of every request in flight and packs them into full steps.

A request is one image with its candidate classes. Looks follow one another within a request, each waiting for the
errors of the last; steps are filled across requests, so no image waits for another. Finished requests leave at once and
new ones take their place, from an iterator that is read only as there is room, or submitted while others run.

Which request goes first changes no result, only how well steps are filled at the end of a run, when no new requests
are left. Earlier looks go first: every image's first look, then all second looks, and so on. Each round then still has
enough cells for full steps, where following single images to their end leaves a few long chains for last. Bookkeeping
is native (``csrc/ledger.h``) and the rule sees all requests of a look at once, so that its cost does not grow with the
number of requests.

Some methods denoise the image before anything else (``noised``). A request then begins with denoising cells, at the
draw after the plan's last, and its looks begin when they are done.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import Ledger
from fastdc.rules import AbstractRule, Look
from fastdc.support import InputError

Cells = npt.NDArray[np.int32]
"""int32 (m, 3): slot of the image, class, draw."""

IN_FLIGHT = 1024
"""Requests that may be in flight at once: many steps' worth, at O(classes) memory each."""


@dataclass(frozen=True, eq=False)
class Request:
    """One image to decide.

    Attributes:
        key: The caller's name for it.
        image: float32 (c, h, w) in the model's value range.
        stream: Noise stream, in [0, 2^56).
        classes: int32 (A,), candidate classes in increasing order; None: all.
        target: Ask only whether this class wins: once it is dropped the request ends, with another class left. None:
            which class wins. Not for rules that expand.
    """

    key: int
    image: npt.NDArray[np.float32] = field(repr=False)
    stream: int
    classes: npt.NDArray[np.int32] | None = None
    target: int | None = None


@dataclass(frozen=True, eq=False)
class Finished:
    """A request that was decided.

    Attributes:
        key: The request's.
        counts: int32 (K,), draws at which each class was evaluated: the first ones of the plan.
        values: float32 (sum of counts,), their errors in (class, draw) order.
        best: The class with the smallest mean error among those evaluated at most draws; the first one at ties.
    """

    key: int
    counts: npt.NDArray[np.int32] = field(repr=False)
    values: npt.NDArray[np.float32] = field(repr=False)
    best: int


@dataclass(frozen=True, eq=False)
class Work:
    """Cells for one step.

    Attributes:
        ticket: What the errors are handed back with; None if there are none to come.
        cells: The cells, those that denoise first.
        denoising: How many of them denoise; the rest have errors.
    """

    ticket: int | None
    cells: Cells
    denoising: int = 0


class Scheduler:
    """Requests of one run under one rule.

    Everything but :meth:`submit` belongs to one thread.

    Args:
        rule: When to drop classes.
        draws: J, draws of the plan.
        n_classes: K.
        place: Called as place(slot, image, stream) before cells of that slot are proposed.
        requests: Read lazily, as slots become free.
        capacity: Slots: requests in flight at once.
        denoising: Classes of the cells that denoise an image, in what the network calls them; none: nothing does.
        denoised: Called as denoised(slot) when those of a slot are done.

    Raises:
        InputError: The rule does not fit the number of draws, or capacity is below 1.
    """

    def __init__(
        self,
        rule: AbstractRule,
        draws: int,
        n_classes: int,
        *,
        place: Callable[[int, npt.NDArray[np.float32], int], None],
        requests: Iterable[Request] = (),
        capacity: int = IN_FLIGHT,
        denoising: tuple[int, ...] = (),
        denoised: Callable[[int], None] = lambda slot: None,
    ) -> None:
        if capacity < 1:
            raise InputError(f"capacity must be at least 1, got {capacity}")
        self._rule = rule
        self._looks = rule.looks(draws)
        self._all = np.arange(n_classes, dtype=np.int32)
        self._place = place
        self._source: Iterator[Request] | None = iter(requests)
        self._submitted: deque[Request] = deque()
        self._ledger = Ledger(draws, n_classes)
        self._free = list(range(capacity - 1, -1, -1))
        self._keys = [0] * capacity
        self._candidates: list[npt.NDArray[np.int32] | None] = [None] * capacity
        self._target = np.full(capacity, -1, np.int32)
        self._denoised = denoised
        self._first = np.zeros((0, 3), np.int32)  # denoising cells not yet proposed
        self._of_an_image = np.array([(0, label, draws) for label in denoising], np.int32).reshape(-1, 3)
        self._undone = np.zeros(capacity, np.int32)  # denoising cells that each slot still waits for
        self._denoising = 0  # of them in flight
        self._look = np.zeros(capacity, np.int32)
        self._alive = np.zeros(capacity, np.int32)
        self._finished: list[Finished] = []
        self._most = np.zeros(capacity, np.int64)  # cells that each request in flight will have cost, at most
        self._settled = 0  # cells of finished requests
        self._evaluated = 0
        self._admitted = 0

    @property
    def evaluated(self) -> int:
        """Cells evaluated so far."""
        return self._evaluated

    @property
    def at_most(self) -> int:
        """Cells that the requests admitted so far will have cost, at most."""
        return self._settled + int(self._most.sum())

    @property
    def admitted(self) -> int:
        """Requests that are in flight or finished."""
        return self._admitted

    def prepare(self) -> int:
        """Admits requests while there are slots for them; returns the cells that can be proposed now."""
        self._admit()
        return self._ledger.waiting + len(self._first)

    @property
    def flying(self) -> int:
        """Cells proposed whose errors have not come."""
        return self._ledger.flying + self._denoising

    def key(self, slot: int) -> int:
        """The key of the request in a slot; from any thread while cells of that slot are in flight."""
        return self._keys[slot]

    def submit(self, request: Request) -> None:
        """Adds a request, also while others run and from any thread. Its work begins with the next step."""
        self._submitted.append(request)

    def propose(self, room: int) -> Work:
        """Up to `room` cells for the next step; none when nothing can be done until errors come or requests do."""
        self._admit()
        first, self._first = self._first[:room], self._first[room:]
        self._denoising += len(first)
        if len(first) == room or not self._ledger.waiting:
            return Work(None, first, len(first))
        ticket, cells = self._ledger.propose(room - len(first))
        return Work(ticket, np.concatenate([first, cells]) if len(first) else cells, len(first))

    def observe(self, work: Work, errors: npt.NDArray[np.float32]) -> None:
        """Takes the errors (m,) of a step and decides every request whose look is complete."""
        self._evaluated += len(errors)
        if work.denoising:
            self._begin(work.cells[: work.denoising, 0])
        if work.ticket is None:
            return
        complete = self._ledger.observe(work.ticket, errors[work.denoising :])
        if len(complete):
            looks = self._look[complete]
            for look in sorted(set(looks.tolist())):
                self._decide(complete[looks == look], look)

    def finished(self) -> list[Finished]:
        """The requests that finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _admit(self) -> None:
        while self._free:
            request = self._next_request()
            if request is None:
                return
            candidates = self._all if request.classes is None else request.classes
            classes = self._rule.begin(candidates)
            if request.target is not None and self._rule.expands:
                raise InputError(f"rule {self._rule.name} adds classes as it goes: expected no target")
            slot = self._free.pop()
            self._place(slot, request.image, request.stream)
            self._keys[slot] = request.key
            self._candidates[slot] = request.classes
            self._target[slot] = -1 if request.target is None else request.target
            self._look[slot] = 0
            self._alive[slot] = len(classes)
            self._most[slot] = len(candidates) * self._looks[-1] + len(self._of_an_image)
            self._admitted += 1
            if len(self._of_an_image):
                self._undone[slot] = len(self._of_an_image)
                self._first = np.concatenate([self._first, self._of_an_image + np.array([slot, 0, 0], np.int32)])
            else:
                self._ledger.open(slot, classes, self._looks[0], 0)

    def _begin(self, slots: npt.NDArray[np.int32]) -> None:
        """Takes denoising cells of these slots; the looks of an image begin with its last."""
        self._denoising -= len(slots)
        np.subtract.at(self._undone, slots, 1)
        for slot in sorted(set(slots[self._undone[slots] == 0].tolist())):
            self._denoised(slot)
            candidates = self._candidates[slot]
            classes = self._rule.begin(self._all if candidates is None else candidates)
            self._ledger.open(slot, classes, self._looks[0], 0)

    def _next_request(self) -> Request | None:
        if self._submitted:
            return self._submitted.popleft()
        if self._source is None:
            return None
        request = next(self._source, None)
        if request is None:
            self._source = None
        return request

    def _decide(self, slots: npt.NDArray[np.int32], index: int) -> None:
        """Takes the look that all requests in `slots` have completed."""
        draws, last = self._looks[index], index + 1 == len(self._looks)
        if not self._rule.expands:  # nothing to ask where nothing can change
            if last:
                self._close(slots)
                return
            settled = self._alive[slots] == 1
            if settled.any():
                self._close(slots[settled])
                slots = slots[~settled]
                if not len(slots):
                    return
        look = Look(index, draws, last, *self._ledger.gather(slots), self._shown(slots))
        keep = self._settled_targets(look, self._rule.keep(look), self._target[slots])
        left = self._check(look, keep)
        added = self._rule.expand(look, keep) if self._rule.expands else None
        self._ledger.drop(slots, keep)
        self._most[slots] -= (self._alive[slots] - left) * (self._looks[-1] - draws)
        self._alive[slots] = left
        over = (left == 1) | last
        if added is not None:
            grows = np.array([len(new) > 0 for new in added])
            for row in np.flatnonzero(grows).tolist():
                self._ledger.add(int(slots[row]), added[row], -index)
            self._alive[slots] += np.array([len(new) for new in added], np.int32)
            slots, over = slots[~grows], over[~grows]
        if over.any():
            self._close(slots[over])
            slots = slots[~over]
        if len(slots):
            self._look[slots] = index + 1
            self._ledger.extend(slots, self._looks[index + 1], -(index + 1))

    def _settled_targets(
        self, look: Look, keep: npt.NDArray[np.bool_], targets: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.bool_]:
        """Keeps nothing but the best class where the class that was asked about is lost."""
        asked = targets >= 0
        if not asked.any():
            return keep
        lost = asked & ~(keep & (look.classes == targets[:, None])).any(axis=1)
        if not lost.any():
            return keep
        best = np.where(keep, look.means, np.inf).argmin(axis=1)
        only = np.zeros_like(keep)
        only[np.arange(len(best)), best] = True
        return np.where(lost[:, None], only, keep)

    def _shown(self, slots: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_] | None:
        """The candidates of these requests, bool (r, K), for rules that ask; None: all classes."""
        if not self._rule.expands:
            return None
        candidates = [self._candidates[slot] for slot in slots]
        if all(classes is None for classes in candidates):
            return None
        shown = np.zeros((len(slots), len(self._all)), np.bool_)
        for row, classes in enumerate(candidates):
            shown[row, self._all if classes is None else classes] = True
        return shown

    def _check(self, look: Look, keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """How many classes a rule kept in each request; refuses what no rule may do."""
        left: npt.NDArray[np.int32] = keep.sum(axis=1, dtype=np.int32)
        if (keep > look.alive).any() or not left.all():
            raise InputError(f"rule {self._rule.name} must keep at least one of the classes alive, and only those")
        return left

    def _close(self, slots: npt.NDArray[np.int32]) -> None:
        for slot, (counts, values, best) in zip(slots.tolist(), self._ledger.close(slots), strict=True):
            self._finished.append(Finished(self._keys[slot], counts, values, best))
            self._settled += len(values) + len(self._of_an_image)
            self._free.append(slot)
        self._most[slots] = 0
