"""``fastdc evaluate``: tables, JSON and plots of files, and what is refused before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.record_writer import RecordWriter
from fastdc.certification.records import read_records
from fastdc.certification.summary import compare, comparison_table, default_radii, summarize, summary_table
from helpers.cli_runs import Cli

COHENS = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t1.21\t1\t0:00:15\n4\t8\t-1\t0.0\t0\t0:00:14\n"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the runs a.tsv, b.tsv (of which half is done) and cohen."""
    monkeypatch.chdir(tmp_path)
    place("a.tsv", 40, seed=1)
    place("b.tsv", 20, seed=2)
    Path("cohen").write_text(COHENS)
    return tmp_path


def place(name: str, count: int, *, seed: int, label: int | None = None) -> None:
    """The first `count` records of a run over 40 images; the true class of the i-th is i % 10 unless given."""
    rng = np.random.default_rng(seed)
    with RecordWriter.open(name, {"indices": [0, 40, 1]}) as writer:
        for idx in range(count):
            predict = int(rng.choice([idx % 10, idx % 10, idx % 10, 0, ABSTAIN]))
            radius = 0.0 if predict == ABSTAIN else float(rng.uniform(0, 0.8))
            found = Certificate(predict, radius, 0.9, 95, 100, 10, 2000 + idx, 0.5)
            writer.write(idx, idx % 10 if label is None else label, found)


def test_one_file(cli: Cli, folder: Path) -> None:
    records = read_records("a.tsv")
    result = cli("evaluate", "a.tsv", "--radii", "0,0.25,0.5")
    assert (result.code, result.err) == (0, "")
    assert result.out == summary_table([summarize(records, (0, 0.25, 0.5), name="a")]) + "\n"
    by_hand = np.mean(records.correct & (records.radius >= 0.25))
    assert f" {100 * by_hand:.1f} " in result.out.splitlines()[1]


def test_several_files_and_facts_that_the_table_hides(cli: Cli, folder: Path) -> None:
    place("unlabelled", 1, seed=3, label=-1)
    several = [read_records(name) for name in ("a.tsv", "b.tsv", "cohen", "unlabelled")]
    result = cli("evaluate", "a.tsv", "b.tsv", "cohen", "unlabelled")
    names = ("a", "b", "cohen", "unlabelled")
    radii = default_radii(several)
    summaries = [summarize(records, radii, name=name) for records, name in zip(several, names, strict=True)]
    assert result.out == summary_table(summaries) + "\n"
    assert result.err.splitlines() == [
        "note: b is unfinished: 20 of 40 images",
        "note: unlabelled is unfinished: 1 of 40 images",
        "note: unlabelled has unknown true classes: no accuracy",
        "note: the files are not of the same images",
    ]


def test_files_are_compared_with_the_first(cli: Cli, folder: Path) -> None:
    result = cli("evaluate", "a.tsv", "b.tsv", "a.tsv", "--radii", "0.5", "--compare")
    assert result.code == 0
    a, b = read_records("a.tsv"), read_records("b.tsv")
    assert comparison_table(compare(a, b, [0.5], names=("a.tsv", "b.tsv"))) in result.out
    assert "a.tsv minus a.tsv, 40 images" in result.out


def test_json(cli: Cli, folder: Path) -> None:
    result = cli("evaluate", "a.tsv", "cohen", "--radii", "0,0.25", "--json")
    facts = json.loads(result.out)
    assert [entry["file"] for entry in facts["files"]] == ["a.tsv", "cohen"]
    assert facts["files"][0] == {"file": "a.tsv", **summarize(read_records("a.tsv"), (0, 0.25), name="a").to_dict()}
    half = facts["files"][1]["certified"][1]
    assert half == pytest.approx({"value": 0.5, "ci95_low": 0.0945, "ci95_high": 0.9055}, abs=1e-4)
    assert facts["files"][1]["evaluations"] is None
    assert facts["comparisons"] == []


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot(cli: Cli, folder: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = Path(f"curves.{suffix}")
    assert cli("evaluate", "a.tsv", "b.tsv", "--plot", path).code == 0
    assert path.stat().st_size > 5000
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_bad_files_and_options_are_refused(cli: Cli, folder: Path) -> None:
    Path("bad").write_text(COHENS.replace("1.21", "nan"))
    before = sorted(folder.iterdir())
    cli.refuses("evaluate", naming="FILE...")
    cli.refuses("evaluate", "none.tsv", naming="none.tsv: does not exist")
    cli.refuses("evaluate", "a.tsv", "bad", naming="bad, line 2: radius must be a number of at least 0, got 'nan'")
    cli.refuses("evaluate", "a.tsv", "--radii", "0,x", naming="expected numbers such as 0,0.25,0.5, got '0,x'")
    cli.refuses("evaluate", "a.tsv", "--radii", "-1", naming="radii must be numbers of at least 0, got -1")
    cli.refuses("evaluate", "a.tsv", "--compare", naming="--compare needs two files or more")
    cli.refuses("evaluate", "a.tsv", "cohen", "--compare", naming="are of different data")
    assert sorted(folder.iterdir()) == before


def test_plots_that_are_refused(cli: Cli, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    place("unlabelled", 1, seed=3, label=-1)
    cli.refuses("evaluate", "a.tsv", "--plot", "a.gif", naming="a plot is written as .png, .svg or .pdf")
    cli.refuses("evaluate", "a.tsv", "--plot", "none/a.png", naming="none is not a folder")
    cli.refuses("evaluate", "unlabelled", "--plot", "a.png", naming="the true class of image 0 is unknown")
    Path("cohen.png").write_text(COHENS)
    cli.refuses("evaluate", "cohen.png", "--plot", "cohen.png", naming="cohen.png is an input")
    assert not Path("a.png").exists()


def test_help_explains_the_numbers(cli: Cli) -> None:
    text = cli("evaluate", "--help").out
    assert "with a radius of at least R (L2, pixels in [0, 1])" in " ".join(text.split())
    assert "fastdc evaluate a.tsv b.tsv --radii 0,0.25,0.5 --plot curves.svg" in text
    assert "evaluate" in cli("--help").out
