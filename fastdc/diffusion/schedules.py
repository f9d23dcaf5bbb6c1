"""Noise schedules: which noise levels exist, and what a network is told about them.

A :class:`Levels` holds, for each draw, the forward process x_t = alpha x + sigma e and the network's time input. Levels
are made from positions u in [0, 1], low noise to high, so that a plan can be written without knowing the schedule:

* :class:`DiscreteSchedule`: the T steps of a DDPM (Ho et al., arXiv 2006.11239), t = floor(u T), alpha^2 = alpha_bar.
  ``linear`` and ``scaled_linear`` betas, or ``squaredcos_cap_v2`` (Nichol & Dhariwal, arXiv 2102.09672, eq. 17).
* :class:`TableSchedule`: the same with alpha_bar given step by step, for any other betas.
* :class:`EDMSchedule`: alpha = 1, ln sigma linear in u (Karras et al., arXiv 2206.00364), time input scale * ln sigma.
* :class:`FlowSchedule`: x_t = (1 - t) x + t e (rectified flow), t = shift u / (1 + (shift - 1) u), time scale * t.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError

MAX_TRAIN_TIMESTEPS = 1_000_000

MAX_TABLE = 10_000
"""Steps of a schedule whose levels are listed: a bundle's manifest holds them as text."""


@dataclass(frozen=True)
class Levels:
    """Noise levels of J draws, each float64 (J,).

    Attributes:
        position: u in [0, 1], where on the schedule the level lies.
        alpha: Factor of the image in x_t, in [0, 1].
        sigma: Standard deviation of the noise in x_t, in units of x in the model's value range; positive.
        timestep: What the network receives as its time input.
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
        """Signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2

    def __len__(self) -> int:
        return len(self.position)


class AbstractSchedule(Protocol):
    """What a plan needs of a schedule."""

    def levels(self, position: npt.ArrayLike) -> Levels:
        """The levels at positions u in [0, 1], shape (J,)."""

    def position_of(self, sigma: float) -> float:
        """The position u whose noise-to-signal ratio sigma / alpha is nearest to `sigma` (> 0)."""

    def to_dict(self) -> dict[str, Any]:
        """The entry of a bundle's manifest that :func:`schedule_from_dict` reads."""


def _positions(position: npt.ArrayLike) -> Float64:
    u = np.asarray(position, dtype=np.float64)
    if u.ndim != 1 or not np.all((u >= 0) & (u <= 1)):
        raise InputError(f"positions must be a list of numbers in [0, 1], got {position!r}")
    return u


class SteppedSchedule:
    """What schedules of T steps share: step t = floor(u T) with alpha^2 = alpha_bar_t, sigma^2 = 1 - alpha_bar_t."""

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha_bar_t = prod_{s <= t} (1 - beta_s), float64 (T,), decreasing, in (0, 1)."""
        raise AssertionError("a schedule of steps defines them")

    def levels(self, position: npt.ArrayLike) -> Levels:
        """See :class:`AbstractSchedule`; the slope is T times the drop of SNR into step t, 0 at t = 0."""
        u = _positions(position)
        alpha_bar = self.alphas_cumprod
        steps = len(alpha_bar)
        t = np.minimum((u * steps).astype(np.int64), steps - 1)
        snr = alpha_bar / (1 - alpha_bar)
        drop = np.concatenate([[0.0], snr[:-1] - snr[1:]])
        return Levels(
            position=u,
            alpha=np.sqrt(alpha_bar[t]),
            sigma=np.sqrt(1 - alpha_bar[t]),
            timestep=t.astype(np.float64),
            snr_slope=drop[t] * steps,
        )

    def position_of(self, sigma: float) -> float:
        """See :class:`AbstractSchedule`."""
        alpha_bar = self.alphas_cumprod
        t = int(np.argmin(np.abs(np.log((1 - alpha_bar) / alpha_bar) - 2 * math.log(sigma))))
        return (t + 0.5) / len(alpha_bar)


@dataclass(frozen=True)
class DiscreteSchedule(SteppedSchedule):
    """A DDPM schedule of T steps.

    Attributes:
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2".
        beta_start: First beta, in (0, 1); not used by the cosine schedule.
        beta_end: Last beta, in [beta_start, 1).
        num_train_timesteps: T.
    """

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise InputError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {self.beta_schedule!r}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"betas must satisfy 0 < start <= end < 1, got {self.beta_start} and {self.beta_end}")
        if not 1 <= self.num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            raise InputError(f"num_train_timesteps must be 1 to {MAX_TRAIN_TIMESTEPS}, got {self.num_train_timesteps}")
        alpha_bar = self.alphas_cumprod
        if not np.finfo(np.float64).tiny < alpha_bar[-1] <= alpha_bar[0] < 1:  # below it, products stop falling
            raise InputError(f"alpha_bar must stay inside (0, 1), got {alpha_bar[0]} to {alpha_bar[-1]}")

    @property
    def alphas_cumprod(self) -> Float64:
        """See :class:`SteppedSchedule`."""
        steps = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, steps)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), steps) ** 2
        else:
            edges = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * (np.pi / 2)) ** 2
            betas = np.minimum(1 - edges[1:] / edges[:-1], 0.999)
        return np.cumprod(1 - betas, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`AbstractSchedule`."""
        return {
            "kind": "ddpm",
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "num_train_timesteps": self.num_train_timesteps,
        }


@dataclass(frozen=True)
class TableSchedule(SteppedSchedule):
    """A DDPM schedule whose levels are listed, for betas of no known form.

    Attributes:
        table: alpha_bar of every step, decreasing, in (0, 1).
    """

    table: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(map(float, self.table)))
        if not 1 <= len(self.table) <= MAX_TABLE:
            raise InputError(f"alphas_cumprod must be 1 to {MAX_TABLE} numbers, got {len(self.table)}")
        before = 1.0
        for step, alpha_bar in enumerate(self.table):
            if not np.finfo(np.float64).tiny < alpha_bar < before:
                raise InputError(f"alphas_cumprod must fall and stay inside (0, 1), got {alpha_bar} at step {step}")
            before = alpha_bar

    @property
    def alphas_cumprod(self) -> Float64:
        """See :class:`SteppedSchedule`."""
        return np.array(self.table, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`AbstractSchedule`."""
        return {"kind": "ddpm_table", "alphas_cumprod": list(self.table)}


@dataclass(frozen=True)
class EDMSchedule:
    """Variance exploding levels, log-uniform in sigma.

    Attributes:
        sigma_min: sigma at u = 0, positive, in units of x in the model's value range.
        sigma_max: sigma at u = 1.
        timestep_scale: The network's time input is timestep_scale * ln sigma (EDM: 0.25).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    timestep_scale: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(f"sigmas must satisfy 0 < min < max, got {self.sigma_min} and {self.sigma_max}")
        if not math.isfinite(self.timestep_scale):
            raise InputError(f"timestep_scale must be finite, got {self.timestep_scale}")

    def levels(self, position: npt.ArrayLike) -> Levels:
        """See :class:`AbstractSchedule`."""
        u = _positions(position)
        span = math.log(self.sigma_max / self.sigma_min)
        log_sigma = math.log(self.sigma_min) + u * span
        sigma = np.exp(log_sigma)
        return Levels(
            position=u,
            alpha=np.ones_like(u),
            sigma=sigma,
            timestep=self.timestep_scale * log_sigma,
            snr_slope=2 * span / sigma**2,
        )

    def position_of(self, sigma: float) -> float:
        """See :class:`AbstractSchedule`."""
        u = math.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)
        return min(1.0, max(0.0, u))

    def to_dict(self) -> dict[str, Any]:
        """See :class:`AbstractSchedule`."""
        return {
            "kind": "edm",
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "timestep_scale": self.timestep_scale,
        }


@dataclass(frozen=True)
class FlowSchedule:
    """Straight paths x_t = (1 - t) x + t e, t in (0, 1).

    Attributes:
        shift: Positive; above 1 moves levels towards noise (Esser et al., arXiv 2403.03206, eq. 23).
        timestep_scale: The network's time input is timestep_scale * t (diffusers: 1000).
    """

    shift: float = 1.0
    timestep_scale: float = 1000.0

    # The ends carry no error signal (t = 0: no noise) or no image (t = 1), and SNR is 1/0 or 0 there.
    _margin = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise InputError(f"shift must be positive and finite, got {self.shift}")
        if not math.isfinite(self.timestep_scale):
            raise InputError(f"timestep_scale must be finite, got {self.timestep_scale}")

    def levels(self, position: npt.ArrayLike) -> Levels:
        """See :class:`AbstractSchedule`."""
        u = _positions(position)
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
        """See :class:`AbstractSchedule`."""
        t = sigma / (1 + sigma)
        return t / (self.shift - (self.shift - 1) * t)

    def to_dict(self) -> dict[str, Any]:
        """See :class:`AbstractSchedule`."""
        return {"kind": "flow", "shift": self.shift, "timestep_scale": self.timestep_scale}


BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

_KINDS: dict[str, type[DiscreteSchedule] | type[EDMSchedule] | type[FlowSchedule]] = {
    "ddpm": DiscreteSchedule,
    "edm": EDMSchedule,
    "flow": FlowSchedule,
}


_TABLE = "ddpm_table"


def schedule_from_dict(entry: dict[str, Any]) -> AbstractSchedule:
    """The schedule of a manifest entry such as {"kind": "edm", "sigma_min": 0.002, ...}.

    Raises:
        InputError: Unknown kind, unknown or ill-typed option, or a value out of range.
    """
    options = dict(entry)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in (*_KINDS, _TABLE):
        raise InputError(f"schedule kind must be one of {', '.join((*_KINDS, _TABLE))}, got {kind!r:.80}")
    if kind == _TABLE:
        return _table_from_dict(options)
    known = _KINDS[kind].__dataclass_fields__
    for name, value in options.items():
        if name not in known:
            raise InputError(f"schedule {kind} has no option {name!r}: expected {', '.join(known)}")
        wanted = type(known[name].default)
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise InputError(f"schedule option {name} must be {wanted.__name__}, got {value!r}")
    return _KINDS[kind](**options)


def _table_from_dict(options: dict[str, Any]) -> TableSchedule:
    listed = options.pop("alphas_cumprod", None)
    if options:
        raise InputError(f"schedule {_TABLE} has no option {min(options, key=str)!r}: expected alphas_cumprod")
    if not isinstance(listed, list) or not all(type(value) in (int, float) for value in listed):
        raise InputError(f"schedule option alphas_cumprod must be a list of numbers, got {listed!r:.80}")
    return TableSchedule(tuple(listed))
