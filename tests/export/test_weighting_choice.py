"""The choice of a weighting: errors and accuracies against runs under each weighting, the test against SciPy's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import fastdc
from fastdc import InputError
from fastdc.data import LabelledImages, digits_test
from fastdc.diffusion import WEIGHTINGS
from fastdc.export import weighting_choice
from fastdc.export.calibrate import calibrate_manifest, check_calibration
from fastdc.export.options import ExportOptions
from fastdc.export.weighting_choice import choose_weighting, weighting_factors


@pytest.fixture(scope="module")
def clf() -> fastdc.DiffusionClassifier:
    return fastdc.load("digits-mlp", threads=1)


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_errors_under_a_weighting_follow_from_those_under_another(clf: fastdc.DiffusionClassifier, loss: str) -> None:
    images = digits_test().images[:3]
    own = clf.errors(images, draws=6, loss=loss)
    config = clf.validation_runs(images, draws=6, loss=loss).config
    factors = weighting_factors(clf.model, config)
    assert set(factors) == set(WEIGHTINGS)
    for name, factor in factors.items():
        theirs = clf.errors(images, draws=6, loss=loss, weighting=name).errors
        # A residual in one space is rounded to float32 at another scale than in another.
        np.testing.assert_allclose(own.errors * factor, theirs, rtol=2e-4)


def test_the_accuracies_are_those_of_runs_under_each_weighting(clf: fastdc.DiffusionClassifier) -> None:
    images = digits_test().part(slice(0, 60))
    found = choose_weighting(clf, images, 2)
    for name, accuracy in found.accuracy.items():
        labels = [clf.classify(images.images, rule="full", seed=s, weighting=name).labels for s in range(2)]
        assert accuracy == pytest.approx(float(np.mean(labels == images.labels)), abs=0.009)  # a tie by rounding
    assert found.weighting == clf.model.defaults.weighting  # no other one is better beyond doubt
    assert str(found).startswith("weighting edm, chosen on 60 images (")


def test_a_better_weighting_is_found(clf: fastdc.DiffusionClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose own weights turn the order of classes around, so that the others are better."""
    factors = weighting_factors(clf.model, clf.validation_runs(digits_test().images[:1]).config)
    ruined = {name: -factor if name == "edm" else factor for name, factor in factors.items()}
    monkeypatch.setattr(weighting_choice, "weighting_factors", lambda *_: ruined)
    found = choose_weighting(clf, digits_test().part(slice(0, 60)), 1)
    assert found.weighting != "edm"
    assert found.accuracy[found.weighting] == max(found.accuracy.values()) > found.accuracy["edm"]


def test_the_evidence_is_that_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-0.2, 0.6, 40):
        difference = rng.choice([-1.0, 0.0, 1.0], 50, p=[0.1, 0.5, 0.4]) + shift
        p = stats.ttest_1samp(difference, 0.0, alternative="greater").pvalue
        assert weighting_choice._beyond_doubt(difference, 5) == (p < 0.05 / 5)


@pytest.mark.parametrize(("n", "value", "said"), [(1, 1.0, False), (6, 1.0, False), (7, 1.0, True), (50, 0.0, False)])
def test_images_that_all_agree_count_by_their_number(n: int, value: float, said: bool) -> None:
    assert weighting_choice._beyond_doubt(np.full(n, value), 5) is said


def test_equal_weightings_are_seldom_told_apart() -> None:
    """Five weightings that are as accurate as the model's own: one is chosen in at most 5 % of the data sets."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        right = rng.random((6, 100)) < 0.9
        wrong += any(weighting_choice._beyond_doubt(one.astype(float) - right[0], 5) for one in right[1:])
    assert wrong <= stats.binom.ppf(0.999, 1000, 0.05)


def test_an_export_chooses_on_one_half_and_calibrates_on_the_other(
    clf: fastdc.DiffusionClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fastdc.load_bundle(fastdc.bundle.find_model("digits-mlp"))
    names = ("denoiser.onnx", "weights.safetensors")
    kept = {key: value for key, value in bundle.manifest.items() if key not in ("files", "format", "version")}
    manifest = {**kept, "defaults": dict(kept["defaults"]), "provenance": {}}
    data = digits_test().part(slice(0, 80))
    seen: list[LabelledImages] = []

    def chosen(_: object, images: LabelledImages, seeds: int) -> weighting_choice.WeightingChoice:
        seen.append(images)
        return weighting_choice.WeightingChoice("velocity", {"velocity": 1.0}, len(images))

    monkeypatch.setattr("fastdc.export.calibrate.choose_weighting", chosen)
    lines: list[str] = []
    given = ExportOptions(weighting="auto", notify=lines.append)
    assert "weighting" not in given.defaults()
    calibrate_manifest(manifest, {name: bundle.path / name for name in names}, data, given)
    assert seen[0].ids == data.ids[::2]
    assert lines == ["weighting velocity, chosen on 40 images (velocity 100.0 %)"]
    assert manifest["provenance"]["weighting"] == lines[0]
    assert manifest["defaults"]["weighting"] == "velocity"
    assert manifest["calibration"]["images"] == 40
    assert manifest["calibration"]["plan"]["weighting"] == "velocity"


def test_what_cannot_be_chosen_is_refused_before_the_work() -> None:
    auto = ExportOptions(weighting="auto")
    with pytest.raises(InputError, match="weighting cannot be auto without images"):
        check_calibration(auto, None)
    with pytest.raises(InputError, match="weighting cannot be auto with the loss huber: expected l2 or l1"):
        check_calibration(replace(auto, loss="huber"), digits_test())
    with pytest.raises(InputError, match="2 images or more"):
        check_calibration(auto, digits_test().part(slice(0, 1)))
    with pytest.raises(InputError, match="images"):  # half of them support no level of 1 %
        check_calibration(replace(auto, delta=0.01), digits_test().part(slice(0, 150)))
