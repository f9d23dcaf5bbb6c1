"""The place of a bundle: one process writes there at a time, and a kill at any moment leaves a complete bundle.

A bundle NAME is written to ``.NAME.staging/new`` beside it, which then takes its name. Where the system cannot exchange
two folders in one step, the replaced bundle is ``.NAME.staging/old`` for a moment; if its process is killed then,
whoever looks for the bundle next gets it back. A file in the staging folder says that it is fastdc's; another folder of
that name is left alone.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastdc.bundle.format import MANIFEST
from fastdc.support import BundleError, FastdcError, ProcessLock, replace_folder, sync_folder

_NEW, _OLD, _MARK = "new", "old", "fastdc-staging"
_MARK_TEXT = b"fastdc writes a bundle here, and removes this folder. It may be deleted if no fastdc runs.\n"

_kept: set[tuple[Path, int]] = set()
"""Places that are kept, and the threads that keep them."""


@contextlib.contextmanager
def bundle_place(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Keeps the place of a bundle for this process, and removes what a killed process has left there.

    The thread that keeps a place may call this again for it.

    Args:
        path: The bundle's folder, which need not exist; neither need the folders above it.

    Yields:
        The folder, with links resolved.

    Raises:
        InputError: Another process is writing there, or the place cannot be locked.
        BundleError: No bundle can have this path, or something else has the name of its staging folder.
        OSError: The folders above cannot be made.

    Example:
        >>> from fastdc.bundle import bundle_place
        >>> with bundle_place(folder / "mine") as place: print(place.name)
        mine
    """
    place = Path(os.path.realpath(path))
    if not place.name:
        raise BundleError(f"{path} is not a bundle: choose another path")
    if (place, threading.get_ident()) in _kept:
        yield place
        return
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not os.access(place.parent, os.W_OK):
            yield place  # its files may change, but this user can neither replace the folder nor lock it from beside
            return
        with ProcessLock(place.with_name(f".{place.name}.lock"), Path(path)):
            _tidy(place)
            if os.path.lexists(_staging(place)):
                raise BundleError(f"{_staging(place)} is in the way: rename it, or choose another path than {path}")
            yield from _keep(place)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was written


def _keep(place: Path) -> Iterator[Path]:
    mine = (place, threading.get_ident())
    _kept.add(mine)
    try:
        yield place
    finally:
        _kept.discard(mine)


def put_in_place(place: Path, files: Mapping[str, bytes | Path]) -> None:
    """Makes a folder of these files, or replaces one, within :func:`bundle_place`.

    Args:
        place: The folder, as ``bundle_place`` gives it.
        files: Content of each file by name, or the path of a file to copy.

    Raises:
        OSError: The folder cannot be written; an existing one is unchanged.

    Example:
        >>> from fastdc.bundle import bundle_place, put_in_place
        >>> with bundle_place(folder / "mine") as place: put_in_place(place, {"notes.txt": b"two lines"})
        >>> (folder / "mine" / "notes.txt").read_bytes()
        b'two lines'
    """
    staging = _staging(place)
    new, old = staging / _NEW, staging / _OLD
    try:
        staging.mkdir()
        (staging / _MARK).write_bytes(_MARK_TEXT)
        new.mkdir()
        new.chmod(0o755)
        for name, data in files.items():
            with (new / name).open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)
                file.flush()
                os.fsync(file.fileno())  # otherwise a crash might leave a name without its content
        sync_folder(new / MANIFEST)
        if place.exists():
            replace_folder(place, new, old)
        else:
            new.rename(place)
        sync_folder(place)
    finally:
        _tidy(place)


def recover(path: str | os.PathLike[str]) -> None:
    """Gives a bundle its name back if a process was killed while it replaced the bundle in two steps.

    Raises:
        BundleError: The bundle is there under another name, but cannot be given its own.
    """
    place = Path(os.path.realpath(path))
    if place.exists() or not place.name or not _ours(place):
        return
    try:
        with bundle_place(path):
            pass
    except (FastdcError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BundleError(
            f"{path} was being replaced, and its last version is {_staging(place) / _OLD}: {why}"
        ) from None


def _tidy(place: Path) -> None:
    """Removes the staging folder, if it is fastdc's; gives a bundle its name back first."""
    staging = _staging(place)
    if _ours(place):
        if not place.exists() and (staging / _OLD / MANIFEST).is_file():
            (staging / _OLD).rename(place)
        for part in (_NEW, _OLD):
            shutil.rmtree(staging / part, ignore_errors=True)
        if any((staging / part).exists() for part in (_NEW, _OLD)):
            return  # and keeps the mark for the next try
        (staging / _MARK).unlink()
    with contextlib.suppress(OSError):
        staging.rmdir()  # if it is empty: its maker may have been killed before the mark was made, or after its removal


def _ours(place: Path) -> bool:
    """Whether there is a staging folder that fastdc made."""
    staging = _staging(place)
    mark = staging / _MARK
    return mark.is_file() and not mark.is_symlink() and not staging.is_symlink()


def _staging(place: Path) -> Path:
    return place.with_name(f".{place.name}.staging")
