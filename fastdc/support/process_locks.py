"""Locks that keep a second process from writing to the same place.

A lock is a small file that its holder has locked with ``flock``. The system releases it when the process ends, however
it ends; the file may stay and does no harm. It holds the holder's process id and machine, for the message of the second
process. A forked child does not inherit the lock.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from types import TracebackType

from fastdc.support.exceptions import InputError

_MOST_BYTES = 300  # of a description of the holder
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)

_held: "set[ProcessLock]" = set()
"""The locks that this process holds."""


class ProcessLock:
    """Holds a place for this process, until it is released or the process ends.

    Args:
        file: Path of the lock's own file; its folder must exist.
        place: The file or folder that is kept, for messages.

    Raises:
        InputError: Another process, or another lock of this one, holds the place; or the lock cannot be made.

    Example:
        >>> from fastdc.support import ProcessLock
        >>> with ProcessLock(folder / ".run.lock", folder / "run"): print((folder / ".run.lock").exists())
        True
        >>> (folder / ".run.lock").exists()
        False
    """

    def __init__(self, file: Path, place: Path) -> None:
        self._file = os.path.abspath(file)
        self._descriptor = _locked(file, place)
        _held.add(self)

    def release(self) -> None:
        """Gives the place free. A second call does nothing, nor does a call in a forked child."""
        if self not in _held:
            return
        _held.discard(self)
        with contextlib.suppress(OSError):
            os.unlink(self._file)  # before it is unlocked: whoever has opened it meanwhile sees that the name is gone
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for a child that is forked just now
        os.close(self._descriptor)

    def __enter__(self) -> "ProcessLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _forget() -> None:
    """In a forked child: closes its copies of the descriptors, which would keep the locks when the parent has ended."""
    for lock in _held:
        os.close(lock._descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _locked(file: Path, place: Path) -> int:
    """A descriptor of the lock's file, locked and with this process in it.

    Raises:
        InputError: See :class:`ProcessLock`.
    """
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"{place} cannot be written: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{file} is not a file: expected a lock or nothing there")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(descriptor, file):  # otherwise its holder has just removed it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(f"{place} is in use: {holder} is writing to it") from None
        except OSError as error:
            os.close(descriptor)
            what = "its file system has no locks" if error.errno in _NO_LOCKS else error.strerror
            raise InputError(f"{place} cannot be locked for writing: {what}") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _has_name(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """The process that a lock's file names."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        process, _, machine = os.pread(descriptor, _MOST_BYTES, 0).decode("ascii").strip().partition(" ")
        if process.isdecimal() and machine.isprintable():
            if machine != socket.gethostname():
                return f"process {process} on {machine}"
            return f"process {process}" if int(process) != os.getpid() else f"this process ({process})"
    return "another process"
