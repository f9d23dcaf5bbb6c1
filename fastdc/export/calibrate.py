"""Fits the posterior's temperature and the race to validation images when a model becomes a bundle.

:mod:`fastdc.inference.fits` says how. The images must be ones that the model has not seen and that no result will be
reported on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdc.bundle import write_bundle
from fastdc.calibration import check_level, supported_delta
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.export.options import ExportOptions
from fastdc.export.weighting_choice import AUTO, check_loss, choose_weighting
from fastdc.inference import fit_runs, full_runs
from fastdc.loading import load
from fastdc.support import InputError, temporary_folder


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
    flops = manifest.get("cost", {}).get("flops", 0)
    full, seeds = full_runs(flops, len(images) * len(classifier.model.conditions))
    if given.weighting == AUTO:
        choice = choose_weighting(classifier, images.part(slice(0, None, 2)), seeds)
        given.say(str(choice))
        manifest["defaults"]["weighting"] = choice.weighting
        manifest.setdefault("provenance", {})["weighting"] = str(choice)
        classifier, images = _classifier(manifest, files), images.part(slice(1, None, 2))
    draws, level, refusal = classifier.model.defaults.draws, given.delta, ""
    try:
        level = supported_delta(len(images)) if level is None else level
        check_level(level, len(images))
    except InputError as error:
        level, refusal = None, str(error)
    runs = classifier.validation_runs(images.images, layout="NCHW", draws=draws if level is None else max(full, draws))
    fits = fit_runs(runs, images.labels, draws=draws, seeds=seeds, full=full, delta=level, progress=given.progress)
    if refusal or fits.refusal:
        given.say(f"the race is not calibrated: {refusal or fits.refusal}")
    if fits.race is not None:
        manifest["calibration"] = fits.race.to_dict()
    manifest["defaults"]["temperature"] = float(f"{fits.temperature:.4g}")
    manifest.setdefault("provenance", {})["calibration"] = f"{len(images)} images, {draws} draws, {seeds} noise seeds"


def _classifier(manifest: dict[str, Any], files: Mapping[str, bytes | Path]) -> DiffusionClassifier:
    """The bundle that is being made, opened."""
    with temporary_folder() as folder:
        write_bundle(folder / "bundle", manifest, files)
        return load(folder / "bundle", backend="onnx", device="cpu")
