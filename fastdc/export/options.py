"""The options that every export takes, and the check of the place where its bundle goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fastdc.bundle import MANIFEST
from fastdc.export.weighting_choice import AUTO
from fastdc.inference import OnProgress
from fastdc.support import BundleError

Files = dict[str, bytes | Path]
"""Files of a bundle by name: the content, or the path where it lies."""

Notify = Callable[[str], None]
"""Takes one line of text about the progress of an export."""


class ExportKeywords(TypedDict, total=False):
    """The keywords that ``export_source`` and ``export_run`` share; :class:`ExportOptions` describes them."""

    name: str | None
    description: str | None
    draws: int | None
    levels: tuple[float, float] | None
    weighting: str | None
    loss: str | None
    first: Sequence[float]
    delta: float | None
    overwrite: bool
    progress: OnProgress | None
    notify: Notify | None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a bundle is called, which defaults it carries, and how the work is reported.

    Attributes:
        name: Name of the bundle.
        description: One line about the bundle.
        draws: Default number of draws per image and class.
        levels: Default band of noise-to-signal ratios (low, high) of the draws, in the units of the model's pixels.
        weighting: Default weighting of the noise levels; "auto": the most accurate one on half of the images to
            calibrate on, see ``weighting_choice``.
        loss: Default loss between predicted and true image, such as "l2".
        first: Default noise-to-signal ratios of the first draws.
        delta: Level of the race's calibration; None: 0.01, or the next whole percent that the images support, up to
            0.05.
        overwrite: Whether to replace a bundle that is already there.
        progress: Called after every step of the race's calibration.
        notify: Called with one line about each step of the export and each finding.
    """

    name: str | None = None
    description: str | None = None
    draws: int | None = None
    levels: tuple[float, float] | None = None
    weighting: str | None = None
    loss: str | None = None
    first: Sequence[float] = ()
    delta: float | None = None
    overwrite: bool = False
    progress: OnProgress | None = None
    notify: Notify | None = None

    def say(self, line: str) -> None:
        """Hands a line to `notify`, if there is one."""
        if self.notify is not None:
            self.notify(line)

    def defaults(self) -> dict[str, Any]:
        """The defaults that were given, as the manifest's field ``defaults`` holds them."""
        levels = None if self.levels is None else list(self.levels)
        given = {
            "draws": self.draws,
            "levels": levels,
            "weighting": None if self.weighting == AUTO else self.weighting,
            "loss": self.loss,
            "first": list(self.first) or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuses a place that is taken, before the work; ``write_bundle`` checks it again, and more, after the work.

    Raises:
        BundleError: The place holds something else than a bundle, or a bundle that may not be replaced.
    """
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another path, or replace it with overwrite (--overwrite)")
    if out.exists() and not (out / MANIFEST).is_file():
        raise BundleError(f"{out} exists and is not a bundle: choose another path")
