"""A curve of weights over noise levels, fitted to labelled images, that multiplies a weighting.

weight(s) is interpolated linearly in ln s between knots and constant outside them, s = sigma / alpha. The idea is from
Clark & Jaini (arXiv 2303.15233, learned weights), whose curve replaces the weighting. Here the curve is relative to a
weighting, so that its scale does not depend on units and a curve of ones changes nothing. ``fastdc.calibration`` fits
curves to errors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError, checks, shown

MAX_KNOTS = 10_000


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """Returns the numbers as Python's floats, so that a stored curve repeats the plan exactly."""
    if not isinstance(values, (tuple, list)) or not 1 <= len(values) <= MAX_KNOTS:
        raise InputError(f"{name} of level weights must be 1 to {MAX_KNOTS} numbers, got {shown(values)}")
    for value in values:
        if not checks.is_number(value):
            raise InputError(f"{name} of level weights must be numbers, got {shown(value)}")
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} of level weights must be finite and not negative, got {shown(value)}")
    return tuple(map(float, values))


@dataclass(frozen=True)
class LevelWeights:
    """Weights of noise levels, relative to those of a weighting.

    Attributes:
        ratio: Knots: noise-to-signal ratios sigma / alpha in units of x in the model's value range; positive and
            increasing.
        weight: Weight at each knot; finite, not negative, and not all zero.
    """

    ratio: tuple[float, ...]
    weight: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", _numbers("ratio", self.ratio))
        object.__setattr__(self, "weight", _numbers("weight", self.weight))
        if len(self.ratio) != len(self.weight):
            raise InputError(f"level weights need one weight per knot, got {len(self.ratio)} and {len(self.weight)}")
        if self.ratio[0] <= 0 or not np.all(np.diff(self.ratio) > 0):
            raise InputError(f"ratio of level weights must be positive and increasing, got {shown(self.ratio)}")
        if not any(self.weight):
            raise InputError("weight of level weights must not be zero everywhere")

    def at(self, ratio: npt.ArrayLike) -> Float64:
        """Interpolates the weights at positive noise-to-signal ratios of any shape, float64."""
        with np.errstate(divide="ignore"):  # an infinite ratio (no signal) has the last knot's weight
            position = np.log(np.asarray(ratio, dtype=np.float64))
        return np.asarray(np.interp(position, np.log(self.ratio), self.weight), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {"ratio": list(self.ratio), "weight": list(self.weight)}

    @classmethod
    def from_dict(cls, entry: Any) -> "LevelWeights":
        """Makes the curve of an entry that :meth:`to_dict` returned.

        Raises:
            InputError: The entry has another form, or values are out of range.
        """
        if not isinstance(entry, dict) or set(entry) != {"ratio", "weight"}:
            raise InputError(f"level weights must be {{ratio, weight}}, got {shown(entry)}")
        return cls(ratio=entry["ratio"], weight=entry["weight"])
