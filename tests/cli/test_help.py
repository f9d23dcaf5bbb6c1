"""The help of the command line: every command and option is described, with examples, within a terminal."""

import importlib

import click
import pytest

import fastdc
from fastdc.cli.grouped import HEADINGS
from fastdc.train.presets import FINE_TUNING, PRESETS
from helpers.cli_runs import Cli, Result

COMMANDS = (
    "demo",
    "classify",
    "match",
    "explain",
    "score",
    "compose",
    "calibrate",
    "certify",
    "evaluate",
    "info",
    "manifest",
    "train",
    "export",
    "bench",
    "completion",
)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_help_has_examples_and_appears_without_arguments(cli: Cli) -> None:
    for command in COMMANDS:
        shown = cli(command, "--help")
        assert (shown.code, shown.err) == (0, "")
        assert "Examples:" in shown.out
        assert f"  fastdc {command}" in shown.out
        assert cli(command, "-h") == shown
    top = cli("--help")
    assert all(f"  {command} " in top.out for command in COMMANDS)
    assert cli() == top
    assert cli("--version") == Result(0, f"fastdc, version {fastdc.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(cli: Cli, command: str) -> None:
    shown = cli(command, "--help").out
    module = importlib.import_module(f"fastdc.cli.commands.{command}")
    for parameter in module.command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            assert parameter.opts[0] in shown


def test_every_option_of_classify_stands_under_one_heading(cli: Cli) -> None:
    shown = cli("classify", "--help").out
    assert [shown.count(f"\n{heading}:\n") for heading in HEADINGS] == [1] * len(HEADINGS)
    assert shown.index("\nNoise draws:") < shown.index("\n  --draws") < shown.index("\nNetwork:")
    assert "\nOptions:" not in shown


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal(cli: Cli, command: str) -> None:
    assert max(map(len, cli(*command.split(), "--help").out.splitlines())) <= 80


def _of_preset(name: str) -> str:
    """A column of the presets, from the smallest images on, as a default is written in the help."""
    told = []
    for model, rows in PRESETS.items():
        values = [getattr(row, name) for row in rows]
        texts = [" ".join(f"{one:g}" for one in (value if isinstance(value, tuple) else (value,))) for value in values]
        changes = [f", {text} above {rows[i].side} pixels" for i, text in enumerate(texts[1:]) if text != texts[i]]
        told.append(f"{model} {texts[0]}{''.join(changes)}")
    return "; ".join(told)


@pytest.mark.parametrize("option", ["width", "steps", "batch", "p_mean", "p_std", "dropout", "levels"])
def test_defaults_that_depend_on_the_images_are_those_of_the_presets(option: str) -> None:
    module = importlib.import_module(f"fastdc.cli.commands.{'export' if option == 'levels' else 'train'}")
    (told,) = (one.help.partition("[default: ")[2] for one in module.command.params if one.name == option)
    assert _of_preset(option) in told
    if option in FINE_TUNING:
        assert told.endswith(f"with --from {FINE_TUNING[option]}]")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("score --model digits x.npz", "'--model': it is an argument here, fastdc score MODEL [DATA]... (try"),
        ("calibrate --model m x.npz", "'--model': it is an argument here, fastdc calibrate BUNDLE DATA... (try"),
        ("bench --model digits", "'--model': it is an argument here, fastdc bench MODEL (try"),
        ("info --model digits", "'--model': it is an argument here, fastdc info [MODEL] (try"),
        ("score digits --data x.npz", "'--data': it is an argument here, fastdc score MODEL [DATA]... (try"),
        ("classify --images x.png", "'--images': it is an argument here, fastdc classify IMAGES... (try"),
        ("train --data photos --out run", "'--data': it is an argument here, fastdc train DATA (try"),
        ("evaluate --model digits run.tsv", "No such option '--model' (try"),
    ],
)
def test_an_argument_that_is_given_as_an_option_is_named(cli: Cli, line: str, said: str) -> None:
    cli.refuses(*line.split(), naming=said)
