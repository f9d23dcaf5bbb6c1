"""Choices of ``fastdc bench``: kept, found, forgotten; for one model, machine and versions; files of any content."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastdc
from fastdc import Bundle, InputError
from fastdc.backends import Choice, NetworkOptions, find_choice, forget_choices, keep_choice, usable_choice
from fastdc.backends import choice as module
from fastdc.backends.machine import backend_versions, machine_facts
from fastdc.bundle import find_model

CHOICE = Choice("onnx", "cpu", "float32", 48, "2026-11-30", 900.0, 400)


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    monkeypatch.delenv("FASTDC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return fastdc.load_bundle(find_model("digits-mlp"))


def test_a_choice_is_kept_and_found_and_forgotten(bundle: Bundle, tmp_path: Path) -> None:
    assert find_choice(bundle) == (None, "")
    path = keep_choice(bundle, CHOICE)
    assert path.parent == tmp_path / "fastdc" / "choices"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert find_choice(bundle) == (CHOICE, "")
    newer = replace(CHOICE, batch=64)
    assert keep_choice(bundle, newer) == path
    assert find_choice(bundle) == (newer, "")
    assert forget_choices(bundle) == (path,)
    assert find_choice(bundle) == (None, "")
    assert forget_choices(bundle) == ()


def test_threads_have_choices_of_their_own(bundle: Bundle) -> None:
    many = machine_facts()["threads"] + 1
    keep_choice(bundle, CHOICE, threads=many)
    assert find_choice(bundle) == (None, "")
    assert find_choice(bundle, threads=many) == (CHOICE, "")
    keep_choice(bundle, CHOICE)
    assert len(forget_choices(bundle)) == 2


def test_another_model_or_machine_has_no_choice(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_choice(bundle, CHOICE)
    assert find_choice(fastdc.load_bundle(find_model("digits"))) == (None, "")
    for other in ({"cpu": "another"}, {"gpus": ["NVIDIA H200"]}, {"driver": "580.65.06"}, {"cpus": 4096}):
        facts = {**machine_facts(), **other}
        with monkeypatch.context() as patch:
            patch.setattr(module, "machine_facts", lambda threads, facts=facts: dict(facts))
            assert find_choice(bundle) == (None, "")
            assert forget_choices(bundle) == ()
    assert find_choice(bundle)[0] == CHOICE


@pytest.mark.parametrize("changed", ["fastdc", "onnx"])
def test_other_versions_are_ignored(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    keep_choice(bundle, CHOICE)
    monkeypatch.setattr(module, "backend_versions", lambda backend: {**backend_versions(backend), changed: "0.1"})
    found, why = find_choice(bundle)
    assert found is None
    assert "other versions" in why
    assert f"{changed} 0.1" in why
    assert "run fastdc bench again" in why


def test_a_missing_package_is_another_version(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_choice(bundle, CHOICE)
    monkeypatch.setattr("fastdc.backends.machine.version_of", lambda *names: None)
    assert find_choice(bundle)[0] is None


FIELDS: tuple[tuple[str, Any], ...] = (
    *(("backend", value) for value in ("function", "", 1, None)),
    ("backend", ["onnx"]),
    *(("device", value) for value in ("cuda", "cuda:1234", "cpu\n", "auto", 0)),
    *(("precision", value) for value in ("auto", "int8", "float64")),
    ("precision", {}),
    *(("batch", value) for value in (0, -1, 65_537, 1.5, True, None, "64")),
    *(("date", value) for value in ("today", "2026-11-30\n", "\x1b[31m", 20261130)),
    *(("images_per_second", value) for value in (0, -1.0, "9", None, 10**400)),
    *(("images", value) for value in (0, 1.5)),
    ("more", 1),
)


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_a_field_that_is_not_valid_is_ignored(bundle: Bundle, name: str, value: Any) -> None:
    path = keep_choice(bundle, CHOICE)
    entry = json.loads(path.read_bytes())
    entry["choice"][name] = value
    path.write_text(json.dumps(entry))
    found, why = find_choice(bundle)
    assert found is None
    assert why.startswith(f"{path} is ignored: ")
    assert "\n" not in why
    assert len(why) < 600


@pytest.mark.parametrize("field", ["format", "version", "model", "machine", "versions", "choice"])
@pytest.mark.parametrize("value", [None, 7, [], "text", {}])
def test_an_entry_of_another_form_is_ignored(bundle: Bundle, field: str, value: Any) -> None:
    path = keep_choice(bundle, CHOICE)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    assert find_choice(bundle)[0] is None
    assert " is ignored: " in find_choice(bundle)[1]


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[" * 60_000, b"{" * 9, b"\xff\xfe", b'{"format": NaN}', b"7" * 100, b" " * 70_000]
)
def test_a_file_of_anything_is_ignored(bundle: Bundle, content: bytes) -> None:
    path = keep_choice(bundle, CHOICE)
    path.write_bytes(content)
    found, why = find_choice(bundle)
    assert found is None
    assert str(path) in why
    assert "\n" not in why


def test_a_large_file_is_ignored(bundle: Bundle) -> None:
    path = keep_choice(bundle, CHOICE)
    content = path.read_bytes()
    path.write_bytes(content.ljust(65_536))
    assert find_choice(bundle)[0] == CHOICE
    path.write_bytes(content.ljust(65_537))
    assert "not a plain file of at most 65536 bytes" in find_choice(bundle)[1]


def test_what_is_no_plain_file_is_ignored(bundle: Bundle, tmp_path: Path) -> None:
    path = keep_choice(bundle, CHOICE)
    path.unlink()
    os.mkfifo(path)  # opening it to read would wait for a writer
    assert "not a plain file" in find_choice(bundle)[1]
    path.unlink()
    path.mkdir()
    open_files = len(os.listdir("/proc/self/fd"))
    assert "not a plain file" in find_choice(bundle)[1]
    assert len(os.listdir("/proc/self/fd")) == open_files
    path.rmdir()
    path.symlink_to(path)
    assert find_choice(bundle)[0] is None
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the folder would be")
    assert find_choice(bundle) == (None, "")


def test_a_folder_that_cannot_be_made_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "fastdc").write_text("")
    with pytest.raises(InputError, match=r"the choice cannot be kept in .*choices"):
        keep_choice(bundle, CHOICE)


def test_a_user_without_a_home_has_no_choice(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert find_choice(bundle)[0] is None
    with pytest.raises(InputError, match="no folder for choices"):
        keep_choice(bundle, CHOICE)


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("onnx", {}),
        ("torch", {}),
        ("auto", {"precision": "float32"}),
        ("auto", {"batch": 48}),
        ("auto", {"compile": True}),
        ("auto", {"graphs": False}),
        ("auto", {"tf32": True}),
        ("auto", {"provider_options": {"provider": "cuda"}}),
        ("auto", {"device": "cuda"}),
        ("auto", {"device": "cuda:0"}),
        ("auto", {"threads": 77}),
    ],
)
def test_what_a_user_says_wins(bundle: Bundle, backend: str, options: dict[str, Any]) -> None:
    keep_choice(bundle, CHOICE)
    assert usable_choice(bundle, "auto", NetworkOptions()) == CHOICE
    assert usable_choice(bundle, "auto", NetworkOptions(device="cpu")) == CHOICE
    assert usable_choice(bundle, backend, NetworkOptions(**options)) is None


def test_other_prompts_have_no_choice(bundle: Bundle) -> None:
    keep_choice(bundle, CHOICE)
    assert usable_choice(replace(bundle, tables={}), "auto", NetworkOptions()) is None


@pytest.mark.parametrize(("precision", "level"), [("float32", logging.INFO), ("bfloat16", logging.WARNING)])
def test_another_precision_is_said_where_nobody_listens(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, precision: str, level: int
) -> None:
    keep_choice(bundle, replace(CHOICE, precision=precision))
    with caplog.at_level(logging.INFO, "fastdc"):
        assert usable_choice(bundle, "auto", NetworkOptions()) is not None
    assert [record.levelno for record in caplog.records] == [level]


def test_a_choice_of_a_device_that_is_gone_is_ignored(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    keep_choice(bundle, replace(CHOICE, device="cuda:0"))
    monkeypatch.setattr("fastdc.diffusion.kernels.cuda_device_count", lambda: 0)
    assert usable_choice(bundle, "auto", NetworkOptions()) is None
    assert "no such device" in caplog.text
    monkeypatch.setattr("fastdc.diffusion.kernels.cuda_device_count", lambda: 1)
    for device in ("auto", "cuda", "cuda:0"):
        assert usable_choice(bundle, "auto", NetworkOptions(device=device)) is not None
    for device in ("cpu", "cuda:1"):
        assert usable_choice(bundle, "auto", NetworkOptions(device=device)) is None


def test_a_damaged_file_is_said_once_per_load(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    keep_choice(bundle, CHOICE).write_bytes(b"{")
    with caplog.at_level(logging.INFO, "fastdc"):
        assert usable_choice(bundle, "auto", NetworkOptions()) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "is ignored" in record.getMessage()


def test_the_machine_is_read_from_the_system(tmp_path: Path) -> None:
    assert machine_facts(3, tmp_path)["gpus"] == []
    assert machine_facts(3, tmp_path)["cpu"]
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Chip 9\nprocessor\t: 1\nmodel name\t: Chip 9\n")
    nvidia = tmp_path / "driver" / "nvidia"
    for number in ("2", "1"):
        (nvidia / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
        (nvidia / "gpus" / f"0000:0{number}:00.0" / "information").write_text(f"Model: \t\t GPU {number}\nIRQ: 1\n")
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)  Sun Jul 27\n"
    (nvidia / "version").write_text(said)
    facts = machine_facts(3, tmp_path)
    assert (facts["cpu"], facts["threads"], facts["gpus"], facts["driver"]) == (
        "Chip 9",
        3,
        ["GPU 1", "GPU 2"],
        "580.65.06",
    )
