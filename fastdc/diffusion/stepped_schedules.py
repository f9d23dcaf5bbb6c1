"""Schedules of T steps, those of a DDPM (Ho et al., arXiv 2006.11239): t = floor(u T), alpha^2 = alpha_bar_t.

* :class:`DiscreteSchedule`: ``linear`` and ``scaled_linear`` betas, or ``squaredcos_cap_v2`` (Nichol & Dhariwal, arXiv
  2102.09672, eq. 17).
* :class:`TableSchedule`: alpha_bar given step by step, for any other betas.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.diffusion.levels import Levels, checked_positions
from fastdc.support import Float64, InputError, checks

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

MAX_TRAIN_TIMESTEPS = 1_000_000

MAX_TABLE = 10_000
"""Most steps of a schedule whose levels are listed: a bundle's manifest holds them as text."""

# Below it, products of alphas lose digits and stop falling.
_SMALLEST_ALPHA_BAR = np.finfo(np.float64).tiny


class SteppedSchedule:
    """Base of schedules of T steps: step t = floor(u T) with alpha^2 = alpha_bar_t and sigma^2 = 1 - alpha_bar_t."""

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha_bar_t = prod_{s <= t} (1 - beta_s), float64 (T,), decreasing, in (0, 1)."""
        raise AssertionError("a schedule of steps defines them")

    def levels(self, position: npt.ArrayLike) -> Levels:
        """Implements :class:`AbstractSchedule`. The slope is T times the drop of SNR into step t, 0 at t = 0."""
        u = checked_positions(position)
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
        """Implements :class:`AbstractSchedule`. Returns the middle of a step's positions."""
        alpha_bar = self.alphas_cumprod
        t = int(np.argmin(np.abs(np.log((1 - alpha_bar) / alpha_bar) - 2 * math.log(sigma))))
        return (t + 0.5) / len(alpha_bar)


@dataclass(frozen=True)
class DiscreteSchedule(SteppedSchedule):
    """A DDPM schedule of T steps.

    Attributes:
        beta_schedule: "linear", "scaled_linear" (linear in sqrt(beta)) or "squaredcos_cap_v2".
        beta_start: First beta, in (0, 1); not used by the cosine schedule.
        beta_end: Last beta, in [beta_start, 1); not used by the cosine schedule.
        num_train_timesteps: Number of steps T, from 1 to 1 000 000.
    """

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        checks.one_of("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"betas must satisfy 0 < start <= end < 1, got {self.beta_start} and {self.beta_end}")
        checks.whole("num_train_timesteps", self.num_train_timesteps, high=MAX_TRAIN_TIMESTEPS)
        alpha_bar = self.alphas_cumprod
        if not _SMALLEST_ALPHA_BAR < alpha_bar[-1] <= alpha_bar[0] < 1:
            raise InputError(f"alpha_bar must stay inside (0, 1), got {alpha_bar[0]} to {alpha_bar[-1]}")

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha_bar of every step, float64 (T,), decreasing, in (0, 1)."""
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
        """Implements :class:`AbstractSchedule`."""
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
        table: alpha_bar of every step, decreasing, in (0, 1); from 1 to 10 000 numbers.
    """

    table: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(map(float, self.table)))
        if not 1 <= len(self.table) <= MAX_TABLE:
            raise InputError(f"alphas_cumprod must be 1 to {MAX_TABLE} numbers, got {len(self.table)}")
        before = 1.0
        for step, alpha_bar in enumerate(self.table):
            if not _SMALLEST_ALPHA_BAR < alpha_bar < before:
                raise InputError(f"alphas_cumprod must fall and stay inside (0, 1), got {alpha_bar} at step {step}")
            before = alpha_bar

    @property
    def alphas_cumprod(self) -> Float64:
        """alpha_bar of every step, float64 (T,), decreasing, in (0, 1)."""
        return np.array(self.table, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Implements :class:`AbstractSchedule`."""
        return {"kind": "ddpm_table", "alphas_cumprod": list(self.table)}
