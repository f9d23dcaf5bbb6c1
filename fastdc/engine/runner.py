"""Several devices of one machine: requests are dealt out, and every device runs and decides its own.

Each device has a network, a pool of images, a scheduler and a thread on which its engine runs, as if it were alone.
What they share is where requests come from and where results go, both in the hands of the caller's thread. A request is
decided by its own errors only, and an error is a function of its cell: which device a request is dealt to changes no
number, as long as the networks compute the same, as devices of one kind do.

A device is given a request when it has room for it and holds less than an even share of all that are dealt and waiting:

    held < ceil((waiting + sum of held) / devices).

So a burst of a few images meets all devices, and of a long run a device takes what it finishes: a slow one holds its
pool and no more. The room is small beside the run for that reason (:func:`room_of`).
"""

import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractNetwork, AbstractSlot, Buffer
from fastdc.engine.loop import Run, evaluate
from fastdc.engine.scheduler import IN_FLIGHT, Finished, Request, Scheduler
from fastdc.support import BackendError, InputError

_TURNS = 4  # a device holds at most this part of its even share of a run at once, where that fills its steps


def devices_of(device: str) -> tuple[str, ...]:
    """The devices that a user names: "cuda:0,1" is ("cuda:0", "cuda:1"), any other name is itself.

    Raises:
        InputError: A list of devices that is none, or names one twice.
    """
    if not isinstance(device, str) or "," not in device:
        return (device,)
    if not re.fullmatch(r"cuda:[0-9]{1,3}(,[0-9]{1,3})+", device):
        raise InputError(f"several devices must be given as cuda:N,M,..., got {device!r:.80}")
    numbers = [int(number) for number in device.removeprefix("cuda:").split(",")]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"devices must be named once each, got {device!r}")
    return tuple(f"cuda:{number}" for number in numbers)


class SpreadNetwork:
    """Copies of a network on several devices; see ``backends.base.AbstractNetwork`` for what it says about itself.

    It has no buffers of its own: each of its networks is run by itself (:class:`Spread`).

    Args:
        networks: Two or more, of one backend and precision.

    Attributes:
        networks: These.
        batch: Rows of a slot, on the network that has the fewest.

    Raises:
        InputError: Fewer than two, one of them twice, or networks that do not compute the same.
    """

    stream = 0

    def __init__(self, networks: Sequence[AbstractNetwork]) -> None:
        if len(networks) < 2 or len(set(map(id, networks))) < len(networks):
            raise InputError(f"expected two or more different networks to spread over, got {len(networks)}")
        kinds = sorted({f"{network.backend} in {network.precision}" for network in networks})
        if len(kinds) > 1:
            raise InputError(f"networks to spread over must be of one backend and precision, got {', '.join(kinds)}")
        self.networks = tuple(networks)
        self.backend = networks[0].backend
        self.precision = networks[0].precision
        self.device = _together([network.device for network in networks])
        self.batch = min(network.batch for network in networks)
        self.slots: tuple[AbstractSlot, ...] = tuple(slot for network in networks for slot in network.slots)
        self.sizes = networks[0].sizes

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Nothing: each network keeps its own."""
        return {}

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """Refuses: there is no one place."""
        raise self._refusal()

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Refuses."""
        raise self._refusal()

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """Refuses."""
        raise self._refusal()

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """Refuses."""
        raise self._refusal()

    def _refusal(self) -> BackendError:
        return BackendError(f"the network is on several devices: expected a run on one of {self.device}")


def _together(devices: Sequence[str]) -> str:
    """One name for several devices, such as "cuda:0,1"."""
    if all(re.fullmatch("cuda:[0-9]+", name) for name in devices):
        return "cuda:" + ",".join(name.removeprefix("cuda:") for name in devices)
    return ",".join(devices)


def networks_of(network: AbstractNetwork) -> tuple[AbstractNetwork, ...]:
    """The networks, each on one device, that requests are dealt to."""
    return network.networks if isinstance(network, SpreadNetwork) else (network,)


@dataclass(frozen=True, eq=False)
class Lane:
    """One device and what is on it.

    Attributes:
        network: Runs the steps.
        run: What the cells refer to.
        scheduler: The requests in flight on the device.
        room: Requests that it may hold at once.
    """

    network: AbstractNetwork
    run: Run
    scheduler: Scheduler
    room: int = IN_FLIGHT


def room_of(network: AbstractNetwork, devices: int, requests: int) -> int:
    """Requests of a run of so many that one of the devices may hold at once.

    A request in flight has two cells or more to evaluate, so that as many requests as the slots have rows fill the
    steps in flight and the next ones. Beyond that a device holds a part of its share, so that the faster ones find
    something left to take.
    """
    fills = network.batch * len(network.slots)
    return max(1, min(IN_FLIGHT, -(-requests // devices), max(fills, -(-requests // (_TURNS * devices)))))


class AbstractRunner(Protocol):
    """Requests being evaluated, on one device or several."""

    @property
    def evaluated(self) -> int:
        """Cells evaluated so far."""

    @property
    def at_most(self) -> int:
        """Cells that the requests admitted so far will have cost, at most."""

    @property
    def admitted(self) -> int:
        """Requests that are in flight or finished."""

    def submit(self, request: Request) -> None:
        """Adds a request, also while others run and from any thread."""

    def finished(self) -> list[Finished]:
        """The requests that finished since the last call."""

    def evaluate(self, *, wait: bool = False) -> Generator[int, None, None]:
        """Evaluates until nothing is left: see ``engine.evaluate``, whose promises it keeps."""


class Alone:
    """The requests of one device, on the caller's thread.

    Args:
        lane: The device.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    @property
    def evaluated(self) -> int:
        """See :class:`AbstractRunner`."""
        return self._lane.scheduler.evaluated

    @property
    def at_most(self) -> int:
        """See :class:`AbstractRunner`."""
        return self._lane.scheduler.at_most

    @property
    def admitted(self) -> int:
        """See :class:`AbstractRunner`."""
        return self._lane.scheduler.admitted

    def submit(self, request: Request) -> None:
        """See :class:`AbstractRunner`."""
        self._lane.scheduler.submit(request)

    def finished(self) -> list[Finished]:
        """See :class:`AbstractRunner`."""
        return self._lane.scheduler.finished()

    def evaluate(self, *, wait: bool = False) -> Generator[int, None, None]:
        """See :class:`AbstractRunner`."""
        return evaluate(self._lane.network, self._lane.run, self._lane.scheduler, wait=wait)


class Spread:
    """The requests of several devices, each on a thread of its own.

    Args:
        lanes: The devices, whose schedulers have no requests yet.
        requests: Read as devices have room, one at a time, by any of the threads.
        total: How many `requests` gives.
    """

    def __init__(self, lanes: Sequence[Lane], requests: Iterable[Request] = (), total: int = 0) -> None:
        self._lanes = tuple(lanes)
        self._source: Iterator[Request] = iter(requests)
        self._reading = threading.Lock()  # held while the source makes a request, which may take an encoder's time
        self._changed = threading.Condition()  # guards all that follows
        self._unread = total
        self._submitted: deque[Request] = deque()
        self._held = [0] * len(self._lanes)
        self._cells = 0  # evaluated and not told
        self._finished: list[Finished] = []
        self._current: object | None = None  # names the call of evaluate() that threads work for
        self._driving = 0  # threads that do
        self._failure: BaseException | None = None

    @property
    def evaluated(self) -> int:
        """See :class:`AbstractRunner`."""
        return sum(lane.scheduler.evaluated for lane in self._lanes)

    @property
    def at_most(self) -> int:
        """See :class:`AbstractRunner`."""
        return sum(lane.scheduler.at_most for lane in self._lanes)

    @property
    def admitted(self) -> int:
        """See :class:`AbstractRunner`."""
        return sum(lane.scheduler.admitted for lane in self._lanes)

    def submit(self, request: Request) -> None:
        """See :class:`AbstractRunner`."""
        with self._changed:
            self._submitted.append(request)
            self._changed.notify_all()

    def finished(self) -> list[Finished]:
        """See :class:`AbstractRunner`."""
        with self._changed:
            finished, self._finished = self._finished, []
            return finished

    def evaluate(self, *, wait: bool = False) -> Generator[int, None, None]:
        """See :class:`AbstractRunner`. What goes wrong on one device ends the others after their steps in flight."""
        mine = self._current = object()
        started = []
        try:
            for number in range(len(self._lanes)):
                thread = threading.Thread(
                    target=self._drive, args=(number, mine, wait), name=f"fastdc-device-{number}", daemon=True
                )
                thread.start()
                started.append(thread)
            while cells := self._next():
                yield cells
        finally:
            with self._changed:
                self._current = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._driving)
            for thread in started:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _next(self) -> int:
        """Cells evaluated since the last call, once there are any; 0 when nothing is left, or something went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self._cells or self._failure or not (self._waiting or sum(self._held)))
            if self._failure is not None:
                return 0
            cells, self._cells = self._cells, 0
            return cells

    @property
    def _waiting(self) -> int:
        """Requests that no device holds."""
        return self._unread + len(self._submitted)

    def _may_take(self, number: int) -> bool:
        """Whether a device may hold one more request."""
        held, waiting = self._held[number], self._waiting
        share = -(-(waiting + sum(self._held)) // len(self._lanes))
        return waiting > 0 and held < min(self._lanes[number].room, share)

    def _drive(self, number: int, mine: object, wait: bool) -> None:
        """What the thread of a device does: takes requests and evaluates them until its call of evaluate() is over."""
        with self._changed:
            if self._current is not mine:  # Ctrl-C came while the thread was started
                return
            self._driving += 1
        lane = self._lanes[number]
        try:
            while self._work_comes(number, mine):
                self._take(number)
                with closing(evaluate(lane.network, lane.run, lane.scheduler, wait=wait)) as steps:
                    for cells in steps:
                        self._report(number, cells)
                        if self._current is not mine:
                            break
                        self._take(number)
        except BaseException as error:  # the caller's thread raises it
            with self._changed:
                self._failure = self._failure or error
        finally:
            self._report(number, 0)  # of the steps that were in flight
            with self._changed:
                self._driving -= 1
                self._changed.notify_all()

    def _work_comes(self, number: int, mine: object) -> bool:
        """Waits for work for a device; False: there will be none."""

        def over() -> bool:
            return self._current is not mine or self._failure is not None

        with self._changed:
            self._changed.wait_for(lambda: over() or self._held[number] or self._may_take(number))
            return not over()

    def _take(self, number: int) -> None:
        """Gives a device the requests that it may take."""
        while True:
            with self._changed:
                if self._current is None or not self._may_take(number):
                    return
                request = self._submitted.popleft() if self._submitted else None
                self._unread -= request is None
                self._held[number] += 1
            if request is None:
                with self._reading:
                    request = next(self._source)
            self._lanes[number].scheduler.submit(request)

    def _report(self, number: int, cells: int) -> None:
        """Hands over what a device has finished."""
        finished = self._lanes[number].scheduler.finished()
        with self._changed:
            self._held[number] -= len(finished)
            self._finished += finished
            self._cells += cells
            self._changed.notify_all()
