"""Turns: runs from many threads share a network one after the other, first come first served.

A network's buffers serve one run at a time. A run therefore takes a turn for all networks that it will ever need, those
of its devices and of its denoiser, before it starts. All turns stand in one list in the order in which they came:

    a turn may run if and only if it shares no network with a turn before it

Whoever has a turn never waits for another one, so runs over any networks in any order cannot lock each other out. Only
a thread that stops in the middle of a run can: it reads a part of a stream, or is in a callback, and begins another run
of the network, which would wait for itself. Such a turn is refused, also if the circle goes through other threads. One
that waits for a stream whose thread has ended is refused, too.

No lock guards the list. Its operations are atomic, and a turn that may run once may run from then on, because turns
join at the end: a look at a copy is never wrong, only late, and whoever changes the list looks after the change. A
Ctrl-C between any two instructions can therefore leave nothing locked.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import TypeVar

from fastdc.backends import AbstractNetwork
from fastdc.support import BackendError, Flag

T = TypeVar("T")

_turns: "list[Turn]" = []
os.register_at_fork(after_in_child=_turns.clear)  # runs of the parent are none of the child's

STUCK = (
    "the network is busy with a run that this thread has begun and would wait for: read that run's results to the end "
    "or close it first, and start no run in a callback of another"
)
_LEFT = (
    "the network is busy with a run whose thread has ended: read that run's results to the end or close it "
    "first, in any thread"
)
_LOOK_AGAIN = 1.0  # seconds of waiting after which a run whose thread has ended is one that nobody goes on with


class Turn:
    """The right of a run to some networks.

    Args:
        networks: All networks that the run will need.

    Example:
        >>> from fastdc.engine import Turn
        >>> Turn(clf.networks).call(lambda: "alone")
        'alone'
    """

    def __init__(self, networks: Iterable[AbstractNetwork]) -> None:
        self._networks = tuple(networks)
        self._ids = frozenset(map(id, self._networks))
        self._thread: threading.Thread | None = None  # the one that can go on with the run
        self._go = Flag()

    def run(self, steps: Generator[T, None, None]) -> Generator[T, None, None]:
        """The same steps, which begin when it is their turn; the next turn comes when they end or are closed.

        Raises:
            BackendError: The thread would wait for a run of its own, or for one that nobody goes on with.
        """
        try:
            try:
                self._begin()
                with closing(steps):
                    for step in steps:
                        yield step
                        self._thread = threading.current_thread()
            finally:
                self._end()
        finally:  # again, as a Ctrl-C may have struck the first one
            self._end()

    def call(self, function: Callable[[], T]) -> T:
        """The result of a call, made when it is its turn.

        Raises:
            BackendError: The thread would wait for a run of its own, or for one that nobody goes on with.
        """
        try:
            try:
                self._begin()
                return function()
            finally:
                self._end()
        finally:
            self._end()

    def is_awaited(self) -> bool:
        """Whether another run waits for this one to end."""
        return any(turn is not self and not turn._ids.isdisjoint(self._ids) for turn in list(_turns))

    def _begin(self) -> None:
        self._thread = threading.current_thread()
        _turns.append(self)
        _wake()
        if not self._go.is_set and self._waits_for(self._thread):
            raise BackendError(STUCK)
        while not self._go.is_set:
            self._go.wait(_LOOK_AGAIN)
            if not self._go.is_set and self._waits_for(None):
                gc.collect()  # such as what the traceback of a request's thread held
                if not self._go.is_set and self._waits_for(None):
                    raise BackendError(_LEFT)

    def _end(self) -> None:
        with contextlib.suppress(ValueError):
            _turns.remove(self)
        _wake()

    def _waits_for(self, thread: threading.Thread | None) -> bool:
        """Whether a run that this one waits for can only go on in a thread, or in one that waits for that thread.

        Args:
            thread: The thread; None: any thread that has ended.
        """
        turns = list(_turns)
        seen, open_ends = {self}, [self]
        while open_ends:
            waiting = open_ends.pop()
            for other in turns[: turns.index(waiting)]:
                if other in seen or other._ids.isdisjoint(waiting._ids):
                    continue
                seen.add(other)
                if other._thread is thread or (thread is None and other._has_lost_its_thread()):
                    return True
                if other._go.is_set:  # what its thread waits for, if it waits
                    open_ends += [turn for turn in turns if turn._thread is other._thread and not turn._go.is_set]
                elif not other._ids <= waiting._ids:  # otherwise, what it waits for is among what this one waits for
                    open_ends.append(other)
        return False

    def _has_lost_its_thread(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()


def _wake() -> None:
    """Lets every turn go that may run."""
    before: set[int] = set()
    for turn in list(_turns):
        if turn._ids.isdisjoint(before):
            turn._go.set()
        before |= turn._ids


def holds(networks: Iterable[AbstractNetwork]) -> bool:
    """Whether one of these networks is in the middle of a run that this thread has begun.

    Example:
        >>> from fastdc.engine import holds
        >>> holds(clf.networks)
        False
    """
    ids, thread = set(map(id, networks)), threading.current_thread()
    return any(turn._thread is thread and turn._go.is_set and not turn._ids.isdisjoint(ids) for turn in list(_turns))
