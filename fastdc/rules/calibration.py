"""The record of a calibrated race: its limit, what the limit promises, and the plan that it holds for.

:mod:`fastdc.calibration` finds the limit; a bundle stores the record.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from fastdc.diffusion import MAX_DRAWS, PlanConfig
from fastdc.rules.calibrated import Calibrated
from fastdc.support import InputError, checks


@dataclass(frozen=True)
class Calibration:
    """What a calibration found, as a bundle stores it.

    Attributes:
        limit: Of :class:`fastdc.rules.calibrated.Calibrated`.
        delta: Level of the guarantee.
        risk: Share of the validation runs, averaged over images, that would have lost the full run's class.
        draws: J of the full runs.
        images: Validation images, n.
        seeds: Noise seeds of each.
        bound: Largest difference between two classes' errors at a draw that was seen, for the rule ``betting``.
        plan: Configuration of the plan without its number of draws: the limit holds for these levels and weights.
    """

    limit: float
    delta: float
    risk: float
    draws: int
    images: int
    seeds: int
    bound: float
    plan: dict[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        for name, low, high in (("limit", 0, math.inf), ("delta", 0, 1), ("risk", 0, 1), ("bound", 0, math.inf)):
            value = getattr(self, name)
            if not checks.is_number(value) or not low <= value < high:
                raise InputError(f"calibration: {name} must be a number in [{low}, {high}), got {value!r:.80}")
        for name in ("draws", "images", "seeds"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"calibration: {name} must be a positive whole number, got {value!r:.80}")
        if self.draws > MAX_DRAWS:
            raise InputError(f"calibration: draws must be at most {MAX_DRAWS}, got {self.draws}")
        if not isinstance(self.plan, dict):
            raise InputError(f"calibration: plan must be an object, got {self.plan!r:.80}")

    @property
    def rule(self) -> Calibrated:
        """The race with this limit."""
        return Calibrated(self.limit, draws=self.draws)

    @property
    def noised(self) -> tuple[str, float] | None:
        """The method and the noise-to-signal ratio of noisy images that it is for; None of clean ones."""
        noise, method = self.plan.get("noise", 0), self.plan.get("method", "dc")
        return (method, float(noise)) if checks.is_number(noise) and noise and isinstance(method, str) else None

    def fits(self, plan: PlanConfig) -> bool:
        """Whether the limit was calibrated on such a plan: the same but for the number of draws."""
        try:
            return PlanConfig.from_dict({**self.plan, "draws": plan.draws}) == plan
        except InputError:  # of a version with other options
            return False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def calibration_from_dict(entry: Any) -> Calibration:
    """The calibration of a manifest's entry or file.

    Raises:
        InputError: Not an object, or a field is missing, unknown or out of range.
    """
    if not isinstance(entry, dict):
        raise InputError(f"calibration must be an object, got {entry!r:.80}")
    expected = set(Calibration.__dataclass_fields__)
    if set(entry) != expected:
        odd = sorted(set(entry) ^ expected)[0]
        raise InputError(f"calibration {'lacks' if odd in expected else 'has an unknown'} field {odd!r:.80}")
    return Calibration(**entry)


def plan_without_draws(plan: PlanConfig) -> dict[str, Any]:
    """The part of a plan's configuration that a calibration depends on."""
    entry = plan.to_dict()
    del entry["draws"]
    return entry
