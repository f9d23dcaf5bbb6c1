"""What is fitted to validation images when a model becomes a bundle: the posterior's temperature and the race.

The images must be such that the model has not seen and that no result will be reported on. Labels are needed for the
temperature, not for the race.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.bundle import write_bundle
from fastdc.calibration import controlled_limit, fit_temperature, with_doubt
from fastdc.classifier import CALIBRATION_DRAWS, DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.inference import OnProgress
from fastdc.loading import load
from fastdc.support import InputError

CALIBRATION_SEEDS = 4  # noise seeds of every calibration image: more near misses to learn the temperature from
# Operations of a calibration: some minutes on one core. A network that takes more is compared with shorter full runs.
_MOST_FLOPS = 2e13
_LARGEST_DELTA = 0.05  # of the race, unless a user asks for more


def check_delta(delta: float | None, images: LabelledImages | None) -> None:
    """Refuses before the work what would be refused after it.

    Raises:
        InputError: There are no images, or too few for the level.
    """
    if delta is None:
        return
    if images is None:
        raise InputError(f"delta = {delta:g} is of a calibration: give the images to calibrate on")
    controlled_limit(np.zeros((len(images), 1)), delta)


def calibrate_manifest(
    manifest: dict[str, Any],
    files: Mapping[str, bytes | Path],
    images: LabelledImages,
    *,
    delta: float | None = None,
    progress: OnProgress | None = None,
    notify: Callable[[str], None] | None = None,
) -> None:
    """Fits temperature and race with the very bundle that is being made, and puts both into its manifest.

    Args:
        manifest: Of the bundle; changed.
        files: Its files.
        images: To fit to; their classes are the model's.
        delta: Level of the race; default: 0.01, or what as many images support up to 0.05.
        progress: Called after every step of the race's calibration.
        notify: Called with a line if the race is not calibrated.
    """
    classifier = _classifier(manifest, files)
    draws = manifest["defaults"]["draws"]
    full, seeds = _full_runs(manifest, len(images) * len(classifier.model.conditions))
    manifest["defaults"]["temperature"] = _temperature(classifier, images, seeds)
    provenance = manifest.setdefault("provenance", {})
    provenance["calibration"] = f"{len(images)} images, {draws} draws, {seeds} noise seeds"
    try:
        level = supported_delta(len(images)) if delta is None else delta
        race = classifier.calibrate(images.images, delta=level, seeds=seeds, draws=full, progress=progress)
        manifest["calibration"] = race.to_dict()
    except InputError as error:
        if notify is not None:
            notify(f"the race is not calibrated: {error}")


def _full_runs(manifest: dict[str, Any], classes: int) -> tuple[int, int]:
    """Draws and seeds of the full runs that the race is compared with: fewer where they would take too long.

    Args:
        manifest: Says what an evaluation costs, where that is known.
        classes: Images times conditions.
    """
    draws, seeds = CALIBRATION_DRAWS, CALIBRATION_SEEDS
    flops = manifest.get("cost", {}).get("flops", 0) * classes
    while seeds > 1 and flops * draws * seeds > _MOST_FLOPS:
        seeds //= 2
    while draws > 16 and flops * draws * seeds > _MOST_FLOPS:
        draws //= 2
    return draws, seeds


def supported_delta(n: int) -> float:
    """The level of the race's calibration on n images unless a user says otherwise: 0.01, or the next whole percent
    that so few support.

    Raises:
        InputError: That is above 0.05, with which the race would not be worth its name.
    """
    delta = max(1, math.ceil(100 / (n + 1) - 1e-9)) / 100
    if delta > _LARGEST_DELTA:
        raise InputError(f"{n} images support no level below {100 / (n + 1):.2g} %: it takes 19, and 99 for 1 %")
    return delta


def _classifier(manifest: dict[str, Any], files: Mapping[str, bytes | Path]) -> DiffusionClassifier:
    """The very bundle that is being made, opened."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder) / "bundle", manifest, files)
        return load(Path(folder) / "bundle", backend="onnx", device="cpu")


def _temperature(classifier: DiffusionClassifier, images: LabelledImages, count: int) -> float:
    """Fits the temperature to full runs of the default draws.

    To those of the race it would hardly differ: on the test digits, the log-likelihood of either by the temperature of
    the other is within 0.002 of that by its own.
    """
    seeds = range(count)
    runs = [classifier.classify(images.images, rule="full", seed=seed).errors for seed in seeds]
    errors, labels = with_doubt(np.concatenate(runs), np.tile(images.labels, len(runs)), len(runs))
    return float(f"{fit_temperature(errors, labels):.4g}")
