"""``fastdc.load`` with a choice of ``fastdc bench``: it is used where options are open, and everything says so."""

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.backends import Choice, keep_choice
from fastdc.bundle import find_model
from fastdc.cli.classify import run_name
from fastdc.data import digits_test
from helpers.cli_runs import MLP, Cli

pytest.importorskip("onnxruntime")

IMAGES = digits_test().images[:3]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a choice for digits-mlp on this machine."""
    monkeypatch.setenv("FASTDC_CACHE", str(tmp_path))
    bundle = fastdc.load_bundle(find_model("digits-mlp"))
    return keep_choice(bundle, Choice("onnx", "cpu", "float32", 48, "2026-11-30", 900.0, 400))


def test_a_choice_is_used_and_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastdc"):
        chosen = fastdc.load("digits-mlp")
    assert chosen.network.batch == 48
    assert [record.getMessage() for record in caplog.records] == [
        "digits-mlp runs on onnx in float32, batch 48, on cpu: the choice of fastdc bench, 2026-11-30; "
        "backend, precision or batch override it"
    ]
    where = "onnx on cpu in float32, batch 48, chosen by fastdc bench, 2026-11-30)"
    assert repr(chosen).endswith(where)
    for other in (pickle.loads(pickle.dumps(chosen)), copy.deepcopy(chosen), copy.copy(chosen)):
        assert repr(other).endswith(where)
    result = chosen.classify(IMAGES)
    assert result.provenance["chosen_by"] == "fastdc bench, 2026-11-30"
    told = {name: result.provenance[name] for name in ("backend", "precision", "batch", "device")}
    assert told == {"backend": "onnx", "precision": "float32", "batch": 48, "device": "cpu"}
    again = fastdc.load("digits-mlp", **told).classify(IMAGES)
    assert np.array_equal(again.errors, result.errors)
    assert run_name(again.provenance) == run_name(result.provenance)
    assert run_name({**again.provenance, "precision": "float16"}) != run_name(result.provenance)
    with fastdc.Session(chosen) as session:
        assert session.submit(IMAGES[0]).result().provenance["chosen_by"] == "fastdc bench, 2026-11-30"


def test_options_win(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastdc"):
        given = fastdc.load("digits-mlp", backend="onnx")
    assert caplog.records == []
    assert given.network.batch == 128
    assert repr(given).endswith("onnx on cpu in float32, batch 128)")
    assert "chosen_by" not in given.classify(IMAGES).provenance
    assert fastdc.load("digits-mlp", batch=16).network.batch == 16


def test_a_choice_that_cannot_be_opened_is_named(path: Path, tmp_path: Path) -> None:
    bundle = fastdc.load_bundle(find_model("digits-mlp"))
    keep_choice(bundle, Choice("onnx", "cpu", "float16", 48, "2026-11-30", 900.0, 400))
    with pytest.raises(fastdc.BackendError, match=r"precision 'float16' \(by the choice of fastdc bench; .* --forget"):
        fastdc.load("digits-mlp")


def test_a_command_says_what_it_uses(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(monkeypatch, capsys)
    np.save(path.parent / "a.npy", IMAGES)
    args = ("classify", path.parent / "a.npy", *MLP)
    note = "note: digits-mlp runs on onnx in float32, batch 48, on cpu: the choice of fastdc bench, 2026-11-30"
    assert cli(*args).err.splitlines()[0] == f"{note}; --backend, --precision or --batch override it"
    assert cli(*args, "--quiet").err == ""
    assert "note" not in cli(*args, "--batch", "128").err
    handlers = logging.getLogger("fastdc").handlers
    assert handlers == []
    assert "onnx in float32, batch 48, on cpu (fastdc bench, 2026-11-30: 900 images/s" in cli("info", "digits-mlp").out
    path.write_text("{")
    damaged = cli(*args)
    assert damaged.code == 0
    assert damaged.err.splitlines()[0].startswith(f"note: {path} is ignored: ")
    assert f"{path} is ignored" in cli("info", "digits-mlp").out
    assert cli(*args, "--quiet").err == ""
    assert cli("bench", "digits-mlp", "--forget").out == f"removed {path}\n"
    assert "none: fastdc bench --write makes one" in cli("info", "digits-mlp").out
    assert cli("bench", "digits-mlp", "--forget").out == "there was no choice for digits-mlp\n"


def test_info_writes_a_large_rate_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_choice(
        fastdc.load_bundle(find_model("digits-mlp")), Choice("onnx", "cpu", "float32", 48, "2026-11-30", 8012.4, 4)
    )
    assert "2026-11-30: 8,012 images/s, 4 of 4" in Cli(monkeypatch, capsys)("info", "digits-mlp").out
