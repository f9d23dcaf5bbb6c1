"""Files that are written completely or not at all, even if the process or the machine stops in between."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
    # Not mkstemp: only the owner may read its files.
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    try:
        with staging.open("xb") as file:
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
