"""Files written in one step: they hold the old content or the new one, whichever call fails."""

import ctypes
import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path

import pytest

from fastdc.support.atomic_files import replace_folder, temporary_folder, whole_file, write_whole


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    target = tmp_path / "file"
    write_whole(target, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, broken)
        with pytest.raises(OSError, match="broken"):
            write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_raises_leaves_no_trace(tmp_path: Path) -> None:
    target = tmp_path / "file"

    def half() -> None:
        with whole_file(target) as file:
            file.write(b"half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        half()
    assert list(tmp_path.iterdir()) == []
    with whole_file(target) as file:
        file.write(b"all")
        assert not target.exists()
    assert target.read_bytes() == b"all"


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_whole(target, b"old")
    target.chmod(0o640)
    write_whole(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def aged(path: Path) -> Path:
    """The path, made to look two minutes old."""
    os.utime(path, (time.time() - 120,) * 2)
    return path


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def use() -> None:
        if kind == "file":
            write_whole(tmp_path / "run", b"new")
            (tmp_path / "run").unlink()
            return
        with temporary_folder() as place:
            (place / "graph").write_bytes(b"new")

    start, end = (".run-", ".tmp") if kind == "file" else ("fastdc-", ".tmp")
    left, young, used, other = (tmp_path / f"{start}{name}{end}" for name in ("left", "young", "used", "other"))
    other = other.with_suffix(".txt")
    for path in (left, young, used, other):
        if kind == "folder":
            path.mkdir()
            (path / "file").write_bytes(b"old")
        else:
            path.write_bytes(b"old")
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for path in (left, used, other):
        aged(path)
    use()
    assert sorted(tmp_path.iterdir()) == sorted([young, used, other])
    os.close(descriptor)
    use()
    assert sorted(tmp_path.iterdir()) == sorted([young, other])


def test_a_temporary_folder_is_marked_as_used_and_removed_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as place:
        with temporary_folder():
            assert aged(place).is_dir()
        with temporary_folder():
            assert place.is_dir()
    target = tmp_path / "file"
    with whole_file(target) as file:
        file.write(b"one")
        file.flush()
        aged(Path(file.name))
        write_whole(target, b"two")
    assert target.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, None])
def test_folders_are_replaced_where_they_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    class Libc:
        """A C library without renameat2, or on a file system without exchange."""

        def __init__(self, *_: object, **__: object) -> None:
            if code is not None:
                self.renameat2 = lambda *_: ctypes.set_errno(code) or -1

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    for name in ("run", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "run", tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path / "run") == ["new"]
    assert os.listdir(tmp_path / "old") == ["run"]
    with pytest.raises(OSError, match="No such file"):
        replace_folder(tmp_path / "run", tmp_path / "none", tmp_path / "older")
    assert os.listdir(tmp_path / "run") == ["new"]


def test_an_exchange_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="No such file"):
        replace_folder(tmp_path / "run", tmp_path / "none", tmp_path / "old")
    assert os.listdir(tmp_path) == ["run"]
