"""``fastdc score``: the page, the files, groups, refusals and interruptions."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import fastdc
from fastdc.bundle import MANIFEST, SeenImages, find_model
from fastdc.cli import images
from fastdc.cli import score as command
from fastdc.data import digits_test, load_labelled, mnist_test, phantoms_test
from fastdc.inference import Classification
from fastdc.support import Interrupted, install_hint
from fastdc.testing.absent import WITHOUT
from helpers.cli_runs import Cli

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")

FEW = ("--draws", "4", "--check", "5")
TEST = digits_test()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 test digits in b.npz and, as PNG files, in set/0 ... set/9; five without labels in a.npy."""
    for i in range(40):
        place = tmp_path / "set" / str(TEST.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(TEST.images[i, 0]).save(place / f"{i:02}.png")
    np.savez(tmp_path / "b.npz", images=TEST.images[:40], labels=TEST.labels[:40])
    np.save(tmp_path / "a.npy", TEST.images[:5])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(cli: Cli, *args: str) -> dict[str, Any]:
    """What --json says."""
    result = cli("score", *args, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    found: dict[str, Any] = json.loads(result.out)
    return found


def with_columns(monkeypatch: pytest.MonkeyPatch, **columns: list[str]) -> None:
    """Lets every set of images have the columns of a manifest, and one image that was left out."""
    read = images.read_with_labels

    def more(*args: Any, **options: Any) -> Any:
        loaded = read(*args, **options)
        each = {name: tuple((values * len(loaded))[: len(loaded)]) for name, values in columns.items()}
        return replace(loaded, columns=each, left_out=(("bad.png", "is no image"),))

    monkeypatch.setattr(command, "read_with_labels", more)


def test_shipped_models_have_test_images(cli: Cli) -> None:
    found = told(cli, "digits-mlp", *FEW)
    result = fastdc.load("digits-mlp").classify(TEST.images, draws=4)
    right = int((result.labels == TEST.labels).sum())
    interval = stats.binomtest(right, 400).proportion_ci(0.95, method="wilson")
    assert found["accuracy"] == pytest.approx(
        {"value": right / 400, "ci95_low": interval.low, "ci95_high": interval.high}
    )
    assert found["evaluations_per_image"] == result.evaluations.mean()
    assert found["evaluations_of_a_full_run"] == 40
    assert found["coverage"] == {"given": 400, "share": 1.0, "left_out": []}
    assert found["agreement"]["compared"] == 5
    assert found["provenance"]["model"] == "digits-mlp"
    assert np.sum(found["confusion_matrix"]) == 400
    cli.refuses("score", "shapes", naming="only digits, digits-mlp, mnist and phantoms come with test images")


def test_each_shipped_model_is_scored_on_images_of_its_size() -> None:
    limits = images.Limits(window=None, max_pixels=None, skip_bad=False, split=None, fit=None)
    for name, test in (("digits", TEST), ("mnist", mnist_test()), ("phantoms", phantoms_test())):
        loaded = command._labelled((), name, fastdc.load_bundle(find_model(name)), limits)
        assert loaded.labels is not None
        assert loaded.labels.tolist() == test.labels.tolist()
        assert np.array_equal(loaded.images, test.images)
        assert loaded.notes == ()


def test_the_page_and_the_promise(cli: Cli, folder: Path) -> None:
    code, out, err = cli("score", "digits-mlp", "b.npz", "--check", "10")
    assert (code, err) == (0, "")
    lines = dict(line.split(None, 1) for line in out.split("\n\n")[0].splitlines())
    assert list(lines) == [
        "model",
        "rule",
        "images",
        "accuracy",
        "balanced",
        "macro",
        "AUROC",
        "AUPRC",
        "ECE",
        "Brier",
        "log",
        "refusal",
        "evaluations",
        "time",
        "full",
        "this",
    ]
    assert lines["images"] == "40 of 10 classes"
    assert lines["evaluations"].endswith("a full run takes 1,280")
    assert "same answer for 10 of 10 images, 100.0 % (95 % interval 72.2 to 100.0 %); promised: at least 99 %" in out
    assert "this check took 12,800 evaluations, " in out
    assert "temperature 0.03362" in lines["ECE"]


def test_a_check_costs_no_more_than_the_run_or_ten_images(cli: Cli, folder: Path) -> None:
    page = cli("score", "digits-mlp", "b.npz").out
    assert "same answer for 10 of 10 images" in page
    assert "* only 10 of 40 images were compared with the full run, which takes 1,280 evaluations per image" in page
    found = told(cli, "digits-mlp", "b.npz", "--rule", "paired", "--draws", "16")
    checked = found["agreement"]["compared"]
    assert 10 < checked < 40
    assert found["agreement"]["evaluations"] <= found["evaluations_per_image"] * 40 < (checked + 1) * 160


def test_classes_of_prior_0_cost_nothing_and_one_class_alone_is_not_compared(cli: Cli, folder: Path) -> None:
    few = ("digits-mlp", "b.npz", "--draws", "4")
    found = told(cli, *few, "--check", "5", "--prior", "1,2,1,0,0,0,0,0,0,0")
    assert found["evaluations_of_a_full_run"] == 12
    assert found["agreement"]["evaluations"] == 5 * 12
    alone = "1,0,0,0,0,0,0,0,0,0"
    found = told(cli, *few, "--prior", alone)
    assert (found["agreement"], found["evaluations_of_a_full_run"]) == (None, 4)
    cli.refuses("score", *few, "--prior", alone, "--check", "5", naming="only one class has a prior above 0")


def test_a_folder_and_an_array_have_one_score(cli: Cli, folder: Path) -> None:
    one, other = told(cli, "digits-mlp", "b.npz", *FEW), told(cli, "digits-mlp", "set", *FEW)
    assert one["confusion_matrix"] == other["confusion_matrix"]
    for name in ("accuracy", "auroc", "ece", "brier", "log_loss"):
        assert one[name] == pytest.approx(other[name])
    both = told(cli, "digits-mlp", "b.npz", "set", *FEW)
    assert both["images"] == 80


def test_files_are_written(cli: Cli, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--csv", "s.csv", "--html", "s.html", "--plot", "s.svg", "--save", "e.npz")
    code, _, err = cli("score", "digits-mlp", "b.npz", *FEW, *files)
    assert code == 0
    assert [line.split()[-1] for line in err.splitlines()[-4:]] == ["s.csv", "s.html", "s.svg", "e.npz"]
    assert next(csv.DictReader(Path("s.csv").read_text().splitlines()))["images"] == "40"
    assert "<svg" in Path("s.html").read_text()
    assert "digits-mlp" in Path("s.svg").read_text()
    table = fastdc.ErrorTable.load("e.npz")
    assert len(table) == 40
    quiet = cli("score", "digits-mlp", "b.npz", *FEW, *files, "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_groups_of_a_column_are_scored(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_columns(monkeypatch, site=["north", "south"], sex=["f", "f", "m", "m"])
    found = told(cli, "digits-mlp", "b.npz", *FEW, "--by", "site", "--by", "sex")
    result = fastdc.load("digits-mlp").classify(TEST.images[:40], draws=4)
    right = result.labels == TEST.labels[:40]
    assert list(found["groups"]) == ["site", "sex"]
    north, men = found["groups"]["site"]["north"], found["groups"]["sex"]["m"]
    assert (north["images"], north["accuracy"]["value"]) == (20, right[::2].mean())
    assert men["accuracy"]["value"] == right[np.arange(40) % 4 > 1].mean()
    assert north["evaluations_per_image"] == result.evaluations[::2].mean()
    assert found["coverage"] == {"given": 41, "share": 40 / 41, "left_out": [["bad.png", "is no image"]]}
    page = cli("score", "digits-mlp", "b.npz", *FEW, "--by", "sex").out
    assert "40 of 10 classes, 97.56 % of 41: 1 could not be read" in page
    assert "\nsex  images  accuracy, %" in page
    cli.refuses("score", "digits-mlp", "b.npz", "--by", "sexx", naming="did you mean 'sex'?")


def test_what_cannot_be_scored_is_refused_before_the_network(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("the network was opened")

    monkeypatch.setattr(command, "open_network", opened)
    score = ("score", "digits-mlp")
    cli.refuses(*score, "a.npy", naming="a.npy: labels must be given")
    cli.refuses(*score, "b.npz", "a.npy", naming="a.npy: labels must be given")
    cli.refuses(*score, "set/3", naming="set/3: has no sub-folders; a labelled folder has one for each class")
    shutil.copytree("set", "odd")
    Path("odd/3").rename("odd/three")
    cli.refuses(*score, "odd", naming="has a class 'three' that the model does not have")
    np.savez("c.npz", images=TEST.images[:2], labels=[0, 10])
    cli.refuses(*score, "c.npz", naming="has label 10")
    cli.refuses(*score, "b.npz", "--by", "site", naming="these images have no columns, as a manifest has")
    cli.refuses(*score, "b.npz", "--check", "-1", naming="--check must be")
    cli.refuses(*score, "b.npz", "--check", "5", "--rule", "full", naming="expected no --check")
    cli.refuses(*score, "b.npz", "--csv", "a.txt", naming="--csv needs a name that ends in .csv, got 'a.txt'")
    cli.refuses(*score, "b.npz", "--html", "a.htm", naming="--html needs a name that ends in .html")
    cli.refuses(*score, "b.npz", "--plot", "a.gif", naming=".png, .svg or .pdf")
    cli.refuses(*score, "b.npz", "--save", "b.npz", naming="is an input")
    cli.refuses(*score, "b.npz", "--csv", "no/a.csv", naming="is not a folder")
    cli.refuses("score", "digits-mpl", "b.npz", naming="did you mean 'digits-mlp'")
    with_columns(monkeypatch, site=[str(i) for i in range(600)])
    np.savez("d.npz", images=np.repeat(TEST.images[:1], 600, 0), labels=np.full(600, TEST.labels[0]))
    cli.refuses(*score, "d.npz", "--by", "site", naming="column 'site' has 600 values")


def test_notes_say_what_the_numbers_depend_on(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vote = cli("score", "digits-mlp", "b.npz", *FEW, "--decision", "vote").out
    assert "* probabilities are shares of votes" in vote
    assert "temperature" not in vote
    other = cli("score", "digits-mlp", "b.npz", *FEW, "--loss", "l1").out
    assert "* the temperature of the probabilities was fitted without --loss" in other
    unchecked = cli("score", "digits-mlp", "b.npz", "--draws", "4", "--check", "0").out
    assert "* not compared with the full run, which takes 40 evaluations per image" in unchecked
    full = cli("score", "digits-mlp", "b.npz", "--draws", "4", "--rule", "full").out
    assert "full run" not in full.replace("a full run takes", "")
    assert "trained on" not in full
    pixels = load_labelled("b.npz").images
    for trained, chosen, note in (
        (pixels, pixels[:0], "* digits-mlp was trained on these images"),
        (pixels[:0], pixels[:5], f"* 5 of these {len(pixels)} images chose the checkpoint or the plan of digits-mlp"),
    ):
        shutil.copytree(find_model("digits-mlp"), "m", dirs_exist_ok=True)
        manifest = json.loads(Path("m", MANIFEST).read_text())
        manifest["training"] = {"seen": SeenImages.of(trained, chosen=chosen).to_dict()}
        Path("m", MANIFEST).write_text(json.dumps(manifest))
        assert note in " ".join(cli("score", "m", "b.npz", *FEW).out.split())


def interrupted_after(count: int, results: Any) -> Any:
    """Some results of a run, and an interruption."""
    for _, result in zip(range(count), results, strict=False):
        yield result
    raise Interrupted("interrupted: enough")


@pytest.mark.parametrize("where", ["classify_chunks", "_full_runs"])
def test_an_interruption_keeps_what_was_done(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = getattr(command, where)
    monkeypatch.setattr(command, where, lambda *args, **options: interrupted_after(1, run(*args, **options)))
    args = ("score", "digits-mlp", "b.npz", "--draws", "4", "--check", "20")
    result = cli(*args, "--save", "e.npz", "--html", "s.html")
    assert result.code == 130
    if where == "_full_runs":
        assert result.err.splitlines()[-1] == "fastdc: interrupted: 16 of 20 images run in full"
        assert "of 16 images" in result.out
        assert len(fastdc.ErrorTable.load("e.npz")) == 40
    else:
        assert result.err.splitlines()[-1] == "fastdc: interrupted: enough"
        assert "16 of 10 classes, 40 % of 40: 24 not finished" in result.out
        assert "full run  " not in result.out
        assert len(fastdc.ErrorTable.load("e.npz")) == 16
    assert Path("s.html").exists()
    monkeypatch.setattr(command, where, lambda *args, **options: interrupted_after(0, run(*args, **options)))
    nothing = cli(*args)
    assert nothing.code == 130
    assert ("accuracy" in nothing.out) == (where == "_full_runs")


def test_ctrl_c_prints_a_page(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while the second of many results is kept: it must be whole, and the next ones may be there."""
    np.savez("many.npz", images=np.tile(TEST.images, (5, 1, 1, 1)), labels=np.tile(TEST.labels, 5))
    keep = command._Answers.add

    def add(self: command._Answers, result: Classification) -> None:
        if len(self.parts["labels"]) == 1:
            signal.raise_signal(signal.SIGINT)
        keep(self, result)

    monkeypatch.setattr(command._Answers, "add", add)
    done = cli("score", "digits-mlp", "many.npz", "--draws", "32", "--json")
    assert done.code == 130, done.err
    found = json.loads(done.out)
    assert 32 <= found["images"] < 2000
    assert found["coverage"]["given"] == 2000
    assert found["agreement"] is None
    assert done.err.splitlines()[-1] == f"fastdc: interrupted: {found['images']} of 2000 images finished"


def test_without_scikit_learn_it_is_refused_before_the_work(folder: Path) -> None:
    main = "from fastdc.cli.main import main; main()"
    args = [sys.executable, "-c", WITHOUT + main, "sklearn", "score", "digits-mlp", "b.npz"]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "sklearn is needed here" in line
    assert install_hint("sklearn") in line


def test_a_run_that_calibrates_itself_is_compared_on_images_that_raced(cli: Cli, folder: Path) -> None:
    args = ("digits-mlp", "b.npz", "--self-calibrate", "19", "--draws", "16", "--seed", "3")
    found = told(cli, *args, "--check", "40")
    result = fastdc.load("digits-mlp").classify(TEST.images[:40], self_calibrate=19, draws=16, seed=3)
    full = fastdc.load("digits-mlp").classify(TEST.images[:40], rule="full", draws=16, seed=3)
    assert (found["agreement"]["compared"], found["agreement"]["promised"]) == (21, 0.95)
    assert found["agreement"]["differing"] == np.flatnonzero(result.labels != full.labels).tolist()
    assert "19 images were run in full, to calibrate the race of 21 others" in found["notes"]
    assert found["evaluations_per_image"] == result.evaluations.mean()
    alone = told(cli, "digits-mlp", "b.npz", "--self-calibrate", "40", "--draws", "16")
    assert alone["agreement"] is None


def test_bad_files_are_left_out_and_splits_taken(cli: Cli, folder: Path) -> None:
    (folder / "set/3/x.png").write_bytes(b"no image")
    cli.refuses("score", "digits-mlp", "set", naming="x.png")
    found = told(cli, "digits-mlp", "set", *FEW, "--skip-bad")
    assert (found["images"], found["coverage"]["given"]) == (40, 41)
    ((name, _),) = found["coverage"]["left_out"]
    assert name.endswith("3/x.png")
    for split, digit in (("train", 3), ("test", 7)):
        place = folder / "splits" / split / str(digit)
        place.mkdir(parents=True)
        Image.fromarray(TEST.images[np.flatnonzero(TEST.labels == digit)[0], 0]).save(place / "a.png")
    seen = [told(cli, "digits-mlp", "splits", "--draws", "4", *more)["classes"] for more in ((), ("--split", "train"))]
    assert [[one["class"] for one in classes if one["images"]] for classes in seen] == [["7"], ["3"]]


def test_a_positive_class_has_its_measures_and_a_threshold_for_other_images(cli: Cli, folder: Path) -> None:
    few = ("digits-mlp", "b.npz", "--draws", "1", "--check", "0", "--rule", "full")
    found = told(cli, *few, "--positive", "8", "--sensitivity", "0.9")
    result = fastdc.load("digits-mlp").classify(TEST.images[:40], draws=1, rule="full")
    own = TEST.labels[:40] == 8
    assert found["positive"]["name"] == "8"
    assert found["positive"]["sensitivity"]["value"] == (result.labels[own] == 8).mean()
    threshold = found["positive"]["threshold"]
    assert (result.probabilities[own, 8] >= threshold).mean() >= 0.9
    assert found["positive"]["specificity_at"]["value"] == (result.probabilities[~own, 8] < threshold).mean()
    page = cli("score", *few, "--positive", "8", "--threshold", "0.5").out
    assert "8 against the rest: " in page
    assert "at 0.5       sensitivity " in page
    cli.refuses("score", *few, "--positive", "eight", naming="positive")
    cli.refuses("score", *few, "--threshold", "0.5", naming="--threshold is one for the class of --positive")
    cli.refuses("score", *few, "--sensitivity", "0.5", naming="--sensitivity is one for the class of --positive")
    both = ("--positive", "8", "--sensitivity", "0.5", "--threshold", "0.5")
    cli.refuses("score", *few, *both, naming="--sensitivity finds a threshold, and --threshold gives one")
    cli.refuses("score", *few, "--positive", "8", "--sensitivity", "0", naming="sensitivity must be in (0, 1]")


def test_less_certain_answers_are_refused_first(cli: Cli, folder: Path) -> None:
    few = ("digits-mlp", "--draws", "1", "--check", "0", "--rule", "full")
    found = told(cli, *few)["refusal"]
    result = fastdc.load("digits-mlp").classify(TEST.images, draws=1, rule="full")
    right = result.labels == TEST.labels
    order = np.argsort(result.uncertainties, kind="stable")[:200]
    assert found["accuracy"][0] == right.mean()
    assert found["accuracy"][found["refused"].index(0.5)] == pytest.approx(right[order].mean(), abs=0.003)
    assert found["area"] > right.mean()
    assert "least certain; area" in cli("score", *few).out


def test_baselines_are_trained_and_stand_beside_the_model(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from fastdc.train import baselines

    monkeypatch.setattr(baselines, "_EPOCHS", (2, 2))
    np.savez("t.npz", images=TEST.images[40:140], labels=TEST.labels[40:140])
    np.savez("v.npz", images=TEST.images[200:240], labels=TEST.labels[200:240])
    few = ("digits-mlp", "b.npz", "--draws", "1", "--check", "0", "--rule", "full", "--threads", "1")
    found = told(cli, *few, "--baseline", "cnn", "--train", "t.npz", "--val", "v.npz")
    (beside,) = found["baselines"]
    assert beside["name"] == "cnn"
    made = baselines.train_baseline(
        "cnn",
        TEST.images[40:140],
        TEST.labels[40:140],
        val_images=TEST.images[200:240],
        val_labels=TEST.labels[200:240],
        n_classes=10,
        threads=1,
    )
    answers = made.probabilities(TEST.images[:40]).argmax(axis=1)
    assert beside["accuracy"]["value"] == (answers == TEST.labels[:40]).mean()
    assert beside["facts"]["epoch"] == made.epoch
    bars: list[dict[str, Any]] = []

    def bar(*_: Any, **how: Any) -> Any:
        bars.append(how)
        return nullcontext(lambda count, text: None)

    with monkeypatch.context() as watching:
        watching.setattr("fastdc.cli.score_baselines.progress_bar", bar)
        code, page, err = cli("score", *few, "--baseline", "cnn", "--train", "t.npz")
    assert (code, [one["unit"] for one in bars]) == (0, ["epoch"])
    assert re.search(r"training     cnn on 7\d images\n(.*\n)*trained      cnn, epoch", err)
    counted = r"\* baselines: trained on 7\d images; epoch and temperature chosen on 2\d of the same source"
    assert re.search(counted, " ".join(page.split()))
    assert "\nthis model  " in page
    half = np.concatenate([TEST.images[:20], TEST.images[40:60]])
    np.savez("h.npz", images=half, labels=np.concatenate([TEST.labels[:20], TEST.labels[40:60]]))
    mixed = " ".join(cli("score", *few, "--baseline", "cnn", "--train", "h.npz", "--val", "v.npz").out.split())
    assert "* 20 of these 40 images trained the baselines, which are too good on them" in mixed
    chosen = " ".join(cli("score", *few, "--baseline", "cnn", "--train", "h.npz", "--val", "h.npz").out.split())
    assert "* 20 of these 40 images chose epoch and temperature of the baselines, which are too good on them" in chosen
    assert "* 40 of the 40 images that chose epoch and temperature of the baselines also trained them" in chosen
    cli.refuses("score", *few, "--baseline", "cnn", "--train", "b.npz", naming="holds the images that are scored")
    cli.refuses("score", *few, "--baseline", "cnn", naming="expected --train DATA")
    cli.refuses("score", *few, "--train", "t.npz", naming="--train is for --baseline")
    cli.refuses("score", *few, *("--baseline", "cnn") * 2, "--train", "t.npz", naming="two baselines have one name")
    cli.refuses("score", *few, "--baseline", "vgg", "--train", "t.npz", naming="baseline must be cnn or timm:NAME")

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdc.train.train_baseline", stopped)
    result = cli("score", *few, "--baseline", "cnn", "--train", "t.npz")
    assert result.code == 130
    assert "accuracy" in result.out
    assert result.err.splitlines()[-1] == "fastdc: interrupted: the baselines were not trained to the end"
