"""Locks between processes: one holder, named in one line, and free when it ends, however it ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fastdc.support import InputError, ProcessLock, process_locks
from helpers.stops import killed_at_each_line

HOLDER = """
import sys, time
from pathlib import Path
from fastdc.support import ProcessLock
lock = ProcessLock(Path(sys.argv[1]), Path("run"))
print("held", flush=True)
time.sleep(60)
"""


def held(file: Path) -> str:
    """The refusal of a second lock."""
    with pytest.raises(InputError) as caught:
        ProcessLock(file, Path("run"))
    return str(caught.value)


def test_a_second_process_is_refused_and_a_killed_one_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, file], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert held(file) == f"run is in use: process {child.pid} is writing to it"
        child.send_signal(signal.SIGKILL)
    with ProcessLock(file, Path("run")):
        assert held(file) == f"run is in use: this process ({os.getpid()}) is writing to it"
    assert not file.exists()


def test_the_holder_may_be_on_another_machine_or_unknown(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with ProcessLock(file, Path("run")):
        for content, holder in ((b"12 node7\n", "process 12 on node7"), (b"", "another process"), (b"\xff", "another")):
            file.write_bytes(content)
            assert f"in use: {holder}" in held(file)


def test_a_forked_child_neither_keeps_nor_frees_the_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock = ProcessLock(file, Path("run"))
    (read, go), (tell, write) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        lock.release()
        os.write(write, b"1" if "is in use" in held(file) else b"0")
        os.read(read, 1)  # lives on while the parent takes the lock again
        os._exit(0)
    assert os.read(tell, 1) == b"1"
    lock.release()
    with ProcessLock(file, Path("run")):
        assert file.exists()
    os.write(go, b"1")
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOLCK, "its file system has no locks"), (errno.EIO, "Input/output error")]
)
def test_a_place_without_locks_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", broken)
    assert held(tmp_path / "lock") == f"run cannot be locked for writing: {says}"


def test_impossible_locks_are_refused(tmp_path: Path) -> None:
    assert held(tmp_path / "none" / "lock") == "run cannot be written: No such file or directory"
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in held(tmp_path / "pipe")
    (tmp_path / "precious").write_text("text")
    (tmp_path / "link").symlink_to("precious")
    assert "run cannot be written" in held(tmp_path / "link")
    assert (tmp_path / "precious").read_text() == "text"


def test_a_stop_at_any_line_leaves_the_place_free(tmp_path: Path) -> None:
    def use() -> None:
        with ProcessLock(tmp_path / "lock", Path("run")):
            pass

    for _ in killed_at_each_line(use, process_locks):
        use()
    assert os.listdir(tmp_path) == []
