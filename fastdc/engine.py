"""The engine: turns cells into errors, a step at a time, with every slot of the network busy.

A step is: cell table in, noise and scale (``ops.add_noise``), the network, error (``ops.denoising_error``), one float a
cell out. Steps of different slots run at once, each on its own thread; the scheduler is asked for cells and told errors
on the caller's thread only. Cells of all requests are packed together, so that no step but the last ones runs
part-filled.

No number depends on batch, slots, threads or order: noise is a function of (seed, stream, draw), and an error is a sum
in a fixed order over one cell. What a backend's network may add is its own business (docs/architecture.md).
"""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from fastdc import ops
from fastdc.backends.base import AbstractNetwork, AbstractSlot, Buffer
from fastdc.exceptions import BackendError
from fastdc.plan import Plan
from fastdc.scheduler import Cells, Scheduler, Work


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
        self._views: dict[int, tuple[ops.TensorView, ...]] = {}

    def evaluate(self, cells: Cells, denoising: int = 0) -> npt.NDArray[np.float32]:
        """The errors (m,) of m <= batch cells, of which the first `denoising` denoise and have none worth the name.

        Raises:
            BackendError: An error is not finite, as when half precision overflows.
        """
        count = len(cells)
        run, slot, network = self._run, self._slot, self._network
        views = self._views.get(count)
        if views is None:
            buffers = (slot.cells, slot.sample, slot.timestep, slot.class_labels, slot.output, slot.errors)
            views = self._views[count] = tuple(ops.view(buffer[:count]) for buffer in buffers)
        table, sample, timestep, labels, output, errors = views
        network.write(slot.cells, cells)
        ops.add_noise(
            run.images,
            table,
            run.rows,
            run.streams,
            seed=run.seed,
            antithetic=run.antithetic,
            out=sample,
            timestep=timestep,
            labels=labels,
            n_classes=run.n_classes,
            stream=network.stream,
        )
        slot.run(count)
        if denoising:
            run.denoise(slot.output, cells[:denoising])
        ops.denoising_error(
            output,
            run.images,
            table,
            run.rows,
            run.streams,
            seed=run.seed,
            antithetic=run.antithetic,
            out=errors,
            target=run.target,
            loss=run.loss,
            delta=run.delta,
            n_classes=run.n_classes,
            stream=network.stream,
        )
        result = network.read(slot.errors, count)
        if not np.all(np.isfinite(result)):  # in a table NaN means "not evaluated"
            place, label, draw = cells[np.argmin(np.isfinite(result))].tolist()
            where = f"image {self._key(place)}, class {label}, draw {draw}"
            raise BackendError(f"the network's error is not finite at {where} in {network.precision}")
        return result


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
        self._images = network.place(np.zeros((capacity, *image_shape), np.float32))
        self._streams = network.place(np.zeros(capacity, np.int64))
        self._denoising = denoising
        self._replaces = plan.method.replaces
        self._maps = self._targets = None
        self.target: ops.TensorView | None = None
        rows = plan.rows
        if denoising:
            rows = np.concatenate([rows, plan.denoising_row])
            n_classes = max(n_classes, *(label + 1 for label in denoising))
            self._maps = network.place(np.zeros((capacity, len(denoising), *image_shape), np.float32))
            if not self._replaces:
                self._targets = network.place(np.zeros((capacity, *image_shape), np.float32))
                self.target = ops.view(self._targets)
        self._rows = network.place(rows)
        self.images, self.rows, self.streams = map(ops.view, (self._images, self._rows, self._streams))
        self.seed = seed
        self.antithetic = plan.antithetic
        self.n_classes = n_classes
        self.loss = plan.config.loss
        self.delta = plan.config.delta

    def place(self, slot: int, image: npt.NDArray[np.float32], stream: int) -> None:
        """Puts an image, float32 (c, h, w) in the model's value range, into a slot that no step in flight refers to."""
        self._network.write(self._images[slot : slot + 1], image[None])
        self._network.write(self._streams[slot : slot + 1], np.array([stream], np.int64))
        if self._maps is not None:
            self._network.write(self._maps[slot : slot + 1], np.zeros((1, *self._maps.shape[1:]), np.float32))

    def denoise(self, output: Buffer, cells: Cells) -> None:
        """Makes the images of denoising cells from the network's output; no other step may be at the same cells."""
        table = cells.copy()
        table[:, 1] = [self._denoising.index(label) for label in cells[:, 1]]
        ops.error_map(
            output[: len(cells)],
            self.images,
            self._network.place(table),
            self.rows,
            self.streams,
            self._maps,
            seed=self.seed,
            loss="residual",
            stream=self._network.stream,
        )

    def denoised(self, slot: int) -> None:
        """Puts the mean of a slot's denoised images where the method wants it."""
        assert self._maps is not None
        pool: Buffer = self._images if self._replaces else self._targets
        pool[slot] = self._maps[slot].mean(0)


_running: "WeakKeyDictionary[AbstractNetwork, threading.Lock]" = WeakKeyDictionary()


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
            yield from _side_by_side(steps, network.batch, scheduler)


def _side_by_side(steps: list[Step], batch: int, scheduler: Scheduler) -> Iterator[int]:
    """Steps on all slots at once, each on its own thread."""
    idle = list(steps)
    in_flight: dict[Future[npt.NDArray[np.float32]], tuple[Step, Work]] = {}

    def room() -> int:
        """Cells of the next step: a full batch while there is one, else an even share for every slot.

        What is in flight counts as well: shares of the rest alone would halve from step to step, down to single cells.
        """
        left = scheduler.prepare() + scheduler.flying
        return batch if left >= batch else -(-left // len(steps))

    def collect(finished: set[Future[npt.NDArray[np.float32]]]) -> int:
        cells_done = 0
        for future in finished:
            step, work = in_flight.pop(future)
            scheduler.observe(work, future.result())
            idle.append(step)
            cells_done += len(work.cells)
        return cells_done

    with ThreadPoolExecutor(len(steps), thread_name_prefix="fastdc-step") as pool:
        try:
            while True:
                while idle:
                    work = scheduler.propose(room())
                    if not len(work.cells):
                        break
                    step = idle.pop()
                    in_flight[pool.submit(step.evaluate, work.cells, work.denoising)] = (step, work)
                if not in_flight:
                    return
                finished, _ = wait_for(in_flight, return_when=FIRST_COMPLETED)
                yield collect(finished)
        except (KeyboardInterrupt, GeneratorExit):
            wait_for(in_flight)
            collect({future for future in in_flight if future.exception() is None})
            raise


def _one_by_one(step: Step, batch: int, scheduler: Scheduler) -> Iterator[int]:
    while len((work := scheduler.propose(batch)).cells):
        scheduler.observe(work, step.evaluate(work.cells, work.denoising))
        yield len(work.cells)
