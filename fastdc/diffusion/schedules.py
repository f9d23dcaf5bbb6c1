"""Schedules of continuous time, and the reader of any schedule's manifest entry.

* :class:`EDMSchedule`: alpha = 1, ln sigma linear in u (Karras et al., arXiv 2206.00364), time input scale * ln sigma.
* :class:`ContinuousSchedule`: the same ratios sigma / alpha and time input, with alpha^2 + sigma^2 = 1.
* :class:`VPSchedule`: alpha^2 + sigma^2 = 1, linear in the time t of the VP SDE (Song et al., arXiv 2011.13456),
  time input scale * t.
* ``cosine_schedule`` has :class:`CosineSchedule`, whose ln SNR is that of a cosine, and the time input scale * ln SNR.
* :class:`FlowSchedule`: x_t = (1 - t) x + t e (rectified flow), t = shift u / (1 + (shift - 1) u), time scale * t.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.diffusion.cosine_schedule import CosineSchedule
from fastdc.diffusion.levels import AbstractSchedule, Levels, checked_positions
from fastdc.diffusion.stepped_schedules import DiscreteSchedule, TableSchedule
from fastdc.support import InputError, checks, shown


@dataclass(frozen=True)
class EDMSchedule:
    """Variance exploding levels, log-uniform in sigma.

    Attributes:
        sigma_min: sigma at u = 0, positive, in units of x in the model's value range.
        sigma_max: sigma at u = 1, above `sigma_min`.
        timestep_scale: Factor of the network's time input, timestep_scale * ln sigma + timestep_offset (EDM: 0.25).
        timestep_offset: Number that is added to the time input.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    timestep_scale: float = 0.25
    timestep_offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(f"sigmas must satisfy 0 < min < max, got {self.sigma_min} and {self.sigma_max}")
        checks.number("timestep_scale", self.timestep_scale)
        checks.number("timestep_offset", self.timestep_offset)

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`."""
        u = checked_positions(position)
        span = math.log(self.sigma_max / self.sigma_min)
        log_sigma = math.log(self.sigma_min) + u * span
        sigma = np.exp(log_sigma)
        return Levels(
            position=u,
            alpha=np.ones_like(u),
            sigma=sigma,
            timestep=self.timestep_scale * log_sigma + self.timestep_offset,
            snr_slope=2 * span / sigma**2,
        )

    def position_of(self, sigma: float) -> float:
        """Implements :class:`AbstractSchedule`."""
        u = math.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return min(1.0, max(0.0, u))

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        entry: dict[str, Any] = {
            "kind": "edm",
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "timestep_scale": self.timestep_scale,
        }
        return {**entry, "timestep_offset": self.timestep_offset} if self.timestep_offset else entry


@dataclass(frozen=True)
class VPSchedule:
    """Levels of the variance preserving SDE: alpha^2 = exp(-B), sigma^2 = 1 - alpha^2, B = beta_d t^2 / 2 + beta_min t.

    The constants have the names and values of Karras et al., arXiv 2206.00364, table 1. Song et al., arXiv 2011.13456,
    eq. 32, have beta_max = beta_min + beta_d.

    Attributes:
        beta_d: Growth of the noise rate from t = 0 to 1, 0 or positive.
        beta_min: Noise rate at t = 0, positive.
        epsilon_t: t at u = 0, in (0, 1); t grows linearly to 1 at u = 1.
        timestep_scale: Factor of the network's time input, timestep_scale * t.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5
    timestep_scale: float = 999.0

    # B at both ends, so that alpha^2 and sigma^2 keep digits and no power of them over- or underflows.
    _bounds = (1e-12, 100.0)

    def __post_init__(self) -> None:
        checks.positive("beta_d", self.beta_d, zero=True)
        checks.positive("beta_min", self.beta_min)
        checks.fraction("epsilon_t", self.epsilon_t)
        checks.number("timestep_scale", self.timestep_scale)
        low, high = self._exponent(self.epsilon_t), self._exponent(1.0)
        if not self._bounds[0] <= low < high <= self._bounds[1]:
            raise InputError(f"the exponent of vp levels must stay in {self._bounds}, got {low:.3g} to {high:.3g}")

    def _exponent(self, t: Any) -> Any:
        """B(t), which is -ln alpha^2."""
        return (self.beta_d / 2 * t + self.beta_min) * t

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`."""
        u = checked_positions(position)
        t = self.epsilon_t + (1 - self.epsilon_t) * u
        exponent = self._exponent(t)
        rate = (self.beta_d * t + self.beta_min) * (1 - self.epsilon_t)  # dB / du
        return Levels(
            position=u,
            alpha=np.exp(-exponent / 2),
            sigma=np.sqrt(-np.expm1(-exponent)),
            timestep=self.timestep_scale * t,
            snr_slope=rate / (2 * np.sinh(exponent / 2)) ** 2,
        )

    def position_of(self, sigma: float) -> float:
        """Implements :class:`AbstractSchedule`."""
        exponent = 2 * math.log(math.hypot(1, sigma)) if sigma > 1 else math.log1p(sigma**2)
        t = 2 * exponent / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * self.beta_d * exponent))
        return min(1.0, max(0.0, (t - self.epsilon_t) / (1 - self.epsilon_t)))

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        return {
            "kind": "vp",
            "beta_d": self.beta_d,
            "beta_min": self.beta_min,
            "epsilon_t": self.epsilon_t,
            "timestep_scale": self.timestep_scale,
        }


@dataclass(frozen=True)
class ContinuousSchedule(EDMSchedule):
    """Variance preserving levels, log-uniform in s = sigma / alpha, for networks that are told ln s instead of a step.

    Published v-prediction models with continuous time have it (Blattmann et al., arXiv 2311.15127, appendix D.1).

    Attributes:
        sigma_min: s at u = 0, positive.
        sigma_max: s at u = 1, above `sigma_min`.
        timestep_scale: Factor of the network's time input, timestep_scale * ln s.
    """

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`."""
        ratio = super().levels(position)  # their sigma is s, because their alpha is 1
        alpha = 1 / np.sqrt(1 + ratio.sigma**2)
        return replace(ratio, alpha=alpha, sigma=alpha * ratio.sigma)

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        return {**super().to_dict(), "kind": "continuous"}


@dataclass(frozen=True)
class FlowSchedule:
    """Straight paths x_t = (1 - t) x + t e, t in (0, 1).

    Attributes:
        shift: Positive; above 1 moves levels towards noise (Esser et al., arXiv 2403.03206, eq. 23).
        timestep_scale: Factor of the network's time input, timestep_scale * t (diffusers: 1000).
    """

    shift: float = 1.0
    timestep_scale: float = 1000.0

    # At t = 0 there is no noise and no error signal, at t = 1 there is no image; SNR is 1/0 or 0.
    _margin = 1e-4

    def __post_init__(self) -> None:
        checks.positive("shift", self.shift)
        checks.number("timestep_scale", self.timestep_scale)

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`. t keeps a distance of 1e-4 from 0 and 1."""
        u = checked_positions(position)
        t = np.clip(self.shift * u / (1 + (self.shift - 1) * u), self._margin, 1 - self._margin)
        dt_du = self.shift / (1 + (self.shift - 1) * u) ** 2
        return Levels(
            position=u,
            alpha=1 - t,
            sigma=t,
            timestep=self.timestep_scale * t,
            snr_slope=2 * (1 - t) / t**3 * dt_du,
        )

    def position_of(self, sigma: float) -> float:
        """Implements :class:`AbstractSchedule`."""
        t = sigma / (1 + sigma)
        return t / (self.shift - (self.shift - 1) * t)

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        return {"kind": "flow", "shift": self.shift, "timestep_scale": self.timestep_scale}


_KINDS: dict[str, type[DiscreteSchedule | EDMSchedule | VPSchedule | CosineSchedule | FlowSchedule]] = {
    "ddpm": DiscreteSchedule,
    "edm": EDMSchedule,
    "continuous": ContinuousSchedule,
    "vp": VPSchedule,
    "cosine": CosineSchedule,
    "flow": FlowSchedule,
}
_TABLE = "ddpm_table"

_TYPE_CHECKS: dict[type, Callable[[Any], bool]] = {
    float: checks.is_number,
    int: checks.is_whole,
    str: lambda value: isinstance(value, str),
}


def schedule_from_dict(entry: dict[str, Any]) -> AbstractSchedule:
    """Makes the schedule of a manifest entry.

    Args:
        entry: Entry such as {"kind": "edm", "sigma_min": 0.002, ...}. Missing options have their defaults.

    Returns:
        The schedule.

    Raises:
        InputError: The kind or an option is unknown, or an option has a wrong type or is out of range.

    Example:
        >>> from fastdc.diffusion import schedule_from_dict
        >>> schedule_from_dict({"kind": "edm", "sigma_max": 10.0})
        EDMSchedule(sigma_min=0.002, sigma_max=10.0, timestep_scale=0.25, timestep_offset=0.0)
    """
    options = dict(entry)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in (*_KINDS, _TABLE):
        raise InputError(f"schedule kind must be one of {', '.join((*_KINDS, _TABLE))}, got {shown(kind)}")
    if kind == _TABLE:
        return _table_from_dict(options)
    known = _KINDS[kind].__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            raise InputError(f"schedule {kind} has no option {shown(name)}: expected {', '.join(known)}")
        wanted = type(known[name].default)
        if not _TYPE_CHECKS[wanted](value):
            raise InputError(f"schedule option {name} must be {wanted.__name__}, got {shown(value)}")
    return _KINDS[kind](**options)


def _table_from_dict(options: dict[str, Any]) -> TableSchedule:
    listed = options.pop("alphas_cumprod", None)
    if options:
        raise InputError(f"schedule {_TABLE} has no option {shown(min(options, key=str))}: expected alphas_cumprod")
    if not isinstance(listed, list) or not all(map(checks.is_number, listed)):
        raise InputError(f"schedule option alphas_cumprod must be a list of numbers, got {shown(listed)}")
    return TableSchedule(tuple(listed))
