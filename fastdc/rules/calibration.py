"""The record of a calibrated race: its limit, the guarantee of the limit, and the plan for which it holds.

:mod:`fastdc.calibration` finds the limit; a bundle stores the record.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastdc.diffusion import MAX_DRAWS, PlanConfig
from fastdc.rules.calibrated import Calibrated
from fastdc.support import InputError, checks, shown


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration, as a bundle stores it.

    Attributes:
        limit: Limit of the rule :class:`fastdc.rules.Calibrated`, not negative.
        delta: Level of the guarantee, in [0, 1).
        risk: Share of the validation runs, averaged over images, that would have lost the full run's class.
        draws: Number of draws J of the full runs.
        images: Number of validation images n.
        seeds: Number of noise seeds per image.
        bound: Largest observed difference between two classes' errors at a draw, for the rule ``betting``.
        plan: Configuration of the plan without its number of draws. The limit holds for these levels and weights.
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
                raise InputError(f"calibration: {name} must be a number in [{low}, {high}), got {shown(value)}")
        for name, most in (("draws", MAX_DRAWS), ("images", None), ("seeds", None)):
            object.__setattr__(self, name, checks.whole(f"calibration: {name}", getattr(self, name), high=most))
        if not isinstance(self.plan, dict):
            raise InputError(f"calibration: plan must be an object, got {shown(self.plan)}")

    @property
    def rule(self) -> Calibrated:
        """The race with this limit."""
        return Calibrated(self.limit, draws=self.draws)

    @property
    def noised(self) -> tuple[str, float] | None:
        """Method and noise-to-signal ratio of the noisy images that were calibrated; None for clean images."""
        noise, method = self.plan.get("noise", 0), self.plan.get("method", "dc")
        return (method, float(noise)) if checks.is_number(noise) and noise and isinstance(method, str) else None

    def fits(self, plan: PlanConfig) -> bool:
        """Says whether the limit was calibrated for a plan, whose number of draws may differ.

        Args:
            plan: Options of the plan.

        Returns:
            True if all other options are equal.

        Example:
            >>> bool(clf.model.calibration.fits(fastdc.diffusion.PlanConfig(draws=8)))
            False
        """
        return self.misfit(plan) is None

    def misfit(self, plan: PlanConfig, *, but: Collection[str] = ()) -> str | None:
        """Says in what a plan differs from the one that was calibrated, whatever its number of draws.

        Args:
            plan: Options of the plan.
            but: Names of further options that may differ.

        Returns:
            The first difference, for a message; None if there is none.

        Example:
            >>> clf.model.calibration.misfit(fastdc.diffusion.PlanConfig(draws=8))
            'levels 0.2 to 2, the run has all'
        """
        try:
            ours = PlanConfig.from_dict({**self.plan, "draws": plan.draws}).to_dict()
        except InputError as error:  # stored by a version with other options
            return f"another version of fastdc: {error}"
        theirs = plan.to_dict()
        for name in ("method", "noise", "denoiser", *ours):  # the first ones change the levels as well
            was, now = ours.get(name), theirs.get(name)  # a plan without a denoiser has no such entry
            if was != now and name not in but:
                unit = " (sigma / alpha)" if name == "noise" else ""
                return f"{name}{unit} {_told(name, was)}, the run has {_told(name, now)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON.

        Returns:
            The attributes by name.

        Example:
            >>> sorted(clf.model.calibration.to_dict())[:3]
            ['bound', 'delta', 'draws']
        """
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _told(name: str, value: Any) -> str:
    """The value of an option of a plan in words."""
    if name == "levels":
        return "all" if value is None else "{:g} to {:g}".format(*value)
    if name == "level_weights":
        return "none" if value is None else "a curve"
    text = ",".join(f"{one:g}" for one in value) if isinstance(value, list) else "" if value is None else str(value)
    return text[:80] or "none"


def calibration_from_dict(entry: Any) -> Calibration:
    """Makes the calibration of a manifest's entry or of a calibration file.

    Args:
        entry: Entry that :meth:`Calibration.to_dict` returned.

    Returns:
        The calibration.

    Raises:
        InputError: The entry is not an object, or a field is missing, unknown or out of range.

    Example:
        >>> from fastdc.rules import calibration_from_dict
        >>> calibration_from_dict(clf.model.calibration.to_dict()) == clf.model.calibration
        True
    """
    if not isinstance(entry, dict):
        raise InputError(f"calibration must be an object, got {shown(entry)}")
    expected = set(Calibration.__dataclass_fields__)
    if set(entry) != expected:
        odd = sorted(set(entry) ^ expected)[0]
        raise InputError(f"calibration {'lacks' if odd in expected else 'has an unknown'} field {shown(odd)}")
    return Calibration(**entry)


def plan_without_draws(plan: PlanConfig) -> dict[str, Any]:
    """Returns the part of a plan's configuration on which a calibration depends.

    Args:
        plan: Options of the plan.

    Returns:
        Plain values of all options but `draws`.

    Example:
        >>> from fastdc.rules import plan_without_draws
        >>> "draws" in plan_without_draws(fastdc.diffusion.PlanConfig(draws=8))
        False
    """
    entry = plan.to_dict()
    del entry["draws"]
    return entry
