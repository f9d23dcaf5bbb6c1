"""Fits the posterior's temperature and the race to validation images when a model becomes a bundle.

The images must be ones that the model has not seen and that no result will be reported on. The temperature needs
labels, the race does not. Both are fitted to the same full runs: a plan of more draws begins with the draws of a plan
of fewer, so that the temperature, which is that of the default number of draws, is fitted to a part of each run.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.bundle import Model, write_bundle
from fastdc.calibration import calibrate_errors, check_level, fit_temperature, with_doubt
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.export.options import ExportOptions
from fastdc.export.weighting_choice import AUTO, check_loss, choose_weighting
from fastdc.inference import CALIBRATION_DRAWS, OnProgress, by_class, decide
from fastdc.loading import load
from fastdc.rules import Calibration
from fastdc.support import Float32, Float64, InputError, temporary_folder

CALIBRATION_SEEDS = 4
"""Noise seeds per calibration image: several give more near misses to learn the temperature from."""

# Operations of a calibration: some minutes on one core. A network that takes more is compared with shorter full runs.
_MOST_FLOPS = 2e13
_LARGEST_DELTA = 0.05  # of the race, unless a user asks for more


def check_calibration(given: ExportOptions, images: LabelledImages | None) -> None:
    """Refuses options of a calibration, or images, that would be refused after the work.

    Raises:
        InputError: There are no images, too few for the level, or images of one class only.

    Example:
        >>> from fastdc.export import ExportOptions, check_calibration
        >>> check_calibration(ExportOptions(draws=8), None)
    """
    chosen = given.weighting == AUTO
    if images is None:
        if chosen:
            raise InputError(f"weighting cannot be {AUTO} without images: give those to calibrate on")
        if given.delta is not None:
            raise InputError(f"delta = {given.delta:g} is of a calibration: give the images to calibrate on")
        return
    if len(images.class_names) < 2:
        raise InputError("a calibration needs two classes or more, the images have one")
    if chosen:
        check_loss(given.loss or "l2")
        if len(images) < 2:
            raise InputError(
                f"weighting cannot be {AUTO} with one image: expected 2 images or more, to choose and to calibrate"
            )
    if given.delta is not None:
        check_level(given.delta, len(images) // 2 if chosen else len(images))


def calibrate_manifest(
    manifest: dict[str, Any],
    files: Mapping[str, bytes | Path],
    images: LabelledImages,
    given: ExportOptions,
) -> None:
    """Fits temperature and race with the very bundle that is being made, and puts both into its manifest.

    With the weighting "auto", it is chosen first on every second image, and the rest is fitted to the others: the
    race's promise needs images by which nothing was chosen.

    Args:
        manifest: Manifest of the bundle; changed.
        files: Files of the bundle.
        images: Images to fit to; their classes are the model's.
        given: Options of every export, of which the level of the race, the weighting and the reports count here.
    """
    classifier = _classifier(manifest, files)
    full, seeds = _full_runs(manifest, len(images) * len(classifier.model.conditions))
    if given.weighting == AUTO:
        choice = choose_weighting(classifier, images.part(slice(0, None, 2)), seeds)
        given.say(str(choice))
        manifest["defaults"]["weighting"] = choice.weighting
        manifest.setdefault("provenance", {})["weighting"] = str(choice)
        classifier, images = _classifier(manifest, files), images.part(slice(1, None, 2))
    means: list[Float64] = []
    try:
        level = supported_delta(len(images)) if given.delta is None else given.delta
        manifest["calibration"] = _race(classifier, images, means, full, seeds, level, given.progress).to_dict()
    except InputError as error:
        given.say(f"the race is not calibrated: {error}")
    draws = classifier.model.defaults.draws
    if not means:  # the race was refused before the work
        tables = classifier.validation_runs(images.images, layout="NCHW", draws=draws).tables(seeds, given.progress)
        means = [_means(table.errors, classifier.model) for table in tables]
    errors, labels = with_doubt(np.concatenate(means), np.tile(images.labels, seeds), seeds)
    manifest["defaults"]["temperature"] = float(f"{fit_temperature(errors, labels):.4g}")
    manifest.setdefault("provenance", {})["calibration"] = f"{len(images)} images, {draws} draws, {seeds} noise seeds"


def _race(
    classifier: DiffusionClassifier,
    images: LabelledImages,
    means: list[Float64],
    full: int,
    seeds: int,
    delta: float,
    progress: OnProgress | None,
) -> Calibration:
    """The calibrated race; fills `means` with the mean errors at the default draws, one array per run."""
    check_level(delta, len(images))
    model = classifier.model
    runs = classifier.validation_runs(images.images, layout="NCHW", draws=max(full, model.defaults.draws))

    def errors() -> Iterator[Float32]:
        for table in runs.tables(seeds, progress):
            means.append(_means(table.errors[:, :, : model.defaults.draws], model))
            yield table.errors[:, :, :full]

    return calibrate_errors(errors(), replace(runs.config, draws=full), delta=delta)


def _means(errors: Float32, model: Model) -> Float64:
    """Mean errors of the classes, float64 (n, K), of errors (n, conditions, draws).

    Fitted to full runs. Fitted to races, the temperature would hardly differ: on the test digits, the log-likelihood of
    either by the temperature of the other is within 0.002 of that by its own.
    """
    decided = decide(errors)
    return (by_class(decided, model.class_of, n_classes=model.num_classes) if model.class_of else decided).mean_errors


def _full_runs(manifest: dict[str, Any], classes: int) -> tuple[int, int]:
    """Draws and seeds of the full runs that the race is compared with; fewer if they would take too long.

    Args:
        manifest: Manifest of the bundle; states the cost of an evaluation if it is known.
        classes: Number of images times conditions.
    """
    draws, seeds = CALIBRATION_DRAWS, CALIBRATION_SEEDS
    flops = manifest.get("cost", {}).get("flops", 0) * classes
    while seeds > 1 and flops * draws * seeds > _MOST_FLOPS:
        seeds //= 2
    while draws > 16 and flops * draws * seeds > _MOST_FLOPS:
        draws //= 2
    return draws, seeds


def supported_delta(n: int) -> float:
    """The default level of a race calibrated on n images: 0.01, or the next whole percent that n images support.

    Example:
        >>> from fastdc.export import supported_delta
        >>> supported_delta(60)
        0.02

    Raises:
        InputError: The images support no level up to 0.05; a larger one would not be worth its name.
    """
    delta = max(1, math.ceil(100 / (n + 1) - 1e-9)) / 100
    if delta > _LARGEST_DELTA:
        raise InputError(f"{n} images support no level below {100 / (n + 1):.2g} %: it takes 19, and 99 for 1 %")
    return delta


def _classifier(manifest: dict[str, Any], files: Mapping[str, bytes | Path]) -> DiffusionClassifier:
    """The bundle that is being made, opened."""
    with temporary_folder() as folder:
        write_bundle(folder / "bundle", manifest, files)
        return load(folder / "bundle", backend="onnx", device="cpu")
