"""Runs the command line in this process, as the installed script does, and says what came of it."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from fastdc.cli.main import main
from fastdc.data import digits_test

MLP = ("--model", "digits-mlp")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> dict[str, str]:
        """The lines of a table on stdout, by their first word."""
        return dict(line.split(None, 1) for line in self.out.splitlines())


class Cli:
    """Runs `fastdc` with arguments and returns its exit code, stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.delenv("FASTDC_TRACEBACK", raising=False)
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *args: str | Path) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["fastdc", *map(str, args)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, *self._capsys.readouterr())

    def refuses(self, *args: str | Path, naming: str = "") -> None:
        """The command refuses its arguments before any work, in one line."""
        result = self(*args)
        assert result.code == 2, result
        assert result.out == ""
        (line,) = result.err.splitlines()
        assert line.startswith("fastdc: error: "), line
        assert naming in line, line
        assert len(line) < 1000
        python = r"\b(None|True|False)\b|(?<!in )(?<!shape )[(\[]-?[\d.]+(e[-+]\d+)?, |(--[-a-z]+)\b[^()]* \(\3\b"
        assert "'" in line or re.search(python, line) is None, line  # quoted text is the user's own


def provenance_of(cli: Cli, *args: str | Path) -> dict[str, Any]:
    """What `fastdc classify` says of a run with --provenance."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.json")
        result = cli("classify", *args, "--provenance", file)
        assert result.code == 0, result.err
        told: dict[str, Any] = json.loads(file.read_text())
    return told


def place_digits(folder: Path) -> Path:
    """Fills a folder with test digits: three images in digits/, five in a.npy, seventy with labels in b.npz."""
    test = digits_test()
    (folder / "digits").mkdir()
    for i in range(3):
        Image.fromarray(test.images[i, 0]).save(folder / "digits" / f"{i}.png")
    np.save(folder / "a.npy", test.images[:5])
    np.savez(folder / "b.npz", images=test.images[:70], labels=test.labels[:70])
    return folder
