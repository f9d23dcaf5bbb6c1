"""The cosine schedule in continuous time, with its shift for large images (Hoogeboom et al., arXiv 2301.11093).

With t the position u, lambda = ln SNR falls as

    lambda(t) = -2 ln tan(a + t (b - a)) + shift,    a = atan exp(-logsnr_max / 2),    b = atan exp(-logsnr_min / 2)

and alpha^2 = 1 / (1 + exp(-lambda)), sigma^2 = 1 / (1 + exp(lambda)). The paper's shift is 2 ln(64 / d) for images of
side d: so much more noise hides as much of an image, because neighbouring pixels repeat each other. The network is told
lambda, times a factor and plus an offset.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.diffusion.levels import Levels, checked_positions
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class CosineSchedule:
    """Variance preserving levels, whose angle atan(sigma / alpha) is linear in u if there is no shift.

    The medical classifier of Favero et al. (arXiv 2502.03687) shifts twice: its released code has the limits
    -15 + ln(64 / 256) and 15 + ln(64 / 256), and the shift 2 ln(64 / 256).

    Attributes:
        logsnr_min: ln(alpha^2 / sigma^2) at u = 1 without the shift.
        logsnr_max: ln(alpha^2 / sigma^2) at u = 0 without the shift, above `logsnr_min`.
        shift: Number that is added to ln(alpha^2 / sigma^2) at every u.
        timestep_scale: Factor of the network's time input, timestep_scale * ln(alpha^2 / sigma^2) + timestep_offset.
        timestep_offset: Number that is added to the time input.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift: float = 0.0
    timestep_scale: float = 1.0
    timestep_offset: float = 0.0

    _limit = 60.0  # so that no power of alpha and sigma over- or underflows

    def __post_init__(self) -> None:
        for name in ("shift", "timestep_scale", "timestep_offset"):
            checks.number(name, getattr(self, name))
        ends = self.logsnr_min, self.logsnr_max
        shifted = [end + self.shift for end in ends]
        if not ends[0] < ends[1] or max(map(abs, (*ends, *shifted))) > self._limit:
            raise InputError(
                f"logsnr_min and logsnr_max must satisfy min < max and stay in [-{self._limit:g}, {self._limit:g}], "
                f"also with the shift, got {ends[0]:g} and {ends[1]:g} with shift {self.shift:g}"
            )

    @property
    def _angles(self) -> tuple[float, float, float]:
        """The angle a, the distance of b from pi / 2, and b - a."""
        first, rest = math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(self.logsnr_min / 2))
        return first, rest, math.pi / 2 - first - rest

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`."""
        u = checked_positions(position)
        first, rest, span = self._angles
        angle, complement = first + u * span, rest + (1 - u) * span
        # Of an angle near pi / 2, only the complement has the digits.
        log_tan = np.where(angle < complement, np.log(np.tan(angle)), -np.log(np.tan(complement)))
        logsnr = -2 * log_tan + self.shift
        return Levels(
            position=u,
            alpha=1 / np.sqrt(1 + np.exp(-logsnr)),
            sigma=1 / np.sqrt(1 + np.exp(logsnr)),
            timestep=self.timestep_scale * logsnr + self.timestep_offset,
            snr_slope=np.exp(logsnr) * 4 * span / np.sin(2 * np.minimum(angle, complement)),
        )

    def position_of(self, sigma: float) -> float:
        """Implements :class:`AbstractSchedule`."""
        first, _, span = self._angles
        angle = math.atan2(sigma * math.exp(self.shift / 2), 1.0)
        return min(1.0, max(0.0, (angle - first) / span))

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        return {
            "kind": "cosine",
            "logsnr_min": self.logsnr_min,
            "logsnr_max": self.logsnr_max,
            "shift": self.shift,
            "timestep_scale": self.timestep_scale,
            "timestep_offset": self.timestep_offset,
        }
