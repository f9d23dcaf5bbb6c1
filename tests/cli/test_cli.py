"""The command line: results on stdout, all else on stderr, and one line with exit code 2 for any bad input.

Commands run in this process. test_process.py tests signals, pipes and missing packages, which need a process of their
own.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import fastdc
from fastdc import ErrorTable, Progress
from fastdc.bundle.shipped import find_model
from fastdc.cli.classify import json_line, run_name
from fastdc.cli.main import main
from fastdc.cli.runner import progress_of, rule_options
from fastdc.data import digits_test
from helpers.cli_runs import MLP, Cli, Result, place_digits

FULL = (*MLP, "--rule", "full")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with test digits as images and arrays."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return place_digits(tmp_path)


def strict(line: str) -> Any:
    """The value of a line of JSON; NaN and Infinity, which Python accepts, are refused."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


# --- results ---------------------------------------------------------------------------------------------------------


def test_demo_reports_accuracy_cost_and_speed(cli: Cli) -> None:
    pytest.importorskip("onnxruntime")
    result = cli("demo", *MLP, "--draws", "4", "--rule", "full")
    assert result.code == 0
    assert list(result.rows) == ["model", "rule", "accuracy", "evaluations", "time"]
    assert result.rows["model"] == "digits-mlp, onnx on cpu"
    assert result.rows["rule"] == "full: every class at every draw"
    assert float(result.rows["accuracy"].split()[0]) > 97
    assert result.rows["evaluations"] == "40.0 per image (full run: 40), 16,000 in total"
    assert result.err.startswith("next ")
    assert cli("demo", *MLP, "--draws", "1", "--quiet").err == ""


def test_demo_races_by_default(cli: Cli) -> None:
    pytest.importorskip("onnxruntime")
    rows = cli("demo", *MLP).rows
    assert float(rows["accuracy"].split()[0]) > 97
    each, full = re.fullmatch(r"([\d.]+) per image \(full run: (\d+)\), .*", rows["evaluations"]).groups()  # type: ignore[union-attr]
    assert 10 < float(each) < int(full)
    paired = cli("demo", *MLP, "--rule", "paired", "--draws", "16", "-o", "alpha=0.2", "-o", "first=4").rows
    assert paired["rule"] == "paired, alpha 0.2, first 4, rivals 9"


def test_demo_counts_by_the_names_of_classes_and_refuses_models_without_test_images(cli: Cli, digits: Path) -> None:
    shutil.copytree(find_model("digits-mlp"), "m")
    manifest = Path("m", "fastdc.json")
    backwards = {**json.loads(manifest.read_text()), "classes": list("9876543210")}
    manifest.write_text(json.dumps(backwards))
    options = ("--model", "./m", "--draws", "1", "--rule", "full", "--quiet")
    assert float(cli("demo", *options).rows["accuracy"].split()[0]) < 3  # it calls a 0 a 9
    manifest.write_text(json.dumps({**backwards, "classes": [f"class {k}" for k in range(10)]}))
    cli.refuses("demo", *options, naming="no test images of digits-mlp's classes come with fastdc")
    cli.refuses("demo", "--model", "shapes", naming="got 32 classes in 3 x 32x32")


def test_demo_draws_a_sheet(cli: Cli, digits: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = cli("demo", *MLP, "--draws", "2", "--plot", "sheet.png")
    assert code == 0
    assert out.splitlines()[-1] == "plot         sheet.png"
    with Image.open(digits / "sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_the_sheet_numbers_images_as_the_test_set_does(cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("fastdc.figures.error_sheet", lambda path, images, *_, **rest: drawn.append((images, rest)))
    assert cli("demo", *MLP, "--draws", "1", "--rule", "full", "--plot", "sheet.png").code == 0
    ((images, rest),) = drawn
    test, numbers = digits_test(), rest["numbers"]
    assert np.array_equal(images, test.images[numbers])
    wrong = rest["labels"] != test.labels[numbers]
    assert 0 < wrong.sum() == wrong[: wrong.sum()].sum()


def test_classify_prints_one_line_per_image(cli: Cli, digits: Path) -> None:
    code, out, err = cli("classify", "digits", "digits/0.png", "a.npy", *FULL)
    assert code == 0
    rows = [line.split("\t") for line in out.splitlines()]
    names = ["digits/0.png", "digits/1.png", "digits/2.png", "digits/0.png", *(f"a.npy[{i}]" for i in range(5))]
    assert [row[0] for row in rows] == names
    truth = [str(label) for label in digits_test().labels[:5]]
    assert [row[1] for row in rows] == [*truth[:3], truth[0], *truth]
    assert all(row[2].startswith(f"{row[1]} ") for row in rows)
    assert rows[0] == rows[3]
    assert rows[0][1:] == rows[4][1:]
    assert err.startswith("9 images, 1,440 evaluations, ")
    quiet = cli("classify", "digits", "digits/0.png", "a.npy", *FULL, "--quiet")
    assert quiet == Result(0, out, "")


def test_classify_reports_the_accuracy_if_labels_are_known(cli: Cli, digits: Path) -> None:
    """70 images are more than one chunk; chunks must not reorder or repeat them."""
    code, out, err = cli("classify", "b.npz", *MLP, "--draws", "4")
    assert code == 0
    right = [
        line.split("\t")[1] == str(label)
        for line, label in zip(out.splitlines(), digits_test().labels[:70], strict=True)
    ]
    interval = stats.binomtest(sum(right), 70).proportion_ci(0.95, method="wilson")
    counted, more = err.splitlines()[-2:]
    ends = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    assert counted.endswith(f"accuracy {100 * np.mean(right):.2f} % (95 % interval {ends} %)")
    assert more.startswith("more         fastdc score digits-mlp b.npz    ")
    assert np.mean(right) > 0.9


def test_classify_json_has_lines_of_one_shape_and_a_file_that_reproduces_them(cli: Cli, digits: Path) -> None:
    code, out, _ = cli("classify", "digits", *FULL, "--json", "--seed", "7", "--draws", "3", "--provenance", "run.json")
    assert code == 0
    entries = [strict(line) for line in out.splitlines()]
    assert [entry["image"] for entry in entries] == ["digits/0.png", "digits/1.png", "digits/2.png"]
    result = fastdc.load("digits-mlp").classify(digits_test().images[:3], rule="full", draws=3, seed=7)
    provenance = strict(Path("run.json").read_text())
    assert provenance == {"run": entries[0]["run"], **result.provenance}
    assert provenance["rule"] == {"name": "full"}
    fields = ["image", "label", "class", "probabilities", "errors", "evaluations", "run"]
    assert [list(entry) for entry in entries] == [fields] * 3
    assert {entry["run"] for entry in entries} == {run_name(result.provenance)}
    (other,) = cli("classify", "digits/0.png", *FULL, "--json", "--seed", "8", "--draws", "3").out.splitlines()
    assert strict(other)["run"] != entries[0]["run"]
    for row, entry in enumerate(entries):
        assert entry["label"] == result.labels[row]
        assert entry["class"] == result.names[row]
        assert entry["evaluations"] == 30
        assert list(entry["probabilities"]) == list("0123456789")
        np.testing.assert_allclose(list(entry["probabilities"].values()), result.probabilities[row], atol=1e-6)
        np.testing.assert_allclose(list(entry["errors"].values()), result.errors[row], rtol=1e-4)


def test_a_class_that_was_never_evaluated_is_null_in_json(digits: Path) -> None:
    result = fastdc.load("digits-mlp").classify(digits_test().images[:2], candidates=[[3, 5], [0, 1]], draws=4)
    entries = [strict(json_line("x", result, row, "r")) for row in range(2)]
    assert [name for name, error in entries[0]["errors"].items() if error is not None] == ["3", "5"]
    assert [name for name, error in entries[1]["errors"].items() if error is not None] == ["0", "1"]
    assert entries[0]["probabilities"]["0"] == 0


def test_classify_saves_every_error(cli: Cli, digits: Path) -> None:
    code, out, err = cli("classify", "b.npz", *FULL, "--draws", "2", "--save", "errors.npz")
    assert code == 0
    assert "errors saved to errors.npz" in err
    table = ErrorTable.load("errors.npz")
    assert table.errors.shape == (70, 10, 2)
    assert (table.evaluations == 20).all()
    labels = [line.split("\t")[1] for line in out.splitlines()]
    assert [table.class_names[k] for k in table.mean().argmin(axis=1)] == labels
    again = cli("classify", "b.npz", *FULL, "--draws", "2", "--save", "errors.npz", "--quiet")
    assert again == Result(0, out, "")


def test_options_reach_the_classifier(cli: Cli, digits: Path) -> None:
    options = (
        "--decision",
        "vote",
        "--rule",
        "full",
        "--draws",
        "3",
        "--batch",
        "7",
        "--threads",
        "1",
        "--backend",
        "onnx",
        "--device",
        "cpu",
    )
    kept = ("--json", "--provenance", "run.json", "--quiet")
    (line,) = cli("classify", "digits/0.png", *MLP, *options, *kept).out.splitlines()
    entry = json.loads(line)
    assert strict(Path("run.json").read_text())["decision"] == "vote"
    assert all(round(3 * share, 3) in (0, 1, 2, 3) for share in entry["probabilities"].values())


def test_rule_and_plan_options_reach_the_classifier(cli: Cli, digits: Path) -> None:
    error = ("--weighting", "velocity", "--loss", "l1")
    plan = ("--first", "0.8,0.5", "--levels", "0.3", "3", "--order", "random", "--antithetic", *error)
    rule = ("--rule", "staged", "-o", "n_samples=2,6", "--rule-option", "to_keep=[4, 1]")
    kept = ("--json", "--provenance", "run.json", "--quiet")
    (line,) = cli("classify", "digits/0.png", *MLP, *plan, *rule, *kept).out.splitlines()
    entry = strict(line) | strict(Path("run.json").read_text())
    assert entry["rule"]["name"] == "staged"
    assert (entry["rule"]["n_samples"], entry["rule"]["to_keep"]) == ([2, 6], [4, 1])
    assert entry["evaluations"] == 10 * 2 + 4 * 4
    assert entry["plan"]["draws"] == 6
    assert (entry["plan"]["first"], entry["plan"]["levels"]) == ([0.8, 0.5], [0.3, 3.0])
    assert (entry["plan"]["order"], entry["plan"]["antithetic"]) == ("random", True)
    assert (entry["plan"]["weighting"], entry["plan"]["loss"]) == ("velocity", "l1")
    assert cli("classify", "digits/0.png", *MLP, *kept, "--rule", "betting", "-o", "bound=8").code == 0
    assert strict(Path("run.json").read_text())["rule"]["bound"] == 8


def test_strange_file_names_stay_on_their_line(cli: Cli, digits: Path) -> None:
    names = ["two\nlines\t.png", "naïve ☃.png", "\udcff.png", "\x1b[31m.png"]
    for name in names:
        shutil.copy("digits/0.png", name)
    lines = cli("classify", *names, *MLP, "--draws", "1").out.splitlines()
    assert [line.count("\t") for line in lines] == [2, 2, 2, 2]
    assert lines[1].startswith("naïve ☃.png\t")
    assert not any("\x1b" in line or "\udcff" in line for line in lines)
    out = cli("classify", *names, *MLP, "--draws", "1", "--json").out
    assert out.isascii()
    assert [json.loads(line)["image"] for line in out.splitlines()] == names


def test_info_shows_the_installation_and_models(cli: Cli) -> None:
    code, out, err = cli("info")
    assert (code, err) == (0, "")
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    assert rows["fastdc"].strip() == fastdc.__version__
    facts = json.loads(cli("info", "--json").out)
    assert facts["fastdc"] == fastdc.__version__
    assert facts["models"] == ["digits", "digits-mlp", "mnist", "phantoms", "shapes"]
    assert facts["cpus"] >= 1
    for name in facts["models"]:
        shown = cli("info", name)
        assert shown.code == 0
        model = json.loads(cli("info", str(find_model(name)), "--json").out)
        assert model["name"] == name
        assert model["verified"] is True
        assert model["sha256"] in shown.out
        assert json.loads(model["schedule"])["kind"] == ("ddpm" if name == "shapes" else "edm")


def test_info_shows_the_prompts_of_a_text_conditional_model(cli: Cli) -> None:
    shown = json.loads(cli("info", "shapes", "--json").out)
    first = "32: 'a photo of a blue cone', 'a photo of a blue cube', "
    assert shown["prompts"].startswith(first)
    assert shown["prompts"].endswith("... 28 more; --prompts can replace them")
    assert "prompts" not in json.loads(cli("info", "digits", "--json").out)


def test_a_bar_over_several_runs_counts_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, str]] = []
    made: list[dict[str, Any]] = []

    @contextmanager
    def bar(total: int, **options: Any) -> Iterator[Any]:
        made.append({"total": total, **options})
        yield lambda count, text: shown.append((count, text))

    monkeypatch.setattr("fastdc.cli.runner.progress_bar", bar)
    with progress_of(runs=2, quiet=False, description="full runs") as progress:
        assert made == []  # no bar before the first step
        for finished, evaluations in ((0, 8), (2, 16), (3, 24), (1, 8), (3, 24)):
            progress(Progress(finished, 3, evaluations, 24))
    assert made == [{"total": 6, "quiet": False, "description": "full runs"}]
    assert shown == [(count, f"{total} evaluations") for count, total in ((0, 8), (2, 16), (1, 24), (1, 32), (2, 48))]
    shown.clear()
    with progress_of(runs=2, quiet=False) as progress:  # the second run begins with more evaluations than the first
        list(map(progress, (Progress(3, 3, 24, 24), Progress(0, 3, 90, 99), Progress(3, 3, 99, 99))))
    assert [count for count, _ in shown] == [3, 0, 3]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (("nothing",), "nothing"),
        (("clasify",), "; did you mean 'classify'? (try 'fastdc --help')"),
        (("classify", "a.npy", "--model", "digts-mlp"), "; did you mean 'digits-mlp'?"),
        (("classify", "a.npy", "--rule", "pared"), "; did you mean 'paired'?"),
        (("classify", "a.npy", "--ruel", "paired"), "; did you mean '--rule'? (try 'fastdc classify --help')"),
        (("classify", "a.npy", "--modle", "digits"), "'--modle'; did you mean '--model'? (try"),
        (("demo", "--json"), "'--json' (try 'fastdc demo --help')"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alhpa=0.1"), "; did you mean 'alpha'?"),
        (("--wrong",), "--wrong"),
        (("classify",), "IMAGES"),
        (("classify", "a.npy", "--wrong"), "--wrong"),
        (("classify", "a.npy", "--model"), "--model"),
        (("classify", "a.npy", "--model", "no-such-model"), "no-such-model"),
        (("classify", "a.npy", "--model", "./digits"), "./digits"),
        (("classify", "a.npy", "--decision", "median"), "median"),
        (("classify", "a.npy", "--rule", "fastest"), "fastest"),
        (("classify", "a.npy", "--rule", "calibrated", "--levels", "0.3", "3"), "calibration"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alpha"), "NAME=VALUE"),
        (("classify", "a.npy", "--rule", "paired", "-o", "=1"), "NAME=VALUE"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alpha=2"), "alpha"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alpha=nought"), "alpha"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alpha=NaN"), "alpha"),
        (("classify", "a.npy", "--rule", "paired", "-o", "beta=1"), "beta"),
        (("classify", "a.npy", "--rule", "paired", "-o", "alpha=0.1", "-o", "alpha=0.2"), "alpha"),
        (("classify", "a.npy", "--first", "one"), "one"),
        (("classify", "a.npy", "--first", "0.5,"), "0.5,"),
        (("classify", "a.npy", "--first", "-1"), "first"),
        (("classify", "a.npy", "--first", "nan"), "first"),
        (("classify", "a.npy", "--first", "1e9"), "first"),
        (("classify", "a.npy", "--levels", "3", "1"), "levels"),
        (("classify", "a.npy", "--levels", "1"), "--levels"),
        (("classify", "a.npy", "--order", "sorted"), "sorted"),
        (("classify", "a.npy", "--weighting", "heavy"), "heavy"),
        (("classify", "a.npy", "--loss", "l3"), "l3"),
        (("classify", "a.npy", "--calibration", "missing.json"), "missing.json"),
        (("classify", "a.npy", "--calibration", "empty"), "empty"),
        (("classify", "a.npy", "--calibration", "a.npy"), "a.npy"),
        (("classify", "a.npy", "--backend", "jax"), "jax"),
        (("classify", "a.npy", "--device", "gpu"), "device"),
        (("classify", "a.npy", "--draws", "0"), "draws"),
        (("classify", "a.npy", "--draws", "-3"), "draws"),
        (("classify", "a.npy", "--draws", "abc"), "abc"),
        (("classify", "a.npy", "--draws", "2000000"), "draws"),
        (("classify", "a.npy", "--seed", "-1"), "seed"),
        (("classify", "a.npy", "--seed", str(2**64)), "seed"),
        (("classify", "a.npy", "--batch", "0"), "batch"),
        (("classify", "a.npy", "--threads", "0"), "threads"),
        (("classify", "missing.png"), "missing.png"),
        (("classify", "empty"), "empty"),
        (("classify", "truncated.png"), "truncated.png"),
        (("classify", "text.png"), "text.png"),
        (("classify", "zero.png"), "zero.png"),
        (("classify", "a.npy", "text.png"), "text.png"),
        (("classify", "nan.npy"), "nan.npy"),
        (("classify", "range.npy"), "range.npy"),
        (("classify", "shape.npy"), "shape.npy"),
        (("classify", "text.npy"), "text.npy"),
        (("classify", "two\nlines.png"), "two"),
        (("classify", "\udcff.png"), ".png"),
        (("classify", ""), ""),
        (("classify", "a.npy", "--save", "no/such/folder/e.npz"), "no/such/folder"),
        (("classify", "a.npy", "--save", "empty"), "empty"),
        (("classify", "a.npy", "--save", "e", "--provenance", "e"), "expected two files"),
        (("classify", "a.npy", "--save", "./e", "--provenance", "e"), "expected two files"),
        (("classify", "a.npy", "--model", ""), "no model '': expected a bundle folder or one of"),
        (("classify", "a.npy", "--provenance", "a.npy"), "a.npy"),
        (("classify", "a.npy", "--save", "a.npy"), "a.npy"),
        (("classify", "a.npy", "--save", "/proc/e.npz"), "/proc"),
        (("demo", "--plot", "no/such/folder/e.png"), "no/such/folder"),
        (("demo", "--plot", "e.gif"), "e.gif"),
        (("demo", "--plot", "/proc/e.png"), "/proc"),
        (("demo", "extra"), "extra"),
        (("info", "no-such-model"), "no-such-model"),
        (("info", "empty"), "empty"),
        (("info", "digits", "digits"), "digits"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, digits: Path, args: tuple[str, ...], naming: str) -> None:
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    (digits / "empty").mkdir()
    (digits / "truncated.png").write_bytes((digits / "digits" / "0.png").read_bytes()[:60])
    (digits / "text.png").write_text("not an image")
    (digits / "text.npy").write_text("not an array")
    (digits / "zero.png").write_bytes(b"")
    np.save(digits / "nan.npy", np.full((2, 1, 8, 8), np.nan))
    np.save(digits / "range.npy", np.full((2, 1, 8, 8), 2.0))
    np.save(digits / "shape.npy", np.zeros((2, 1, 8, 8, 8), np.uint8))
    shutil.rmtree(digits / "digits")
    before = sorted(digits.rglob("*"))
    content = (digits / "a.npy").read_bytes()
    cli.refuses(
        *args, *(MLP if args[0] == "classify" and "--model" not in args and len(args) > 1 else ()), naming=naming
    )
    assert sorted(digits.rglob("*")) == before
    assert (digits / "a.npy").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content"),
    [("fastdc.json", b""), ("fastdc.json", b"{}"), ("denoiser.onnx", b"short"), ("denoiser.onnx", None)],
)
def test_a_corrupt_bundle_is_one_line(cli: Cli, digits: Path, name: str, content: bytes | None) -> None:
    shutil.copytree(find_model("digits-mlp"), digits / "model")
    if content is None:  # one flipped bit: found by the hash
        flipped = bytearray((digits / "model" / name).read_bytes())
        flipped[1000] ^= 1
        content = bytes(flipped)
    (digits / "model" / name).write_bytes(content)
    cli.refuses("classify", "a.npy", "--model", "model", naming="model")
    cli.refuses("info", "model", naming="model")


def test_a_device_that_is_not_there_is_one_line(cli: Cli, digits: Path) -> None:
    try:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    except ImportError:
        pass
    for backend in ("auto", "onnx", "torch"):
        cli.refuses("classify", "a.npy", *MLP, "--device", "cuda", "--backend", backend)


def test_a_defect_can_be_traced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDC_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["fastdc", "info", "no-such-model"])
    with pytest.raises(fastdc.BundleError):
        main()


def test_running_out_of_memory_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(path: Path) -> Any:
        raise MemoryError

    monkeypatch.setattr("fastdc.data.load_labelled", exhausted)
    result = cli("demo")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("fastdc: error: out of memory")


def test_values_of_rule_options_are_json_lists_without_brackets_or_text() -> None:
    entries = ("a=1", "b=0.5", "c=2,4", "d=[2, 4]", "e=li", "f=", "g=x=y", "h=null", f"i={'[' * 100_000}", "j=1,b")
    options = {"a": 1, "b": 0.5, "c": [2, 4], "d": [2, 4], "e": "li", "f": "", "g": "x=y", "h": None, "j": "1,b"}
    assert rule_options((*entries, "k=11,", "l=,")) == {**options, "i": "[" * 100_000, "k": [11], "l": []}
