"""The race of ``fastdc compose`` and ``fastdc match``: its level, and a note where paired tests take its place."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastdc.calibration import supported_delta
from fastdc.support import InputError

if TYPE_CHECKING:
    from fastdc.bundle import Bundle
    from fastdc.matching import Trials


def level_of(images: int, delta: float | None) -> float:
    """The level of a calibration on so many images: the one given, or the default that they support.

    Args:
        images: Number of images.
        delta: What --delta says.

    Raises:
        InputError: They support no default; the message names a --delta that they support, if there is one.
    """
    if delta is not None:
        return float(delta)
    try:
        return supported_delta(images)
    except InputError as error:
        least = next((level for level in (0.1, 0.2, 0.5) if level * (images + 1) >= 1 - 1e-9), None)
        raise InputError(f"{error}" + ("" if least is None else f"; --delta {least:g} would work")) from None


def paired_tests_notes(
    name: str, bundle: "Bundle", asked: Iterable["Trials"], options: Mapping[str, Any], way: str
) -> list[str]:
    """What to note, unless --quiet, where a default race without --calibrate decides by paired tests.

    A model's own calibration is for images among all of its classes, so that it says nothing about texts of anyone's.

    Args:
        name: The diffusion model's name.
        bundle: The model.
        asked: The trials that it is asked.
        options: The options of the command.
        way: What --calibrate would do.
    """
    plain = options["rule"] == "race" and not options["rule_option"] and options["decision"] == "mean"
    if not plain or options["calibrate"] is not None or options["quiet"]:
        return []
    told = f"{name}: paired tests instead of the calibrated race, which is not calibrated for such texts; {way}"
    return [told] if any(_paired(bundle, trials) for trials in asked) else []


def _paired(bundle: "Bundle", trials: "Trials") -> bool:
    """Whether the model has no calibration for some of the trials."""
    from fastdc.bundle import TEXT

    classes = len(bundle.model.conditions)
    own = bundle.model.calibration is not None and TEXT not in bundle.files
    return not own or any(len(one) < classes for one in trials.candidates)
