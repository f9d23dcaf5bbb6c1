"""Certification files: one line an image, as text that other programs read too.

A file is tab-separated with a header. The first six columns are those of Cohen, Rosenfeld & Kolter's released program
(arXiv 1902.02918), so that scripts made for it read ours; then come our own:

    idx label predict radius correct time   p_lower successes copies selection_copies evaluations

`label` is the true class (-1: not known), `predict` the smoothed classifier's (-1: it abstains), `correct` 1 where they
agree, `time` h:mm:ss.ffffff. The radius is theirs, L2 of pixels in [0, 1], but keeps all its digits.

Beside FILE stands FILE.json, the manifest: all that reproduces the run, with "format", "version" and two entries that
have a meaning here. "indices" is [start, stop, step], the images of the run in the order of their records.
"environment" is what a run may differ in and still be the same: where the data lay, threads.

How files are written is in :mod:`fastdc.certification.record_writer`; what they say, in
:mod:`fastdc.certification.summary`.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import MAX_MANIFEST_BYTES
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.support import BundleError, InputError, strict_json

FORMAT = "fastdc-certification"
VERSION = 1
UNKNOWN = -1  # the label of an image whose class is not known

COHEN = ("idx", "label", "predict", "radius", "correct", "time")
OWN = ("p_lower", "successes", "copies", "selection_copies", "evaluations")
HEADER = ("\t".join(COHEN + OWN) + "\n").encode()

MAX_BYTES = 2**28  # some millions of records

_FLOATS = ("radius", "time", "p_lower")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?")
_TIME = re.compile(r"(?:([0-9]{1,6}) days?, )?([0-9]{1,8}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)")


@dataclass(frozen=True, eq=False)
class Records:
    """A certification file as arrays: n records, in the order of the file.

    Attributes:
        path: Where it was read.
        idx: int64 (n,), the images' places in their data set, all different.
        label: int64 (n,), true classes, or :data:`UNKNOWN`.
        predict: int64 (n,), predicted classes, or ``certificate.ABSTAIN``.
        radius: float64 (n,), L2 of pixels in [0, 1]; 0 when abstaining.
        correct: bool (n,), whether the class is known and predicted.
        seconds: float64 (n,), wall time an image.
        own: Our columns by name, p_lower float64 (n,) and counts int64 (n,); empty for a file of another program.
        manifest: What the file's manifest says, or None of a file without one.
    """

    path: Path
    idx: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    predict: npt.NDArray[np.int64]
    radius: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]
    own: dict[str, npt.NDArray[Any]]
    manifest: dict[str, Any] | None

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def labelled(self) -> bool:
        """Whether the true class of every image is known."""
        return bool((self.label != UNKNOWN).all())

    @property
    def expected(self) -> int | None:
        """Records of the finished run, or None where that is not known."""
        return None if self.manifest is None else len(range(*self.manifest["indices"]))


def read_records(path: str | os.PathLike[str]) -> Records:
    """Reads a certification file: one of ours, finished or not, or one of the format of Cohen et al.

    Raises:
        InputError: It is not such a file, has no record, or a line holds a value that cannot be.
    """
    file = Path(path)
    content = _read(file, MAX_BYTES)
    manifest = read_manifest(file)
    if manifest is not None:  # a line without its end is being written, or was when the run was killed
        content = content[: content.rfind(b"\n") + 1]
    columns = parse_records(content, file)
    if not len(columns["idx"]):
        raise InputError(f"{file} has no record yet")
    complete = all(name in columns for name in OWN)
    return Records(
        path=file,
        idx=columns["idx"],
        label=columns["label"],
        predict=columns["predict"],
        radius=columns["radius"],
        correct=columns["correct"] == 1,
        seconds=columns["time"],
        own={name: columns[name] for name in OWN} if complete else {},
        manifest=manifest,
    )


def manifest_path(file: Path) -> Path:
    """Where the manifest of a certification file is."""
    return file.with_name(file.name + ".json")


def read_manifest(file: Path, *, ours: bool = False) -> dict[str, Any] | None:
    """The manifest beside a certification file, or None where there is none.

    Args:
        file: The certification file.
        ours: Whether JSON of another program in that place is refused; else it is no manifest.

    Raises:
        InputError: It cannot be read, is damaged or of a newer version.
    """
    path = manifest_path(file)
    if not path.exists():
        return None
    try:
        manifest = strict_json(_read(path, MAX_MANIFEST_BYTES), path)
    except BundleError as error:
        raise InputError(str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        if ours:
            raise InputError(f"{path} exists and is not the manifest of a certification: choose another file")
        return None
    version = manifest.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise InputError(f"{path} has format version {version!r:.80}, this fastdc reads up to {VERSION}")
    check_indices(manifest, str(path))
    return manifest


def check_indices(manifest: dict[str, Any], where: str) -> None:
    """Checks the entry "indices".

    Raises:
        InputError: It is not [start, stop, step]; `where` says whose.
    """
    indices = manifest.get("indices")
    whole = isinstance(indices, list) and len(indices) == 3 and all(type(i) is int for i in indices)
    if not whole or not (0 <= indices[0] <= indices[1] < 2**53 and 1 <= indices[2] < 2**53):  # type: ignore[index]
        raise InputError(f"{where}: indices must be [start, stop, step], got {json.dumps(indices):.60}")


def record_line(idx: int, label: int, found: Certificate) -> bytes:
    """A record as a line; floats are the shortest text that gives them back.

    Raises:
        InputError: A value of the certificate cannot be.
    """
    if not (math.isfinite(found.radius) and found.radius >= 0 and 0 <= found.p_lower <= 1 and found.seconds >= 0):
        raise InputError(f"image {idx}: a certificate has a finite radius and a bound in [0, 1], got {found}")
    correct = label != UNKNOWN and found.label == label
    values = [str(int(idx)), str(int(label)), str(int(found.label)), repr(float(found.radius)), str(int(correct))]
    values += [_time_text(found.seconds), repr(float(found.p_lower))]
    values += [str(int(count)) for count in (found.successes, found.copies, found.selection_copies, found.evaluations)]
    return ("\t".join(values) + "\n").encode()


def parse_records(content: bytes, file: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a file that are Cohen's or ours, by name; other columns are passed over.

    Args:
        content: Of the file.
        file: Its name, for messages.

    Raises:
        InputError: A column is missing, a value cannot be, or an image has two records.
    """
    try:
        lines = [line.removesuffix("\r") for line in content.decode().split("\n")]
    except UnicodeDecodeError:
        raise InputError(f"{file} is not a text file: expected tab-separated records") from None
    if not lines[-1]:
        lines.pop()
    header = lines[0].split("\t") if lines else []
    missing = [name for name in COHEN if name not in header]
    if missing:
        raise InputError(f"{file} is not a certification: expected a column {missing[0]!r} in its first line")
    known = [(place, name) for place, name in enumerate(header) if name in COHEN + OWN]
    if len({name for _, name in known}) < len(known):
        raise InputError(f"{file} is not a certification: its first line has two columns of one name")
    rows = list(_rows(lines[1:], len(header), known, file))
    table: dict[str, npt.NDArray[Any]] = {
        name: np.array([row[k] for row in rows], np.float64 if name in _FLOATS else np.int64)
        for k, (_, name) in enumerate(known)
    }
    unique, counts = np.unique(table["idx"], return_counts=True)
    if len(unique) < len(rows):
        raise InputError(f"{file} has {counts.max()} records of image {unique[counts.argmax()]}: expected one")
    return table


def _rows(lines: list[str], width: int, known: list[tuple[int, str]], file: Path) -> Iterator[list[float | int]]:
    """The values of each line in the order of `known`, the places and names of the columns to be read."""
    for number, line in enumerate(lines, 2):
        where = f"{file}, line {number}"
        fields = line.split("\t")
        if len(fields) != width:
            raise InputError(f"{where}: expected {width} values between tabs, got {len(fields)}")
        row = {name: _value(name, fields[place], where) for place, name in known}
        if row["correct"] != int(row["predict"] == row["label"] != UNKNOWN):
            raise InputError(f"{where}: correct must be 1 where predict is label and 0 elsewhere")
        if row.get("successes", 0) > row.get("copies", math.inf):
            raise InputError(f"{where}: successes must be at most copies, got {row['successes']} of {row['copies']}")
        yield list(row.values())


def _value(name: str, text: str, where: str) -> float | int:
    """One field.

    Raises:
        InputError: It is not a value of its column.
    """
    if name == "time":
        if match := _TIME.fullmatch(text):
            days, hours, minutes, seconds = match.groups()
            return (int(days or 0) * 24 + int(hours)) * 3600 + int(minutes) * 60 + float(seconds)
        raise InputError(f"{where}: time must be h:mm:ss, got {text!r:.60}")
    if name in _FLOATS:
        top, wanted = (1.0, "a probability") if name == "p_lower" else (1e300, "a number from 0")
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        if number <= top:
            return number
        raise InputError(f"{where}: {name} must be {wanted}, got {text!r:.60}")
    lowest = {"label": UNKNOWN, "predict": ABSTAIN}.get(name, 0)
    if _WHOLE.fullmatch(text) and int(text) >= lowest:
        return int(text)
    raise InputError(f"{where}: {name} must be a whole number from {lowest}, got {text!r:.60}")


def _time_text(seconds: float) -> str:
    whole, rest = divmod(timedelta(seconds=float(seconds)), timedelta(seconds=1))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{rest.microseconds:06}"


def _read(file: Path, limit: int) -> bytes:
    try:
        if not file.is_file():  # neither a folder nor a device without an end
            raise InputError(f"{file} is not a file: expected a certification, as of fastdc certify --out")
        if file.stat().st_size > limit:
            raise InputError(f"{file} is larger than {limit} bytes")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
