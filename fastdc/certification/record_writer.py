"""Writes certification files so that a run can be killed at any moment and taken up again.

Nothing is lost, repeated or changed by kill -9, because

- the manifest is complete before the first record, and a run is resumed only where it agrees; only the number of images
  may have grown;
- a record is one write of a whole line, then fsync; what stands after the last newline is cut off on resuming;
- records come in the order of the manifest's "indices", so the finished ones are a prefix of them, and the file of a
  resumed run is that of an uninterrupted one, but for the times;
- a lock keeps a second process out; it goes with the process that held it.

The format is :mod:`fastdc.certification.records`'s.
"""

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from fastdc.certification.certificate import Certificate
from fastdc.certification.records import (
    FORMAT,
    HEADER,
    MAX_BYTES,
    VERSION,
    check_indices,
    manifest_path,
    parse_records,
    read_manifest,
    record_line,
)
from fastdc.support import InputError, sync_folder, write_whole

ENVIRONMENT = "environment"


class RecordWriter:
    """Writes the records of one run, and takes up one that was stopped. Made by :meth:`open`; a context manager."""

    def __init__(self, path: Path, descriptor: int, indices: range, finished: int) -> None:
        """For :meth:`open`: a locked file that holds the records of the first `finished` indices."""
        self._path, self._descriptor, self._indices, self._finished = path, descriptor, indices, finished

    @classmethod
    def open(cls, path: str | os.PathLike[str], manifest: dict[str, Any], *, overwrite: bool = False) -> "RecordWriter":
        """Starts a file, or resumes the one that is there.

        Args:
            path: The file; the manifest is written to the same name with .json added.
            manifest: Everything that reproduces the run, as JSON values; "indices" is one of them
                (:mod:`fastdc.certification.records`).
            overwrite: Start again, even if the file belongs to another run. A file that is not a certification is never
                touched.

        Raises:
            InputError: The file is of another run or another program, damaged, in use, or cannot be written.
        """
        file = Path(path)
        whole = _complete(manifest)
        try:
            read_manifest(file, ours=True)  # what it refuses, it refuses before a file is made
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            try:
                _lock(descriptor, file)
                finished = _prepare(descriptor, file, whole, overwrite=overwrite)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}") from None
        return cls(file, descriptor, range(*whole["indices"]), finished)

    @property
    def finished(self) -> frozenset[int]:
        """The images that have a record."""
        return frozenset(self._indices[: self._finished])

    @property
    def remaining(self) -> range:
        """The images that have none, in the order in which they are to be written."""
        return self._indices[self._finished :]

    def write(self, idx: int, label: int, certificate: Certificate) -> None:
        """Writes one record; when this returns, it is on the disk.

        Args:
            idx: The image's place in its data set, the first of :attr:`remaining`.
            label: Its true class, or ``records.UNKNOWN``.
            certificate: What was found.

        Raises:
            InputError: It is another image's turn, a value cannot be, or the disk is full.
        """
        if not self.remaining or idx != self.remaining[0]:
            wanted = f"image {self.remaining[0]}" if self.remaining else "no further image"
            raise InputError(f"{self._path}: expected {wanted}, got a record of image {idx}")
        line = record_line(idx, label, certificate)
        try:
            _append(self._descriptor, line)
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}") from None
        self._finished += 1

    def close(self) -> None:
        """Lets another process have the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def difference(ours: Any, theirs: Any, name: str = "") -> str | None:
    """The first field in which two manifests differ, as a message; None if they are of the same run.

    Args:
        ours: A JSON value, of the run at hand.
        theirs: Another, of the file.
        name: Of the field that holds them, "a.b"; nothing for whole manifests.
    """
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        same = type(ours) is type(theirs) and ours == theirs  # 1, 1.0 and true are three values
        return None if same else f"its {name} is {json.dumps(theirs):.60}, here it is {json.dumps(ours):.60}"
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        field = f"{name}.{key}" if name else str(key)
        if field == ENVIRONMENT:
            continue
        if key not in theirs:
            return f"it has no {field}, here it is {json.dumps(ours[key]):.60}"
        if key not in ours:
            return f"its {field} is {json.dumps(theirs[key]):.60}, here there is none"
        if found := difference(ours[key], theirs[key], field):
            return found
    return None


def _complete(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as its reader will see it."""
    try:
        text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, allow_nan=False)
        whole: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the manifest of the run cannot be written as JSON: {error}") from None
    check_indices(whole, "the manifest of the run")
    return whole


def _lock(descriptor: int, file: Path) -> None:
    """Takes a file for this process alone.

    Raises:
        InputError: It is not a file, or another process has it.
        OSError: The file system has no locks.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InputError(f"{file} is not a file: expected one to write records to")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{file} is in use: another process is writing to it") from None


def _prepare(descriptor: int, file: Path, manifest: dict[str, Any], *, overwrite: bool) -> int:
    """Brings a locked file and its manifest to where the next record can be written.

    Returns:
        How many records the file holds.
    """
    content = _content(descriptor, file)
    if not (HEADER.startswith(content) or content.startswith(HEADER)):
        raise InputError(f"{file} exists and is not a certification of this version: choose another file")
    theirs = read_manifest(file, ours=True)
    if content and theirs is None and not overwrite:
        raise InputError(f"{file} exists without {manifest_path(file).name}, its manifest: choose another file")
    if overwrite or content.count(b"\n") < 2:  # without a record, nothing is lost
        os.ftruncate(descriptor, 0)  # before the manifest: a record must never stand beside another run's
        write_whole(manifest_path(file), _encoded(manifest))
        _append(descriptor, HEADER)
        sync_folder(file)
        return 0
    grows = theirs is not None and _grows(manifest["indices"], theirs["indices"])
    if changed := difference(manifest, {**theirs, "indices": manifest["indices"]} if theirs and grows else theirs):
        raise InputError(f"{file} is of another run: {changed}")
    kept = content[: content.rfind(b"\n") + 1]
    idx = parse_records(kept, file)["idx"]
    if idx.tolist() != list(range(*manifest["indices"])[: len(idx)]):
        raise InputError(f"{file} is damaged: its records are not of the first {len(idx)} images of its run")
    if grows:
        write_whole(manifest_path(file), _encoded(manifest))
    os.ftruncate(descriptor, len(kept))
    os.fsync(descriptor)
    return len(idx)


def _grows(ours: list[int], theirs: list[int]) -> bool:
    """Whether a run is another one continued over more images."""
    return (ours[0], ours[2]) == (theirs[0], theirs[2]) and ours[1] > theirs[1]


def _encoded(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()


def _content(descriptor: int, file: Path) -> bytes:
    if os.fstat(descriptor).st_size > MAX_BYTES:
        raise InputError(f"{file} is larger than {MAX_BYTES} bytes")
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts: list[bytes] = []
    while part := os.read(descriptor, 2**20):
        parts.append(part)
    return b"".join(parts)


def _append(descriptor: int, line: bytes) -> None:
    """A whole line at the end of a file and on the disk, or nothing of it."""
    end = os.fstat(descriptor).st_size
    try:
        while line:  # once, unless the disk is full: then the second write says so
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
