"""The order in which training images are seen: epochs, or all classes equally often.

Both are functions of the seed and the position, so that a resumed training goes on where it was.
"""

from typing import Protocol

import numpy as np

from fastdc.support import Int64
from fastdc.train.torch_state import BALANCED, ORDER, WITHIN


class Order(Protocol):
    """Indices of images."""

    def batch(self, step: int, size: int) -> Int64:
        """The images of a step, int64 (size,)."""


class Epochs:
    """Every image once per epoch; epochs are shuffled one by one and laid end to end.

    Args:
        count: Number of images.
        seed: Seed.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int, size: int) -> Int64:
        """The images of a step, int64 (size,)."""
        positions = np.arange(step * size, (step + 1) * size)
        index = np.empty(size, dtype=np.int64)
        for epoch in range(positions[0] // self._count, positions[-1] // self._count + 1):
            if epoch != self._epoch:
                order = np.random.default_rng([self._seed, ORDER, epoch]).permutation(self._count)
                self._epoch, self._order = epoch, order
            here = positions // self._count == epoch
            index[here] = self._order[positions[here] % self._count]
        return index


class Balanced:
    """Every class equally often, each in shuffled epochs of its own.

    The classes take turns, and a batch is then shuffled, because noise levels are spread over its places.

    Args:
        labels: Classes of the images, int64 (n,); every class has images.
        seed: Seed.
    """

    def __init__(self, labels: Int64, seed: int) -> None:
        self._members = [np.flatnonzero(labels == k) for k in range(int(labels.max()) + 1)]
        self._seed = seed
        self._orders: dict[int, tuple[int, Int64]] = {}  # of each class: an epoch and its order

    def batch(self, step: int, size: int) -> Int64:
        """The images of a step, int64 (size,)."""
        places = np.arange(step * size, (step + 1) * size)
        turns, classes = np.divmod(places, len(self._members))
        index = np.array([self._image(int(k), int(turn)) for k, turn in zip(classes, turns, strict=True)], np.int64)
        return np.random.default_rng([self._seed, WITHIN, step]).permutation(index)

    def _image(self, k: int, turn: int) -> int:
        """The image of a class at its turn."""
        members = self._members[k]
        epoch, place = divmod(turn, len(members))
        if self._orders.get(k, (-1,))[0] != epoch:
            self._orders[k] = epoch, np.random.default_rng([self._seed, BALANCED, epoch, k]).permutation(members)
        return int(self._orders[k][1][place])
