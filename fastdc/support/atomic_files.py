"""Files and folders that are written completely or not at all, even if the process or the machine stops in between.

What a killed process leaves are temporary files and folders. Their makers hold a lock on them (``flock``), so that a
later process can tell the left ones from those in use, and removes them when it writes to the same place.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_YOUNG = 60.0  # seconds; the maker of a younger file may be about to lock it

# linux/fs.h, fcntl.h; the errors mean that the system or the file system does not exchange folders.
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM)


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file in one step. A file that already exists is replaced and keeps its mode.

    Args:
        target: Path of the file; its folder must exist.
        content: Bytes of the file.

    Raises:
        OSError: The file cannot be written. An older file of that name is unchanged.

    Example:
        >>> from fastdc.support import write_whole
        >>> write_whole(folder / "notes.txt", b"two lines")
        >>> (folder / "notes.txt").read_bytes()
        b'two lines'
    """
    with whole_file(target) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Opens a file that gets its name only after it has been written completely.

    Args:
        target: Path of the file; its folder must exist.

    Yields:
        A temporary file in the same folder, open for writing. If the block raises, the file is removed.

    Raises:
        OSError: The file cannot be written. An older file of that name is unchanged.

    Example:
        >>> from fastdc.support import whole_file
        >>> with whole_file(folder / "numbers.npy") as file: np.save(file, np.arange(3))
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}-*.tmp"):
        _remove_left(left)
    # Not mkstemp: only the owner may read its files.
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    try:
        with staging.open("xb") as file:
            _keep(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash might leave a name without its content
        if target.exists():
            shutil.copymode(target, staging)
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(target)


def sync_folder(file: Path) -> None:
    """Makes the name of a new file survive a crash, if the file system can do that.

    Args:
        file: Path of the file; its folder is synchronised with the disk.

    Example:
        >>> from fastdc.support import sync_folder
        >>> sync_folder(folder / "notes.txt")
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Makes a folder for temporary files, and removes those that killed processes of this user have left.

    Yields:
        The folder, which is removed when the block ends.

    Example:
        >>> from fastdc.support import temporary_folder
        >>> with temporary_folder() as place: (place / "graph.onnx").write_bytes(b"graph")
        5
    """
    for left in Path(tempfile.gettempdir()).glob("fastdc-*.tmp"):
        _remove_left(left)
    with tempfile.TemporaryDirectory(prefix="fastdc-", suffix=".tmp") as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _keep(descriptor)
            yield Path(name)
        finally:
            os.close(descriptor)


def replace_folder(target: Path, new: Path, old: Path) -> None:
    """Replaces a folder by another one, in one step where the system can do that.

    Elsewhere (some network file systems) two steps are needed, and a process that is killed between them leaves no
    `target`, but a complete `old`.

    Args:
        target: The folder to replace. It must exist.
        new: The folder that gets its name; afterwards it may be left as the replaced one.
        old: A free name on the same file system, for the replaced folder.

    Raises:
        OSError: The folder cannot be replaced; it is unchanged.

    Example:
        >>> from fastdc.support import replace_folder
        >>> for name in ("run", "new"): (folder / name).mkdir(); _ = (folder / name / "id").write_text(name)
        >>> replace_folder(folder / "run", folder / "new", folder / "old")
        >>> (folder / "run" / "id").read_text()
        'new'
    """
    if _exchange(new, target):
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders in one step; False if the system cannot do that."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc has it since 2.28
    if rename is None:
        return False
    if not rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _keep(descriptor: int) -> None:
    """Marks a temporary file or folder as in use, if the file system can do that."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_left(path: Path) -> None:
    """Removes a temporary file or folder of this user, unless a process holds it or it may be about to."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_uid != os.getuid() or time.time() - found.st_mtime < _YOUNG:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(descriptor)
