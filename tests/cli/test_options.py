"""Every option of every command: a bad value is named as it was typed, and one that would change nothing is refused.

Nothing here runs a network: the refusals come before the work.
"""

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from fastdc.bundle.calibration_file import write_calibration_file
from fastdc.bundle.folder import load_bundle
from fastdc.bundle.format import MANIFEST
from fastdc.bundle.shipped import find_model
from fastdc.cli.messages import as_typed
from fastdc.data import DIGITS_TEST, digits_test
from fastdc.diffusion import PlanConfig
from fastdc.inference import plan_config
from fastdc.rules import Calibration
from fastdc.rules.calibration import plan_without_draws
from fastdc.support import installed
from helpers.cli_runs import MLP, Cli, place_digits

# A command line of each command, complete but for the option that is tried.
LINES = {
    "demo": ("demo", *MLP),
    "classify": ("classify", "a.npy", *MLP),
    "calibrate": ("calibrate", "m", "b.npz", "--delta", "0.05"),
    "certify": ("certify", "--data", "b.npz", *MLP, "--sigma", "0.25", "--out", "run.tsv"),
    "evaluate": ("evaluate", "cohen.tsv"),
    "bench": ("bench", "digits-mlp", "--quick"),
    "train": ("train", "b.npz", "--out", "run", "--model", "mlp"),
    "export": ("export", "net.pkl", "out", "--quiet"),
}

# Values that no option of a type takes, or that a single option does not.
BAD = {"integer": ("x", "-5", "1.5"), "float": ("x", "nan", "inf"), "choice": ("nothing",)}
BAD_OF = {
    "--first": ("x", "0.5,", "-1", "nan", "99"),
    "--device": ("gpu", "cuda:x"),
    "--radii": ("x", "-1", "nan", ""),
    "--rule-option": ("alpha", "=1"),
    "--val": ("0.9", "nan"),
    "--weighting": ("nothing",),
    "--loss": ("nothing",),
}


def cases() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for name in LINES:
        for option in importlib.import_module(f"fastdc.cli.commands.{name}").command.params:
            if not isinstance(option, click.Option) or option.is_flag:
                continue
            typed = next(opt for opt in option.opts if opt.startswith("--"))
            if option.nargs == 2:
                values: list[tuple[str, ...]] = [("nan", "1"), ("3", "1"), ("x", "1")]
                values += [("0", "1"), ("0.1", "1e6")] if typed == "--levels" else []
            else:
                values = [(value,) for value in BAD_OF.get(typed, BAD.get(option.type.name, ()))]
            yield from ((name, typed, value) for value in values)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of all commands."""
    pytest.importorskip("onnxruntime")
    folder = place_digits(tmp_path_factory.mktemp("inputs"))
    shutil.copytree(find_model("digits-mlp"), folder / "m")
    (folder / "cohen.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t1.21\t1\t0:00:15\n")
    if installed("torch"):
        from fastdc.testing import write_edm

        write_edm(folder / "net.pkl", "ddpmpp", channel_mult=[1], attn_resolutions=[])
    bundle = load_bundle(folder / "m")
    model = bundle.model
    plans = {
        "cal": {},
        "few": {},
        "l1": {"loss": "l1"},
        "edm": {"weighting": "uniform"},
        "band": {"levels": (0.3, 1.5)},
    }
    plans |= {"noisy": {"sigma": 0.25, "method": "epndc"}}
    for name, options in plans.items():
        config = plan_config(model, options)  # type: ignore[arg-type]
        draws = 8 if name == "few" else 16
        found = Calibration(
            limit=1.0, delta=0.05, risk=0.0, draws=draws, images=70, seeds=2, bound=3.0, plan=plan_without_draws(config)
        )
        write_calibration_file(folder / f"{name}.json", bundle, found)
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    trainer = ("fastdc.train.loop._Trainer",) if installed("torch") else ()
    for work in ("fastdc.inference.job.Job.run", "fastdc.engine.runner.Runner.evaluate", *trainer):
        monkeypatch.setattr(work, None)  # work would fail with a traceback
    return made


@pytest.mark.parametrize(("command", "option", "value"), list(cases()), ids=str)
def test_a_bad_value_is_named_as_typed(
    cli: Cli, folder: Path, command: str, option: str, value: tuple[str, ...]
) -> None:
    if command in ("export", "train"):
        pytest.importorskip("torch")
    cli.refuses(*LINES[command], option, *value, naming=option)


FULL, PAIRED = ("--rule", "full"), ("--rule", "paired")
STAGED = ("--rule", "staged", "-o", "n_samples=2,6", "-o", "to_keep=4,1")
LI = ("--rule", "staged", "-o", "n_samples=2,6", "-o", "to_keep=4,1", "-o", "compat=li")


@pytest.mark.parametrize(
    ("command", "options", "naming"),
    [
        # the rule
        ("classify", (*FULL, "-o", "alpha=0.1"), "--rule full has no option 'alpha'"),
        *(
            (
                command,
                ("-o", "alpha=1"),
                "the default rule, calibrated, has no option 'alpha': it has limit, draws; --rule",
            )
            for command in ("classify", "demo", "certify")
        ),
        ("demo", ("--rule", "race", "-o", "alpha=1"), "error: --rule race (calibrated) has no option 'alpha': it has"),
        ("classify", (*PAIRED, "-o", "limit=1"), "--rule paired has no option 'limit'"),
        ("classify", (*PAIRED, "-o", "alpha=2"), "--rule paired: -o alpha must lie strictly between"),
        (
            "classify",
            ("--rule", "staged"),
            "--rule staged needs -o n_samples=..., -o to_keep=..., such as -o n_samples=11,51",
        ),
        ("classify", ("--rule", "votes"), "-o to_keep=..., such as -o n_samples=11,51 and -o to_keep=3,1"),
        (
            "classify",
            ("--rule", "votes", "-o", "n_samples=11", "-o", "to_keep=1", "-o", "compat=favero"),
            "--rule votes with -o compat=favero needs --decision vote, got mean",
        ),
        ("classify", (*STAGED, "--draws", "8"), "needs --draws 6, got 8"),
        ("classify", (*LI, "--first", "0.5"), "expected no --first beside it"),
        ("classify", (*LI, "--levels", "0.3", "1"), "expected no --levels beside it"),
        ("classify", ("--rule", "calibrated", "--draws", "8"), "draws that it was calibrated for, got 8"),
        ("classify", ("--rule", "calibrated", "--levels", "0.3", "1"), "the run has 0.3 to 1"),
        ("classify", ("--rule", "betting", "--levels", "0.3", "1"), "needs -o bound=..."),
        # the draws
        ("classify", (*FULL, "--first", "0.8,0.5", "--draws", "1"), "--first must be at most as many"),
        ("classify", (*FULL, "--first", "0.8,0.5", "--draws", "2", "--levels", "0.3", "1"), "--levels has no effect"),
        ("classify", (*FULL, "--first", "0.8", "--draws", "1", "--order", "random"), "--order has no effect"),
        ("classify", (*FULL, "--antithetic", "--draws", "1"), "--antithetic draws come in pairs"),
        ("classify", (*PAIRED, "--antithetic"), "--rule paired needs independent draws"),
        ("classify", ("--level-weights",), "no level weights"),
        ("demo", (*FULL, "--first", "0.8,0.5", "--draws", "1"), "--first must be at most as many"),
        ("certify", ("--first", "1.2,1.4", "--draws", "1"), "--first must be at most as many"),
        ("calibrate", ("--first", "0.8,0.5", "--draws", "1"), "--first must be at most as many"),
        # the network
        ("classify", ("--compile",), "--compile is for backend torch"),
        ("classify", ("--backend", "onnx", "--compile"), "--compile is for backend torch, got --backend onnx"),
        ("classify", ("--backend", "onnx", "--precision", "float16"), "got --precision 'float16'"),
        # a calibration in a file
        ("classify", ("--calibration", "cal.json", *FULL), "--calibration has no effect with --rule full"),
        ("classify", ("--calibration", "cal.json", *STAGED), "--calibration has no effect with --rule staged"),
        ("classify", ("--calibration", "cal.json", "-o", "limit=1"), "expected no -o limit=... beside it"),
        ("classify", ("--calibration", "cal.json", "--draws", "8"), "cal.json is for --draws 16, the run has 8"),
        ("classify", ("--calibration", "few.json", "--draws", "16"), "calibrated for up to 8 draws, got 16"),
        (
            "classify",
            ("--calibration", "cal.json", "--levels", "0.3", "1"),
            "levels 0.2 to 2, the run has 0.3 to 1",
        ),
        ("classify", ("--calibration", "cal.json", "--first", "0.5"), "first 0.9, the run has 0.5"),
        ("classify", ("--calibration", "cal.json", "--antithetic"), "--rule paired needs independent draws"),
        ("classify", ("--calibration", "band.json"), "levels 0.3 to 1.5, the run has 0.2 to 2"),
        ("classify", ("--calibration", "l1.json"), "loss l1, the run has l2"),
        ("classify", ("--calibration", "edm.json"), "weighting uniform, the run has edm"),
        ("classify", ("--calibration", "noisy.json"), "the run has"),
        ("classify", ("--calibration", "l1.json", "--rule", "betting"), "needs -o bound=..."),
        ("demo", ("--calibration", "l1.json"), "loss l1, the run has l2"),
        ("certify", ("--calibration", "cal.json"), "the run has"),
        ("certify", ("--calibration", "noisy.json", "--sigma", "0.5"), "noise (sigma / alpha) 0.5, the run has 1.0"),
        ("certify", ("--calibration", "noisy.json", "--method", "apndc"), "method epndc, the run has apndc"),
        ("certify", ("--calibration", "noisy.json", *FULL), "--calibration has no effect with --rule full"),
        # certificates that cannot be
        ("certify", ("--n", "9"), "--n must be at least 10 to certify any radius with alpha 0.001, got 9"),
        ("certify", ("--n", "9", "--estimation", "pilot"), "--n must be at least 10"),
        ("certify", ("--n", "9", "--estimation", "anytime"), "--n must be at least"),
        ("certify", ("--n", "20", "--radius", "0.5"), "to certify radius 0.5 at sigma 0.25"),
        ("certify", ("--radius", "1.9"), "no n up to"),
        ("certify", ("--radius", "0.5", "--tolerance", "0.1"), "--tolerance needs --estimation pilot or anytime"),
        ("certify", ("--tolerance", "0.1"), "--tolerance needs --estimation pilot or anytime"),
        ("certify", ("--radius", "0.5", "--estimation", "anytime"), "expected no --estimation anytime"),
        ("certify", ("--compat", "ndc", "--draws", "8"), "expected no --draws beside it"),
        ("certify", ("--compat", "ndc", "--rule", "race"), "expected another --rule"),
        ("certify", ("--compat", "ndc", "--calibration", "noisy.json"), "expected no --calibration beside it"),
        ("certify", ("--compat", "ndc", "--method", "dc"), "--compat ndc is for"),
        # calibrating
        ("calibrate", ("--method", "epndc"), "--method epndc is for noisy images"),
        ("calibrate", ("--levels", "0.3", "1", "--write"), "--levels"),
        # evaluating and training
        ("evaluate", ("--compare",), "--compare needs two files"),
        ("train", ("--channels", "3"), "--size must be given with --channels, got none"),
        # measuring
        ("bench", ("--data", "missing.npy"), "missing.npy"),
        ("bench", ("--forget",), "--forget does nothing else: expected no --quick beside it"),
        ("bench", ("--plot", "a.txt"), "a plot is written as"),
        ("bench", ("--max-pixels", "64"), "--max-pixels is for --data"),
        # exporting
        ("export", ("--first", "99"), "--first must lie in the schedule's"),
        ("export", ("--levels", "0.1", "99"), "--levels must lie in the schedule's"),
        ("export", ("--delta", "0.1"), "--delta = 0.1 is of a calibration"),
        ("export", ("--template", "a {}"), "--template is for text-conditional models"),
        ("export", ("--no-text-encoder",), "--no-text-encoder is for text-conditional models"),
        ("export", ("--image-size", "16"), "--image-size cannot be given for an EDM pickle"),
        ("export", ("--null-class",), "--null-class cannot be given for an EDM pickle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_an_option_without_effect_is_refused(
    cli: Cli, folder: Path, command: str, options: tuple[str, ...], naming: str
) -> None:
    if command in ("export", "train"):
        pytest.importorskip("torch")
    if command == "export":
        options = (*options, "--classes", "a,b,c,d")
    line = LINES[command]
    if "--calibration" in options or command == "calibrate":
        line = tuple("m" if word == "digits-mlp" else word for word in line)
    cli.refuses(*line, *options, naming=naming)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("--draws", "8"), "with 8 it makes no promise"),
        (
            ("--levels", "0.3", "1"),
            "which is for levels 0.2 to 2, the run has 0.3 to 1",
        ),
        (("--order", "random"), "order van_der_corput, the run has random"),
        ((), None),
        (("--draws", "8", "--rule", "full"), None),
        (("--levels", "0.3", "1", "--rule", "paired"), None),
        (("--draws", "8", "-o", "limit=3"), None),
    ],
)
def test_a_race_says_what_it_does_not_promise(
    cli: Cli, made: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], note: str | None
) -> None:
    monkeypatch.chdir(made)
    shown = cli("classify", "digits/0.png", *MLP, *options)
    assert shown.code == 0
    notes = [line for line in shown.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]
    assert "note" not in cli("classify", "digits/0.png", *MLP, *options, "--quiet").err


def test_training_images_are_no_calibration_images(cli: Cli, folder: Path) -> None:
    """A bundle of a training run knows the hash of its training set; here the test digits stand for it."""
    from fastdc.train import content_digest

    test = digits_test()
    shutil.copytree("m", "trained", dirs_exist_ok=True)
    manifest = json.loads(Path("trained", MANIFEST).read_text())
    for field in ("data_sha256", "source_sha256"):  # the training set, and the set before a part was kept aside
        hashed = {**manifest["provenance"], field: content_digest(test.images, test.labels, test.class_names)}
        Path("trained", MANIFEST).write_text(json.dumps({**manifest, "provenance": hashed}))
        for more in ((), ("--level-weights",)):
            cli.refuses("calibrate", "trained", DIGITS_TEST, *more, naming="was trained on: calibrate on others")


def test_a_calibration_of_other_prompts_is_refused(cli: Cli, folder: Path) -> None:
    pytest.importorskip("tokenizers")
    shapes = load_bundle(find_model("shapes"))
    assert shapes.model.calibration is not None
    write_calibration_file("shapes.json", shapes, shapes.model.calibration)
    Path("two.csv").write_text("prompt,classname,classidx\na photo of a red sphere,red,0\na photo of a cube,cube,1\n")
    image = np.zeros((1, *shapes.model.image_shape), np.uint8)
    np.save("shape.npy", image)
    line = ("classify", "shape.npy", "--model", "shapes", "--calibration", "shapes.json")
    cli.refuses(*line, "--prompts", "two.csv", naming="shapes.json calibrates other prompts")
    entry = json.loads(Path("shapes.json").read_text())
    del entry["conditions"]
    Path("shapes.json").write_text(json.dumps({**entry, "version": 1}))  # which did not know its prompts
    cli.refuses(*line, naming="shapes.json calibrates other prompts")


def test_messages_keep_words_that_are_no_options() -> None:
    command = importlib.import_module("fastdc.cli.commands.certify").command
    for text in ("n0/x.tsv is not a file", "the rule of three", "seeds must be positive", "interrupted: 3 of 4"):
        assert as_typed(text, command) == text
    for text in (
        *("/tmp/x/seed=3/a.png is not readable", "seed=3/a.png: broken", "seed=3.png: broken", "b seed=3\\a: broken"),
        *("no image in 'my seed=3 pictures'", 'no "seed=3"', "a,seed=3,b is no folder", "run-seed=3 is no folder"),
        *("/data/got seed 3/x is no folder", "'got seed 3' is no folder", "the model's 'seed=3' is none"),
    ):
        assert as_typed(text, command) == text
    assert as_typed("the model's seed=3 (draws=8), got seed 4", command) == (
        "the model's --seed 3 (--draws 8), got --seed 4"
    )
    assert as_typed("it needs sigma=0.5, draws=[1, 2]", command) == "it needs --sigma 0.5, --draws [1, 2]"
    assert as_typed("a\nb", None) == "a b"
    train = importlib.import_module("fastdc.cli.commands.train").command
    assert as_typed("width of the unet must be even, got 3", train) == "--width of the unet must be even, got 3"
    assert as_typed("gain must be positive", command) == "--tolerance must be positive"


@pytest.mark.parametrize(
    ("name", "said", "typed"),
    [
        ("classify", "a: give --window 0 4095 (window=(0, 4095)) if 4095", "a: give --window 0 4095 if 4095"),
        ("classify", "a: give --window -1 2.5 (window=(-1, 2.5)) if", "a: give --window -1 2.5 if"),
        ("classify", "or give window=(0, 1e+06)", "or give --window 0 1e+06"),
        ("classify", "2 of 3 fail; --skip-bad (skip_bad) leaves", "2 of 3 fail; --skip-bad leaves"),
        (
            "compose",
            "2 of 3 fail: a; --skip-bad (skip_bad) leaves them out; fastdc reads",
            "2 of 3 fail: a; fastdc reads",
        ),
        ("match", "the limit is 9: raise --max-pixels (max_pixels)", "the limit is 9"),
        ("classify", "a: it has two: --split NAME (split) chooses", "a: it has two: --split NAME chooses"),
        ("classify", "try it with skip_bad=True, or not", "try it with --skip-bad, or not"),
        ("classify", "max_pixels must be 1 or None, got 0", "--max-pixels must be 1, got 0"),
        ("export", "replace it with overwrite (--overwrite)", "replace it with --overwrite"),
        ("export", "as many class names (--classes), got 2", "as many class names (--classes), got 2"),
        ("train", "size must be given with channels, got none", "--size must be given with --channels, got none"),
        ("train", "rank needs a text model (--from), got none", "--rank needs a text model (--from), got none"),
        ("train", "give shape=(channels, height, width) to", "give --size PIXELS and --channels 1 or 3 to"),
    ],
)
def test_messages_name_an_option_once_and_as_typed(name: str, said: str, typed: str) -> None:
    assert as_typed(said, importlib.import_module(f"fastdc.cli.commands.{name}").command) == typed


def test_other_plans_are_told_apart() -> None:
    found = Calibration(1.0, 0.05, 0.0, 8, 70, 2, 3.0, plan_without_draws(PlanConfig(draws=8)))
    assert found.misfit(PlanConfig(draws=99)) is None
    assert found.misfit(PlanConfig(draws=8, loss="l1")) == "loss l2, the run has l1"
    assert found.misfit(PlanConfig(draws=8, order="random"), but=("order",)) is None


@pytest.mark.parametrize("missing", [False, True])
def test_folders_without_classes_are_refused_before_torch_is_asked_for(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    if missing:
        monkeypatch.setattr("fastdc.support.optional.installed", lambda module: False)
    Path("cats/tom").mkdir(parents=True, exist_ok=True)
    for data, naming in (
        ("digits", "digits: has no sub-folders"),
        ("cats", "tom"),
        ("a.npy", "a.npy: labelled images"),
    ):
        cli.refuses("train", data, "--out", "run", "--model", "mlp", naming=naming)
        cli.refuses("train", "b.npz", "--val", data, "--out", "run", "--model", "mlp", naming=naming)
    if missing:
        cli.refuses("train", "b.npz", "--out", "run", "--model", "mlp", naming="torch is needed here")


@pytest.mark.parametrize("name", [*LINES, "info", "completion"])
def test_defaults_are_stated_alike(name: str) -> None:
    """After the sentences of an option, as click itself states them."""
    for option in importlib.import_module(f"fastdc.cli.commands.{name}").command.params:
        text = getattr(option, "help", None) or ""
        if "[default" in text:
            sentences, _, default = text.partition("  [default: ")
            assert sentences[-1] in ".)", text
            assert default.index("]") == len(default) - 1, text
