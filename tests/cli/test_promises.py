"""Options of ``fastdc classify`` that change what an answer means: runs that calibrate themselves, and priors."""

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


# --- priors ----------------------------------------------------------------------------------------------------------

SKEWED = ",".join(f"{k}={1 + 9 * (k == 3)}" for k in range(9, -1, -1))


def test_a_prior_weighs_the_probabilities(cli: Cli, digits: Path) -> None:
    Path("weights.txt").write_text("1\n1\n1\n10\n" + 6 * "1\n\n", encoding="utf-8")
    Path("named.txt").write_text(SKEWED.replace(",", "\n"), encoding="utf-8")
    runs = [
        cli("classify", "a.npy", *MLP, "--rule", "full", "--json", "--prior", prior, "--quiet").out
        for prior in (SKEWED, "1,1,1,10,1,1,1,1,1,1", "weights.txt", "named.txt")
    ]
    assert len(set(runs)) == 1
    plain = cli("classify", "a.npy", *MLP, "--rule", "full", "--json", "--prior", "uniform", "--quiet").out
    assert plain == cli("classify", "a.npy", *MLP, "--rule", "full", "--json", "--quiet").out
    for line, other in zip(runs[0].splitlines(), plain.splitlines(), strict=True):
        made, was = json.loads(line), json.loads(other)
        assert made["errors"] == was["errors"]
        assert made["run"] != was["run"]
        weighed = {name: p * (10 if name == "3" else 1) for name, p in was["probabilities"].items()}
        total = sum(weighed.values())
        assert made["probabilities"] == pytest.approx({name: p / total for name, p in weighed.items()}, abs=1e-5)
    none = cli("classify", "a.npy", *MLP, "--prior", "0,0,0,1,0,0,0,0,0,0")
    assert [line.split("\t")[1] for line in none.out.splitlines()] == ["3"] * 5


def test_what_a_race_loses_under_a_prior_is_said(cli: Cli, digits: Path) -> None:
    note = "note: paired tests instead of the calibrated race, which was calibrated without a prior; in runs over some "
    note += "hundred images, --self-calibrate N races under the prior for fewer evaluations\n"
    assert note in cli("classify", "a.npy", *MLP, "--prior", SKEWED).err
    own = cli("classify", "b.npz", *MLP, "--draws", "8", "--prior", SKEWED, "--self-calibrate", "30").err
    assert note not in own
    assert "; 30 in full, 40 raced" in own
    assert cli("demo", *MLP, "--prior", SKEWED, "--draws", "2").rows["rule"].startswith("paired")


def test_what_is_no_prior_is_refused(cli: Cli, digits: Path) -> None:
    Path("bad.txt").write_bytes(b"\xff\xfe1\n2")
    for prior, says in (
        ("dat", "expected uniform, data, NAME=WEIGHT,..., numbers in the order of the classes, or a file of these"),
        ("3=1,4", "expected uniform, data"),
        ("3=1,3=2", "expected uniform, data"),
        ("=1", "expected uniform, data"),
        ("", "expected uniform, data"),
        ("bad.txt", "expected uniform, data"),
        (".", "expected uniform, data"),
        ("1,2", "--prior must be 10 weights from 0, one for each class"),
        ("1,1,1,1,1,1,1,1,1,nan", "--prior must be 10 weights from 0"),
        ("0,0,0,0,0,0,0,0,0,0", "--prior must have a positive weight"),
        ("3=20", "every class, '0' and 8 more are missing: for example 0=1,1=1,2=1,3=20,4=1,5=1,6=1,7=1,8=1,9=1"),
        ("cat=1", "classes of prior must be classes of the model, got 'cat'"),
        ("data", "--prior needs the class counts of the training data, which digits-mlp has not"),
    ):
        cli.refuses("classify", "a.npy", *MLP, "--prior", prior, naming=says)
    skewed = ("classify", "a.npy", *MLP, "--prior", SKEWED)
    cli.refuses(*skewed, "--decision", "vote", naming="--prior is a weight of probabilities, and votes are none")
    cli.refuses(*skewed, "--rule", "calibrated", naming="calibrated has no promise under a prior")
    cli.refuses(*skewed, "--loss", "l1", naming="the model's was fitted with loss l2, the run has l1")
