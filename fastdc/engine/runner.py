"""The runner: requests being evaluated, on one device or several.

Each device has a network, a pool of images and a scheduler, as if it were alone; one device is a list of one. Devices
share the source of requests and the list of finished ones. A request is decided by its own errors only, and an error
is a function of its cell, so the device that a request is dealt to changes no number, as long as the networks compute
the same, as devices of one kind do.

A device takes a request when it has a free place and holds less than an even share of all requests dealt and waiting:

    held < ceil((waiting + sum of held) / devices)

A burst of a few images therefore meets all devices, and in a long run a device takes as many as it finishes: a slow one
holds its pool and no more. The pool is small beside the run for that reason (``devices.room_of``).

A single device runs on the caller's thread. Several run on a thread each.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from fastdc.backends import AbstractNetwork
from fastdc.engine.arrays import Pool
from fastdc.engine.loop import evaluate, give_up
from fastdc.engine.requests import IN_FLIGHT, Finished, Request
from fastdc.engine.scheduler import Scheduler
from fastdc.engine.turns import Turn
from fastdc.support import DEVICE_THREAD, GRACE, check_process

NextRequest: TypeAlias = Callable[[], Request | None]
"""Returns the next request, or None if there is none now."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One device and everything on it.

    Attributes:
        network: Network that runs the steps.
        pool: Arrays that the cells index.
        scheduler: The requests in flight on the device.
        room: Number of requests that the device may hold at once.
    """

    network: AbstractNetwork
    pool: Pool
    scheduler: Scheduler
    room: int = IN_FLIGHT


class _Deal:
    """The requests that wait for a device, and how many each device holds.

    The schedulers refer to it and it refers to none of them, so that the arrays of a run are free for the next one as
    soon as its runner is gone.
    """

    def __init__(self, requests: Iterable[Request], total: int, devices: int) -> None:
        self.changed = threading.Condition()  # guards everything below
        self.held = [0] * devices
        self.rooms = [0] * devices
        self._source: Iterator[Request] = iter(requests)
        self._reading = threading.Lock()  # held while the source makes a request, which may take an encoder's time
        self._unread = total
        self._submitted: deque[Request] = deque()
        self._others_wait: Callable[[], bool] | None = None
        self._sure = 0  # requests that are dealt whoever waits
        self._closed = False

    def open(self, others_wait: Callable[[], bool] | None) -> None:
        """Deals requests from now on. Those that come later are kept back once another run waits for the networks.

        Args:
            others_wait: Says whether another run waits; None: it does not matter.
        """
        with self.changed:
            self._others_wait, self._sure, self._closed = others_wait, self.waiting, False

    @property
    def waiting(self) -> int:
        """Requests that no device holds."""
        return self._unread + len(self._submitted)

    def submit(self, request: Request) -> None:
        """Adds a request."""
        with self.changed:
            self._submitted.append(request)
            self.changed.notify_all()

    def deals(self) -> bool:
        """Whether there are requests that may be dealt."""
        if not self.waiting or self._closed:
            return False
        if self._sure < 1 and self._others_wait is not None and self._others_wait():
            self._closed = True
            self.changed.notify_all()  # for whoever has found that there are some
        return not self._closed

    def may_take(self, number: int) -> bool:
        """Whether a device may hold one more request."""
        held, share = self.held[number], -(-(self.waiting + sum(self.held)) // len(self.held))
        return held < min(self.rooms[number], share) and self.deals()

    def next_request(self, number: int) -> Request | None:
        """The next request for a device, if it may take one."""
        if not self.waiting:  # mostly; a request that comes right now is seen at the next step
            return None
        with self.changed:
            if not self.may_take(number):
                return None
            submitted = self._submitted.popleft() if self._submitted else None
            self._unread -= submitted is None
            self._sure -= 1
            self.held[number] += 1
        if submitted is not None:
            return submitted
        with self._reading:
            return next(self._source)


class Runner:
    """Requests being evaluated.

    Args:
        networks: The network on each device.
        open_lane: Makes the lane of a network, given the source of its requests.
        requests: Read one at a time, as devices have room, by any of their threads; more may be submitted.
        total: Number of requests that `requests` gives.
    """

    def __init__(
        self,
        networks: Sequence[AbstractNetwork],
        open_lane: Callable[[AbstractNetwork, NextRequest], Lane],
        requests: Iterable[Request] = (),
        total: int = 0,
    ) -> None:
        self._deal = _Deal(requests, total, len(networks))
        self._changed = self._deal.changed  # guards everything below, too
        self._cells = 0  # evaluated, and not told by _next()
        self._finished: list[Finished] = []
        self._current: object | None = None  # names the call of evaluate() that threads work for
        self._driving = 0  # number of such threads
        self._failure: BaseException | None = None
        self._lanes = tuple(
            open_lane(network, partial(self._deal.next_request, number)) for number, network in enumerate(networks)
        )
        self._deal.rooms = [lane.room for lane in self._lanes]

    @property
    def evaluated(self) -> int:
        """Cells evaluated so far."""
        return sum(lane.scheduler.evaluated for lane in self._lanes)

    @property
    def at_most(self) -> int:
        """The most cells that the requests admitted so far will have cost."""
        return sum(lane.scheduler.at_most for lane in self._lanes)

    @property
    def admitted(self) -> int:
        """Requests in flight or finished."""
        return sum(lane.scheduler.admitted for lane in self._lanes)

    def submit(self, request: Request) -> None:
        """Adds a request, also while others run and from any thread."""
        self._deal.submit(request)

    def finished(self) -> list[Finished]:
        """The requests that finished since the last call."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    def evaluate(self, *, held: bool = False, gives_way: bool = False) -> Generator[int, None, None]:
        """Evaluates until nothing is left: see ``loop.evaluate``, whose promises it keeps.

        If one device fails, the others end after their steps in flight.

        Args:
            held: Whether the caller has the turn of all networks; otherwise the run waits for its own.
            gives_way: Whether to end early if another run waits: requests submitted after the start are left then, for
                the next call.
        """
        turn = Turn(lane.network for lane in self._lanes)
        steps = self._evaluate(turn.is_awaited if gives_way else None)
        return steps if held else turn.run(steps)

    def _evaluate(self, others_wait: Callable[[], bool] | None) -> Generator[int, None, None]:
        self._deal.open(others_wait)
        yield from self._steps(0) if len(self._lanes) == 1 else self._on_threads()

    def _steps(self, number: int) -> Generator[int, None, None]:
        """The steps of one device until its scheduler has no more cells; hands over the requests that finish."""
        lane = self._lanes[number]
        try:
            with closing(evaluate(lane.network, lane.pool, lane.scheduler, held=True)) as steps:
                for cells in steps:
                    self._collect(number, cells)
                    yield cells
        finally:
            self._collect(number, 0)  # the requests that ended with the steps in flight

    def _collect(self, number: int, cells: int) -> None:
        """Takes the requests that a device has finished, and counts its cells: both at once for whoever waits."""
        finished = self._lanes[number].scheduler.finished()
        with self._changed:
            self._deal.held[number] -= len(finished)
            self._finished += finished
            self._cells += cells
            self._changed.notify_all()

    # --- several devices ---------------------------------------------------------------------------------------------

    def _on_threads(self) -> Generator[int, None, None]:
        """The steps of all devices, each on its thread."""
        mine = self._current = object()
        self._cells = 0
        started = []
        process = os.getpid()
        try:
            for number in range(len(self._lanes)):
                thread = threading.Thread(
                    target=self._drive, args=(number, mine), name=f"{DEVICE_THREAD}-{number}", daemon=True
                )
                thread.start()
                started.append(thread)
            while cells := self._next():
                yield cells
                check_process(process, "the run")
        finally:
            if process == os.getpid():  # a forked child that drops the run has nobody to wait for
                with self._changed:
                    self._current = None
                    self._changed.notify_all()
                    try:
                        self._changed.wait_for(lambda: not self._driving)
                    except KeyboardInterrupt:  # the second one
                        for lane in self._lanes:
                            give_up(lane.network)
                        self._changed.wait_for(lambda: not self._driving, GRACE)
                        raise
                for thread in started:
                    thread.join()
        if self._failure is not None:
            raise self._failure

    def _next(self) -> int:
        """Cells evaluated since the last call, once there are any; 0 if nothing is left or a device failed."""
        deal = self._deal
        with self._changed:
            self._changed.wait_for(lambda: self._cells or self._failure or not (deal.deals() or any(deal.held)))
            if self._failure is not None:
                return 0
            cells, self._cells = self._cells, 0
            return cells

    def _drive(self, number: int, mine: object) -> None:
        """The work of a device's thread, until its call of evaluate() is over."""
        with self._changed:
            if self._current is not mine:  # Ctrl-C came while the thread was started
                return
            self._driving += 1
        try:
            while self._work_comes(number, mine):
                with closing(self._steps(number)) as steps:
                    for _ in steps:
                        if self._current is not mine:
                            break
        except BaseException as error:  # the caller's thread raises it
            with self._changed:
                self._failure = self._failure or error
        finally:
            with self._changed:
                self._driving -= 1
                self._changed.notify_all()

    def _work_comes(self, number: int, mine: object) -> bool:
        """Waits until a device has work; False if there will be none."""
        deal = self._deal

        def over() -> bool:
            return self._current is not mine or self._failure is not None

        with self._changed:
            self._changed.wait_for(lambda: over() or deal.held[number] or deal.may_take(number))
            return not over()
