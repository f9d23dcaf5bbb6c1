"""A second network that denoises images before they enter the run of the first, as an encoder makes latents of them."""

import numpy as np

from fastdc.backends import AbstractNetwork
from fastdc.diffusion import Plan
from fastdc.engine.pixel_maps import PixelMaps
from fastdc.support import Float32, InputError


class Denoiser:
    """Denoises images with one network; callable from any thread that has the network's turn (``engine.Turn``).

    Args:
        network: The network.
        image_shape: (c, h, w).
        plan: A plan of method "denoised", whose denoising row is used.
        label: Class that images are denoised under, as the network numbers it.

    Attributes:
        room: Number of images that fill the steps of a call.

    Raises:
        InputError: The plan has no denoising row.

    Example:
        >>> from fastdc.diffusion import PlanConfig, make_plan
        >>> from fastdc.engine import Denoiser
        >>> config = PlanConfig(draws=1, method="denoised", noise=0.5)
        >>> plan = make_plan(clf.model.schedule, clf.model.parameterization, config)
        >>> Denoiser(clf.network, (1, 8, 8), plan, label=10)(2 * images[:3] - 1).shape
        (3, 1, 8, 8)
    """

    def __init__(self, network: AbstractNetwork, image_shape: tuple[int, int, int], plan: Plan, label: int) -> None:
        if plan.denoising_row is None:
            raise InputError(f"the plan's method {plan.config.method} does not denoise: expected one that does")
        self._maps = PixelMaps(network, image_shape, plan.denoising_row, n_classes=label + 1)
        self._label = label
        self.room = self._maps.room

    def __call__(self, x: Float32) -> Float32:
        """The denoised images of x, both float32 (n, c, h, w) in the network's value range.

        Raises:
            BackendError: The network fails.
        """
        return self._maps(x, classes=np.full(len(x), self._label, np.int32), draws=np.zeros(len(x), np.int32))
