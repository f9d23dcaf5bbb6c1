"""The device arrays that cells index: a pool of images, their noise streams, and the plan's coefficient rows.

An image occupies one *place* of the pool while its request is in flight. If the method denoises images first, one row
after the plan's last does it, and a second pool holds the denoised images: one per class that the image is denoised
under. An image that another network has denoised (``engine.denoiser``) comes in that state.

If the network has steps of fixed sizes, captured steps refer to these arrays. The arrays are therefore kept with the
network and filled anew by the next run of the same shape, so that a program that classifies one image after another
captures nothing after the first few.
"""

import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np

from fastdc.backends import AbstractNetwork, AbstractSlot, Buffer, check_usable_here
from fastdc.diffusion import Plan, kernels
from fastdc.engine.other_errors import OtherErrors
from fastdc.engine.requests import Cells
from fastdc.support import Float32, Int32, fork_safe_lock

_SETS_KEPT = 4  # sets of arrays that a network keeps for later runs; the one used longest ago goes first


class Pool:
    """The arrays of one run on one network.

    Args:
        network: Network whose device holds the arrays.
        image_shape: (c, h, w) of what the network works on.
        rows: float32 (J, 8), coefficient rows.
        seed: Philox key.
        n_classes: K.
        capacity: Number of places.
        loss: Loss of errors.
        delta: Threshold of the Huber loss.
        antithetic: Whether the kernels make one noise for each pair of draws.
        maps: Maps of pixels per place; 0: none.
        map_of: The map, from 0, that cells of given classes add to.
        map_loss: Loss of maps, one of ``kernels.MAP_LOSSES``.
        target: Whether errors compare with another image.
        replaces: Whether a denoised image takes the place of the image, and not that of the target.
        others: Takes further errors of every cell; None: there are none.

    Attributes:
        arrays: The arrays and the steps captured on them.
        others: Takes further errors of every cell.
        rows_of_others: Plan and coefficient rows of each of them.
        launching: Lock to hold while something is launched for the first time or captured.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        image_shape: tuple[int, int, int],
        rows: Float32,
        *,
        seed: int,
        n_classes: int,
        capacity: int,
        loss: str = "l2",
        delta: float = 1.0,
        antithetic: bool = False,
        maps: int = 0,
        map_of: Callable[[Int32], Int32] = np.zeros_like,
        map_loss: str = "residual",
        target: bool = False,
        replaces: bool = False,
        others: OtherErrors | None = None,
    ) -> None:
        self._network = network
        self._maps, self._map_of, self._map_loss = maps, map_of, map_loss
        self._replaces = replaces
        check_usable_here(network)
        self.arrays = _arrays_of(
            network, image_shape, self, capacity=capacity, rows=len(rows), maps=maps, target=target
        )
        network.write(self.arrays.rows, rows)
        self.seed = seed
        self.antithetic = antithetic
        self.n_classes = n_classes
        self.loss = loss
        self.delta = delta
        self.launching = threading.Lock()
        self.others = others
        plans = () if others is None else others.plans
        self.rows_of_others = [(plan, kernels.view(network.place(plan.rows))) for plan in plans]

    @classmethod
    def of(
        cls,
        network: AbstractNetwork,
        image_shape: tuple[int, int, int],
        plan: Plan,
        *,
        seed: int,
        n_classes: int,
        capacity: int,
        denoising: tuple[int, ...] = (),
        others: OtherErrors | None = None,
    ) -> "Pool":
        """The arrays of a plan.

        Args:
            network: Network whose device holds the arrays.
            image_shape: (c, h, w) of what the network works on.
            plan: The draws.
            seed: Philox key.
            n_classes: K.
            capacity: Number of places.
            denoising: Consecutive classes that an image is denoised under, as the network numbers them; empty if the
                method does not denoise.
            others: Takes further errors of every cell; None: there are none.
        """
        first = min(denoising, default=0)
        return cls(
            network,
            image_shape,
            np.concatenate([plan.rows, plan.denoising_row]) if denoising else plan.rows,
            seed=seed,
            n_classes=max(n_classes, *(label + 1 for label in denoising)) if denoising else n_classes,
            capacity=capacity,
            loss=plan.config.loss,
            delta=plan.config.delta,
            antithetic=plan.antithetic,
            maps=len(denoising),
            map_of=lambda classes: classes - np.int32(first),
            target=plan.method.denoises and not plan.method.replaces,
            replaces=plan.method.replaces,
            others=others,
        )

    @property
    def signature(self) -> tuple[Any, ...]:
        """Everything that a captured step depends on besides pointers."""
        return self.seed, self.antithetic, self.n_classes, self.loss, self.delta

    def put(self, place: int, image: Float32, stream: int) -> None:
        """Puts an image at a place that no step in flight refers to.

        Args:
            place: The place.
            image: float32 (c, h, w) in the model's value range; or (2, c, h, w), the image and its target, if the
                method compares with a denoised image that is not made here.
            stream: Noise stream of the image.
        """
        network, arrays = self._network, self.arrays
        images = image.reshape(-1, *image.shape[-3:])
        network.write(arrays.images[place : place + 1], images[:1])
        if len(images) > 1:
            network.write(arrays.targets[place : place + 1], images[1:])
        network.write(arrays.streams[place : place + 1], np.array([stream], np.int64))
        if arrays.maps is not None:
            network.write(arrays.maps[place : place + 1], np.zeros((1, *arrays.maps.shape[1:]), np.float32))

    def add_to_maps(self, slot: AbstractSlot, cells: Cells) -> None:
        """Adds cells to their maps, from a slot's output; no other step may hold cells of the same maps."""
        arrays = self.arrays
        own = cells.copy()
        own[:, 1] = self._map_of(cells[:, 1])
        table = arrays.tables[id(slot)]
        slot.write(table, own)
        kernels.error_map(
            slot.output[: len(cells)],
            arrays.images_view,
            table[: len(cells)],
            arrays.rows_view,
            arrays.streams_view,
            arrays.maps,
            seed=self.seed,
            loss=self._map_loss,
            delta=self.delta,
            antithetic=self.antithetic,
            stream=slot.stream,
        )

    def maps(self, count: int) -> Float32:
        """The maps of the first places, float32 (count, maps, c, h, w), once their cells have ended."""
        return self._network.read(self.arrays.maps, count)

    def denoised(self, place: int) -> None:
        """Puts the mean of a place's denoised images where the method needs it."""
        arrays, network = self.arrays, self._network
        assert arrays.maps is not None
        pool: Buffer = arrays.images if self._replaces else arrays.targets
        maps = network.read(arrays.maps[place], self._maps)
        network.write(pool[place : place + 1], maps if len(maps) == 1 else maps.mean(0)[None])


class _Arrays:
    """Arrays on a network's device, views of them, and the steps captured on them.

    Args:
        network: Network whose device holds the arrays.
        image_shape: (c, h, w).
        capacity: Number of places.
        rows: Number of coefficient rows.
        maps: Maps per place; 0: none.
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


_placing = fork_safe_lock()


def _arrays_of(network: AbstractNetwork, image_shape: tuple[int, int, int], owner: Pool, **shape: Any) -> _Arrays:
    """Arrays that belong to `owner` while it lives: new ones, or those of an earlier run if steps are captured."""
    if network.sizes is None:
        return _Arrays(network, image_shape, **shape)
    shape["capacity"] = 1 << (shape["capacity"] - 1).bit_length()  # so that runs of similar size share arrays
    key = (image_shape, *sorted(shape.items()))
    with _placing:
        sets: list[tuple[Any, _Arrays]] = network.kept.setdefault("arrays", [])
        free = [entry for entry in sets if entry[1].owner() is None]
        found = next((entry for entry in free if entry[0] == key), None)
        if found is not None:
            sets.remove(found)
        elif len(sets) >= _SETS_KEPT and free:
            sets.remove(free[0])  # the one used longest ago
        arrays = _Arrays(network, image_shape, **shape) if found is None else found[1]
        arrays.owner = ref(owner)
        sets.append((key, arrays))
        return arrays
