"""Writing certification files: stopped anywhere and resumed, a certification ends in the same file."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.record_writer import RecordWriter, difference
from fastdc.certification.records import HEADER, manifest_path, read_records
from fastdc.support.exceptions import InputError

MANIFEST: dict[str, Any] = {
    "fastdc": "0.1.0",
    "indices": [0, 20, 4],
    "model": {"name": "digits", "sha256": "ab"},
    "options": {"sigma": 0.25, "n": 1000, "radius": None},
    "environment": {"threads": 2},
}
INDICES = (0, 4, 8, 12, 16)


def certificate(idx: int) -> Certificate:
    """A certificate that depends on the image alone; its time is constant, so that whole files can be compared."""
    label = ABSTAIN if idx % 3 == 2 else idx % 5
    return Certificate(
        label=label,
        radius=0.0 if label == ABSTAIN else 1 / (idx + 3),
        p_lower=idx / 23,
        successes=idx,
        copies=100,
        selection_copies=10,
        evaluations=1000 + idx,
        seconds=1.5,
    )


def run(path: Path, *, stop: int = len(INDICES), **changes: Any) -> None:
    """A run, or what is left of one, that ends after `stop` records."""
    with RecordWriter.open(path, {**MANIFEST, **changes}) as writer:
        for idx in writer.remaining[:stop]:
            writer.write(idx, idx % 5, certificate(idx))


def test_a_run_whose_manifest_has_the_former_name_of_n_goes_on(path: Path) -> None:
    former = {"estimation": "fixed", "sigma": 0.25, "most": 1000, "alpha": 0.001, "n0": 100, "copies_seed": 0}
    now = {"n" if name == "most" else name: value for name, value in former.items()}
    run(path, stop=2, smoothing=former)
    assert json.loads(manifest_path(path).read_text())["smoothing"] == former
    assert read_records(path).manifest["smoothing"] == now  # type: ignore[index]
    assert "its smoothing.n is 1000, here it is 999" in refused(path, {**MANIFEST, "smoothing": {**now, "n": 999}})
    run(path, smoothing=now)
    assert len(read_records(path)) == len(INDICES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.tsv"


def refused(path: Path, manifest: dict[str, Any] | None = None, *, overwrite: bool = False) -> str:
    """The one line with which a file is refused; nothing in its folder is changed."""
    before = {item.name: item.read_bytes() for item in path.parent.iterdir() if item.is_file()}
    with pytest.raises(InputError) as caught:
        RecordWriter.open(path, manifest or MANIFEST, overwrite=overwrite)
    assert {item.name: item.read_bytes() for item in path.parent.iterdir() if item.is_file()} == before
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


# --- writing and resuming --------------------------------------------------------------------------------------------


def test_a_whole_run(path: Path) -> None:
    run(path)
    records = read_records(path)
    assert tuple(records.idx.tolist()) == INDICES
    assert records.radius.tolist() == [certificate(idx).radius for idx in INDICES]
    assert records.own["evaluations"].tolist() == [certificate(idx).evaluations for idx in INDICES]
    assert records.expected == len(INDICES)
    assert records.manifest == {"format": "fastdc-certification", "version": 1, **MANIFEST}
    assert sorted(item.name for item in path.parent.iterdir()) == ["records.tsv", "records.tsv.json"]


def test_a_run_stopped_at_any_byte_is_resumed_to_the_same_file(path: Path) -> None:
    short = {**MANIFEST, "indices": [0, 9, 4]}
    run(path, **short)
    whole, manifest = path.read_bytes(), manifest_path(path).read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with RecordWriter.open(path, short) as writer:
            complete = max(whole[:cut].count(b"\n") - 1, 0)
            assert writer.finished == set(INDICES[:complete])
            assert tuple(writer.remaining) == INDICES[complete:3]
            for idx in writer.remaining:
                writer.write(idx, idx % 5, certificate(idx))
        assert path.read_bytes() == whole
    assert manifest_path(path).read_bytes() == manifest


@pytest.mark.parametrize("stop", [1, 2, 1000])
def test_a_run_may_grow_by_images(path: Path, stop: int) -> None:
    """As if it had been that long from the beginning."""
    run(path, stop=stop, indices=[0, 9, 4])
    run(path)
    longer = (path.read_bytes(), manifest_path(path).read_bytes())
    path.unlink()
    manifest_path(path).unlink()
    run(path)
    assert (path.read_bytes(), manifest_path(path).read_bytes()) == longer


@settings(max_examples=20)
@given(stops=st.lists(st.integers(0, 3), max_size=6))
def test_runs_in_pieces(tmp_path_factory: pytest.TempPathFactory, stops: list[int]) -> None:
    folder = tmp_path_factory.mktemp("run")
    for stop in stops:
        run(folder / "pieces", stop=stop)
    run(folder / "pieces")
    run(folder / "whole")
    assert (folder / "pieces").read_bytes() == (folder / "whole").read_bytes()


def test_a_record_is_on_the_disk_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    write, fsync = os.write, os.fsync

    def noted(name: str, call: Callable[..., Any], descriptor: int, *rest: bytes) -> Any:
        calls.append((name, rest[0].count(b"\n") if rest else 0))
        return call(descriptor, *rest)

    with RecordWriter.open(path, MANIFEST) as writer:
        monkeypatch.setattr(os, "write", lambda *args: noted("write", write, *args))
        monkeypatch.setattr(os, "fsync", lambda *args: noted("fsync", fsync, *args))
        writer.write(0, 0, certificate(0))
        writer.write(4, 4, certificate(4))
    assert calls == [("write", 1), ("fsync", 0)] * 2


@pytest.mark.parametrize(("fits", "code"), [(0, errno.ENOSPC), (20, errno.ENOSPC), (20, errno.EIO)])
def test_a_full_disk_leaves_whole_records(path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, code: int) -> None:
    write = os.write
    room = [fits]

    def full(descriptor: int, line: bytes) -> int:
        if not room[0]:
            raise OSError(code, os.strerror(code))
        taken = write(descriptor, line[: room[0]])
        room[0] = 0
        return taken

    with RecordWriter.open(path, MANIFEST) as writer:
        writer.write(0, 0, certificate(0))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(InputError, match=f"cannot be written: {os.strerror(code)}"):
                writer.write(4, 4, certificate(4))
        assert path.read_bytes() == before
        assert writer.finished == {0}
        writer.write(4, 4, certificate(4))
        assert path.read_bytes().startswith(before)
        assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize(("idx", "wanted"), [(0, "image 4"), (8, "image 4"), (5, "image 4")])
def test_records_come_in_order(path: Path, idx: int, wanted: str) -> None:
    with RecordWriter.open(path, MANIFEST) as writer:
        writer.write(0, 0, certificate(0))
        with pytest.raises(InputError, match=f"expected {wanted}, got a record of image {idx}"):
            writer.write(idx, 0, certificate(0))


def test_a_finished_run_takes_no_more(path: Path) -> None:
    run(path)
    with RecordWriter.open(path, MANIFEST) as writer:
        assert not writer.remaining
        with pytest.raises(InputError, match="expected no further image"):
            writer.write(20, 0, certificate(0))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fastdc": "0.2.0"}, 'its fastdc is "0.1.0", here it is "0.2.0"'),
        ({"options": {"sigma": 0.5, "n": 1, "radius": None}}, "its options.sigma is 0.25, here it is 0.5"),
        ({"options": {"sigma": 0.25, "n": 1000.0, "radius": None}}, "its options.n is 1000, here it is 1000.0"),
        ({"options": {"sigma": 0.25, "n": 1000}}, "its options.radius is null, here there is none"),
        ({"more": [1]}, "it has no more, here it is [1]"),
        ({"indices": [0, 16, 4]}, "its indices is [0, 20, 4], here it is [0, 16, 4]"),
        ({"indices": [0, 24, 2]}, "its indices is [0, 20, 4], here it is [0, 24, 2]"),
        ({"model": None}, 'its model is {"name": "digits", "sha256": "ab"}, here it is null'),
    ],
)
def test_another_run_is_refused_by_its_first_difference(path: Path, changes: dict[str, Any], message: str) -> None:
    run(path, stop=1)
    assert refused(path, {**MANIFEST, **changes}) == f" belongs to another certification: {message}"


def test_the_environment_may_differ_and_stays_as_recorded(path: Path) -> None:
    run(path, stop=2)
    run(path, environment={"threads": 7})
    assert json.loads(manifest_path(path).read_text())["environment"] == {"threads": 2}
    assert len(read_records(path)) == len(INDICES)


def test_without_a_record_another_run_takes_the_file(path: Path) -> None:
    run(path, stop=0, fastdc="0.0.9")
    run(path)
    assert read_records(path).manifest == {"format": "fastdc-certification", "version": 1, **MANIFEST}


def test_overwriting_starts_again(path: Path) -> None:
    run(path)
    whole = path.read_bytes()
    with RecordWriter.open(path, {**MANIFEST, "fastdc": "9"}, overwrite=True) as writer:
        assert tuple(writer.remaining) == INDICES
        writer.write(0, 0, certificate(0))
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert json.loads(manifest_path(path).read_text())["fastdc"] == "9"


def test_two_processes_do_not_share_a_file(path: Path) -> None:
    with RecordWriter.open(path, MANIFEST) as writer:
        writer.write(0, 0, certificate(0))
        for overwrite in (False, True):
            expected = f" is in use: this process ({os.getpid()}) is writing to it"
            assert refused(path, overwrite=overwrite) == expected
    run(path)  # and the lock goes with the writer


def test_a_lock_goes_with_a_killed_process(path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from fastdc.certification.record_writer import RecordWriter\n"
        "writer = RecordWriter.open(sys.argv[1], {'indices': [0, 3, 1]})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert child.returncode == -9
    with RecordWriter.open(path, {"indices": [0, 3, 1]}) as writer:
        assert list(writer.remaining) == [0, 1, 2]


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_touched(path: Path, overwrite: bool) -> None:
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t1.21\t1\t0:00:15\n")
    assert "is not a certification of this version" in refused(path, overwrite=overwrite)
    path.unlink()
    manifest_path(path).write_text('{"epochs": 90}')
    assert "exists and is not the manifest of a certification" in refused(path, overwrite=overwrite)
    manifest_path(path).unlink()
    (path.parent / "folder").mkdir()
    assert "cannot be written" in refused(path.parent / "folder", overwrite=overwrite)
    os.mkfifo(path)
    assert " is not a file" in refused(path, overwrite=overwrite)


def test_a_file_without_its_manifest_is_refused(path: Path) -> None:
    run(path, stop=2)
    manifest_path(path).unlink()
    assert refused(path) == " exists without records.tsv.json, its manifest: choose another file"
    with RecordWriter.open(path, MANIFEST, overwrite=True) as writer:
        assert tuple(writer.remaining) == INDICES


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"\n4\t", b"\n5\t", " is damaged: its records are not those of its first 3 images"),
        (b"\n4\t", b"\n0\t", " has 2 records of image 0: expected one"),
        (b"\n4\t", b"\nx\t", ", line 3: idx must be a whole number of at least 0, got 'x'"),
        (b"\n4\t", b"\n\n4\t", ", line 3: expected 11 values between tabs, got 1"),
        (b"\t1.5\t", b"\t", None),
    ],
)
def test_a_damaged_file_is_refused(path: Path, old: bytes, new: bytes, message: str | None) -> None:
    run(path, stop=3)
    content = path.read_bytes()
    damaged = content.replace(old, new, 1) if message else content.replace(b"\t", b" ", 40)
    assert damaged != content
    path.write_bytes(damaged)
    assert refused(path) == (message or " exists and is not a certification of this version: choose another file")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"indices": [0, 1, 1], "x": float("nan")}, "cannot be written as JSON"),
        ({"indices": [0, 1, 1], "x": {1, 2}}, "cannot be written as JSON"),
        ({"indices": [3, 1, 1]}, "the manifest: indices must be [start, stop, step], got [3, 1, 1]"),
        ({}, "got null"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(path: Path, manifest: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RecordWriter.open(path, manifest)
    assert message in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        RecordWriter.open(tmp_path / "none" / "records.tsv", MANIFEST)


# --- the pieces ------------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.dictionaries(st.text("xy", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(a=_JSON, b=_JSON)
def test_manifests_differ_exactly_where_their_json_does(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (difference({"m": a}, {"m": b}) is None) == same
    assert difference({"environment": a}, {"environment": b}) is None
    assert (difference({"m": {"environment": a}}, {"m": {"environment": b}}) is None) == same


def test_the_header_is_where_a_file_begins(path: Path) -> None:
    run(path, stop=0)
    assert path.read_bytes() == HEADER
