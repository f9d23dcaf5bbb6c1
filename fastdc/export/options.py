"""The options that every export takes, and the check of the place where its bundle goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from fastdc.bundle import MANIFEST
from fastdc.inference import CHOICES, OnProgress, PlanChoice, split_images
from fastdc.support import BundleError, InputError, Int64, Mask

Files = dict[str, bytes | Path]
"""Files of a bundle by name: the content, or the path where it lies."""

_LEAST_ASKED = 10  # images that a user may have a choice made on

AUTO = "auto"
"""In place of a weighting's name: the one that is chosen on validation images."""

Notify = Callable[[str], None]
"""Takes one line of text about the progress of an export."""


class ExportKeywords(TypedDict, total=False):
    """The keywords that ``export_source`` and ``export_run`` share; :class:`ExportOptions` describes them."""

    name: str | None
    description: str | None
    draws: int | None
    levels: tuple[float, float] | str | None
    weighting: str | None
    loss: str | None
    first: Sequence[float] | None
    choose: bool | None
    delta: float | None
    overwrite: bool
    progress: OnProgress | None
    notify: Notify | None
    on_choice: Callable[[PlanChoice], None] | None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What a bundle is called, which defaults it carries, and how the work is reported.

    Attributes:
        name: Name of the bundle.
        description: One line about the bundle.
        draws: Default number of draws per image and class.
        levels: Default band of noise-to-signal ratios (low, high) of the draws, in the units of the model's pixels;
            "all": the whole schedule.
        weighting: Default weighting of the noise levels; "auto": chosen, whatever else is given.
        loss: Default loss between predicted and true image, such as "l2".
        first: Default noise-to-signal ratios of the first draws.
        choose: Whether those of the five defaults above that are not given are chosen on half of the images to
            calibrate on, see ``fastdc.inference.choose_plan``; None: if there are no `levels` and 99 images or more.
        delta: Level of the race's calibration; None: 0.01, or the next whole percent that the images support, up to
            0.05.
        overwrite: Whether to replace a bundle that is already there.
        progress: Called after every step of the race's calibration.
        notify: Called with one line about each step of the export and each finding.
        on_choice: Called with what was chosen, and why.
    """

    name: str | None = None
    description: str | None = None
    draws: int | None = None
    levels: tuple[float, float] | str | None = None
    weighting: str | None = None
    loss: str | None = None
    first: Sequence[float] | None = None
    choose: bool | None = None
    delta: float | None = None
    overwrite: bool = False
    progress: OnProgress | None = None
    notify: Notify | None = None
    on_choice: Callable[[PlanChoice], None] | None = None

    def say(self, line: str) -> None:
        """Hands a line to `notify`, if there is one."""
        if self.notify is not None:
            self.notify(line)

    def defaults(self) -> dict[str, Any]:
        """The defaults that were given, as the manifest's field ``defaults`` holds them."""
        given: dict[str, Any] = {
            "draws": self.draws,
            "levels": self.levels,
            "weighting": None if self.weighting == AUTO else self.weighting,
            "loss": self.loss,
            "first": None if self.first is None else list(self.first),
        }
        found = {name: value for name, value in given.items() if value is not None}
        if self.levels is not None:
            found["levels"] = None if self.levels == "all" else list(self.levels)
        return found

    def searched(self, images: int, chose: Mask) -> tuple[str, ...]:
        """The defaults that are to be chosen on labelled images, of ``inference.CHOICES``.

        Args:
            images: Number of images to choose and to calibrate on.
            chose: bool (images,), those that have chosen a checkpoint or a plan.
        """
        enough = split_images(images, self.delta, chose=chose) is not None
        unasked = self.choose is None and self.levels is None and enough
        if self.choose or unasked:
            given = self.defaults()
            return tuple(name for name in CHOICES if name not in given)
        return ("weighting",) if self.weighting == AUTO else ()

    def parts(self, labels: Int64, chose: Mask) -> tuple[Int64, Int64]:
        """The numbers of the images to choose on, and of those to calibrate on, each class halved by itself.

        Args:
            labels: int64 (n,), classes of the images.
            chose: bool (n,), those that have chosen a checkpoint or a plan.

        Raises:
            InputError: There are too few.
        """
        images, count = len(labels), int(chose.sum())
        parts = split_images(images, self.delta, labels=labels, chose=chose)
        parts = parts or split_images(images, self.delta, least=_LEAST_ASKED, labels=labels, chose=chose)
        if parts is None:
            at = "" if self.delta is None else f" at delta = {self.delta:g}"
            of = f", for {count} of them have chosen a checkpoint or a plan" if count else ""
            raise InputError(f"{images} images are too few to choose on one part and to calibrate on the other{at}{of}")
        return parts


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuses a place that is taken, before the work; ``write_bundle`` checks it again, and more, after the work.

    Raises:
        BundleError: The place holds something else than a bundle, or a bundle that may not be replaced.
    """
    if out.exists() and not overwrite:
        raise BundleError(f"{out} exists: choose another path, or replace it with overwrite (--overwrite)")
    if out.exists() and not (out / MANIFEST).is_file():
        raise BundleError(f"{out} exists and is not a bundle: choose another path")
