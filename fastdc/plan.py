"""The plan of a run: the noise level of every draw, in an order whose every prefix covers the whole band.

Positions follow the van der Corput sequence in base 2, u_j = 0.1b reversed: 1/2, 1/4, 3/4, 1/8, 5/8, ... After 2^m - 1
draws they are exactly the multiples of 2^-m, and any prefix is within a factor two of evenly spaced. A longer plan
starts with the shorter one, so that a run can be extended, or stopped early, without evaluating a cell twice.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.exceptions import InputError
from fastdc.ops import LOSSES
from fastdc.parameterization import Parameterization
from fastdc.schedules import AbstractSchedule, FloatArray, Levels
from fastdc.weighting import weighting

MAX_DRAWS = 1_000_000


def van_der_corput(count: int) -> FloatArray:
    """Elements 1 ... count of the base-2 van der Corput sequence, float64 (count,), all in (0, 1)."""
    index = np.arange(1, count + 1, dtype=np.uint64)
    result = np.zeros(count)
    scale = 0.5
    while np.any(index):
        result += scale * (index & np.uint64(1)).astype(np.float64)
        index >>= np.uint64(1)
        scale /= 2
    return result


def is_number(value: Any) -> bool:
    """Whether a user gave a real number: Python's or NumPy's, and no bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


@dataclass(frozen=True)
class PlanConfig:
    """What a plan is made from; plain values, stored with every result.

    Attributes:
        draws: J, the number of (noise level, noise) pairs, the same for all classes.
        levels: The band of noise levels, as noise-to-signal ratios sigma / alpha (low, high) in units of x in the
            model's value range; None: the whole schedule.
        weighting: One of ``weighting.WEIGHTINGS``.
        loss: "l2", "l1" or "huber".
        delta: Threshold of the Huber loss.
    """

    draws: int
    levels: tuple[float, float] | None = None
    weighting: str = "uniform"
    loss: str = "l2"
    delta: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.draws, bool) or not isinstance(self.draws, (int, np.integer)):
            raise InputError(f"draws must be a whole number, got {self.draws!r}")
        if not 1 <= self.draws <= MAX_DRAWS:
            raise InputError(f"draws must be 1 to {MAX_DRAWS}, got {self.draws}")
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if not is_number(self.delta) or not 0 < self.delta < float("inf"):
            raise InputError(f"delta must be positive, got {self.delta!r}")
        if self.levels is not None:
            pair = isinstance(self.levels, (tuple, list)) and len(self.levels) == 2 and all(map(is_number, self.levels))
            if not pair or not 0 < self.levels[0] < self.levels[1] < float("inf"):
                raise InputError(f"levels must be (low, high) with 0 < low < high, got {self.levels!r}")
            # Python's floats: a float32 would compute the plan in float32, and what is stored would not repeat it.
            object.__setattr__(self, "levels", (float(self.levels[0]), float(self.levels[1])))
        if not isinstance(self.weighting, str):
            raise InputError(f"weighting must be a name, got {self.weighting!r}")
        weighting(self.weighting)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "draws": int(self.draws),
            "levels": None if self.levels is None else list(self.levels),
            "weighting": self.weighting,
            "loss": self.loss,
            "delta": float(self.delta),
        }


@dataclass(frozen=True, eq=False)
class Plan:
    """The draws of a run.

    Attributes:
        config: What it was made from.
        levels: Noise levels, J of them, in order.
        rows: float32 (J, 8), the coefficient rows in ``ops.ROW_FIELDS`` order.
    """

    config: PlanConfig
    levels: Levels
    rows: npt.NDArray[np.float32] = field(repr=False)

    @property
    def draws(self) -> int:
        """J."""
        return len(self.levels)


def make_plan(schedule: AbstractSchedule, parameterization: Parameterization, config: PlanConfig) -> Plan:
    """The plan of `config` for a model.

    Raises:
        InputError: The band does not overlap the schedule, or a coefficient is not finite in it.
    """
    low, high = 0.0, 1.0
    if config.levels is not None:
        low, high = (schedule.position_of(ratio) for ratio in config.levels)
        if not low < high:
            raise InputError(f"levels {config.levels} lie outside the schedule {schedule.to_dict()}")
    levels = schedule.levels(low + (high - low) * van_der_corput(config.draws))
    rule = weighting(config.weighting)
    rows = parameterization.rows(levels, rule.weight(levels, parameterization.sigma_data), rule.space)
    return Plan(config=config, levels=levels, rows=rows)
