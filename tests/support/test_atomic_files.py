"""Files written in one step: they hold the old content or the new one, whichever call fails."""

import errno
import os
from pathlib import Path

import pytest

from fastdc.support.atomic_files import whole_file, write_whole


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
