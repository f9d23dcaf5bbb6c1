"""Files that are written whole or not at all, also where the process or the machine stops in between."""

import contextlib
import os
import secrets
import shutil
from pathlib import Path


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file in one step; one that is replaced keeps its mode.

    Raises:
        OSError: It cannot be written; an older file of that name is as it was.
    """
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    try:
        with staging.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a crash might leave a name without its content
        if target.exists():
            shutil.copymode(target, staging)
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)
    sync_folder(target)


def sync_folder(file: Path) -> None:
    """Makes a new name in a folder last, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
