"""The shipped digit models on the shipped images: accuracy, cost, and calibration of the probabilities.

All tests of the UNet share one classification of the 400 images, which takes about 20 s on one core.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastdc
from fastdc import Classification
from fastdc.data import digits_test
from helpers.paths import SHIPPED

MODELS = ("digits", "digits-mlp")
FOLDER = SHIPPED

_results: dict[str, Classification] = {}


@pytest.fixture(scope="session")
def truth() -> NDArray[np.int64]:
    return digits_test().labels


@pytest.fixture(params=[pytest.param("digits", marks=pytest.mark.slow), "digits-mlp"])
def result(request: pytest.FixtureRequest) -> Classification:
    """All 400 images at 16 draws under the full rule, computed once per model and session."""
    pytest.importorskip("onnxruntime")
    name: str = request.param
    if name not in _results:
        _results[name] = fastdc.load(name).classify(digits_test().images, rule="full")
    return _results[name]


def test_accuracy(result: Classification, truth: NDArray[np.int64]) -> None:
    """At least 98.5 %, so at most 6 of 400 errors; a vote over the same draws may lose a little."""
    assert np.mean(result.labels == truth) >= 0.985
    assert np.mean(result.votes.argmax(axis=1) == truth) >= 0.97


def test_sixteen_draws_of_ten_classes_are_160_evaluations(result: Classification) -> None:
    assert result.evaluations.tolist() == [160] * 400
    assert result.provenance["plan"]["draws"] == 16
    assert result.class_names == tuple("0123456789")


@pytest.mark.parametrize("name", MODELS)
def test_the_default_race_is_right_at_a_fraction_of_the_cost(name: str, truth: NDArray[np.int64]) -> None:
    """The full run costs 1280 evaluations per image; the accuracy limit is the same."""
    pytest.importorskip("onnxruntime")
    raced = fastdc.load(name).classify(digits_test().images)
    assert raced.provenance["rule"]["name"] == "calibrated"
    assert raced.provenance["plan"]["draws"] == 128
    assert np.mean(raced.labels == truth) >= 0.985
    assert raced.evaluations.min() >= 10
    assert raced.evaluations.mean() < 25


def test_the_race_loses_the_full_answer_no_more_often_than_promised() -> None:
    """The limit is delta plus three standard deviations of the sampling error of 400 images."""
    pytest.importorskip("onnxruntime")
    clf = fastdc.load("digits-mlp")
    calibration = clf.model.calibration
    assert calibration is not None
    images = digits_test().images
    lost = np.mean(clf.classify(images).labels != clf.classify(images, rule="full", draws=128).labels)
    assert lost <= calibration.delta + 3 * np.sqrt(calibration.delta / len(images))


def test_the_right_class_is_likely(result: Classification, truth: NDArray[np.int64]) -> None:
    """Most images get a high confidence, and the few mistakes a lower one than the rest."""
    confidence = result.probabilities.max(axis=1)
    right = result.labels == truth
    assert np.median(confidence) > 0.9
    if not right.all():  # at 16 draws the UNet makes at most one mistake
        assert confidence[right].mean() > confidence[~right].mean()


def test_calibrated_probabilities_are_as_sure_as_they_are_right(
    result: Classification, truth: NDArray[np.int64]
) -> None:
    manifest = fastdc.load_bundle(FOLDER / result.table.model).manifest
    assert result.provenance["temperature"] == manifest["defaults"]["temperature"]
    if "calibration" not in str(manifest["provenance"]):
        pytest.skip(f"{result.table.model} does not say that it was calibrated")
    accuracy = np.mean(result.labels == truth)
    # A calibrated confidence differs from the accuracy by sampling error only: four times sqrt(0.015 * 0.985 / 400) =
    # 0.6 points, plus one point because the temperature was fitted on other images.
    assert abs(result.probabilities.max(axis=1).mean() - accuracy) < 0.035


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_bundles_verify_and_state_their_provenance(name: str) -> None:
    bundle = fastdc.load_bundle(FOLDER / name)
    bundle.verify()
    assert bundle.name == name
    assert bundle.files == ("denoiser.onnx", "weights.safetensors")
    assert sum(entry["bytes"] for entry in bundle.manifest["files"].values()) < 4_000_000
    provenance: dict[str, Any] = bundle.manifest["provenance"]
    assert provenance["training_images"] == 1200
    assert {"seed", "steps", "parameters", "command", "data_sha256"} <= set(provenance)
    assert "/" not in provenance["command"], "a path of the machine that trained it"


def test_the_test_images_are_real() -> None:
    """Each is one of scikit-learn's 1,797 digits with its label, and no digit occurs twice."""
    datasets = pytest.importorskip("sklearn.datasets")
    source = datasets.load_digits()
    pixels = source.images.astype(np.int64)  # 0 ... 16
    known = {image.tobytes(): int(label) for image, label in zip(pixels, source.target, strict=True)}
    test = digits_test()
    assert test.images.shape == (400, 1, 8, 8)
    levels = np.rint(test.images[:, 0] / 255 * 16).astype(np.int64)
    assert [known.get(image.tobytes()) for image in levels] == test.labels.tolist()
    np.testing.assert_allclose(test.images[:, 0], levels / 16 * 255, atol=0.5)
    assert len({image.tobytes() for image in levels}) == 400
    counts = np.bincount(test.labels)
    assert len(counts) == 10
    assert counts.min() >= 30
