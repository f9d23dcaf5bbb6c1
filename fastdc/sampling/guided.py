"""The primitive of every sampler: x0 = D(x_t; level, class), the network's estimate of the clean image, with guidance.

Classifier-free guidance (Ho & Salimans, arXiv 2207.12598, equation 6) extrapolates the network's prediction,

    F_w = (1 + w) F(x_t, class) - w F(x_t, no class).

All parameterisations are affine in the estimate at a fixed x_t and level, D = p F + q x_t, and the two factors of F_w
sum to 1. So D_w = (1 + w) D(class) - w D(no class): whether predictions of noise, velocities or images are combined
makes no difference, and here images are. The estimate is clipped afterwards, if at all.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastdc.backends import AbstractNetwork
from fastdc.bundle import Model
from fastdc.diffusion import Levels
from fastdc.engine import PixelMaps
from fastdc.sampling.space import Space
from fastdc.support import Float64, InputError, Int32, checks, shown


class GuidedDenoiser:
    """Estimates clean images with one network; callable from a thread that has the network's turn.

    Args:
        network: The network.
        model: Its model.
        levels: The levels at which it may be asked.
        clip: Whether estimates are clipped to the model's range of pixel values.
        coefficients: Whether wavelet coefficients are clipped to that range, and not the pixels they make.
        told: Called after every call of the network.

    Attributes:
        evaluations: Network evaluations so far.
        room: Number of cells that fill the steps of a call.

    Raises:
        InputError: The model's parameterisation does not fit its schedule.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        model: Model,
        levels: Levels,
        *,
        clip: bool,
        coefficients: bool = False,
        told: Callable[[], None] | None = None,
    ) -> None:
        rows = model.parameterization.denoising_rows(levels)
        null = model.null_class
        known = max(len(model.conditions), 0 if null is None else null + 1)
        self._maps = PixelMaps(network, model.sample_shape, rows, n_classes=known)
        self._null, self._space, self._clip, self._told = null, Space(model), clip, told
        self._coefficients = coefficients
        self.evaluations = 0
        self.room = self._maps.room

    def __call__(self, x_t: Float64, number: int, conditions: Int32, guidance: float) -> Float64:
        """The estimates x0 of m noisy images.

        Args:
            x_t: float64 (m, c, h, w), noisy images in the network's value range.
            number: Number of their noise level.
            conditions: int32 (m,), condition of each, as the network numbers them.
            guidance: w; 0 takes the network's prediction as it is.

        Returns:
            float64 (m, c, h, w), in the network's value range.
        """
        x = x_t.astype(np.float32)
        labels = conditions
        if guidance:
            assert self._null is not None  # check_guidance
            x, labels = np.concatenate([x, x]), np.concatenate([labels, np.full_like(labels, self._null)])
        found = self._maps(x, classes=labels, draws=np.full(len(x), number, np.int32)).astype(np.float64)
        self.evaluations += len(x)
        if self._told is not None:
            self._told()
        if guidance:
            found = (1 + guidance) * found[: len(x_t)] - guidance * found[len(x_t) :]
        return self._space.clipped(found, coefficients=self._coefficients) if self._clip else found


def check_guidance(model: Model, guidance: float, name: str = "guidance") -> float:
    """A guidance weight w that the model can use.

    Args:
        model: The model.
        guidance: w, a finite number from -1; 0 is no guidance, and other numbers need a null class.
        name: Name of the option, for messages.

    Example:
        >>> from fastdc.sampling import check_guidance
        >>> check_guidance(clf.model, 4.5)
        4.5

    Raises:
        InputError: It is something else, or the model has no null class.
    """
    if not checks.is_finite(guidance) or guidance < -1:
        raise InputError(f"{name} must be a finite number from -1, got {shown(guidance)}")
    if guidance and model.null_class is None:
        raise InputError(
            f"{name} needs a network that can leave out the class, but {model.name} has no null class: expected 0"
        )
    return float(guidance)


def conditions_of(model: Model, classes: npt.NDArray[np.int64]) -> Int32:
    """The condition of each class as the network numbers it: the class itself, or the first prompt that describes it.

    Args:
        model: The model.
        classes: int64 (m,), classes.

    Example:
        >>> from fastdc.sampling import conditions_of
        >>> conditions_of(clf.model, np.array([3, 8]))
        array([3, 8], dtype=int32)
    """
    if not model.class_of:
        return classes.astype(np.int32)
    first = np.array([model.class_of.index(label) for label in range(model.num_classes)], np.int32)
    return first[classes]
