"""``fastdc compose``: from a folder in the paper's layout to tables, files, and answers that a second run takes up."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.matching import DiffusionMatcher, Matched, OnMatched, Trials
from fastdc.support import BackendError, FastdcError, InputError, Interrupted
from helpers.cli_runs import Cli
from helpers.composition_trees import write_pairs, write_single

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

MODEL = ("--model", "shapes", "--draws", "1", "--rule", "full", "--threads", "1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four single objects and two pairs of unseen classes, as pictures of noise, in both settings."""
    root = tmp_path_factory.mktemp("data")
    write_single(root, ["ood_val"])
    write_pairs(root, "ood_val", "two_object_prompts/two_obj_val", count=1)
    write_pairs(root, "ood_val", "two_object_prompts/two_obj_val_gen", count=1)
    rng = np.random.default_rng(0)
    for path in sorted(root.rglob("*.png")):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return root


def test_tables_and_files(cli: Cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = cli("compose", data, *MODEL, "--out", out, "--csv", tmp_path / "s.csv", "--html", tmp_path / "p.html")
    assert first.code == 0, first.err
    assert "Two objects" in first.out
    assert sorted(path.name for path in out.iterdir()) == [
        "answers", "answers.csv", "comparison.json", "page.html", "scores.csv", "tables.tex",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["task"], row["split"], row["setting"], row["images"]) for row in rows] == [
        ("single", "val", "ZSL", "4"), ("single", "val", "GZSL", "4"),
        ("two_object", "val", "ZSL", "2"), ("two_object", "val", "GZSL", "2"),
    ]  # fmt: skip
    assert [float(row["evaluations_per_image"]) for row in rows] == [4, 32, 5.5, 5.5]
    assert len((out / "answers.csv").read_text().splitlines()) == 1 + 4 + 4 + 2 + 2
    assert "shapes" in (tmp_path / "p.html").read_text()
    told = json.loads((out / "comparison.json").read_text())
    assert told["facts"]["data"] == str(data)

    def unasked(self: DiffusionMatcher, trials: Trials, progress: OnMatched | None = None) -> Matched:
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:  # all answers are there
        patch.setattr(DiffusionMatcher, "match", unasked)
        again = cli("compose", data, *MODEL, "--out", out, "--json", "--quiet")
    assert (again.code, again.err) == (0, "")
    assert json.loads(again.out) == told
    (out / "tests.csv").touch()  # of other models, before
    assert cli("compose", data, *MODEL, "--out", out, "--quiet").code == 0
    assert not (out / "tests.csv").exists()


def test_paired_tests_in_place_of_the_calibrated_race_are_noted(cli: Cli, data: Path) -> None:
    cell = ("--task", "single_object", "--split", "ood_val", "--zsl", "--images", "2")
    asked = ("compose", data, "--model", "shapes", "--draws", "1", *cell)
    assert (told := cli(*asked).err).count("note: shapes: paired tests instead of the calibrated race") == 1
    assert "--calibrate 99 would run 99 images of ID_val" in told
    assert "note: " not in cli(*asked, "--quiet").err
    assert "paired tests" not in cli(*asked, "--rule", "full").err


def test_ctrl_c_leaves_what_was_finished(cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = DiffusionMatcher.match

    def stopped(self: DiffusionMatcher, trials: Trials, progress: OnMatched | None = None) -> Matched:
        found = match(self, trials, progress).take([0, 2])
        raise Interrupted("interrupted", found)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionMatcher, "match", stopped)
        result = cli("compose", data, *MODEL, "--task", "single", "--zsl", "--out", tmp_path / "run")
    assert result.code == 130
    assert "2 of 4" in result.out
    assert "* interrupted: shapes in single val ZSL; the same command goes on; " in result.out
    assert result.err.splitlines()[-1] == "fastdc: interrupted: shapes in single val ZSL"
    asked = []

    def counted(self: DiffusionMatcher, trials: Trials, progress: OnMatched | None = None) -> Matched:
        asked.append(len(trials))
        return match(self, trials, progress)

    monkeypatch.setattr(DiffusionMatcher, "match", counted)
    whole = cli("compose", data, *MODEL, "--task", "single", "--zsl", "--out", tmp_path / "run", "--json")
    assert asked == [2]
    assert json.loads(whole.out)["scores"][0]["images"] == 4


@pytest.mark.parametrize("error", [BackendError("no device"), InputError("damaged")])
def test_an_error_in_a_later_cell_leaves_the_tables(
    cli: Cli, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: FastdcError
) -> None:
    match, calls = DiffusionMatcher.match, list[int]()

    def failing(self: DiffusionMatcher, trials: Trials, progress: OnMatched | None = None) -> Matched:
        calls.append(len(trials))
        if len(calls) == 2:
            raise error
        return match(self, trials, progress)

    monkeypatch.setattr(DiffusionMatcher, "match", failing)
    asked = ("compose", data, *MODEL, "--task", "two_object", "--csv", tmp_path / "s.csv", "--quiet")
    result = cli(*asked, "--json")
    assert (result.code, result.err.splitlines()[-1]) == (2, f"fastdc: error: {error}")
    told = json.loads(result.out)
    assert [(score["setting"], score["images"]) for score in told["scores"]] == [("ZSL", 2)]
    assert "failed: shapes in two_object val GZSL" in told["notes"][0]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 2
    calls.append(0)
    assert cli(*asked).code == 0


def test_models_side_by_side(cli: Cli, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from fastdc.testing import tiny_image_text

    clip, vilt = tiny_image_text(tmp_path / "clip", "clip"), tiny_image_text(tmp_path / "vilt", "vilt")
    asked = ("compose", data, *MODEL, "--clip", clip, "--vilt", vilt, "--task", "two_object", "--zsl", "--quiet")
    told = json.loads(cli(*asked, "--json").out)
    assert [score["model"] for score in told["scores"]] == ["shapes", "clip", "vilt"]
    assert [(test["first"], test["second"], test["images"]) for test in told["tests"]] == [
        ("shapes", "clip", 2), ("shapes", "vilt", 2), ("clip", "vilt", 2),
    ]  # fmt: skip
    released = json.loads(cli(*asked, "--json", "--compat", "otmive").out)
    assert [score["images"] for score in released["scores"]] == [4, 2, 2]  # each pair's table on all images
    assert [(test["first"], test["second"]) for test in released["tests"]] == [("clip", "vilt")]
    assert "as the released code does" in released["notes"][0]
    assert "intervals are too narrow" in released["notes"][0]
    both = json.loads(cli(*asked, "--json", "--compat", "otmive", "--task", "single").out)  # single: asked the same
    assert [test["task"] for test in both["tests"]] == ["single"] * 3 + ["two_object"]


def test_a_race_for_each_task(cli: Cli, tmp_path: Path) -> None:
    for split, count in (("ID_val", 2), ("ood_val", 1)):
        write_single(tmp_path, [split], count=count)
    rng = np.random.default_rng(0)
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    model = ("--model", "shapes", "--draws", "1", "--threads", "1", "--calibrate", "20", "--out", tmp_path / "run")
    asked = ("compose", tmp_path, *model, "--zsl", "--split", "val", "--json")
    told = json.loads(cli(*asked).out)
    assert "calibrated for each task and setting on 20 images of ID_val" in told["notes"][0]
    assert told["scores"][0]["facts"]["delta"] == 0.05
    kept = json.loads((tmp_path / "run/races/shapes/single_id-val_zsl.json").read_text())
    assert (kept["calibration"]["images"], kept["calibration"]["draws"]) == (20, 1)
    (tmp_path / "run/answers/shapes/single_val_zsl.json").unlink()
    with pytest.MonkeyPatch.context() as patch:  # the calibration is there
        patch.setattr(DiffusionMatcher, "calibrated", None)
        again = json.loads(cli(*asked).out)
    assert [score["accuracy"] for score in again["scores"]] == [score["accuracy"] for score in told["scores"]]


def test_options_of_the_network_reach_it(cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[dict[str, object]]()

    def load(source: object, **network: object) -> None:
        given.append(network)
        raise InputError("stop here")

    monkeypatch.setattr("fastdc.matching.diffusion_matcher.load", load)
    network = ("--backend", "torch", "--device", "cpu", "--precision", "float32", "--batch", "7", "--compile")
    assert cli("compose", data, *MODEL, *network, "--task", "single", "--quiet").code == 2
    assert given == [
        {"backend": "torch", "device": "cpu", "precision": "float32", "batch": 7, "threads": 1, "compile": True}
    ]


def test_what_does_not_go_together_is_refused(cli: Cli, data: Path, tmp_path: Path) -> None:
    for args, naming in (
        ([], "expected a model to ask"),
        (["--model", "shapes", "--delta", "0.1"], "--delta is the level of --calibrate"),
        (["--clip", "x", "--compile"], "--compile is for --model, which is missing"),
        (["--vilt", "x", "--draws", "9"], "--draws is for --model, which is missing"),
        (["--clip", "x", "--calibrate", "20"], "--calibrate is for the race of --model"),
        (["--model", "shapes", "--calibrate", "20", "--rule", "full"], "expected no other --rule"),
        (["--model", "shapes", "--calibrate", "20", "--compat", "otmive"], "expected one"),
        (["--model", "shapes", "--calibrate", "20"], "--calibrate takes images of id-val"),
        (["--model", "shapes", "--calibrate", "2"], "takes 19, and 1 % takes 99; --delta 0.5 would work"),
        (["--model", "shapes", "--csv", "t.tex"], "ends in .csv"),
        (["--model", "shapes", "--csv", tmp_path / "a.csv", "--answers", tmp_path / "a.csv"], "two outputs"),
        (["--model", "shapes", "--out", tmp_path / "a" / "b"], "is not a folder"),
        (["--model", "shapes", "--prompts", "single"], "must be WHAT=PATH"),
        (["--model", "shapes", "--prompts", "single=a", "--prompts", "single=b"], "names 'single' twice"),
        (["--model", "shapes", "--task", "pairs"], "has the tasks single, two_object"),
        (["--model", "shapes", "--split", "test"], "has the splits val"),
        (["--model", "shapes", "-o", "alpha=2"], "alpha"),
        (["--model", "none"], "no model 'none'"),
        (["--model", "digits"], "digits, single val ZSL: model digits has no text encoder"),
        (["--model", "shapes", "--clip", tmp_path / "none"], "none"),
    ):
        cli.refuses("compose", data, *args, naming=naming)
    assert not any(tmp_path.iterdir())
