"""The engine: turns cells into errors, a step at a time, with every slot of the network busy.

A step is: cell table in, noise and scale (``kernels.add_noise``), the network, error (``kernels.denoising_error``), one
float a cell out. Steps of different slots run at once, each on its own thread; the scheduler is asked for cells and
told errors on the caller's thread only. Cells of all requests are packed together, so that no step but the last ones
runs part-filled.

Where the network has fixed sizes a step is padded to the next of them by repeating its last cell, and the results are
cut. What is launched between the table and the floats is then the same for every step of a size, so the network is
asked to capture it: the first step of a size runs as it is, the second is captured, all others are replays. Captured
steps refer to the arrays of a run, which are therefore kept and filled anew for the next run of the same shape: a
program that classifies one image after another captures nothing after the first few.

No number depends on batch, slots, threads or order: noise is a function of (seed, stream, draw), and an error is a sum
in a fixed order over one cell. What a backend's network may add is its own business (docs/architecture.md).
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractNetwork, AbstractSlot, Buffer
from fastdc.diffusion import Plan, kernels
from fastdc.engine.scheduler import Cells, Scheduler, Work
from fastdc.support import BackendError

# Sets of arrays that a network keeps for runs to come, and captured steps that a set keeps, the oldest given up first.
_SETS_KEPT = 4
_STEPS_KEPT = 64


class Step:
    """One slot of a network, bound to the images, plan and noise of a run.

    Args:
        network: The network the slot belongs to.
        slot: Its buffers.
        run: What the cells refer to.
        key: What the caller names the image in a slot of the pool, for messages.
    """

    def __init__(self, network: AbstractNetwork, slot: AbstractSlot, run: "Run", key: Callable[[int], int]) -> None:
        self._network = network
        self._slot = slot
        self._run = run
        self._key = key
        self._index = network.slots.index(slot)
        self._table = np.zeros((0 if network.sizes is None else network.batch, 3), np.int32)
        self._launches: dict[int, Callable[[], None]] = {}

    def evaluate(self, cells: Cells, denoising: int = 0) -> npt.NDArray[np.float32]:
        """The errors (m,) of m <= batch cells, of which the first `denoising` denoise and have none worth the name.

        Raises:
            BackendError: An error is not finite, as when half precision overflows.
        """
        count = len(cells)
        slot, network = self._slot, self._network
        if network.sizes is None:
            slot.write(slot.cells, cells)
            self._launch(count)()
        else:
            size = next(size for size in network.sizes if size >= count)
            slot.write(slot.cells, cells if size == count else self._padded(cells, size))
            self._launch_or_replay(size)
        if denoising:
            self._run.denoise(slot, cells[:denoising])
        result = slot.read(slot.errors, count)
        if not np.all(np.isfinite(result)):  # in a table NaN means "not evaluated"
            place, label, draw = cells[np.argmin(np.isfinite(result))].tolist()
            where = f"image {self._key(place)}, class {label}, draw {draw}"
            raise BackendError(f"the network's error is not finite at {where} in {network.precision}")
        return result

    def _padded(self, cells: Cells, size: int) -> Cells:
        """The cells and their last one again, up to `size` rows."""
        self._table[: len(cells)] = cells
        self._table[len(cells) : size] = cells[-1]
        return self._table[:size]

    def _launch(self, count: int) -> Callable[[], None]:
        """Launches what makes errors of the first `count` rows of the cell table."""
        launch = self._launches.get(count)
        if launch is None:
            launch = self._launches[count] = self._make_launch(count)
        return launch

    def _make_launch(self, count: int) -> Callable[[], None]:
        run, slot = self._run, self._slot
        table, sample, timestep, labels, output, errors = _views(slot, count)
        placed = run.placed
        images, rows, streams, target = placed.images_view, placed.rows_view, placed.streams_view, placed.target_view
        noise: dict[str, Any] = {
            "seed": run.seed,
            "antithetic": run.antithetic,
            "n_classes": run.n_classes,
            "stream": slot.stream,
        }
        loss, delta = run.loss, run.delta

        def launch() -> None:
            kernels.add_noise(images, table, rows, streams, out=sample, timestep=timestep, labels=labels, **noise)
            slot.run(count)
            kernels.denoising_error(
                output, images, table, rows, streams, out=errors, target=target, loss=loss, delta=delta, **noise
            )

        return launch

    def _launch_or_replay(self, size: int) -> None:
        """Launches a step of a fixed size: as it is the first time, captured the second time, again from then on."""
        run, network = self._run, self._network
        steps = run.placed.steps
        key = (self._index, size, *run.signature)
        replay = steps.get(key)
        if replay is not None:
            replay()
            return
        with run.launching:  # what runs the first time may allocate, which no capture likes
            if key not in steps:
                if len(steps) >= _STEPS_KEPT:
                    del steps[next(iter(steps))]
                self._launch(size)()
                steps[key] = None
                return
            launch = self._launch(size)
            steps[key] = replay = network.capture(self._slot, launch) or launch
            replay()


_viewed: "WeakKeyDictionary[AbstractSlot, dict[int, tuple[kernels.TensorView, ...]]]" = WeakKeyDictionary()


def _views(slot: AbstractSlot, count: int) -> tuple[kernels.TensorView, ...]:
    """The first `count` rows of a slot's buffers, viewed once and not in every run: a lone image has few steps."""
    viewed = _viewed.setdefault(slot, {})
    if count not in viewed:
        buffers = (slot.cells, slot.sample, slot.timestep, slot.class_labels, slot.output, slot.errors)
        viewed[count] = tuple(kernels.view(buffer[:count]) for buffer in buffers)
    return viewed[count]


class _Placed:
    """The arrays of a run where the network runs, views of them, and the steps captured on them.

    Args:
        network: Where to place them.
        image_shape: (c, h, w).
        capacity: Images.
        rows: Draws.
        maps: Denoised images of an image; 0: none.
        target: Whether the error compares with another image.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        image_shape: tuple[int, int, int],
        *,
        capacity: int,
        rows: int,
        maps: int,
        target: bool,
    ) -> None:
        self.images = network.place(np.zeros((capacity, *image_shape), np.float32))
        self.streams = network.place(np.zeros(capacity, np.int64))
        self.rows = network.place(np.zeros((rows, len(kernels.ROW_FIELDS)), np.float32))
        self.maps: Buffer = None
        self.targets: Buffer = None
        self.tables: dict[int, Buffer] = {}
        if maps:
            self.maps = network.place(np.zeros((capacity, maps, *image_shape), np.float32))
            self.tables = {id(slot): network.place(np.zeros((network.batch, 3), np.int32)) for slot in network.slots}
        if target:
            self.targets = network.place(np.zeros((capacity, *image_shape), np.float32))
        self.images_view, self.rows_view, self.streams_view = map(kernels.view, (self.images, self.rows, self.streams))
        self.target_view = None if self.targets is None else kernels.view(self.targets)
        self.steps: dict[tuple[Any, ...], Callable[[], None] | None] = {}
        self.owner: Callable[[], Any] = lambda: None


_placing = threading.Lock()


def _placed(network: AbstractNetwork, image_shape: tuple[int, int, int], owner: "Run", **shape: Any) -> _Placed:
    """Arrays of a shape, `owner`'s while it lives: new ones, or where steps are captured those of an earlier run."""
    if network.sizes is None:
        return _Placed(network, image_shape, **shape)
    shape["capacity"] = 1 << (shape["capacity"] - 1).bit_length()  # runs of any number of images meet again
    key = (image_shape, *sorted(shape.items()))
    with _placing:
        sets: list[tuple[Any, _Placed]] = network.kept.setdefault("placed", [])
        free = [entry for entry in sets if entry[1].owner() is None]
        found = next((entry for entry in free if entry[0] == key), None)
        if found is not None:
            sets.remove(found)
        elif len(sets) >= _SETS_KEPT and free:
            sets.remove(free[0])  # the one used longest ago
        placed = _Placed(network, image_shape, **shape) if found is None else found[1]
        placed.owner = ref(owner)
        sets.append((key, placed))
        return placed


class Run:
    """The arrays that cells index, placed where the network runs: a pool of images, one a slot, and the plan's rows.

    Where the method denoises, a row after the plan's last one does it, and there is a pool of what comes out of it, one
    image for each class that it is done under.

    Args:
        network: Where to place them.
        image_shape: (c, h, w).
        plan: The draws.
        seed: Philox key.
        n_classes: K.
        capacity: Slots of the pool.
        denoising: The classes that an image is denoised under, as the network calls them; none: it is not.

    Attributes:
        placed: The arrays.
        launching: Held while something is launched for the first time or captured.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        image_shape: tuple[int, int, int],
        plan: Plan,
        *,
        seed: int,
        n_classes: int,
        capacity: int,
        denoising: tuple[int, ...] = (),
    ) -> None:
        self._network = network
        self._denoising = denoising
        self._replaces = plan.method.replaces
        rows = plan.rows
        if denoising:
            rows = np.concatenate([rows, plan.denoising_row])
            n_classes = max(n_classes, *(label + 1 for label in denoising))
        self.placed = _placed(
            network,
            image_shape,
            self,
            capacity=capacity,
            rows=len(rows),
            maps=len(denoising),
            target=bool(denoising) and not self._replaces,
        )
        network.write(self.placed.rows, rows)
        self.seed = seed
        self.antithetic = plan.antithetic
        self.n_classes = n_classes
        self.loss = plan.config.loss
        self.delta = plan.config.delta
        self.launching = threading.Lock()

    @property
    def signature(self) -> tuple[Any, ...]:
        """What a captured step holds besides pointers."""
        return self.seed, self.antithetic, self.n_classes, self.loss, self.delta

    def place(self, slot: int, image: npt.NDArray[np.float32], stream: int) -> None:
        """Puts an image, float32 (c, h, w) in the model's value range, into a slot that no step in flight refers to."""
        network, placed = self._network, self.placed
        network.write(placed.images[slot : slot + 1], image[None])
        network.write(placed.streams[slot : slot + 1], np.array([stream], np.int64))
        if placed.maps is not None:
            network.write(placed.maps[slot : slot + 1], np.zeros((1, *placed.maps.shape[1:]), np.float32))

    def denoise(self, slot: AbstractSlot, cells: Cells) -> None:
        """Makes the images of denoising cells from a slot's output; no other step may be at the same cells."""
        placed = self.placed
        own = cells.copy()
        own[:, 1] = [self._denoising.index(label) for label in cells[:, 1]]
        table = placed.tables[id(slot)]
        slot.write(table, own)
        kernels.error_map(
            slot.output[: len(cells)],
            placed.images_view,
            table[: len(cells)],
            placed.rows_view,
            placed.streams_view,
            placed.maps,
            seed=self.seed,
            loss="residual",
            stream=slot.stream,
        )

    def denoised(self, slot: int) -> None:
        """Puts the mean of a slot's denoised images where the method wants it."""
        placed, network = self.placed, self._network
        assert placed.maps is not None
        pool: Buffer = placed.images if self._replaces else placed.targets
        maps = network.read(placed.maps[slot], len(self._denoising))
        network.write(pool[slot : slot + 1], maps if len(maps) == 1 else maps.mean(0)[None])


_running: "WeakKeyDictionary[AbstractNetwork, threading.Lock]" = WeakKeyDictionary()
_pools: "WeakKeyDictionary[AbstractNetwork, ThreadPoolExecutor]" = WeakKeyDictionary()
os.register_at_fork(after_in_child=_pools.clear)  # a child process has none of their threads


def _pool(network: AbstractNetwork) -> ThreadPoolExecutor:
    """A thread for each slot, kept while the network lives: starting threads takes longer than a small step."""
    pool = _pools.get(network)
    if pool is None:
        pool = _pools[network] = ThreadPoolExecutor(len(network.slots), thread_name_prefix="fastdc-step")
    return pool


@contextmanager
def _alone(network: AbstractNetwork, wait: bool) -> Iterator[None]:
    """Holds a network, whose buffers serve one run at a time."""
    lock = _running.setdefault(network, threading.Lock())
    if not lock.acquire(blocking=wait):
        raise BackendError("the network is busy with another run: share it between threads through fastdc.Session")
    try:
        yield
    finally:
        lock.release()


def evaluate(
    network: AbstractNetwork, run: Run, scheduler: Scheduler, *, wait: bool = False
) -> Generator[int, None, None]:
    """Evaluates what the scheduler proposes until it proposes nothing more.

    Args:
        network: The network.
        run: What the cells refer to.
        scheduler: Which cells; told the errors as they come.
        wait: Wait for another run of the network to end, instead of refusing.

    Yields:
        Cells evaluated, whenever steps have ended.

    Raises:
        BackendError: The network fails, or is busy with another run.
        KeyboardInterrupt: After the steps in flight have ended; the scheduler has observed all that was finished. The
            same holds when the caller stops iterating and closes the generator.
    """
    with _alone(network, wait):
        steps = [Step(network, slot, run, scheduler.key) for slot in network.slots]
        if len(steps) == 1:
            yield from _one_by_one(steps[0], network.batch, scheduler)
        else:
            yield from _side_by_side(steps, network.batch, scheduler, _pool(network))


def _side_by_side(steps: list[Step], batch: int, scheduler: Scheduler, pool: ThreadPoolExecutor) -> Iterator[int]:
    """Steps on all slots at once, each on a thread; however this ends, none is in flight any more.

    While full steps are waiting, each slot has a second one to go on with, so that it need not wait for its turn here.
    """
    idle: SimpleQueue[Step] = SimpleQueue()
    for step in steps:
        idle.put(step)
    in_flight: dict[Future[npt.NDArray[np.float32]], Work] = {}

    def evaluate_one(work: Work) -> npt.NDArray[np.float32]:
        step = idle.get()  # there are as many threads
        try:
            return step.evaluate(work.cells, work.denoising)
        finally:
            idle.put(step)

    def room() -> int:
        """Cells of the next step: a full batch while there is one, else an even share for every slot.

        What is in flight counts as well: shares of the rest alone would halve from step to step, down to single cells.
        """
        waiting = scheduler.prepare()
        if len(in_flight) >= len(steps):
            return batch if waiting >= batch and len(in_flight) < 2 * len(steps) else 0
        left = waiting + scheduler.flying
        return batch if left >= batch else -(-left // len(steps))

    def collect(finished: Iterable[Future[npt.NDArray[np.float32]]]) -> int:
        cells_done = 0
        for future in finished:
            work = in_flight.pop(future)
            scheduler.observe(work, future.result())
            cells_done += len(work.cells)
        return cells_done

    try:
        while True:
            while cells := room():
                work = scheduler.propose(cells)
                if not len(work.cells):
                    break
                in_flight[pool.submit(evaluate_one, work)] = work
            if not in_flight:
                return
            finished, _ = wait_for(in_flight, return_when=FIRST_COMPLETED)
            yield collect(finished)
    except (KeyboardInterrupt, GeneratorExit):
        begun = [future for future in in_flight if not future.cancel()]
        wait_for(begun)
        collect([future for future in begun if future.exception() is None])
        raise
    finally:
        wait_for([future for future in in_flight if not future.cancel()])


def _one_by_one(step: Step, batch: int, scheduler: Scheduler) -> Iterator[int]:
    while len((work := scheduler.propose(batch)).cells):
        scheduler.observe(work, step.evaluate(work.cells, work.denoising))
        yield len(work.cells)
