"""``--levels``: two numbers, or the word for the whole schedule, on every command that has it."""

import importlib
import json
from pathlib import Path

import pytest

from helpers.cli_runs import MLP, Cli, place_digits


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    return place_digits(tmp_path)


WITH_LEVELS = ("demo", "classify", "match", "compose", "explain", "score", "calibrate", "certify", "export")


def _parsed(name: str, *args: str) -> dict[str, object]:
    command = importlib.import_module(f"fastdc.cli.commands.{name}").command
    # With the group's names of --help, because a command keeps the option that it made first.
    with command.make_context(name, list(args), resilient_parsing=True, help_option_names=["-h", "--help"]) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", WITH_LEVELS)
def test_every_band_can_be_the_whole_schedule(name: str) -> None:
    assert _parsed(name, "--levels", "all", "--quiet")["levels"] == "all"
    assert _parsed(name, "--levels=all")["levels"] == "all"
    assert _parsed(name, "--levels", "0.2", "2")["levels"] == (0.2, 2.0)
    assert _parsed(name)["levels"] is None


def test_half_of_the_whole_schedule_is_refused(cli: Cli, digits: Path) -> None:
    cli.refuses("classify", "a.npy", *MLP, "--levels", "0.2", "all", naming="expected two numbers, or all")
    cli.refuses("classify", *MLP, "--", "--levels", "all", naming="--levels")  # files, not an option


def test_no_other_command_has_levels() -> None:
    folder = Path(importlib.import_module("fastdc.cli.commands").__path__[0])
    found = {
        path.stem
        for path in folder.glob("[a-z]*.py")
        for option in importlib.import_module(f"fastdc.cli.commands.{path.stem}").command.params
        if "--levels" in option.opts
    }
    assert found == set(WITH_LEVELS)


def test_draws_from_the_whole_schedule(cli: Cli, digits: Path) -> None:
    command = ("classify", "a.npy", *MLP, "--rule", "full", "--draws", "2", "--json", "--levels")
    lines = [cli(*command, *band).out.splitlines()[0] for band in (("0.2", "2"), ("all",))]
    assert json.loads(lines[0])["errors"] != json.loads(lines[1])["errors"]
