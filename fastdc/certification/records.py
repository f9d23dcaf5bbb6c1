"""Certification files: one line per image, as text that other programs can read too.

A file is tab-separated with a header. The first six columns are those of the program that Cohen, Rosenfeld & Kolter
released (arXiv 1902.02918), so scripts made for it can read our files, and we read theirs. Our own columns follow:

    idx label predict radius correct time   p_lower successes copies selection_copies evaluations

`label` is the true class (-1: unknown) and `predict` the smoothed classifier's answer (-1: it abstains). `correct` is 1
if they agree. `time` is h:mm:ss.ffffff. The radius is the L2 distance of pixels in [0, 1], as in their files, but with
all digits. Files of other programs may also have commas or spaces between values, `time` in seconds (as half of the
files that Cohen et al. released), whole numbers such as 3.0, True and False, further columns, and blank lines.

Beside FILE stands FILE.json, the manifest. It holds everything that reproduces the certification, "format" and
"version", and two entries that this module and the writer interpret. "indices" is [start, stop, step]: the images, in
the order of their records. "environment" lists facts that may change when a certification is resumed, such as the place
of the data and the number of threads.

:mod:`fastdc.certification.record_writer` writes files, and :mod:`fastdc.certification.summary` evaluates them.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import MAX_MANIFEST_BYTES
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.support import BundleError, Float64, InputError, Int64, Mask, shown, strict_json

FORMAT = "fastdc-certification"
VERSION = 1
UNKNOWN = -1  # the label of an image whose true class is unknown

COHEN = ("idx", "label", "predict", "radius", "correct", "time")
OWN = ("p_lower", "successes", "copies", "selection_copies", "evaluations")
HEADER = ("\t".join(COHEN + OWN) + "\n").encode()

MAX_BYTES = 2**28  # some millions of records

_FLOATS = ("radius", "time", "p_lower")
_WHOLE = re.compile(r"(-?[0-9]{1,18})(?:\.0{0,9})?")
_NUMBER = re.compile(r"(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?")
_TIME = re.compile(r"(?:([0-9]{1,6}) days?, )?([0-9]{1,8}):([0-5][0-9]):([0-5][0-9](?:\.[0-9]{1,9})?)")


@dataclass(frozen=True, eq=False)
class Records:
    """A certification file as arrays: n records, in the order of the file.

    Attributes:
        path: Path of the file.
        idx: int64 (n,), index of each image in its data set, all different.
        label: int64 (n,), true classes, or :data:`UNKNOWN`.
        predict: int64 (n,), predicted classes, or ``certificate.ABSTAIN``.
        radius: float64 (n,), L2 distance of pixels in [0, 1]; 0 for an abstention.
        correct: bool (n,), whether the true class is known and predicted.
        seconds: float64 (n,), wall time per image.
        own: Our columns by name, p_lower float64 (n,) and counts int64 (n,); empty for a file of another program.
        manifest: Content of the file's manifest, or None if there is no manifest.
    """

    path: Path
    idx: Int64
    label: Int64
    predict: Int64
    radius: Float64
    correct: Mask
    seconds: Float64
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
        """Number of records of the finished certification, or None if there is no manifest."""
        return None if self.manifest is None else len(range(*self.manifest["indices"]))


def read_records(path: str | os.PathLike[str]) -> Records:
    r"""Reads a certification file: one of ours, finished or not, or one in the format of Cohen et al.

    Args:
        path: Path of the file; its manifest, if there is one, has the same name with .json added.

    Raises:
        InputError: The file is not a certification, has no record, or holds an impossible value.

    Example:
        >>> from fastdc.certification import read_records
        >>> text = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n7\t3\t3\t0.25\t1\t0:00:02\n"
        >>> _ = (folder / "run.tsv").write_text(text)
        >>> read_records(folder / "run.tsv").radius
        array([0.25])
    """
    file = Path(path)
    content = _read(file, MAX_BYTES)
    manifest = read_manifest(file)
    if manifest is not None:  # a line without its end is being written, or was when the writer was killed
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


def records_of(certificates: Sequence[Certificate], labels: npt.ArrayLike | None = None) -> Records:
    """Certificates as records, without a file: the input of the statistics.

    Args:
        certificates: Certificate of each image, one or more.
        labels: Integers (n,), true classes; default: unknown.

    Raises:
        InputError: There is no certificate, or the labels do not fit.

    Example:
        >>> from fastdc.certification import Certificate, records_of
        >>> records_of([Certificate(3, 0.3, 0.9, 95, 100, 10, 1000, 2.0)], labels=[3]).correct
        array([ True])
    """
    n, floats = len(certificates), ("radius", "seconds", "p_lower")
    label = np.full(n, UNKNOWN) if labels is None else np.asarray(labels)
    if n < 1 or label.shape != (n,) or label.dtype.kind not in "iu" or label.min() < UNKNOWN:
        raise InputError(f"expected certificates and a class for each, got {n} and labels of shape {label.shape}")
    label = label.astype(np.int64)
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.array([getattr(found, name) for found in certificates], np.float64 if name in floats else np.int64)
        for name in ("label", "radius", "seconds", *OWN)
    }
    return Records(
        path=Path("certificates"),
        idx=np.arange(n, dtype=np.int64),
        label=label,
        predict=columns["label"],
        radius=columns["radius"],
        correct=(columns["label"] == label) & (label != UNKNOWN),
        seconds=columns["seconds"],
        own={name: columns[name] for name in OWN},
        manifest=None,
    )


def manifest_path(file: Path) -> Path:
    """Path of a certification file's manifest."""
    return file.with_name(file.name + ".json")


def read_manifest(file: Path, *, ours: bool = False) -> dict[str, Any] | None:
    """Reads the manifest beside a certification file; None if there is none.

    Args:
        file: Path of the certification file.
        ours: Whether to refuse a JSON file of another program in that place. By default it counts as no manifest.

    Raises:
        InputError: The manifest cannot be read, is damaged, or has a newer version.
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
        raise InputError(f"{path} has format version {shown(version)}, this fastdc reads up to {VERSION}")
    check_indices(manifest, str(path))
    smoothing = manifest.get("smoothing")
    if isinstance(smoothing, dict) and "most" in smoothing and "n" not in smoothing:  # its former name
        manifest["smoothing"] = {"n" if name == "most" else name: value for name, value in smoothing.items()}
    return manifest


def check_indices(manifest: dict[str, Any], where: str) -> None:
    """Checks the entry "indices" of a manifest.

    Args:
        manifest: Content of the manifest.
        where: Name of the manifest in messages.

    Raises:
        InputError: The entry is not [start, stop, step].
    """
    indices = manifest.get("indices")
    whole = isinstance(indices, list) and len(indices) == 3 and all(type(i) is int for i in indices)
    if not whole or not (0 <= indices[0] <= indices[1] < 2**53 and 1 <= indices[2] < 2**53):  # type: ignore[index]
        raise InputError(f"{where}: indices must be [start, stop, step], got {json.dumps(indices):.60}")


def record_line(idx: int, label: int, found: Certificate) -> bytes:
    """Formats a record as a line; a float is the shortest text that gives it back.

    Args:
        idx: Index of the image in its data set.
        label: True class of the image, or :data:`UNKNOWN`.
        found: Certificate of the image.

    Raises:
        InputError: The certificate holds an impossible value.
    """
    if not (math.isfinite(found.radius) and found.radius >= 0 and 0 <= found.p_lower <= 1 and found.seconds >= 0):
        raise InputError(f"image {idx}: a certificate has a finite radius and a bound in [0, 1], got {found}")
    correct = label != UNKNOWN and found.label == label
    values = [str(int(idx)), str(int(label)), str(int(found.label)), repr(float(found.radius)), str(int(correct))]
    values += [_time_text(found.seconds), repr(float(found.p_lower))]
    values += [str(int(count)) for count in (found.successes, found.copies, found.selection_copies, found.evaluations)]
    return ("\t".join(values) + "\n").encode()


def parse_records(content: bytes, file: Path, *, blank: bool = True) -> dict[str, npt.NDArray[Any]]:
    """Parses the columns of a file that are Cohen's or ours; other columns are skipped.

    Args:
        content: Content of the file.
        file: Path of the file, for messages.
        blank: Whether blank lines are passed over.

    Returns:
        The columns by name, each int64 or float64 (n,).

    Raises:
        InputError: A column is missing, a value is impossible, or an image has two records.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not a text file: expected tab-separated records") from None
    each = enumerate(text.removesuffix("\n").split("\n"), 1)
    lines = [(number, line) for number, line in each if line.strip() or not blank]
    first = lines[0][1] if lines else ""
    mark = next((mark for mark in "\t," if mark in first), None)  # None: split at any space
    header = _fields(first, mark)
    missing = [name for name in COHEN if name not in header]
    if missing:
        raise InputError(f"{file} is not a certification: expected a column {missing[0]!r} in its first line")
    known = [(place, name) for place, name in enumerate(header) if name in COHEN + OWN]
    if len({name for _, name in known}) < len(known):
        raise InputError(f"{file} is not a certification: its first line has two columns of one name")
    rows = list(_rows(lines[1:], mark, len(header), known, file))
    table: dict[str, npt.NDArray[Any]] = {
        name: np.array([row[k] for row in rows], np.float64 if name in _FLOATS else np.int64)
        for k, (_, name) in enumerate(known)
    }
    unique, counts = np.unique(table["idx"], return_counts=True)
    if len(unique) < len(rows):
        raise InputError(f"{file} has {counts.max()} records of image {unique[counts.argmax()]}: expected one")
    return table


def _fields(line: str, mark: str | None) -> list[str]:
    return [field.strip() for field in line.split(mark)]


def _rows(
    lines: list[tuple[int, str]], mark: str | None, width: int, known: list[tuple[int, str]], file: Path
) -> Iterator[list[float | int]]:
    """Yields the values of each line in the order of `known`, the positions and names of the columns to read."""
    between = {"\t": "tabs", ",": "commas", None: "spaces"}[mark]
    for number, line in lines:
        where = f"{file}, line {number}"
        fields = _fields(line, mark)
        if len(fields) != width:
            raise InputError(f"{where}: expected {width} values between {between}, got {len(fields)}")
        row = {name: _value(name, fields[place], where) for place, name in known}
        if row["correct"] != int(row["predict"] == row["label"] != UNKNOWN):
            raise InputError(f"{where}: correct must be 1 if predict is label, else 0")
        if row.get("successes", 0) > row.get("copies", math.inf):
            raise InputError(f"{where}: successes must be at most copies, got {row['successes']} of {row['copies']}")
        yield list(row.values())


def _value(name: str, text: str, where: str) -> float | int:
    """Parses one field.

    Raises:
        InputError: The column has no such value.
    """
    if name == "time":
        if match := _TIME.fullmatch(text):
            days, hours, minutes, seconds = match.groups()
            return (int(days or 0) * 24 + int(hours)) * 3600 + int(minutes) * 60 + float(seconds)
        if _NUMBER.fullmatch(text) and float(text) <= 1e300:
            return float(text)
        raise InputError(f"{where}: time must be h:mm:ss or a number of seconds, got {text!r:.60}")
    if name in _FLOATS:
        top, wanted = (1.0, "a probability") if name == "p_lower" else (1e300, "a number of at least 0")
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        if number <= top:
            return number
        raise InputError(f"{where}: {name} must be {wanted}, got {text!r:.60}")
    lowest = {"label": UNKNOWN, "predict": ABSTAIN}.get(name, 0)
    if name == "correct" and text in ("True", "False"):
        return int(text == "True")
    if (match := _WHOLE.fullmatch(text)) and int(match[1]) >= lowest:
        return int(match[1])
    raise InputError(f"{where}: {name} must be a whole number of at least {lowest}, got {text!r:.60}")


def _time_text(seconds: float) -> str:
    whole, rest = divmod(timedelta(seconds=float(seconds)), timedelta(seconds=1))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{rest.microseconds:06}"


def _read(file: Path, limit: int) -> bytes:
    try:
        if not file.is_file():  # neither a folder nor an endless device
            raise InputError(f"{file} is not a file: expected a certification, made by fastdc certify --out")
        if file.stat().st_size > limit:
            raise InputError(f"{file} is larger than {limit} bytes")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
