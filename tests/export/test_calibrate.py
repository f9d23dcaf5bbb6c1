"""What is fitted to validation images at an export: with the bundle itself, and as much as the images support."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support.exceptions import InputError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("diffusers")

import fastdc
from fastdc.bundle.folder import Bundle, load_bundle
from fastdc.bundle.manifest import parse_manifest
from fastdc.bundle.shipped import find_model
from fastdc.calibration.temperature import fit_temperature, with_doubt
from fastdc.data import LabelledImages, digits_test
from fastdc.export.calibrate import calibrate_manifest, check_calibration
from fastdc.export.options import ExportOptions
from fastdc.inference import CALIBRATION_SEEDS, CHOICES, PlanChoice, PlanOptions, Progress, ValidationRuns, choose_plan
from fastdc.loading import load
from fastdc.support import Int64
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
    assert lines == ["40 images are too few to choose the noise levels on, too: the default ones stay"]
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
    assert lines[1:] == [
        "the race is not calibrated: 10 images support no level below 9.1 %: 5 %, the largest by default, takes 19, "
        "and 1 % takes 99"
    ]
    assert manifest["defaults"]["temperature"] != 1.0  # type: ignore[index]


def test_a_level_that_cannot_be_is_refused_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    source, _ = exported("module", shared_folder(tmp_path_factory))
    with pytest.raises(InputError, match=r"delta = 0\.01 is of a calibration: give the images"):
        check_calibration(ExportOptions(delta=0.01), None)
    with pytest.raises(InputError, match="images"):
        check_calibration(ExportOptions(delta=0.01), labelled(source, 50))
    check_calibration(ExportOptions(delta=0.02), labelled(source, 50))
    check_calibration(ExportOptions(), None)


# --- choosing --------------------------------------------------------------------------------------------------------


def _digits(n: int, given: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[Any]]:
    """The manifest of digits-mlp after its calibration on n images, and what choose_plan was asked."""
    bundle = load_bundle(find_model("digits-mlp"))
    manifest, data, asked = _manifest(bundle), digits_test().part(slice(0, n)), []
    manifest["defaults"] |= {"draws": 4, "levels": [0.002, 0.01]}  # type: ignore[operator]

    def chosen(runs: ValidationRuns, labels: Int64, **options: Any) -> PlanChoice:
        asked.append((runs, labels, options))
        found = choose_plan(runs, labels, **{**options, "draws": 96, "seeds": 1})
        other = next((trial for trial in found.trials if trial.levels == (0.1, 1.0)), found.chosen)
        return replace(found, chosen=other, draws=8)  # this network is good at all levels, so that nothing would change

    monkeypatch.setattr("fastdc.export.calibrate.choose_plan", chosen)
    monkeypatch.setattr("fastdc.export.calibrate.full_runs", lambda *_: (16, 1))
    calibrate_manifest(manifest, {name: bundle.path / name for name in bundle.files}, data, given)
    return manifest, asked


def test_an_export_chooses_on_one_half_and_calibrates_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    choices: list[PlanChoice] = []
    states: list[Progress] = []
    given = ExportOptions(notify=lines.append, on_choice=choices.append, progress=states.append)
    manifest, asked = _digits(110, given, monkeypatch)
    ((runs, labels, options),) = asked
    data = digits_test().part(slice(0, 110))
    assert options["searched"] == CHOICES
    kept, rest = ExportOptions().parts(data.labels, np.zeros(110, bool))
    np.testing.assert_array_equal(runs.images.given, data.images[kept])
    np.testing.assert_array_equal(labels, data.labels[kept])
    (choice,) = choices
    assert (choice.own.levels, choice.own.first) == ((0.002, 0.01), (0.9,))
    defaults, race = manifest["defaults"], manifest["calibration"]
    assert defaults["levels"] == [0.1, 1.0] == race["plan"]["levels"]
    assert (defaults["draws"], defaults["first"]) == (8, [])
    assert race["images"] == 55
    assert manifest["provenance"]["choice"] == str(choice)
    assert lines[-1].startswith(f"accuracy of {choice.draws} draws of every class: ")
    assert lines[-1].endswith("% of the 55 images that nothing was chosen on")
    # What is said of the other half is what the bundle does there.
    plan: PlanOptions = {**choice.options, "draws": choice.draws}
    other = fastdc.load("digits-mlp").classify(data.images[rest], rule="full", **plan)
    accuracy = 100 * float((other.labels == data.labels[rest]).mean())
    assert f" {accuracy:.1f} % " in lines[-1]
    assert states[-1].images == 55 * 2 + 55  # seeds of the choice, as they would be
    assert [state.evaluations for state in states] == sorted(state.evaluations for state in states)


def test_what_is_given_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = _digits(110, ExportOptions(levels=(0.2, 2.0)), monkeypatch)
    assert asked == []
    _, asked = _digits(110, ExportOptions(choose=False), monkeypatch)
    assert asked == []
    _, asked = _digits(110, ExportOptions(levels=(0.2, 2.0), weighting="auto"), monkeypatch)
    assert asked[0][2]["searched"] == ("weighting",)
    _, asked = _digits(110, ExportOptions(levels=(0.2, 2.0), first=(), choose=True), monkeypatch)
    assert asked[0][2]["searched"] == ("weighting", "loss", "draws")


def test_few_images_choose_only_if_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    manifest, asked = _digits(60, ExportOptions(notify=lines.append), monkeypatch)
    assert asked == []
    assert lines[0] == "60 images are too few to choose the noise levels on, too: the default ones stay"
    assert manifest["calibration"]["images"] == 60
    manifest, asked = _digits(60, ExportOptions(choose=True), monkeypatch)
    assert len(asked[0][1]) == 30 == manifest["calibration"]["images"]


def test_a_choice_that_would_take_too_long_is_made_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdc.inference.choosing_images._MOST_CELLS", 50)
    lines: list[str] = []
    manifest, asked = _digits(110, ExportOptions(notify=lines.append), monkeypatch)
    assert asked == []
    assert lines[0].startswith(
        "no plan is chosen: on 50 images at 64 draws it takes 32,000 evaluations of this network, "
    )
    assert lines[0].endswith("--choose (choose=True) spends it")
    assert manifest["calibration"]["images"] == 110
    for given in (ExportOptions(choose=True), ExportOptions(weighting="auto")):
        _, asked = _digits(110, given, monkeypatch)
        assert len(asked[0][1]) == 50


def test_what_cannot_be_chosen_is_refused_before_the_work() -> None:
    with pytest.raises(InputError, match="weighting = auto needs images to choose on: give those"):
        check_calibration(ExportOptions(weighting="auto"), None)
    with pytest.raises(InputError, match="choose needs images"):
        check_calibration(ExportOptions(choose=True), None)
    with pytest.raises(InputError, match="10 images are too few to choose on one part"):
        check_calibration(ExportOptions(choose=True), digits_test().part(slice(0, 10)))
    with pytest.raises(InputError, match=r"105 images are too few .* at delta = 0\.01"):
        check_calibration(ExportOptions(choose=True, delta=0.01), digits_test().part(slice(0, 105)))
    check_calibration(ExportOptions(delta=0.01), digits_test().part(slice(0, 105)))  # nothing is chosen then
    check_calibration(ExportOptions(weighting="auto", loss="huber"), digits_test())


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
