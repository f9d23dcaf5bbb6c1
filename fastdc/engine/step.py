"""One step: cell table in, noise and scale, the network, denoising error; one float per cell out.

If the network has fixed sizes, a step is padded to the next of them by repeating its last cell, and the results are
cut. Everything between the table and the floats is then the same for every step of a size, so the network is asked to
capture it: the first step of a size runs directly, the second is captured, and all others are replays.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastdc.backends import AbstractNetwork, AbstractSlot
from fastdc.diffusion import kernels
from fastdc.engine.arrays import Pool
from fastdc.engine.requests import Cells
from fastdc.support import BackendError, Float32

_STEPS_KEPT = 64  # captured steps that a set of arrays keeps; the oldest goes first


class Step:
    """One slot of a network, bound to the images, plan and noise of a run.

    Args:
        network: Network that the slot belongs to.
        slot: Buffers of the slot.
        pool: Arrays that the cells index.
        key: Gives the caller's name for the image at a place of the pool, for messages.
    """

    def __init__(self, network: AbstractNetwork, slot: AbstractSlot, pool: Pool, key: Callable[[int], int]) -> None:
        self._network = network
        self._slot = slot
        self._pool = pool
        self._key = key
        self._index = network.slots.index(slot)
        self._table = np.zeros((0 if network.sizes is None else network.batch, 3), np.int32)
        self._launches: dict[int, Callable[[], None]] = {}
        self._measures: dict[int, list[Callable[[], None]]] = {}

    def evaluate(self, cells: Cells, denoising: int = 0) -> Float32:
        """Errors of m <= batch cells, float32 (m,); the first `denoising` entries are meaningless.

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
            self._pool.add_to_maps(slot, cells[:denoising])
        result = self._read(cells)
        if self._pool.others is not None:
            for number, launch in enumerate(self._launches_of_others(count)):
                launch()
                self._pool.others.put(number, cells, self._key, self._read(cells))
        return result

    def _read(self, cells: Cells) -> Float32:
        """The errors that the slot holds, float32 (m,)."""
        result = self._slot.read(self._slot.errors, len(cells))
        if not np.all(np.isfinite(result)):  # in a table NaN means "not evaluated"
            place, label, draw = cells[np.argmin(np.isfinite(result))].tolist()
            where = f"image {self._key(place)}, class {label}, draw {draw}"
            raise BackendError(f"the network's error is not finite at {where} in {self._network.precision}")
        return result

    def _padded(self, cells: Cells, size: int) -> Cells:
        """The cells, with the last one repeated up to `size` rows."""
        self._table[: len(cells)] = cells
        self._table[len(cells) : size] = cells[-1]
        return self._table[:size]

    def _launch(self, count: int) -> Callable[[], None]:
        """A function that launches the evaluation of the first `count` rows of the cell table."""
        launch = self._launches.get(count)
        if launch is None:
            launch = self._launches[count] = self._make_launch(count)
        return launch

    def _make_launch(self, count: int) -> Callable[[], None]:
        pool, slot = self._pool, self._slot
        table, sample, timestep, labels, _, _ = _views(slot, count)
        arrays, noise = pool.arrays, self._noise
        images, rows, streams = arrays.images_view, arrays.rows_view, arrays.streams_view
        measure = self._make_measure(count, rows, pool.loss, pool.delta)

        def launch() -> None:
            kernels.add_noise(images, table, rows, streams, out=sample, timestep=timestep, labels=labels, **noise)
            slot.run(count)
            measure()

        return launch

    @property
    def _noise(self) -> dict[str, Any]:
        """What both kernels are told about the noise."""
        pool = self._pool
        return {
            "seed": pool.seed,
            "antithetic": pool.antithetic,
            "n_classes": pool.n_classes,
            "stream": self._slot.stream,
        }

    def _make_measure(self, count: int, rows: kernels.TensorView, loss: str, delta: float) -> Callable[[], None]:
        """A function that makes errors of the first `count` outputs of the network; `rows` have the coefficients."""
        arrays, noise = self._pool.arrays, self._noise
        table, _, _, _, output, errors = _views(self._slot, count)
        images, streams, target = arrays.images_view, arrays.streams_view, arrays.target_view

        def measure() -> None:
            kernels.denoising_error(
                output, images, table, rows, streams, out=errors, target=target, loss=loss, delta=delta, **noise
            )

        return measure

    def _launches_of_others(self, count: int) -> list[Callable[[], None]]:
        """Functions that make the further errors of a step that has run."""
        made = self._measures.get(count)
        if made is None:
            others = self._pool.rows_of_others
            made = self._measures[count] = [
                self._make_measure(count, rows, plan.config.loss, plan.config.delta) for plan, rows in others
            ]
        return made

    def _launch_or_replay(self, size: int) -> None:
        """Launches a step of a fixed size: directly the first time, captured the second time, replayed from then on."""
        pool, network = self._pool, self._network
        steps = pool.arrays.steps
        key = (self._index, size, *pool.signature)
        replay = steps.get(key)
        if replay is not None:
            replay()
            return
        with pool.launching:  # a first launch may allocate, which a capture does not allow
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
