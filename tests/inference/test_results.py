"""Results: what a table is turned into, and how far a run says it is."""

import csv
import json
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import Classification, ErrorTable, InputError, Progress
from fastdc.inference import class_keys
from fastdc.inference.decide import decide
from helpers.subprocesses import without
from helpers.worlds import classifier, fails_with, gaussian, unit_images

WORLD = gaussian(4)


@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_a_result_is_the_decision_of_its_table(decision: str) -> None:
    table = classifier(WORLD).classify(unit_images(8), draws=16, rule="calibrated", rule_options={"limit": 0.6}).table
    assert len(set(table.evaluations.tolist())) > 1
    result = Classification.of_table(
        table,
        np.arange(8) + 30,
        decision=decision,
        temperature=0.5,
        seconds=1.5,
        provenance={"seed": 3},
    )
    decided = decide(table.errors, decision=decision, temperature=0.5)
    np.testing.assert_array_equal(result.labels, decided.labels)
    np.testing.assert_array_equal(result.probabilities, decided.probabilities)
    np.testing.assert_array_equal(result.errors, decided.mean_errors)
    np.testing.assert_array_equal(result.votes, decided.votes)
    np.testing.assert_array_equal(result.evaluations, np.count_nonzero(~np.isnan(table.errors), axis=(1, 2)))
    assert result.indices.tolist() == list(range(30, 38))
    assert result.names == tuple(f"class {label}" for label in decided.labels)
    assert (result.seconds, result.provenance, result.table) == (1.5, {"seed": 3}, table)
    assert result == result  # noqa: PLR0124 - comparing must not raise, although it holds arrays
    with pytest.raises(FrozenInstanceError):
        result.seconds = 2.0  # type: ignore[misc]


def test_what_cannot_be_decided_is_refused() -> None:
    table = classifier(WORLD).errors(unit_images(1), draws=2)

    def of(decision: str, temperature: float) -> Classification:
        return Classification.of_table(
            table, np.arange(1), decision=decision, temperature=temperature, seconds=0, provenance={}
        )

    fails_with(lambda: of("median", 1), "decision must be one of mean, vote, got 'median'", kind=InputError)
    fails_with(lambda: of("mean", 0), "temperature must be positive", kind=InputError)


def test_progress_is_four_numbers() -> None:
    progress = Progress(finished=1, images=2, evaluations=3, at_most=4)
    assert progress == Progress(1, 2, 3, 4)
    with pytest.raises(FrozenInstanceError):
        progress.finished = 2  # type: ignore[misc]


# --- a sequence of images --------------------------------------------------------------------------------------------


def result(n: int = 6, **options: Any) -> Classification:
    """A result whose classes have different counts, and some NaN errors."""
    options = {"draws": 16, "rule": "calibrated", "rule_options": {"limit": 0.6}, **options}
    return classifier(WORLD).classify(unit_images(n), **options)


def test_a_result_is_a_sequence_of_images() -> None:
    made = result(candidates=[[0, 1], [2], *[[0, 1, 2, 3]] * 4])
    assert len(made) == len(list(made)) == 6
    for row, one in enumerate(made):
        label = int(made.labels[row])
        assert (one.index, one.label, one.name, one.evaluations) == (
            row,
            label,
            f"class {label}",
            made.evaluations[row],
        )
        assert one.probability == made.probabilities[row, label] == one.probabilities[one.name]
        assert list(one.probabilities) == list(one.errors) == list(one.votes) == list(made.class_names)
        np.testing.assert_array_equal(list(one.errors.values()), made.errors[row])
        assert list(one.votes.values()) == made.votes[row].tolist()
        assert made[row - 6].to_dict() == one.to_dict()
    with pytest.raises(IndexError):
        made[6]
    fails_with(lambda: made["class 1"], "images are chosen by", kind=InputError)


def test_answers_have_an_uncertainty() -> None:
    by_mean, by_vote = result(), result(decision="vote", rule="full", rule_options=None)
    for made in (by_mean, by_vote):
        for one, uncertainty in zip(made, made.uncertainties, strict=True):
            p = one.probability
            assert one.uncertainty == uncertainty == (p * (1 - p) if made is by_vote else 1 - p)
            assert one.to_dict()["uncertainty"] == uncertainty
    shares = by_vote.votes.max(axis=1) / 16
    assert by_vote.uncertainties == pytest.approx(shares * (1 - shares))
    assert (by_mean[2:4].uncertainties == by_mean.uncertainties[2:4]).all()


@pytest.mark.parametrize(
    "key", [slice(1, 4), slice(None, None, -2), [5, 0], np.array([0, 1, 1, 0, 0, 1], bool), slice(0, 0)]
)
def test_several_images_of_a_result_are_a_result(key: Any) -> None:
    made = result()
    part = made[key]
    rows = np.arange(6)[key]
    assert isinstance(part, Classification)
    np.testing.assert_array_equal(part.indices, rows)
    for name in ("labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(part, name), getattr(made, name)[rows])
    np.testing.assert_array_equal(part.table.errors, made.table.errors[rows])
    np.testing.assert_array_equal(part.table.streams, made.table.streams[rows])
    assert [one.index for one in part] == rows.tolist()
    assert (part.seconds, part.provenance) == (made.seconds, made.provenance)


def test_names_of_classes_are_different_keys() -> None:
    assert class_keys(("crane", "dog", "crane")) == ("crane [0]", "dog", "crane [2]")
    assert class_keys(("cat", "dog")) == ("cat", "dog")
    assert len(set(class_keys(("a", "a", "a [0]")))) == 3
    two = replace(result(2), class_names=("crane", "dog", "crane", "cat"))
    assert len(two[0].probabilities) == 4


# --- as other programs take it ---------------------------------------------------------------------------------------


def test_dictionaries_are_json_without_nan() -> None:
    made = result(candidates=[[0, 1], [2], *[[0, 1, 2, 3]] * 4])
    assert np.isnan(made.errors).any()
    told = made.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["images"] == made.to_dicts()
    assert told["images"][1]["errors"]["class 0"] is None
    assert told["images"][1]["probabilities"] == {"class 0": 0, "class 1": 0, "class 2": 1, "class 3": 0}
    assert told["class_names"] == list(made.class_names)
    assert told["provenance"]["rule"]["name"] == "calibrated"


def test_a_data_frame_has_a_row_per_image() -> None:
    pandas = pytest.importorskip("pandas")
    made = result()
    frame = made.to_pandas(classes=True)
    assert list(frame) == ["index", "label", "name", "probability", "evaluations", *(f"p(class {k})" for k in range(4))]
    np.testing.assert_array_equal(frame["p(class 2)"], made.probabilities[:, 2])
    np.testing.assert_array_equal(frame["label"], made.labels)
    assert list(made.to_pandas()) == list(frame)[:5]
    assert made[:0].to_pandas().shape == (0, 5)
    assert isinstance(frame, pandas.DataFrame)


def test_pandas_is_asked_for_by_its_extra() -> None:
    program = (
        "from helpers.worlds import *\n"
        "try: classifier(gaussian(3)).classify(unit_images(1)).to_pandas()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    made = without("pandas", f"import sys; sys.path[:0] = {sys.path!r}\n{program}")
    assert made.startswith("MissingDependencyError pandas is needed here")
    assert "[pandas]" in made


def test_results_are_saved_as_their_name_asks(tmp_path: Path) -> None:
    made = result()
    for name in ("r.csv", "r.json", "r.jsonl", "r.npz"):
        made.save(tmp_path / name)
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == made.labels.tolist()
    assert [float(row["probability"]) for row in rows] == [one.probability for one in made]
    assert json.loads((tmp_path / "r.json").read_text()) == made.to_dict()
    assert [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()] == made.to_dicts()
    with np.load(tmp_path / "r.npz") as arrays:
        for name in ("indices", "labels", "probabilities", "evaluations", "votes"):
            np.testing.assert_array_equal(arrays[name], getattr(made, name))
        np.testing.assert_array_equal(arrays["mean_errors"], made.errors)
        assert json.loads(str(arrays["result"]))["class_names"] == list(made.class_names)
    np.testing.assert_array_equal(ErrorTable.load(tmp_path / "r.npz").errors, made.table.errors)
    again = Classification.load(tmp_path / "r.npz")
    for name in ("indices", "labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name), strict=True)
    np.testing.assert_array_equal(again.table.values, made.table.values)
    assert again.to_dict() == made.to_dict()
    made.save(tmp_path / "r.csv", classes=True)
    assert (tmp_path / "r.csv").read_text().splitlines()[0].endswith(",p(class 0),p(class 1),p(class 2),p(class 3)")
    fails_with(lambda: made.save(tmp_path / "r.parquet"), ".csv, .json, .jsonl, .npz", kind=InputError)


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    made = result(2)
    made.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        members = dict(file)
    rest = json.loads(str(members["result"]))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"labels": np.array([0, 4])}, "labels must be in [0, 4), got 0 to 4"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be int64 of shape (2,), got float64"),
        ({"votes": np.zeros((2, 5), np.int64)}, "votes must be int64 of shape (2, 4)"),
        ({"result": np.array("{")}, "result must be JSON"),
        ({"result": np.array(json.dumps({**rest, "class_names": [1]}))}, "class_names must be strings"),
        ({"result": np.array(json.dumps({**rest, "seconds": None}))}, "seconds must be a number"),
        ({"result": np.array(json.dumps({**rest, "seconds": 10**400}))}, "seconds must be a number"),
        ({"result": np.array(json.dumps({**rest, "provenance": []}))}, "provenance must be an object"),
        ({"result": np.array("[]")}, "class_names must be strings"),
    ]
    for changes, named in wrong:
        np.savez(tmp_path / "w.npz", **{**members, **changes})
        fails_with(lambda: Classification.load(tmp_path / "w.npz"), "w.npz", named, kind=InputError)
    made.table.save(tmp_path / "table.npz")
    fails_with(lambda: Classification.load(tmp_path / "table.npz"), "table.npz", kind=InputError)
    fails_with(lambda: Classification.load(tmp_path / "none.npz"), "none.npz", kind=InputError)


# --- as people see it ------------------------------------------------------------------------------------------------


def test_what_is_shown_is_short_and_says_what_was_found() -> None:
    evil = "<script>" + "x" * 500 + "\n"
    made = replace(result(), class_names=(evil,) * 4)
    for text in (repr(made), repr(made[:2]), repr(made[0]), repr(made.table)):
        assert "\n" not in text
        assert len(text) < 400
    assert "<script>" not in made._repr_html_()
    assert len(made._repr_html_()) < 10_000
    plain = result()
    label, count = Counter(plain.labels.tolist()).most_common()[0]
    assert repr(plain).startswith(f"Classification(6 images: {count} x 'class {label}'")
    assert f"{plain.evaluations.mean():.1f} evaluations per image" in repr(plain)
    assert repr(plain[:1]).startswith(f"Classification(1 image: {plain.names[0]!r} {plain[0].probability:.3g};")
    assert repr(plain[:0]) == f"Classification(0 images: none; {plain.seconds:.2f} s)"
    assert repr(plain[0]).startswith(f"ImageResult(index=0, label={plain.labels[0]}, name='class ")
    assert plain[:0]._repr_html_()


def test_classifiers_and_models_are_shown_in_one_line() -> None:
    clf = classifier(WORLD)
    assert repr(clf) == (
        "DiffusionClassifier(Model('gaussian': 4 classes, images (1, 4, 4), EDMSchedule, sample), "
        "function on cpu in float32, batch 128)"
    )
    many = replace(WORLD.model, class_names=tuple(f"class {k}" for k in range(1000)))
    assert "1000 classes" in repr(many)
    assert len(repr(many)) < 200
