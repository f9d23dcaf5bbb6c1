"""Noise levels of draws, and the interface of the schedules that make them.

A :class:`Levels` holds, for each draw, the forward process x_t = alpha x + sigma e and the network's time input. A
schedule makes levels from positions u in [0, 1], low noise to high, so that a plan can be written without knowing the
schedule.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError, shown


@dataclass(frozen=True)
class Levels:
    """Noise levels of J draws, each float64 (J,).

    Attributes:
        position: Position u of the level on the schedule, in [0, 1].
        alpha: Factor of the image in x_t, in [0, 1].
        sigma: Standard deviation of the noise in x_t, in units of x in the model's value range; positive.
        timestep: Time input of the network.
        snr_slope: -d SNR / du at the level, SNR = alpha^2 / sigma^2: the variational weight (Kingma et al., arXiv
            2107.00630, eq. 17) of the squared error in x for levels drawn uniformly in u.
    """

    position: Float64
    alpha: Float64
    sigma: Float64
    timestep: Float64
    snr_slope: Float64

    @property
    def snr(self) -> Float64:
        """Signal-to-noise ratio alpha^2 / sigma^2, float64 (J,)."""
        return (self.alpha / self.sigma) ** 2

    @property
    def ratio(self) -> Float64:
        """Noise-to-signal ratio sigma / alpha, float64 (J,); infinite at a level of pure noise."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    def __len__(self) -> int:
        return len(self.position)


class AbstractSchedule(Protocol):
    """The methods of a schedule that a plan uses."""

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Makes the levels at positions u in [0, 1], shape (J,).

        Raises:
            InputError: A position lies outside [0, 1].
        """

    def position_of(self, sigma: float) -> float:
        """Returns the position u whose noise-to-signal ratio sigma / alpha is nearest to `sigma` (> 0)."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of a bundle's manifest that ``schedule_from_dict`` reads."""


def checked_positions(position: npt.ArrayLike) -> Float64:
    """Returns positions as float64 (J,).

    Raises:
        InputError: They are not a list of numbers in [0, 1].
    """
    u = np.asarray(position, dtype=np.float64)
    if u.ndim != 1 or not np.all((u >= 0) & (u <= 1)):
        raise InputError(f"positions must be a list of numbers in [0, 1], got {shown(position)}")
    return u
