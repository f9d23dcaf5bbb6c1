"""Warnings on a command line are notes of one line, and --quiet leaves results and errors."""

import importlib
import logging
import os
import warnings

import click
import pytest

from fastdc.cli.noise import hushed, warnings_as_notes
from fastdc.support import PromptWarning
from helpers.cli_runs import Cli

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


def test_a_warning_is_a_note_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_as_notes():
        for _ in range(2):  # each loss of prompts is told, also the second from one line
            warnings.warn("two\nlines", PromptWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "note: two lines\n" * 2)


def test_quiet_silences_warnings_and_logs_and_ends_with_the_command(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    seen: list[str | None] = []

    def noisy(_: object) -> None:
        seen.extend(map(os.environ.get, ("TRANSFORMERS_VERBOSITY", "TQDM_DISABLE")))
        warnings.warn("something", PromptWarning, stacklevel=1)
        logging.getLogger("library").warning("something")
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdc.bundle.find_model", noisy)
    assert cli("classify", __file__, "--model", "x").err.splitlines()[0] == "note: something"
    assert caplog.messages == ["something"]
    assert cli("classify", __file__, "--model", "x", "--quiet").err.split() == ["fastdc:", "interrupted"]
    assert caplog.messages == ["something"]
    assert seen == ["info", None, "error", "1"]
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert "TQDM_DISABLE" not in os.environ
    with hushed():
        assert not logging.getLogger("library").isEnabledFor(logging.WARNING)
        assert logging.getLogger("library").isEnabledFor(logging.ERROR)
    assert logging.getLogger("library").isEnabledFor(logging.WARNING)


def test_quiet_ends_if_another_option_cannot_be_read(cli: Cli) -> None:
    cli.refuses("classify", __file__, "--quiet", "--draws", "x", naming="--draws")
    assert logging.getLogger("library").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet(command: str) -> None:
    found = importlib.import_module(f"fastdc.cli.commands.{command}").command
    (quiet,) = (one for one in found.params if one.name == "quiet")
    assert isinstance(quiet, click.Option)
    assert quiet.is_flag
