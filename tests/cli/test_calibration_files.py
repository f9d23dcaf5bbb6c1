"""Calibrations in files of their own: as if they were written into the model, and refused when they are damaged."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdc.bundle.calibration_file import with_calibration_file, write_calibration_file
from fastdc.bundle.folder import Bundle, load_bundle, with_calibration
from fastdc.bundle.shipped import find_model
from fastdc.support.exceptions import FastdcError, InputError
from helpers.cli_runs import Cli, place_digits
from helpers.worlds import CALIBRATION, CURVE, fails_with


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with digits and "m", the shipped MLP."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(find_model("digits-mlp"), tmp_path / "m")
    return place_digits(tmp_path)


@pytest.fixture
def calibrated(folder: Path) -> Bundle:
    """The model "m", with its calibration beside it in cal.json."""
    bundle = load_bundle("m")
    write_calibration_file("cal.json", bundle, CALIBRATION, level_weights=CURVE, defaults={"first": [0.5, 2.0]})
    return bundle


def test_a_calibration_file_is_as_if_it_were_written_into_the_model(calibrated: Bundle) -> None:
    read = with_calibration_file(calibrated, "cal.json")
    written = with_calibration("m", CALIBRATION, level_weights=CURVE, defaults={"first": [0.5, 2.0]})
    assert read.model == dataclasses.replace(written.model, identity=calibrated.model.identity)
    write_calibration_file("cal.json", calibrated, dataclasses.replace(CALIBRATION, limit=3.0))
    kept = with_calibration_file(written, "cal.json").model
    assert kept == dataclasses.replace(written.model, calibration=dataclasses.replace(CALIBRATION, limit=3.0))
    assert [path.name for path in Path().iterdir() if "cal.json" in path.name] == ["cal.json"]


@pytest.mark.parametrize(
    ("field", "values", "named"),
    [
        ("format", [None, "fastdc-bundle", 5], "not a calibration"),
        ("version", [0, 4, "1", True, None], "version"),
        ("conditions", ["0" * 64, 5], "other prompts"),
        ("network", ["0" * 64, None, 5], "another network"),
        ("calibration", [None, 5, {}, {**CALIBRATION.to_dict(), "limit": -1}], "calibration"),
        ("level_weights", [5, {}, {"ratio": [1], "weight": []}], "level weights"),
        ("defaults", [5, [], "x", None, {"more": 1}], "defaults"),
        ("defaults", [{"first": first} for first in (5, [0], ["1"], "1", [True])], "first"),
        ("defaults", [{"levels": levels} for levels in (5, [1], [2, 1], ["1", 2])], "levels"),
        ("defaults", [{"draws": 0}, {"loss": "l3"}, {"weighting": 1}, {"temperature": -1}], "defaults"),
        ("more", [1], "more"),
    ],
)
def test_a_bad_calibration_file_is_one_line(calibrated: Bundle, field: str, values: list[Any], named: str) -> None:
    good = json.loads(Path("cal.json").read_text())
    for value in values:
        Path("bad.json").write_text(json.dumps({**good, field: value}))
        fails_with(lambda: with_calibration_file(calibrated, "bad.json"), "bad.json", named, kind=InputError)


def test_every_field_of_a_calibration_file_is_needed(calibrated: Bundle) -> None:
    good = json.loads(Path("cal.json").read_text())
    for field in good:
        Path("bad.json").write_text(json.dumps({key: value for key, value in good.items() if key != field}))
        fails_with(lambda: with_calibration_file(calibrated, "bad.json"), "bad.json", kind=InputError)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"limit": NaN}', b"[" * 100_000])
def test_a_file_that_is_no_calibration_is_one_line(cli: Cli, calibrated: Bundle, content: bytes) -> None:
    Path("bad.json").write_bytes(content)
    with pytest.raises(FastdcError):
        with_calibration_file(calibrated, "bad.json")
    cli.refuses("classify", "a.npy", "--model", "m", "--calibration", "bad.json", naming="bad.json")
    cli.refuses("demo", "--calibration", "/dev/zero", naming="/dev/zero")
    cli.refuses("demo", "--calibration", "cal.json", naming="another network")
