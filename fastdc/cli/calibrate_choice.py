"""``fastdc calibrate --choose``: the plan is chosen on half of the images, and the race is calibrated on the other."""

from typing import Any

import click
import numpy as np
import numpy.typing as npt

from fastdc.bundle import Bundle, SeenImages
from fastdc.classifier import DiffusionClassifier
from fastdc.cli.images import print_notes
from fastdc.cli.options import plan_options
from fastdc.cli.runner import progress_of
from fastdc.inference import (
    CHOICES,
    LEAST_CALIBRATING,
    LEAST_CHOOSING,
    PlanChoice,
    WholeProgress,
    band_words,
    choice_size,
    choose_plan,
    choosing_half,
    declined_note,
    size_note,
    split_images,
)
from fastdc.support import InputError, Int64, Mask

_LEAST = 10  # images that a user may have a choice made on
_LEAST_NOTE_DRAWS = 32
_NOTE_DRAWS = 128  # of the single seed that suffices to find that a band is far from the best


def parts_of(images: int, delta: float | None, labels: Int64 | None, chose: Mask) -> tuple[Int64, Int64]:
    """The numbers of the images to choose on, and of those to calibrate on, each class halved by itself.

    Args:
        images: Number n of images.
        delta: Level of the race; None: one that the images support.
        labels: int64 (n,), their classes, or None if they are unknown.
        chose: bool (n,), whether each image has chosen the model's checkpoint or plan.

    Raises:
        InputError: There are too few.
    """
    for least in (LEAST_CHOOSING, _LEAST):
        parts = split_images(images, delta, least=least, labels=labels, chose=chose)
        if parts is not None:
            return parts
    of = f", {chose.sum()} of which have chosen the model's checkpoint or plan" if chose.any() else ""
    beside = f"{LEAST_CALIBRATING} to calibrate on" if delta is None else f"those of --delta {delta:g}"
    ways = "give more" if delta is None else "give more, or a larger --delta"
    raise InputError(f"--choose needs {_LEAST} images beside {beside}, got {images} in all{of}: {ways}")


def check_choose(options: dict[str, Any]) -> None:
    """Refuses options that --choose cannot go with.

    Raises:
        InputError: The images are to be noisy.
    """
    for name in ("sigma", "method", "denoiser"):
        if options[name] is not None:
            raise InputError(f"--choose is for images without noise: expected no --{name}")


def chosen_plan(
    classifier: DiffusionClassifier,
    bundle: Bundle,
    images: npt.NDArray[Any],
    labels: Int64 | None,
    options: dict[str, Any],
) -> tuple[PlanChoice, SeenImages]:
    """The best plan on images, whose options that the command gives stay; and the images that have chosen it."""
    plan = plan_options(options, bundle.model)
    searched = [name for name in CHOICES if name == "draws" or options[name] is None]
    size = choice_size(bundle.flops or 0, len(images), len(bundle.model.conditions), asked=True)
    assert size is not None
    count, draws, seeds = size
    print_notes(filter(None, [size_note(size, len(images))]), quiet=options["quiet"])
    taken = _spread(len(images), count)
    runs = classifier.validation_runs(images[taken], layout="NCHW", **plan)
    with progress_of(quiet=options["quiet"], description="choosing") as progress:
        whole = WholeProgress(progress, images=count * seeds, evaluations=0)
        choice = choose_plan(
            runs,
            None if labels is None else labels[taken],
            searched=searched,
            draws=draws,
            seeds=seeds,
            delta=options["delta"],
            progress=whole,
        )
    return choice, SeenImages.of(images[:0], chosen=images[taken])


def show(choice: PlanChoice) -> None:
    """Prints what was chosen, and the candidates."""
    click.echo(f"chosen       {choice}")
    for line in choice.table():
        click.echo(f"             {line}")
    if not choice.labelled:
        click.echo("             (without labels, only the first draw: by agreement with the full run)")


def stored(choice: PlanChoice) -> dict[str, Any]:
    """The chosen plan as the model's defaults, with what the command gave."""
    chosen = choice.chosen
    levels = None if chosen.levels is None else list(chosen.levels)
    plan = {"levels": levels, "first": list(chosen.first), "weighting": chosen.weighting, "loss": chosen.loss}
    return {**choice.defaults, **plan}


def typed(choice: PlanChoice, *, kept: bool) -> dict[str, Any]:
    """The options that a command needs to run the chosen plan; none if it was `kept` with the calibration."""
    chosen = choice.chosen
    if kept:
        return dict.fromkeys(("levels", "first", "weighting", "loss"))
    return {
        "levels": "all" if chosen.levels is None else chosen.levels,
        "first": chosen.first or None,
        "weighting": chosen.weighting,
        "loss": chosen.loss,
    }


def better_levels(
    classifier: DiffusionClassifier, bundle: Bundle, images: npt.NDArray[Any], labels: Int64, *, most: int, quiet: bool
) -> str | None:
    """A note that the model's own band is far from the best one, beyond doubt, or was not compared; None if neither.

    Args:
        classifier: The model.
        bundle: Its bundle.
        images: Images (n, c, h, w).
        labels: int64 (n,), their classes.
        most: Draws of all images that the calibration took; a comparison that needs more is not made.
        quiet: Whether to show no progress.
    """
    half = choosing_half(labels)
    if len(half) < _LEAST:
        return None
    asked = (bundle.flops or 0, len(half), len(bundle.model.conditions))
    size = choice_size(*asked)
    if size is None:
        return declined_note(*asked)
    count, draws, _ = size
    taken = half[_spread(len(half), count)]
    draws = min(draws, _NOTE_DRAWS, most // len(taken))
    if draws < _LEAST_NOTE_DRAWS:
        return None
    runs = classifier.validation_runs(images[taken], layout="NCHW")
    with progress_of(quiet=quiet, description="comparing levels") as progress:
        choice = choose_plan(runs, labels[taken], searched=["levels"], draws=draws, seeds=1, progress=progress)
    best, own = choice.chosen, choice.own
    if best.levels == own.levels:
        return None
    return (
        f"levels {band_words(best.levels)} would give {100 * best.accuracy:.1f} % instead of "
        f"{100 * own.accuracy:.1f} % on {len(taken)} of these images: --choose"
    )


def _spread(images: int, count: int) -> Int64:
    """The numbers of `count` of the images, evenly spread."""
    return np.linspace(0, images - 1, count).round().astype(np.int64)
