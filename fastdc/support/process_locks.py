"""Locks that keep a second process from writing to the same place.

A lock is a small file that its holder has locked with ``flock``. The system releases it when the process ends, however
it ends; the file may stay and does no harm. It holds the holder's process id and machine, for the message of the second
process. A forked child does not inherit the lock. On a file system without locks there is none, and a warning says so.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import warnings
from pathlib import Path
from types import TracebackType

from fastdc.support.exceptions import InputError

_MOST_BYTES = 300  # of a description of the holder
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # the file system has none
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_held: "set[ProcessLock]" = set()
"""The locks that this process holds."""


class ProcessLock:
    """Holds a place for this process, until it is released or the process ends.

    Args:
        file: Path of the lock's own file; its folder must exist.
        place: The file or folder that is kept, for messages.

    Warns:
        RuntimeWarning: The file system has no locks, so nothing keeps a second process out.

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
        if self._descriptor is None:
            return
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
        if lock._descriptor is not None:
            os.close(lock._descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _locked(file: Path, place: Path) -> int | None:
    """A descriptor of the lock's file, locked and with this process in it; None if the file system has no locks.

    Raises:
        InputError: See :class:`ProcessLock`.
    """
    while True:
        descriptor, made, writable = _opened(file, place)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{file} is not a file: expected a lock or nothing there")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _has_name(descriptor, file):  # its holder has just removed it
                    continue
                if not writable and _unlinked(file):  # another user's, left by a process that ended: the next is ours
                    continue
                if writable:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            except BlockingIOError:
                raise InputError(f"{place} is in use: {_holder(descriptor)} is writing to it") from None
            except OSError as error:
                if made:
                    _unlinked(file)
                if error.errno not in _NO_LOCKS:  # NFS: EBADF, for a file that is open for reading only
                    raise InputError(f"{place} cannot be locked for writing: {file}: {error.strerror}") from None
                what = f"{place} is not locked, as its file system has no locks: let no other process write there"
                warnings.warn(what, RuntimeWarning, stacklevel=4)
                return None
            undo.pop_all()
            return descriptor


def _opened(file: Path, place: Path) -> tuple[int, bool, bool]:
    """A descriptor of the lock's file, whether this call has made it, and whether it can be written to.

    Raises:
        InputError: It can be neither made nor opened.
    """
    with contextlib.suppress(OSError):
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666), True, True
    with contextlib.suppress(OSError):  # without O_CREAT, which systems refuse for others' files in a folder for all
        return os.open(file, os.O_RDWR | _FLAGS), False, True
    with contextlib.suppress(OSError):  # another user's may be readable only, which is enough to lock it
        return os.open(file, os.O_RDONLY | _FLAGS), False, False
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666), False, True
    except OSError as error:
        which = f"its lock {file}: " if os.path.lexists(file) else ""
        raise InputError(f"{place} cannot be written: {which}{error.strerror}") from None


def _unlinked(file: Path) -> bool:
    """Removes a file if that is allowed, and says whether it did."""
    try:
        os.unlink(file)
    except OSError:
        return False
    return True


def _has_name(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """The process that a lock's file names."""
    with contextlib.suppress(OSError, OverflowError, UnicodeDecodeError):
        process, _, machine = os.pread(descriptor, _MOST_BYTES, 0).decode("ascii").strip().partition(" ")
        if process.isdecimal() and machine.isprintable():
            if machine != socket.gethostname():
                return f"process {process} on {machine}"
            with contextlib.suppress(PermissionError):  # the holder could not write to it if the file is another user's
                os.kill(int(process), 0)
            return f"process {process}" if int(process) != os.getpid() else f"this process ({process})"
    return "another process"
