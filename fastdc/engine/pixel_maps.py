"""Maps of cells: what the error of a cell is at every pixel, or the denoised image itself.

The cells are of the kind that denoises an image before its looks (``engine.denoising``): no look compares them and no
class loses by them. They take the ordinary steps of the network, on every slot.
"""

import os
from collections.abc import Callable

import numpy as np

from fastdc.backends import AbstractNetwork
from fastdc.engine.arrays import Pool
from fastdc.engine.loop import evaluate
from fastdc.engine.requests import IN_FLIGHT, Cells, Work
from fastdc.support import Float32, Int32, Int64


class PixelMaps:
    """Evaluates cells and keeps a map of each; callable from any thread that has the network's turn (``engine.Turn``).

    Args:
        network: The network.
        shape: (c, h, w) of what it works on.
        rows: float32 (J, 8), coefficient rows (``kernels.ROW_FIELDS``). With the loss "residual" and a row of
            ``Parameterization.denoising_rows``, the map is the denoised image; with a row of a plan and the plan's
            loss, its mean over pixels is the cell's error.
        n_classes: Number of classes that the network tells apart, "no class" included.
        seed: Philox key of the noise that rows add.
        loss: One of ``kernels.MAP_LOSSES``.
        delta: Threshold of the Huber loss.
        antithetic: Whether draws come in pairs that share a noise.

    Attributes:
        room: Number of cells that fill the steps of a call.

    Example:
        >>> from fastdc.engine import PixelMaps
        >>> level = clf.model.schedule.levels([0.5])
        >>> maps = PixelMaps(clf.network, (1, 8, 8), clf.model.parameterization.denoising_rows(level), n_classes=11)
        >>> maps(2 * images[:3] - 1, classes=[3, 3, 10], draws=[0, 0, 0]).shape
        (3, 1, 8, 8)
    """

    def __init__(
        self,
        network: AbstractNetwork,
        shape: tuple[int, int, int],
        rows: Float32,
        *,
        n_classes: int,
        seed: int = 0,
        loss: str = "residual",
        delta: float = 1.0,
        antithetic: bool = False,
    ) -> None:
        self.room = min(IN_FLIGHT, network.batch * len(network.slots))
        self._network = network
        self._make: Callable[[], Pool] = lambda: Pool(
            network,
            shape,
            rows,
            seed=seed,
            n_classes=n_classes,
            capacity=self.room,
            delta=delta,
            antithetic=antithetic,
            maps=1,
            map_loss=loss,
        )
        self._pools: dict[int, Pool] = {}  # by process: in a forked child, one of the parent may be in use

    def __call__(
        self,
        x: Float32,
        *,
        classes: Int32 | list[int],
        draws: Int32 | list[int],
        streams: Int64 | list[int] | None = None,
    ) -> Float32:
        """The maps of m cells, float32 (m, c, h, w).

        Args:
            x: float32 (m, c, h, w), the image of each cell in the network's value range.
            classes: int32 (m,), class of each cell.
            draws: int32 (m,), row of each cell.
            streams: int64 (m,), noise stream of each cell; None: 0, for rows that add no noise.

        Raises:
            BackendError: The network fails.
        """
        cells = np.stack([np.zeros(len(x), np.int32), np.asarray(classes), np.asarray(draws)], axis=1).astype(np.int32)
        noise = np.zeros(len(x), np.int64) if streams is None else np.asarray(streams, np.int64)
        parts = [slice(at, at + self.room) for at in range(0, len(x), self.room)]
        return np.concatenate([self._maps(x[part], cells[part], noise[part]) for part in parts] or [np.empty_like(x)])

    def _maps(self, x: Float32, cells: Cells, streams: Int64) -> Float32:
        pool = self._pools.get(os.getpid())
        if pool is None:  # made once: a network with fixed sizes keeps the steps that it captured on the arrays
            pool = self._pools[os.getpid()] = self._make()
        for place, (image, stream) in enumerate(zip(x, streams.tolist(), strict=True)):
            pool.put(place, image, stream)
            cells[place, 0] = place
        for _ in evaluate(self._network, pool, _Cells(cells), held=True):
            pass
        return pool.maps(len(x))[:, 0]


class _Cells:
    """Cells that have maps, as the loop asks for them."""

    def __init__(self, cells: Cells) -> None:
        self._waiting = cells
        self.flying = 0

    def key(self, place: int) -> int:
        return place

    def prepare(self) -> int:
        return len(self._waiting)

    def propose(self, room: int) -> Work:
        cells, self._waiting = self._waiting[:room], self._waiting[room:]
        self.flying += len(cells)
        return Work(None, cells, len(cells))

    def observe(self, work: Work, errors: Float32) -> None:
        self.flying -= len(work.cells)
