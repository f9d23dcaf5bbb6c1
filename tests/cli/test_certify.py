"""``fastdc certify``: the library's certificates, data sets of every kind, and runs that are stopped and go on."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdc
from fastdc.certification.certificate import Certificate
from fastdc.certification.estimation import Fixed
from fastdc.certification.record_writer import RecordWriter
from fastdc.certification.records import HEADER, UNKNOWN, read_records
from fastdc.certification.summary import default_radii, summarize, summary_table
from fastdc.classifier import DiffusionClassifier
from fastdc.data import digits_test
from helpers.cli_runs import MLP, Cli, place_digits

# Few copies and draws: which class wins does not matter here.
QUICK = (*MLP, "--sigma", "0.25", "--n0", "3", "--n", "12", "--alpha", "0.05", "--draws", "2", "--threads", "1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with digits."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return place_digits(tmp_path)


def untimed(path: str | Path) -> list[list[str]]:
    """The fields of a file's lines, all but the time."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()]
    return [row[:5] + row[6:] for row in rows]


def manifest(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{path}.json").read_text())
    return found


# --- runs ------------------------------------------------------------------------------------------------------------


def test_the_file_holds_the_library_s_certificates(cli: Cli, folder: Path) -> None:
    result = cli("certify", "--data", "b.npz", *QUICK, "--skip", "4", "--max", "11", "--seed", "5", "--out", "run.tsv")
    assert (result.code, result.err) == (0, "")
    test = digits_test()
    clf = fastdc.load("digits-mlp")
    base = clf.base(sigma=0.25, method="epndc", draws=2, seed=5)
    expected = list(clf.certify_stream(test.images[[0, 4, 8]], Fixed(0.25, 12, 0.05), n0=3, seed=5, base=base))
    records = read_records("run.tsv")
    assert records.idx.tolist() == [0, 4, 8]
    assert records.label.tolist() == test.labels[[0, 4, 8]].tolist()
    assert records.predict.tolist() == [found.label for _, found in expected]
    assert records.radius.tolist() == [found.radius for _, found in expected]
    for name, values in records.own.items():
        assert values.tolist() == [getattr(found, name) for _, found in expected]
    assert result.out == summary_table([summarize(records, default_radii([records]), name="run")]) + "\n"


def test_the_same_words_in_python_give_the_same_records(cli: Cli, folder: Path) -> None:
    """Whatever the words: an estimation, a method, a rule, options of the plan."""
    test, clf = digits_test(), fastdc.load("digits-mlp", threads=1)
    common: dict[str, Any] = {"n0": 3, "n": 12, "alpha": 0.05, "draws": 2}
    for typed, words in (
        ((), {}),
        (("--radius", "0.1", "--method", "dc", "--seed", "3"), {"radius": 0.1, "method": "dc", "seed": 3}),
        (("--estimation", "anytime", "--tolerance", "0.2"), {"estimation": "anytime", "tolerance": 0.2}),
        (("--rule", "full", "--loss", "l1"), {"rule": "full", "loss": "l1"}),
    ):
        cli("certify", "--data", "b.npz", *QUICK, *typed, "--max", "3", "--overwrite", "--out", "run.tsv")
        records, made = read_records("run.tsv"), clf.certify(test.images[:3], 0.25, **common, **words)
        assert records.predict.tolist() == [found.label for found in made]
        assert records.radius.tolist() == [found.radius for found in made]
        for name, values in records.own.items():
            assert values.tolist() == [getattr(found, name) for found in made]


def test_the_manifest_reproduces_the_run(cli: Cli, folder: Path) -> None:
    assert cli("certify", "--data", "b.npz", *QUICK, "--max", "2", "--method", "dc", "--out", "run.tsv").code == 0
    found = manifest("run.tsv")
    clf = fastdc.load("digits-mlp")
    assert found["indices"] == [0, 2, 1]
    assert found["base"] == json.loads(json.dumps(clf.base(sigma=0.25, method="dc", draws=2).describe()))
    assert found["base"]["sha256"] == clf.model.identity
    smoothing = {"estimation": "fixed", "sigma": 0.25, "n": 12, "alpha": 0.05, "n0": 3, "copies_seed": 0}
    assert found["smoothing"] == smoothing
    assert (found["data"]["images"], found["data"]["labelled"]) == (70, True)
    assert found["environment"]["data"] == "b.npz"


@pytest.mark.parametrize(
    ("extra", "smoothing"),
    [
        (("--radius", "0.1"), {"estimation": "target", "radius": 0.1, "n": 12}),
        (("--estimation", "pilot"), {"estimation": "pilot", "loss": 0.05}),
        (("--estimation", "anytime", "--tolerance", "0.2"), {"estimation": "anytime", "gain": 0.2}),
    ],
)
def test_other_estimations(cli: Cli, folder: Path, extra: tuple[str, ...], smoothing: dict[str, Any]) -> None:
    assert cli("certify", "--data", "b.npz", *QUICK, "--max", "2", *extra, "--out", "run.tsv").code == 0
    assert smoothing.items() <= manifest("run.tsv")["smoothing"].items()
    assert len(read_records("run.tsv")) == 2


def test_a_run_goes_on_where_it_stopped(cli: Cli, folder: Path) -> None:
    command = ("certify", "--data", "b.npz", *QUICK, "--max", "6", "--out", "run.tsv")
    assert cli(*command).code == 0
    whole, lines = untimed("run.tsv"), Path("run.tsv").read_bytes().splitlines(keepends=True)
    Path("run.tsv").write_bytes(b"".join(lines[:4]) + lines[4][:-3])
    result = cli(*command)
    assert result.code == 0
    assert result.err == "note: run.tsv already holds 3 images, 3 to go\n"
    assert untimed("run.tsv") == whole
    assert Path("run.tsv").read_bytes().startswith(b"".join(lines[:4]))
    again = cli(*command)
    assert again.err == "note: run.tsv already holds 6 images, 0 to go\n"
    assert (again.code, again.out) == (0, result.out)


def test_another_certification_is_refused(cli: Cli, folder: Path) -> None:
    command = ("certify", *QUICK, "--max", "2", "--out", "run.tsv")
    assert cli(*command, "--data", "b.npz").code == 0
    before = Path("run.tsv").read_bytes()
    other_seed = "run.tsv belongs to another certification: its smoothing.copies_seed"
    cli.refuses(*command, "--data", "b.npz", "--seed", "1", naming=other_seed)
    np.savez("other.npz", images=digits_test().images[70:140], labels=np.zeros(70, int))
    cli.refuses(*command, "--data", "other.npz", naming="run.tsv belongs to another certification: its data.sha256 is")
    assert Path("run.tsv").read_bytes() == before
    assert cli(*command, "--data", "b.npz", "--seed", "1", "--overwrite", "--quiet").err == ""
    assert manifest("run.tsv")["smoothing"]["copies_seed"] == 1
    Path("moved.npz").write_bytes(Path("b.npz").read_bytes())
    assert cli(*command, "--data", "moved.npz", "--seed", "1", "--threads", "2", "--quiet").code == 0  # the same data


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests themselves run in the background of a shell."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_during_a_record_waits_for_it(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    write = RecordWriter.write

    def interrupted(self: RecordWriter, idx: int, label: int, certificate: Certificate) -> None:
        if idx == 1:
            signal.raise_signal(number)
        write(self, idx, label, certificate)

    command = ("certify", "--data", "b.npz", *QUICK, "--max", "4", "--out", "run.tsv")
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", interrupted)
        result = cli(*command)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (result.code, result.out) == (code, "")
    assert result.err.splitlines()[-1] == "fastdc: interrupted: 2 of 4 images finished; the same command goes on"
    assert read_records("run.tsv").idx.tolist() == [0, 1]
    assert cli(*command).code == 0
    assert read_records("run.tsv").idx.tolist() == [0, 1, 2, 3]


def test_ctrl_c_between_records(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = DiffusionClassifier.certify_stream

    def interrupted(*args: Any, **options: Any) -> Iterator[tuple[int, Certificate]]:
        yield next(iter(stream(*args, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(DiffusionClassifier, "certify_stream", interrupted)
    result = cli("certify", "--data", "b.npz", *QUICK, "--max", "4", "--out", "run.tsv")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "fastdc: interrupted: 1 of 4 images finished; the same command goes on"
    assert read_records("run.tsv").idx.tolist() == [0]


# --- data sets -------------------------------------------------------------------------------------------------------


def test_the_digits_that_come_with_fastdc(cli: Cli, folder: Path) -> None:
    (folder / "digits").rename(folder / "elsewhere")
    assert cli("certify", "--data", "digits", *QUICK, "--max", "400", "--skip", "399", "--out", "run.tsv").code == 0
    records = read_records("run.tsv")
    assert records.idx.tolist() == [0, 399]
    assert records.label.tolist() == digits_test().labels[[0, 399]].tolist()


def test_a_folder_of_classes(cli: Cli, folder: Path) -> None:
    test = digits_test()
    for name in ("3", "8"):  # classes of the model, and not the first ones
        (folder / "val" / name).mkdir(parents=True)
        for i in np.flatnonzero(test.labels == int(name))[:2]:
            Image.fromarray(test.images[i, 0]).save(folder / "val" / name / f"{i}.png")
    assert cli("certify", "--data", "val", *QUICK, "--out", "run.tsv").err == ""
    assert read_records("run.tsv").label.tolist() == [3, 3, 8, 8]


def test_an_npz_with_names_of_its_own(cli: Cli, folder: Path) -> None:
    images = digits_test().images[:2]
    np.savez("named.npz", images=images, labels=np.array([1, 0]), class_names=np.array(["7", "2"]))
    assert cli("certify", "--data", "named.npz", *QUICK, "--out", "run.tsv").code == 0
    assert read_records("run.tsv").label.tolist() == [2, 7]
    np.savez("named.npz", images=images, labels=np.array([1, 0]), class_names=np.array(["cat", "2"]))
    cli.refuses(
        "certify", "--data", "named.npz", *QUICK, "--out", "new.tsv", naming="named.npz: has a class 'cat' that"
    )
    np.savez("named.npz", images=images, labels=np.array([1, 10]))
    cli.refuses("certify", "--data", "named.npz", *QUICK, "--out", "new.tsv", naming="named.npz: has label 10")
    assert not Path("new.tsv").exists()


def test_images_without_labels(cli: Cli, folder: Path) -> None:
    command = ("certify", "--data", "a.npy", *QUICK, "--max", "2", "--out", "run.tsv")
    result = cli(*command)
    note, summary = result.err.splitlines()
    assert note == "note: true classes are unknown"
    records = read_records("run.tsv")
    assert records.label.tolist() == [UNKNOWN, UNKNOWN]
    assert not records.correct.any()
    names = ["abstains" if label < 0 else str(label) for label in records.predict]
    lines = [f"a.npy[{i}]\t{names[i]}\t{records.radius[i]:.4f}" for i in range(2)]
    assert result.out.splitlines() == lines
    assert summary.startswith(f"2 images, average radius {records.radius.mean():.3f} (quartiles ")
    assert f", {(records.predict < 0).sum()} abstained, {records.own['evaluations'].sum():,} evaluations, " in summary
    assert cli(*command).out.splitlines() == lines  # nothing is left to certify
    assert cli(*command, "--overwrite", "--quiet")[1:] == (result.out, "")
    (folder / "all" / "part1").mkdir(parents=True)
    (folder / "digits" / "0.png").rename(folder / "all" / "part1" / "0.png")
    result = cli("certify", "--data", "all", *QUICK, "--out", "new.tsv")
    note = "note: true classes are unknown: the folders in all are not named after its classes"
    assert result.err.splitlines()[0] == note
    assert len(read_records("new.tsv")) == 1


def test_notes_are_of_the_images_that_are_certified(cli: Cli, folder: Path) -> None:
    for i in range(3):
        path = folder / "digits" / f"{i}.png"
        Image.open(path).resize((10 + 20 * i,) * 2).save(path)
    (folder / "digits" / "x.txt").touch()
    np.save("large.npy", np.repeat(np.repeat(np.load("a.npy"), 2, axis=2), 2, axis=3))
    skipped, unknown = "note: 1 file skipped, not an image (x.txt)", "note: true classes are unknown"
    for options, notes in (
        (("digits", "--max", "2"), [skipped, "note: 2 images resized to 8x8 from 10x10, 30x30", unknown]),
        (("digits", "--max", "2", "--skip", "2"), [skipped, "note: 1 image resized to 8x8 from 10x10", unknown]),
        (("large.npy", "--max", "1"), ["note: 1 of 5 images are used, but all were converted", None, unknown]),
    ):
        err = cli("certify", "--data", *options, *QUICK, "--out", "run.tsv", "--overwrite").err.splitlines()
        assert [line for line, note in zip(err[:-1], notes, strict=True) if note is not None and line != note] == []


def test_bad_options_and_files_are_refused(cli: Cli, folder: Path) -> None:
    before = sorted(folder.iterdir())

    def refuses(*extra: str, naming: str) -> None:
        cli.refuses("certify", "--data", "b.npz", *QUICK, "--out", "run.tsv", *extra, naming=naming)

    refuses("--data", "none.npz", naming="none.npz")
    refuses("--out", "none/run.tsv", naming="none is not a folder")
    refuses("--out", "b.npz", naming="b.npz is an input")
    refuses("--sigma", "0", naming="sigma must be positive and finite, got 0.0")
    refuses("--alpha", "1", naming="alpha must lie strictly between 0 and 1, got 1.0")
    refuses("--n", "0", naming="n must be a whole number from 1")
    refuses("--n0", "0", naming="n0 must be a whole number from 1")
    refuses("--skip", "0", naming="--skip must be a whole number of at least 1, got 0")
    refuses("--max", "-1", naming="--max must be a whole number of at least 1, got -1")
    refuses("--radius", "-1", naming="radius must be positive")
    refuses("--radius", "0.1", "--estimation", "pilot", naming="expected no --estimation pilot beside it")
    refuses("--tolerance", "0.1", naming="--tolerance needs --estimation pilot or anytime, and no radius")
    refuses("--seed", "-1", naming="seed must be")
    refuses("--method", "x", naming="'x' is not one of")
    assert sorted(folder.iterdir()) == before
    Path("text").write_text("mine")
    cli.refuses("certify", "--data", "b.npz", *QUICK, "--out", "text", naming="text exists and is not a certification")
    assert Path("text").read_text() == "mine"


def test_help_teaches(cli: Cli) -> None:
    text = " ".join(cli("certify", "--help").out.split())
    for phrase in ("sigma * Phi^-1(p)", "--radius R asks only whether", "the same command goes on where it stopped"):
        assert phrase in text
    assert "certify" in cli("--help").out


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_the_file_of_an_uninterrupted_one(folder: Path) -> None:
    """At random moments: while it starts, while it computes, and right after a record."""

    # Two images at once instead of many, so that records come one by one and not in heaps.
    code = "from fastdc.certification import smoothing; smoothing._OPEN = 2; from fastdc.cli.main import main; main()"
    options = (
        *MLP,
        "--sigma",
        "0.25",
        "--n0",
        "8",
        "--n",
        "40",
        "--threads",
        "1",
        "--quiet",
        "--rule",
        "full",
        "--draws",
        "32",
    )

    def command(out: str) -> list[str]:
        return [sys.executable, "-c", code, "certify", "--data", "digits", *options, "--max", "150", "--out", out]

    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    chance = random.Random(4)
    (folder / "digits").rename(folder / "elsewhere")
    path = Path("killed.tsv")
    with_progress = 0
    for kill in range(20):
        before = size()
        child = subprocess.Popen(command("killed.tsv"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill % 2:  # at any moment, most likely before the first record
            time.sleep(chance.uniform(0, 1.5))
        else:  # soon after one
            while size() <= max(before, len(HEADER)):
                time.sleep(0.001)
                assert child.poll() is None, "the run was over before it was killed twenty times"
            time.sleep(chance.uniform(0, 0.05))
        child.kill()
        assert child.wait() == -signal.SIGKILL
        with_progress += size() > before
    assert with_progress >= 10
    for out in ("killed.tsv", "whole.tsv"):
        subprocess.run(command(out), check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert read_records("whole.tsv").idx.tolist() == list(range(150))
    assert untimed("killed.tsv") == untimed("whole.tsv")
    assert manifest("killed.tsv") == manifest("whole.tsv")
