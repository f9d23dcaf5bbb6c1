"""The scheduler: requests in, steps out. It keeps the cells of every request in flight and packs them into full steps.

A request is one image with its candidate classes. Its looks follow one another, each waiting for the errors of the one
before; steps are filled across requests, so that no image waits for another. Finished requests leave at once and new
ones take their places, read from their source only when there is room.

The order of requests changes no result, only how well steps are filled at the end of a run, when no new requests are
left. Earlier looks go first: every image's first look, then all second looks, and so on. Each round then still has
enough cells for full steps; following single images to their end would leave a few long chains for last. Bookkeeping
is native (``csrc/ledger.h``) and the rule sees all requests of a look at once, so that the cost per step does not grow
with the number of requests.

Some methods denoise the image first (``diffusion.noisy_methods``). A request then begins with denoising cells
(:class:`DenoisingCells`), and its looks begin when those have ended.
"""

from collections.abc import Callable

import numpy as np

from fastdc.diffusion import Ledger
from fastdc.engine.denoising import DenoisingCells
from fastdc.engine.requests import IN_FLIGHT, Finished, Request, Work
from fastdc.rules import AbstractRule, Look
from fastdc.support import Float32, InputError, Int32, Mask

_LOOKS, _GROUPS = 2**10, 2**21  # looks and groups that the ledger's priorities, 32 bits wide, tell apart


class Scheduler:
    """Requests of one run under one rule, on one network. All calls belong to one thread.

    Args:
        rule: Rule that drops classes.
        draws: J, draws of the plan.
        n_classes: K.
        put: Called as put(place, image, stream) before cells of that place are proposed.
        next_request: Returns the next request, or None if there is none now; called when a place is free.
        capacity: Number of places: requests in flight at once.
        denoising: Classes that an image is denoised under, as the network numbers them; empty if the method does not
            denoise.
        denoised: Called as denoised(place) when the denoising cells of a place have ended.

    Raises:
        InputError: The rule does not fit the number of draws, or capacity is below 1.
    """

    def __init__(
        self,
        rule: AbstractRule,
        draws: int,
        n_classes: int,
        *,
        put: Callable[[int, Float32, int], None],
        next_request: Callable[[], Request | None],
        capacity: int = IN_FLIGHT,
        denoising: tuple[int, ...] = (),
        denoised: Callable[[int], None] = lambda place: None,
    ) -> None:
        if capacity < 1:
            raise InputError(f"capacity must be at least 1, got {capacity}")
        self._rule = rule
        self._looks = rule.looks(draws)
        self._all = np.arange(n_classes, dtype=np.int32)
        self._put = put
        self._next_request = next_request
        self._ledger = Ledger(draws, n_classes)
        self._free = list(range(capacity - 1, -1, -1))
        self._keys = [0] * capacity
        self._candidates: list[Int32 | None] = [None] * capacity
        self._target = np.full(capacity, -1, np.int32)
        self._group = np.zeros(capacity, np.int32)
        self._denoising = DenoisingCells(denoising, draws, capacity)
        self._denoised = denoised
        self._look = np.zeros(capacity, np.int32)
        self._alive = np.zeros(capacity, np.int32)
        self._began = np.zeros(capacity, np.int32)
        self._finished: list[Finished] = []
        self._most = np.zeros(capacity, np.int64)  # the most cells that each request in flight will have cost
        self._settled = 0  # cells of finished requests
        self._evaluated = 0
        self._admitted = 0

    @property
    def evaluated(self) -> int:
        """Cells evaluated so far."""
        return self._evaluated

    @property
    def at_most(self) -> int:
        """The most cells that the requests admitted so far will have cost."""
        return self._settled + int(self._most.sum())

    @property
    def admitted(self) -> int:
        """Requests that are in flight or finished."""
        return self._admitted

    def prepare(self) -> int:
        """Admits requests while there are places; returns the number of cells that can be proposed now."""
        self._admit()
        return self._ledger.waiting + self._denoising.waiting

    @property
    def flying(self) -> int:
        """Cells proposed whose errors have not come."""
        return self._ledger.flying + self._denoising.flying

    def key(self, place: int) -> int:
        """The key of the request at a place; callable from any thread while cells of that place are in flight."""
        return self._keys[place]

    def propose(self, room: int) -> Work:
        """At most `room` cells for the next step; none if there is nothing to do until errors or requests come."""
        self._admit()
        first = self._denoising.propose(room)
        if len(first) == room or not self._ledger.waiting:
            return Work(None, first, len(first))
        ticket, cells = self._ledger.propose(room - len(first))
        return Work(ticket, np.concatenate([first, cells]) if len(first) else cells, len(first))

    def observe(self, work: Work, errors: Float32) -> None:
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
            place = self._free.pop()
            self._put(place, request.image, request.stream)
            self._keys[place] = request.key
            self._candidates[place] = request.classes
            self._target[place] = -1 if request.target is None else request.target
            self._group[place] = min(request.group, _GROUPS - 1)
            self._look[place] = 0
            self._alive[place], self._began[place] = len(classes), len(candidates)
            self._most[place] = len(candidates) * self._looks[-1] + self._denoising.per_image
            self._admitted += 1
            if self._denoising.per_image:
                self._denoising.open(place)
            else:
                self._ledger.open(place, classes, self._looks[0], self._priority(place, 0))

    def _priority(self, place: int, look: int) -> int:
        """The ledger's priority of a look of the request at a place: by group, then by look."""
        return -int(self._group[place]) * _LOOKS - min(look, _LOOKS - 1)

    def _begin(self, places: Int32) -> None:
        """Takes denoising cells of these places; the looks of an image begin when its last one has ended."""
        for place in self._denoising.observe(places):
            self._denoised(place)
            candidates = self._candidates[place]
            classes = self._rule.begin(self._all if candidates is None else candidates)
            self._ledger.open(place, classes, self._looks[0], self._priority(place, 0))

    def _decide(self, places: Int32, index: int) -> None:
        """Takes the look that the requests at these places have completed."""
        draws, last = self._looks[index], index + 1 == len(self._looks)
        if not self._rule.expands:  # no need to ask a rule that cannot change anything
            if last:
                self._close(places)
                return
            settled = self._alive[places] == 1
            if settled.any():
                self._close(places[settled])
                places = places[~settled]
                if not len(places):
                    return
        look = Look(index, draws, last, *self._ledger.gather(places), self._shown(places), self._began[places])
        keep = self._settled_targets(look, self._rule.keep(look), self._target[places])
        left = self._check(look, keep)
        added = self._rule.expand(look, keep) if self._rule.expands else None
        self._ledger.drop(places, keep)
        self._most[places] -= (self._alive[places] - left) * (self._looks[-1] - draws)
        self._alive[places] = left
        over = (left == 1) | last
        if added is not None:
            grows = np.array([len(new) > 0 for new in added])
            for row in np.flatnonzero(grows).tolist():
                self._ledger.add(int(places[row]), added[row], self._priority(int(places[row]), index))
            self._alive[places] += np.array([len(new) for new in added], np.int32)
            places, over = places[~grows], over[~grows]
        if over.any():
            self._close(places[over])
            places = places[~over]
        if len(places):
            self._look[places] = index + 1
            groups = self._group[places]
            for group in np.unique(groups):
                some = places[groups == group]
                self._ledger.extend(some, self._looks[index + 1], self._priority(int(some[0]), index + 1))

    def _settled_targets(self, look: Look, keep: Mask, targets: Int32) -> Mask:
        """Keeps only the best class of each request whose target class is lost."""
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

    def _shown(self, places: Int32) -> Mask | None:
        """The candidates of these requests, bool (r, K), for rules that expand; None: all classes."""
        if not self._rule.expands:
            return None
        candidates = [self._candidates[place] for place in places]
        if all(classes is None for classes in candidates):
            return None
        shown = np.zeros((len(places), len(self._all)), np.bool_)
        for row, classes in enumerate(candidates):
            shown[row, self._all if classes is None else classes] = True
        return shown

    def _check(self, look: Look, keep: Mask) -> Int32:
        """The number of classes that a rule kept in each request; refuses a rule that breaks the protocol."""
        left: Int32 = keep.sum(axis=1, dtype=np.int32)
        if (keep > look.alive).any() or not left.all():
            raise InputError(f"rule {self._rule.name} must keep at least one of the classes alive, and only those")
        return left

    def _close(self, places: Int32) -> None:
        for place, (counts, values, best) in zip(places.tolist(), self._ledger.close(places), strict=True):
            self._finished.append(Finished(self._keys[place], counts, values, best))
            self._settled += len(values) + self._denoising.per_image
            self._free.append(place)
        self._most[places] = 0
