"""Writes certification files so that a certification can be killed at any moment and resumed.

kill -9 loses, repeats and changes nothing, because

- the manifest is complete before the first record, and a certification is resumed only if its manifest agrees; only the
  number of images may have grown;
- a record is one write of a whole line, then fsync; on resuming, bytes after the last newline are cut off;
- records come in the order of the manifest's "indices", so the finished ones are a prefix of them; except for the
  times, a resumed file equals an uninterrupted one;
- a lock beside the file keeps a second process out; the system releases it when its process ends.

:mod:`fastdc.certification.records` describes the format.
"""

import contextlib
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
from fastdc.support import InputError, ProcessLock, sync_folder, write_whole

ENVIRONMENT = "environment"
"""The manifest's entry that may change when a certification is resumed."""


class RecordWriter:
    """Writes the records of one certification, and resumes one that was stopped.

    :meth:`open` makes a writer, which is a context manager.

    Example:
        >>> from fastdc.certification import Certificate, RecordWriter
        >>> with RecordWriter.open(folder / "run.tsv", {"indices": [0, 10, 5]}) as writer:
        ...     writer.write(0, 3, Certificate(3, 0.25, 0.9, 95, 100, 10, 1000, seconds=1.5))
        ...     list(writer.remaining)
        [5]
    """

    def __init__(self, path: Path, lock: ProcessLock, descriptor: int, indices: range, finished: int) -> None:
        """Takes a locked file that holds the records of the first `finished` indices."""
        self._path, self._lock, self._descriptor = path, lock, descriptor
        self._indices, self._finished = indices, finished

    @classmethod
    def open(cls, path: str | os.PathLike[str], manifest: dict[str, Any], *, overwrite: bool = False) -> "RecordWriter":
        """Starts a file, or resumes an existing one.

        Args:
            path: Path of the file; the manifest is written to the same name with .json added.
            manifest: Everything that reproduces the certification, as JSON values. Its entry "indices" is [start, stop,
                step], the images in the order of their records.
            overwrite: Whether to start again, even if the file belongs to another certification. A file that is not a
                certification is never touched.

        Raises:
            InputError: The file belongs to another certification or program, is damaged or in use, or cannot be
                written.
        """
        file = Path(path)
        whole = _complete(manifest)
        try:
            read_manifest(file, ours=True)  # a refusal comes before a file is made
            with contextlib.ExitStack() as undo:
                real = Path(os.path.realpath(file))
                lock = undo.enter_context(ProcessLock(real.with_name(f".{real.name}.lock"), file))
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
                undo.callback(os.close, descriptor)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise InputError(f"{file} is not a file: expected one to write records to")
                finished = _prepare(descriptor, file, whole, overwrite=overwrite)
                undo.pop_all()
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}") from None
        return cls(file, lock, descriptor, range(*whole["indices"]), finished)

    @property
    def finished(self) -> frozenset[int]:
        """Indices of the images that have a record."""
        return frozenset(self._indices[: self._finished])

    @property
    def remaining(self) -> range:
        """Indices of the images without a record, in the order in which the records are written."""
        return self._indices[self._finished :]

    def write(self, idx: int, label: int, certificate: Certificate) -> None:
        """Writes one record; it is on the disk when this method returns.

        Args:
            idx: Index of the image in its data set, the first of :attr:`remaining`.
            label: True class of the image, or ``records.UNKNOWN``.
            certificate: Certificate of the image.

        Raises:
            InputError: Another image is next, the certificate holds an impossible value, or the disk is full.
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
        """Closes the file and releases its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def difference(ours: Any, theirs: Any, name: str = "") -> str | None:
    """Names the first field in which two manifests differ, as a message; None if they agree.

    Args:
        ours: JSON value of the certification at hand.
        theirs: JSON value from the file.
        name: Name of the field that holds both, such as "a.b"; empty for whole manifests.
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
    """Returns the manifest as a reader will see it.

    Raises:
        InputError: The manifest is not JSON, or has no usable "indices".
    """
    try:
        text = json.dumps({"format": FORMAT, "version": VERSION, **manifest}, allow_nan=False)
        whole: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the manifest cannot be written as JSON: {error}") from None
    check_indices(whole, "the manifest")
    return whole


def _prepare(descriptor: int, file: Path, manifest: dict[str, Any], *, overwrite: bool) -> int:
    """Prepares a locked file and its manifest for the next record.

    Returns:
        The number of records in the file.
    """
    content = _content(descriptor, file)
    if not (HEADER.startswith(content) or content.startswith(HEADER)):
        raise InputError(f"{file} exists and is not a certification of this version: choose another file")
    theirs = read_manifest(file, ours=True)
    if content and theirs is None and not overwrite:
        raise InputError(f"{file} exists without {manifest_path(file).name}, its manifest: choose another file")
    if overwrite or content.count(b"\n") < 2:  # without a record, nothing is lost
        os.ftruncate(descriptor, 0)  # first, so that no record ever stands beside another certification's manifest
        write_whole(manifest_path(file), _encoded(manifest))
        _append(descriptor, HEADER)
        sync_folder(file)
        return 0
    grows = theirs is not None and _grows(manifest["indices"], theirs["indices"])
    if changed := difference(manifest, {**theirs, "indices": manifest["indices"]} if theirs and grows else theirs):
        raise InputError(f"{file} belongs to another certification: {changed}")
    kept = content[: content.rfind(b"\n") + 1]
    idx = parse_records(kept, file, blank=False)["idx"]
    if idx.tolist() != list(range(*manifest["indices"])[: len(idx)]):
        raise InputError(f"{file} is damaged: its records are not those of its first {len(idx)} images")
    if grows:
        write_whole(manifest_path(file), _encoded(manifest))
    os.ftruncate(descriptor, len(kept))
    os.fsync(descriptor)
    return len(idx)


def _grows(ours: list[int], theirs: list[int]) -> bool:
    """Whether a certification continues another one over more images."""
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
    """Appends a whole line to a file and flushes it to the disk, or leaves the file unchanged."""
    end = os.fstat(descriptor).st_size
    try:
        while line:  # one write, unless the disk is full: then the second one raises
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
