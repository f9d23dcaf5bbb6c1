"""The loop: steps on every slot of a network until the scheduler has no more cells.

Steps of different slots run at once, each on its own thread; the scheduler is asked for cells and told errors on the
caller's thread only. Cells of all requests are packed together, so that only the last steps of a run are part-filled.

No number depends on batch, slots, threads or order: noise is a function of (seed, stream, draw), and an error is a sum
in a fixed order over one cell. Only the network's own arithmetic may depend on the batch (docs/architecture.md).
"""

import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from fastdc.backends import AbstractNetwork
from fastdc.engine.arrays import Pool
from fastdc.engine.requests import Work
from fastdc.engine.step import Step
from fastdc.engine.turns import Turn
from fastdc.support import GRACE, BackendError, DaemonThreads, Float32, check_process


class AbstractCells(Protocol):
    """A source of cells, as the scheduler is one."""

    @property
    def flying(self) -> int:
        """Cells proposed whose errors have not come."""

    def key(self, place: int) -> int:
        """The caller's name for the image at a place, for messages."""

    def prepare(self) -> int:
        """The number of cells that can be proposed now."""

    def propose(self, room: int) -> Work:
        """At most `room` cells for the next step."""

    def observe(self, work: Work, errors: Float32) -> None:
        """Takes the errors (m,) of a step."""


_threads: "WeakKeyDictionary[AbstractNetwork, DaemonThreads]" = WeakKeyDictionary()
_given_up: "WeakSet[AbstractNetwork]" = WeakSet()
os.register_at_fork(after_in_child=_threads.clear)  # a child process has none of their threads


def _threads_of(network: AbstractNetwork) -> DaemonThreads:
    """A thread for each slot, kept while the network lives: starting threads takes longer than a small step."""
    threads = _threads.get(network)
    if threads is None:
        threads = _threads[network] = DaemonThreads(len(network.slots), "fastdc-step")
    return threads


def evaluate(
    network: AbstractNetwork, pool: Pool, scheduler: AbstractCells, *, held: bool = False
) -> Generator[int, None, None]:
    """Evaluates the cells that the scheduler proposes, until it proposes none.

    Args:
        network: The network.
        pool: Arrays that the cells index.
        scheduler: Source of the cells; it is told the errors as they come.
        held: Whether the caller has the network's turn; otherwise the run waits for its own.

    Yields:
        Number of cells evaluated, whenever steps have ended.

    Example:
        >>> from fastdc.engine import evaluate
        >>> job = clf.settings(rule="full", draws=2).job
        >>> pool, scheduler = job.scheduler(clf.network, lambda: None, 4)
        >>> list(evaluate(clf.network, pool, scheduler))
        []

    Raises:
        BackendError: The network fails, or the thread would wait for a run of its own.
        KeyboardInterrupt: Ctrl-C, after the steps in flight have ended and the scheduler has observed all errors. The
            same holds if the caller closes the generator. A second Ctrl-C gives up steps that do not return; the
            network then takes no further run.
    """
    steps = _steps(network, pool, scheduler)
    return steps if held else Turn((network,)).run(steps)


def _steps(network: AbstractNetwork, pool: Pool, scheduler: AbstractCells) -> Generator[int, None, None]:
    if network in _given_up:
        raise BackendError("a step of the network did not return and was given up: load the model again")
    steps = [Step(network, slot, pool, scheduler.key) for slot in network.slots]
    if len(steps) == 1:
        yield from _one_by_one(steps[0], network.batch, scheduler)
    else:
        yield from _side_by_side(steps, network, scheduler, _threads_of(network))


def _side_by_side(
    steps: list[Step], network: AbstractNetwork, scheduler: AbstractCells, threads: DaemonThreads
) -> Iterator[int]:
    """Steps on all slots at once, each on a thread. However this ends, no step is left in flight, or it was given up.

    While full steps are waiting, each slot has a second one queued, so that it need not wait for this thread.
    """
    idle: SimpleQueue[Step] = SimpleQueue()
    for step in steps:
        idle.put(step)
    in_flight: dict[Future[Float32], Work] = {}
    batch, process = network.batch, os.getpid()

    def evaluate_one(work: Work) -> Float32:
        step = idle.get()  # never empty: there are as many threads as steps
        try:
            return step.evaluate(work.cells, work.denoising)
        finally:
            idle.put(step)

    def room() -> int:
        """Cells of the next step: a full batch while there is one, else an even share for every slot.

        Cells in flight count as well: shares of the rest alone would halve from step to step, down to single cells.
        """
        waiting = scheduler.prepare()
        if len(in_flight) >= len(steps):
            return batch if waiting >= batch and len(in_flight) < 2 * len(steps) else 0
        left = waiting + scheduler.flying
        return batch if left >= batch else -(-left // len(steps))

    def collect(finished: Iterable[Future[Float32]]) -> int:
        cells_done = 0
        for future in finished:
            work = in_flight.pop(future)
            scheduler.observe(work, future.result())
            cells_done += len(work.cells)
        return cells_done

    try:
        while True:
            while (cells := room()) and len((work := scheduler.propose(cells)).cells):
                in_flight[threads.submit(evaluate_one, work)] = work
            if not in_flight:
                return
            finished, _ = wait_for(in_flight, return_when=FIRST_COMPLETED)
            yield collect(finished)
            check_process(process, "the run")
    except (KeyboardInterrupt, GeneratorExit):
        if process != os.getpid():
            raise
        begun = [future for future in in_flight if not future.cancel()]
        _wait_or_give_up(begun, network)
        collect([future for future in begun if future.exception() is None])
        raise
    finally:
        # A forked child that drops the run has nobody to wait for.
        if process == os.getpid() and network not in _given_up:
            _wait_or_give_up([future for future in in_flight if not future.cancel()], network)


def _wait_or_give_up(begun: list[Future[Float32]], network: AbstractNetwork) -> None:
    """Waits for steps in flight until a Ctrl-C, which gives them up if they do not soon stop."""
    try:
        wait_for(begun)
    except KeyboardInterrupt:
        give_up(network)
        wait_for(begun, timeout=GRACE)
        raise


def give_up(network: AbstractNetwork) -> None:
    """Asks a network to stop its steps, and refuses all later runs of it."""
    _given_up.add(network)
    network.stop()


def _one_by_one(step: Step, batch: int, scheduler: AbstractCells) -> Iterator[int]:
    while len((work := scheduler.propose(batch)).cells):
        scheduler.observe(work, step.evaluate(work.cells, work.denoising))
        yield len(work.cells)
