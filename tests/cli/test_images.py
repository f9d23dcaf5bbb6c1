"""Images on the command line: every command that reads them says the same about them, and takes the same options."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdc.bundle import find_model
from fastdc.data import LabelledImages, digits_test
from fastdc.data.levels import Levels
from fastdc.data.notes import Notes
from fastdc.support import InputError
from helpers.cli_runs import MLP, Cli

pytest.importorskip("onnxruntime")

FEW = ("--draws", "2")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits of two classes in set/: one picture of each class has 16 bits. In dark/, all have 12 bits in 16."""
    monkeypatch.chdir(tmp_path)
    test = digits_test()
    for place, deep in (("set", 257), ("dark", 16)):
        for name in ("7", "3"):
            at = Path(place, name)
            at.mkdir(parents=True)
            for i in np.flatnonzero(test.labels == int(name))[:6]:
                image = test.images[i, 0]
                first = not any(at.iterdir())
                levels = image.astype(np.uint16) * deep if first or place == "dark" else image
                Image.fromarray(levels).save(at / f"{i}.PNG")
        Path(place, "3", "notes.txt").write_text("skipped")
    return tmp_path


def commands(data: str, out: str) -> dict[str, tuple[str, ...]]:
    """A command line of each command that reads images."""
    quick = ("--n0", "2", "--n", "10", "--sigma", "0.25", *FEW)
    return {
        "classify": ("classify", data, *MLP, *FEW, "--rule", "full"),
        "certify": ("certify", "--data", data, *MLP, *quick, "--out", f"{out}.tsv"),
        "calibrate": ("calibrate", MLP[1], data, "--delta", "0.2", "--draws", "2", "--seeds", "1", "--level-weights"),
    }


@pytest.mark.parametrize("command", ["classify", "certify", "calibrate", "score", "bench"])
def test_every_command_reads_through_the_window_of_the_model(
    cli: Cli, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was trained with a window has it in its bundle; --window gives another, once and for all."""
    if command == "score":
        pytest.importorskip("sklearn")
    shutil.copytree(find_model("digits-mlp"), "w")
    manifest = json.loads(Path("w/fastdc.json").read_text())
    manifest["image"]["window"] = [0, 255 * 16]
    Path("w/fastdc.json").write_text(json.dumps(manifest))
    every = {**commands("dark", "a"), "score": ("score", "digits-mlp", "dark", *FEW, "--check", "0")}
    every["bench"] = ("bench", "digits-mlp", "--data", "dark")
    words = tuple("w" if word == "digits-mlp" else word for word in every[command])
    used: list[tuple[Any, bool]] = []
    report = Levels.report

    def reported(self: Levels, notes: Notes) -> None:
        used.append((self.window, self.usual is not None))
        report(self, notes)

    def enough(*_: Any, **__: Any) -> None:
        raise InputError("enough")

    monkeypatch.setattr(Levels, "report", reported)
    monkeypatch.setattr("fastdc.benchmark.sample_images", enough)
    result = cli(*words)
    assert result.code == (2 if command == "bench" else 0), result.err
    assert used[0] == ((0, 255 * 16), True)
    said = [line for line in result.err.splitlines() if "window" in line]
    line = "note: 12 images read through the model's window 0 to 4080, values 0 to 4080 (--window gives another)"
    assert said == [line]
    cli(*(word.replace("a.tsv", "b.tsv") for word in words), "--window", "0", "65535")
    assert used[-1] == ((0, 65535), False)


@pytest.mark.parametrize("command", ["classify", "certify", "calibrate"])
def test_every_command_prints_the_notes_and_takes_the_options(cli: Cli, folder: Path, command: str) -> None:
    args = commands("set", "a")[command]
    result = cli(*args)
    assert result.code == 0, result.err
    notes = result.err.splitlines()
    assert "note: 1 file skipped, not an image (notes.txt)" in notes
    assert any(note.startswith("note: 2 images of 16 bits read with 65535 as white, values ") for note in notes)
    quiet = cli(*args[:-1], args[-1].replace("a.tsv", "b.tsv"), "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    cli.refuses(*commands("dark", "c")[command], naming="nearly black: give --window 0 4095")
    result = cli(*commands("dark", "c")[command], "--window", "0", "4080")
    assert result.code == 0, result.err
    assert "note: 12 images read through the window 0 to 4080, values 0 to 4080" in result.err.splitlines()
    cli.refuses(*commands("set", "d")[command], "--max-pixels", "63", naming="raise --max-pixels")
    cli.refuses(*commands("set", "d")[command], "--window", "9", "2", naming="window must begin with its smaller value")


@pytest.mark.parametrize("command", ["classify", "certify", "calibrate"])
def test_every_command_leaves_out_bad_files_and_takes_a_split(cli: Cli, folder: Path, command: str) -> None:
    Path("all/train/3").mkdir(parents=True)
    Path("all/train/3/bad.png").write_bytes(b"no picture")
    for split in ("val", "test"):
        Path("all", split).symlink_to(folder / "set", target_is_directory=True)
    natural = "val" if command == "calibrate" else "test"
    result = cli(*commands("all", "a")[command])
    assert result.code == 0, result.err
    assert f"note: split {natural} of all used; it has test, train, val" in result.err.splitlines()
    cli.refuses(*commands("all", "b")[command], "--split", "train", naming="all/train/3/bad.png: is not an image in")
    Path("set/7/bad.png").write_bytes(b"no picture")
    cli.refuses(*commands("all", "b")[command], naming="; --skip-bad leaves it out")
    result = cli(*commands("all", "b")[command], "--skip-bad")
    assert result.code == 0, result.err
    assert f"note: left out: all/{natural}/7/bad.png: is not an image in a format" in result.err
    if command == "classify":
        assert len(result.out.splitlines()) == 12
        quiet = cli(*commands("all", "b")[command], "--skip-bad", "--quiet", "--provenance", "run.json")
        assert (quiet.code, quiet.err) == (0, "")
        (left_out,) = json.loads(Path("run.json").read_text())["left_out"]
        assert left_out["image"] == "all/test/7/bad.png"
    if command == "certify":
        assert "all/test/7/bad.png" in Path("b.tsv.json").read_text()


def test_train_and_export_print_the_notes_as_well(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    train = ("train", "--model", "mlp", "--width", "8", "--steps", "2")
    cli.refuses(*train, "dark", "--out", "run", naming="nearly black: give --window 0 4095")
    result = cli(*train, "dark", "--out", "run", "--window", "0", "4080", "--val", "set")
    assert result.code == 0, result.err
    notes = result.err.splitlines()
    assert "note: 12 images read through the window 0 to 4080, values 0 to 4080" in notes
    assert "note: 1 file skipped, not an image (notes.txt)" in notes
    assert "note: validation: 1 file skipped, not an image (notes.txt)" in notes
    taken: list[LabelledImages] = []

    def export_run(*_: Any, calibrate: LabelledImages, **__: Any) -> None:
        taken.append(calibrate)
        raise InputError("enough")

    monkeypatch.setattr("fastdc.export.export_run", export_run)
    test = digits_test()
    chosen = np.flatnonzero((test.labels == 3) | (test.labels == 7))[12:32]
    kinds = {"images": test.images[chosen] / 255, "labels": (test.labels[chosen] == 3).astype(int)}
    np.savez("val.npz", **kinds, class_names=["7", "3"])  # the run's classes are 3 and 7
    result = cli("export", "run", "out", "--calibrate", "val.npz", *FEW)
    assert result.err == "note: 20 images rounded from float to 8 bits\nfastdc: error: enough\n"
    assert (taken[0].class_names, taken[0].labels.tolist()) == (("3", "7"), (test.labels[chosen] == 7).tolist())
    np.savez("val.npz", **kinds, class_names=["7", "9"])
    cli.refuses("export", "run", "new", "--calibrate", "val.npz", naming="has a class '9' that the model does not have")
    result = cli("export", "run", "out", "--calibrate", "dark", *FEW)  # through the window of the training
    assert "note: 12 images read through the model's window 0 to 4080, values 0 to 4080 (--window" in result.err
    np.testing.assert_array_equal(np.unique(taken[1].labels, return_counts=True)[1], [6, 6])
    result = cli("export", "run", "out", "--calibrate", "dark", *FEW, "--window", "0", "65535")
    assert "note: 12 images read through the window 0 to 65535" in result.err
    assert taken[2].images.max() == 16


def test_the_accuracy_is_that_of_the_named_classes(cli: Cli, folder: Path) -> None:
    """Counted by position, classes in another order would be wrong in nine of ten images."""
    test = digits_test()
    order = np.roll(np.arange(10), 3)
    labels = np.argsort(order)[test.labels[:40]]
    np.savez("turned.npz", images=test.images[:40], labels=labels, class_names=[str(k) for k in order])
    np.savez("plain.npz", images=test.images[:40], labels=test.labels[:40])
    found = [cli("classify", name, *MLP, "--draws", "16").err.splitlines()[-2] for name in ("turned.npz", "plain.npz")]
    assert found[0].rsplit(",", 1)[1] == found[1].rsplit(",", 1)[1]
    assert float(found[0].split(", accuracy ")[1].split()[0]) > 90
    assert ", accuracy " in cli("classify", "set", *MLP, "--draws", "16").err
    np.savez("other.npz", images=test.images[:4], labels=labels[:4], class_names=[f"c{k}" for k in range(10)])
    result = cli("classify", "other.npz", *MLP, *FEW)
    assert "accuracy" not in result.err
    assert "note: 4 labels not used: other.npz: has a class 'c0' that the model does not have" in result.err
