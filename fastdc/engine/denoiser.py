"""A second network that denoises images before they enter the run of the first, as an encoder makes latents of them.

Its cells are denoising cells and nothing else: no look, no class that loses. They take the ordinary steps of the
network, on every slot.
"""

import os

import numpy as np

from fastdc.backends import AbstractNetwork
from fastdc.diffusion import Plan
from fastdc.engine.arrays import Pool
from fastdc.engine.denoising import DenoisingCells
from fastdc.engine.loop import evaluate
from fastdc.engine.requests import IN_FLIGHT, Work
from fastdc.support import Float32


class Denoiser:
    """Denoises images with one network; callable from any thread that has the network's turn (``engine.Turn``).

    Args:
        network: The network.
        image_shape: (c, h, w).
        plan: A plan of method "denoised", whose denoising row is used.
        label: Class that images are denoised under, as the network numbers it.

    Attributes:
        room: Number of images that fill the steps of a call.

    Example:
        >>> from fastdc.diffusion import PlanConfig, make_plan
        >>> from fastdc.engine import Denoiser
        >>> config = PlanConfig(draws=1, method="denoised", noise=0.5)
        >>> plan = make_plan(clf.model.schedule, clf.model.parameterization, config)
        >>> Denoiser(clf.network, (1, 8, 8), plan, label=10)(2 * images[:3] - 1).shape
        (3, 1, 8, 8)
    """

    def __init__(self, network: AbstractNetwork, image_shape: tuple[int, int, int], plan: Plan, label: int) -> None:
        self.room = min(IN_FLIGHT, network.batch * len(network.slots))
        self._network, self._label, self._row = network, label, plan.draws
        self._shape, self._plan = image_shape, plan
        self._pools: dict[int, Pool] = {}  # by process: in a forked child, one of the parent may be in use

    def __call__(self, x: Float32) -> Float32:
        """The denoised images of x, both float32 (n, c, h, w) in the network's value range.

        Raises:
            BackendError: The network fails.
        """
        return np.concatenate([self._denoise(x[at : at + self.room]) for at in range(0, len(x), self.room)])

    def _denoise(self, x: Float32) -> Float32:
        pool = self._pools.get(os.getpid())
        if pool is None:  # made once: a network with fixed sizes keeps the steps that it captured on the arrays
            pool = self._pools[os.getpid()] = Pool(
                self._network,
                self._shape,
                self._plan,
                seed=0,
                n_classes=self._label + 1,
                capacity=self.room,
                denoising=(self._label,),
            )
        cells = _Cells(DenoisingCells((self._label,), self._row, self.room))
        for place, image in enumerate(x):
            pool.put(place, image, 0)
            cells.own.open(place)
        for _ in evaluate(self._network, pool, cells, held=True):
            pass
        return pool.maps(len(x))[:, 0]


class _Cells:
    """Denoising cells as the loop asks for them."""

    def __init__(self, own: DenoisingCells) -> None:
        self.own = own

    @property
    def flying(self) -> int:
        return self.own.flying

    def key(self, place: int) -> int:
        return place

    def prepare(self) -> int:
        return self.own.waiting

    def propose(self, room: int) -> Work:
        cells = self.own.propose(room)
        return Work(None, cells, len(cells))

    def observe(self, work: Work, errors: Float32) -> None:
        self.own.observe(work.cells[:, 0])
