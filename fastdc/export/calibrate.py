"""Chooses a model's plan, and fits the posterior's temperature and the race, when the model becomes a bundle.

:mod:`fastdc.inference.plan_search` and :mod:`fastdc.inference.fits` say how. The images must be ones that the model has
not seen and that no result will be reported on. The plan is chosen on one half of them and the rest is fitted to the
other: the race's promise needs images by which nothing was chosen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import SeenImages, write_bundle
from fastdc.calibration import check_level, supported_delta
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.export.options import AUTO, ExportOptions
from fastdc.inference import (
    OnProgress,
    PlanChoice,
    WholeProgress,
    choice_size,
    choose_plan,
    declined_note,
    fit_runs,
    full_runs,
    size_note,
)
from fastdc.loading import load
from fastdc.support import InputError, temporary_folder
from fastdc.train import check_untrained

_CHOSEN = "a checkpoint or a plan of this model"  # or of the one that it began with


def check_calibration(given: ExportOptions, images: LabelledImages | None, seen: SeenImages | None = None) -> None:
    """Refuses options of a calibration, or images, that would be refused after the work.

    Args:
        given: Options of every export.
        images: Images to choose and to calibrate on.
        seen: The images that the model has seen, where they are known.

    Raises:
        InputError: There are no images, too few for the level, images of one class only, or ones that the model was
            trained on.

    Example:
        >>> from fastdc.export import ExportOptions, check_calibration
        >>> check_calibration(ExportOptions(draws=8), None)
    """
    if images is None:
        for asked, what in ((given.choose, "choose"), (given.weighting == AUTO, f"weighting = {AUTO}")):
            if asked:
                raise InputError(f"{what} needs images to choose on: give those to calibrate on")
        if given.delta is not None:
            raise InputError(f"delta = {given.delta:g} is of a calibration: give the images to calibrate on")
        return
    if len(images.class_names) < 2:
        raise InputError("a calibration needs two classes or more, the images have one")
    seen = SeenImages() if seen is None else seen
    check_untrained("calibrate", images.images, seen, "the model")
    chose = seen.chose(images.images)
    if given.searched(len(images), chose):
        given.parts(images.labels, chose)
        return
    left = len(images) - int(chose.sum())
    if not left:
        raise InputError(f"calibrate: all {len(images)} images have chosen {_CHOSEN}: give others")
    if given.delta is not None:
        try:
            check_level(given.delta, left)
        except InputError as error:
            why = f": {chose.sum()} of {len(images)} have chosen {_CHOSEN}" if chose.any() else ""
            raise InputError(f"{error}{why}") from None


def calibrate_manifest(
    manifest: dict[str, Any],
    files: Mapping[str, bytes | Path],
    images: LabelledImages,
    given: ExportOptions,
) -> None:
    """Chooses the plan and fits temperature and race with the bundle that is being made; puts them into its manifest.

    Args:
        manifest: Manifest of the bundle; changed.
        files: Files of the bundle.
        images: Images to choose and to fit on; their classes are the model's.
        given: Options of every export.
    """
    classifier = _classifier(manifest, files)
    flops = manifest.get("cost", {}).get("flops", 0)
    provenance, conditions = manifest.setdefault("provenance", {}), len(classifier.model.conditions)
    training = manifest.get("training") or {}
    seen = SeenImages.from_dict(training.get("seen"))
    chose = seen.chose(images.images)
    searched, chosen, progress = given.searched(len(images), chose), None, given.progress
    kept, rest = given.parts(images.labels, chose) if searched else (np.empty(0, np.int64),) * 2
    size = choice_size(flops, len(kept), conditions, asked=given.choose is True or given.weighting == AUTO)
    if searched and size is not None:
        progress = _whole(progress, (size, (len(rest), *full_runs(flops, len(rest) * conditions))), conditions)
        chosen, taken = _choose(classifier, images.take(kept), searched, size, given, progress)
        both = seen.also(SeenImages.of(taken[:0], chosen=taken))
        manifest["training"] = {**training, "seen": both.to_dict()}
        manifest["defaults"] |= chosen.defaults
        model = replace(classifier.model, defaults=chosen.applied(classifier.model.defaults))
        classifier, images = replace(classifier, model=model), images.take(rest)
    else:
        if searched:
            given.say(declined_note(flops, len(kept), conditions))
        elif given.choose is None and given.levels is None:
            given.say(f"{len(images)} images are too few to choose the noise levels on, too: the default ones stay")
        if chose.any():
            given.say(f"{chose.sum()} of the {len(images)} images have chosen {_CHOSEN} and do not calibrate")
            images = images.take((~chose).nonzero()[0])
    full, seeds = full_runs(flops, len(images) * conditions)
    if chosen is None:
        progress = _whole(progress, ((len(images), full, seeds),), conditions)
    draws = classifier.model.defaults.draws
    level, refusal = _level(given.delta, len(images))
    runs = classifier.validation_runs(images.images, layout="NCHW", draws=draws if level is None else max(full, draws))
    fits = fit_runs(runs, images.labels, draws=draws, seeds=seeds, full=full, delta=level, progress=progress)
    if refusal or fits.refusal:
        given.say(f"the race is not calibrated: {refusal or fits.refusal}")
    if fits.race is not None:
        manifest["calibration"] = fits.race.to_dict()
    manifest["defaults"]["temperature"] = float(f"{fits.temperature:.4g}")
    provenance["calibration"] = f"{len(images)} images, {draws} draws, {seeds} noise seed{'s' if seeds > 1 else ''}"
    if chosen is not None:
        provenance["choice"] = str(chosen)
        honest = f"{100 * fits.accuracy:.1f} % of the {len(images)} images that nothing was chosen on"
        given.say(f"accuracy of {draws} draws of every class: {honest}")
        provenance["accuracy"] = f"{honest}, {draws} draws of every class"


def _level(delta: float | None, images: int) -> tuple[float | None, str]:
    """The level of a race, or None and why there is none; a level that was asked for has been checked before."""
    try:
        level = supported_delta(images) if delta is None else delta
        check_level(level, images)
    except InputError as error:
        return None, str(error)
    return level, ""


def _whole(progress: OnProgress | None, sizes: Sequence[tuple[int, int, int]], conditions: int) -> OnProgress | None:
    """The progress over runs of several sizes (images, draws, seeds), which is reported as that of one."""
    if progress is None:
        return None
    images = sum(count * seeds for count, _, seeds in sizes)
    return WholeProgress(progress, images=images, evaluations=conditions * sum(map(math.prod, sizes)))


def _choose(
    classifier: DiffusionClassifier,
    images: LabelledImages,
    searched: Sequence[str],
    size: tuple[int, int, int],
    given: ExportOptions,
    progress: OnProgress | None,
) -> tuple[PlanChoice, NDArray[Any]]:
    """The plan that is best on images, of which fewer are used if evaluations take long; and those images."""
    count, draws, seeds = size
    note = size_note(size, len(images))
    if note is not None:
        given.say(note)
    if count < len(images):
        images = images.take(np.linspace(0, len(images) - 1, count).round().astype(np.int64))
    runs = classifier.validation_runs(images.images, layout="NCHW")
    options: dict[str, Any] = {"draws": draws, "seeds": seeds, "delta": given.delta, "progress": progress}
    chosen = choose_plan(runs, images.labels, searched=searched, **options)
    if given.on_choice is not None:
        given.on_choice(chosen)
    return chosen, images.images


def _classifier(manifest: dict[str, Any], files: Mapping[str, bytes | Path]) -> DiffusionClassifier:
    """The bundle that is being made, opened."""
    with temporary_folder() as folder:
        write_bundle(folder / "bundle", manifest, files)
        return load(folder / "bundle", backend="onnx", device="cpu")
