"""Locks between processes: one holder, named in one line, and free when it ends, however it ends."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
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


def broken(code: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_in_the_file_system_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", broken(code))
    file, others = tmp_path / "lock", tmp_path / "others"
    others.write_text("1 node7")
    for name in (file, others):
        with pytest.warns(RuntimeWarning, match="^run is not locked, as its file system has no locks") as caught:
            lock = ProcessLock(name, Path("run"))
        assert len(caught) == 1
        assert not file.exists()
        lock.release()
    assert others.read_text() == "1 node7"


def test_a_lock_that_fails_is_named_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", broken(errno.EIO))
    assert held(tmp_path / "lock") == f"run cannot be locked for writing: {tmp_path / 'lock'}: Input/output error"
    assert os.listdir(tmp_path) == []


def as_another_user(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an action for which files without write permission are read-only, also if root runs the tests."""
    real = os.open

    def unprivileged(path: Path, flags: int, *mode: int) -> int:
        wanted = 0o444 if flags & os.O_ACCMODE == os.O_RDONLY else 0o222
        if os.path.exists(path) and not os.stat(path).st_mode & wanted:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", unprivileged)
        action()


def test_a_lock_file_of_another_user_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"

    def use() -> None:
        file.write_text("999999999 " + socket.gethostname())
        file.chmod(0o444)
        with ProcessLock(file, Path("run")):
            assert file.read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        assert not file.exists()

    as_another_user(use, monkeypatch)


def test_a_lock_file_that_cannot_be_removed_is_locked_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the sticky bit, such as /tmp."""
    file = tmp_path / "lock"
    file.write_text(f"999999999 {socket.gethostname()}")
    file.chmod(0o444)

    def use() -> None:
        monkeypatch.setattr(process_locks, "_unlinked", lambda _: False)
        with ProcessLock(file, Path("run")):
            assert held(file) == "run is in use: another process is writing to it"  # not the one that has ended

    as_another_user(use, monkeypatch)


def test_a_lock_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    file.touch(0o000)
    said = f"run cannot be written: its lock {file}: Permission denied"
    as_another_user(lambda: held(file) == said or pytest.fail(held(file)), monkeypatch)


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
