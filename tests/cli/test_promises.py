"""Options of ``fastdc classify`` that concern its promises: runs that calibrate themselves."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastdc import ErrorTable
from fastdc.data import digits_test
from helpers.cli_runs import MLP, Cli, place_digits


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with test digits as images and arrays."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return place_digits(tmp_path)


def test_a_run_calibrates_itself(cli: Cli, digits: Path) -> None:
    own = ("--draws", "8", "--self-calibrate", "30")
    code, out, err = cli("classify", "b.npz", *MLP, *own, "--json", "--save", "errors.npz", "--provenance", "run.json")
    assert code == 0
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["image"] for entry in entries] == [f"b.npz[{i}]" for i in range(70)]
    promises = [entry["promise"] for entry in entries]
    assert promises.count("full") == 30
    assert set(promises) == {"full", "race, delta=0.04, calibrated on 30 images of this run"}
    assert all(entry["evaluations"] == 80 for entry in entries if entry["promise"] == "full")
    assert "; 30 in full, 40 raced: at most 4 % of answers differ from the full run\n" in err
    assert json.loads(Path("run.json").read_text())["self_calibration"]["images"] == 30
    assert ErrorTable.load("errors.npz").evaluations.tolist() == [entry["evaluations"] for entry in entries]
    told = cli("classify", "b.npz", *MLP, "--draws", "2", "--self-calibrate", "70").err
    assert "note: --self-calibrate 70 runs all 70 images in full: none is left to race\n" in told
    assert "; all in full\n" in told
    assert cli("demo", *MLP, *own).rows["rule"].startswith("race, calibrated on 30 images of this run: at most 4 %")


def test_a_run_that_cannot_calibrate_itself_is_refused(cli: Cli, digits: Path) -> None:
    for more, says in (
        (("--self-calibrate", "10"), "--self-calibrate 10 cannot be used: 10 images support no level below 9.1 %"),
        (("--self-calibrate", "30", "--rule", "full"), "--self-calibrate is for the race"),
        (("--self-calibrate", "30", "-o", "delta=0.01"), "delta = 0.01 needs at least 99 validation images, got 30"),
        (("--self-calibrate", "30", "-o", "limit=1"), "race, has no option 'limit'"),
        (("--self-calibrate", "30", "--decision", "vote"), "expected decision mean, got 'vote'"),
    ):
        cli.refuses("classify", "b.npz", *MLP, *more, naming=says)


def test_long_runs_without_a_calibration_hear_of_self_calibration(cli: Cli, digits: Path) -> None:
    np.savez("long.npz", images=digits_test().images[:300])
    paired = ("--levels", "0.3", "3", "--draws", "3")
    says = "no calibration for these options, so that paired tests decide: --self-calibrate 19 would run 19 images"
    assert says in cli("classify", "long.npz", *MLP, *paired).err
    for quiet in (("--quiet",), ("--rule", "paired"), ("--self-calibrate", "19"), ("-o", "alpha=0.1")):
        assert "would run" not in cli("classify", "long.npz", *MLP, *paired, *quiet).err
    assert "would run" not in cli("classify", "b.npz", *MLP, *paired).err
