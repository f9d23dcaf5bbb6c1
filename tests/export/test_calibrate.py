"""What is fitted to validation images at an export: with the bundle itself, and as much as the images support."""

from pathlib import Path

import numpy as np
import pytest

from fastdc.support.exceptions import InputError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

from fastdc.bundle.folder import Bundle
from fastdc.bundle.manifest import parse_manifest
from fastdc.calibration.temperature import fit_temperature, with_doubt
from fastdc.data import LabelledImages
from fastdc.export.calibrate import calibrate_manifest, check_calibration
from fastdc.export.options import ExportOptions
from fastdc.inference import CALIBRATION_SEEDS
from fastdc.loading import load
from helpers.exported import exported, labelled, shared_folder


def _files(bundle: Bundle) -> dict[str, bytes | Path]:
    return {name: bundle.path / name for name in bundle.files}


def _manifest(bundle: Bundle) -> dict[str, object]:
    kept = {key: value for key, value in bundle.manifest.items() if key not in ("files", "format", "version")}
    return {**kept, "defaults": dict(kept["defaults"]), "provenance": dict(kept["provenance"])}


def test_temperature_and_race_are_those_of_the_bundle(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The temperature against a maximum of the likelihood found by search over full runs of the bundle."""
    source, bundle = exported("module", shared_folder(tmp_path_factory))
    images = labelled(source, 40)
    manifest = _manifest(bundle)
    lines: list[str] = []
    calibrate_manifest(manifest, _files(bundle), images, ExportOptions(notify=lines.append))
    assert lines == []
    classifier = load(bundle, backend="onnx", device="cpu")
    runs = [classifier.classify(images.images, rule="full", seed=seed).errors for seed in range(CALIBRATION_SEEDS)]
    errors, labels = with_doubt(np.concatenate(runs), np.tile(images.labels, len(runs)), len(runs))

    def loss(temperature: float) -> float:
        scores = -errors / temperature
        top = scores.max(axis=1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
        return float((log_sum - scores[np.arange(len(labels)), labels]).mean())

    found = manifest["defaults"]["temperature"]  # type: ignore[index]
    assert loss(found) <= min(map(loss, np.geomspace(1e-3, 1e3, 400))) + 1e-4
    assert found == pytest.approx(fit_temperature(errors, labels), rel=1e-3)
    race = manifest["calibration"]
    assert (race["images"], race["delta"], race["seeds"]) == (40, 0.03, CALIBRATION_SEEDS)  # type: ignore[index]
    assert manifest["provenance"]["calibration"] == "40 images, 4 draws, 4 noise seeds"  # type: ignore[index]
    head = {"format": "fastdc-bundle", "version": 1, "files": bundle.manifest["files"]}
    assert parse_manifest(Path("fastdc.json"), {**bundle.manifest, **head, **manifest}, "").calibration is not None


def test_too_few_images_leave_the_race_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    source, bundle = exported("module", shared_folder(tmp_path_factory))
    manifest = _manifest(bundle)
    lines: list[str] = []
    calibrate_manifest(manifest, _files(bundle), labelled(source, 10), ExportOptions(notify=lines.append))
    assert "calibration" not in manifest
    assert lines == ["the race is not calibrated: 10 images support no level below 9.1 %: it takes 19, and 99 for 1 %"]
    assert manifest["defaults"]["temperature"] != 1.0  # type: ignore[index]


def test_a_level_that_cannot_be_is_refused_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    source, _ = exported("module", shared_folder(tmp_path_factory))
    with pytest.raises(InputError, match=r"delta = 0\.01 is of a calibration: give the images"):
        check_calibration(ExportOptions(delta=0.01), None)
    with pytest.raises(InputError, match="images"):
        check_calibration(ExportOptions(delta=0.01), labelled(source, 50))
    check_calibration(ExportOptions(delta=0.02), labelled(source, 50))
    check_calibration(ExportOptions(), None)


def test_doubt_is_the_runner_up_of_a_hard_image() -> None:
    errors = np.array([[0.0, 1.0, 9.0], [5.0, 2.0, 2.25], [0.0, 8.0, 2.0]])
    more, labels = with_doubt(errors, np.array([0, 1, 0]), 2)
    assert np.array_equal(more[:3], errors)
    assert np.array_equal(more[3:], errors[[1, 1]])  # the smallest margin, 0.25
    assert labels.tolist() == [0, 1, 0, 2, 2]  # its second best class


def test_doubt_needs_a_second_class() -> None:
    for shape in ((3, 1), (0, 4), (3,)):
        with pytest.raises(InputError, match="two classes or more"):
            with_doubt(np.zeros(shape), np.zeros(shape[0], int), 1)
    one = LabelledImages(np.zeros((30, 1, 8, 8), np.uint8), np.zeros(30, np.int64), ("only",), ("",) * 30)
    with pytest.raises(InputError, match="a calibration needs two classes or more"):
        check_calibration(ExportOptions(), one)
