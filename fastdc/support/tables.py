"""Results as tables: in files, in pandas and in notebooks.

A table is a dictionary of columns of equal length, by name. A file is complete or not there.
"""

import csv
import html
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fastdc.support.arrays import Int64
from fastdc.support.atomic_files import whole_file
from fastdc.support.exceptions import InputError
from fastdc.support.messages import printable, shorten
from fastdc.support.optional import require
from fastdc.support.shown import shown

Columns: TypeAlias = Mapping[str, npt.NDArray[Any] | Sequence[Any]]
"""The columns of a table by name."""

Writer: TypeAlias = Callable[[BinaryIO], None]
"""Writes a whole file."""

SHOWN_ROWS = 20
"""Most rows of a table in a notebook."""

_MOST_TEXT = 60  # characters of one of its cells


def plain(value: Any) -> Any:
    """A value as JSON has it: dictionaries, lists, strings, numbers. What is not finite becomes None.

    Example:
        >>> from fastdc.support import plain
        >>> plain({"errors": np.array([0.5, np.nan]), "shape": (1, 8)})
        {'errors': [0.5, None], 'shape': [1, 8]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def chosen_rows(key: Any, count: int) -> int | Int64:
    """The rows of a sequence that an index chooses: a row for a whole number, an array for anything else.

    Args:
        key: A whole number, a slice, or an array of whole numbers or of truth values.
        count: Number of rows.

    Raises:
        IndexError: A row is out of range, as Python's sequences have it.
        InputError: The key is something else.

    Example:
        >>> from fastdc.support import chosen_rows
        >>> chosen_rows(-1, 4), chosen_rows([True, False, True, False], 4)
        (3, array([0, 2]))
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -count <= key < count:
            raise IndexError(f"image {key} is out of range: there are {count}")
        row: int = int(key) % count
        return row
    if isinstance(key, slice):
        run: Int64 = np.arange(count)[key]
        return run
    try:
        rows = np.asarray(key)
        rows = rows.astype(np.int64) if rows.shape == (0,) else rows
    except ValueError:  # ragged
        rows = np.array(None)
    usable = rows.ndim == 1 and (rows.dtype.kind in "iu" or (rows.dtype.kind == "b" and len(rows) == count))
    if isinstance(key, tuple) or not usable:
        wanted = f"the number of an image, a slice, or an array of numbers or of {count} truth values"
        raise InputError(f"images are chosen by {wanted}, got {shown(key)}")
    try:
        several: Int64 = np.arange(count)[rows]
    except IndexError:
        raise IndexError(f"an image is out of range: there are {count}, got {shown(key)}") from None
    return several


def chosen_ids(ids: tuple[str, ...] | None, rows: Int64) -> tuple[str, ...] | None:
    """The names of some images; None if images have no names.

    Args:
        ids: Name of each image.
        rows: Integers (m,), which images.

    Example:
        >>> from fastdc.support import chosen_ids
        >>> chosen_ids(("a.png", "b.png"), np.array([1]))
        ('b.png',)
    """
    return None if ids is None else tuple(ids[row] for row in rows)


def data_frame(columns: Columns) -> Any:
    """The table as a ``pandas.DataFrame``.

    Raises:
        MissingDependencyError: pandas is not installed.

    Example:
        >>> from fastdc.support import data_frame
        >>> data_frame({"label": np.arange(3)}).shape
        (3, 1)
    """
    return require("pandas", extra="pandas").DataFrame(dict(columns))


_FIGURES = (".png", ".svg", ".pdf")


def save_table(
    path: str | os.PathLike[str],
    *,
    columns: Columns,
    whole: Callable[[], Any],
    entries: Callable[[], Iterable[Any]] | None = None,
    arrays: Callable[[], Mapping[str, npt.NDArray[Any]]] | None = None,
    more: Mapping[str, Writer] | None = None,
    figures: str = "",
) -> None:
    """Writes a table to a file, in the format that the end of its name asks for.

    Args:
        path: The file; a file of that name is replaced.
        columns: The columns of a .csv, UTF-8 with a header; an empty field is a value that is not known.
        whole: Makes the JSON value of a .json.
        entries: Makes the JSON values of a .jsonl, one per line; None: there is no such file.
        arrays: Makes the arrays of an .npz; None: there is no such file.
        more: What writes other formats, by the end of the name, such as ".tsv".
        figures: The function that draws the same as a figure, to name it to those who ask for a .png; empty: none does.

    Raises:
        InputError: The name has another end, or the file cannot be written.

    Example:
        >>> from fastdc.support import save_table
        >>> save_table(folder / "a.csv", columns={"label": [3, 8]}, whole=dict)
        >>> (folder / "a.csv").read_text().splitlines()
        ['label', '3', '8']
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected the path of a file, got {shown(path)}")
    writers: dict[str, Writer] = {
        ".csv": lambda file: _write_csv(file, columns),
        ".json": lambda file: _write_lines(file, [json.dumps(whole(), indent=2, allow_nan=False)]),
    }
    if entries is not None:
        writers[".jsonl"] = lambda file: _write_lines(file, (json.dumps(one, allow_nan=False) for one in entries()))
    if arrays is not None:
        writers[".npz"] = lambda file: np.savez_compressed(file, **cast("dict[str, Any]", dict(arrays())))
    writers |= more or {}
    target = Path(path)
    writer = writers.get(target.suffix.lower())
    if writer is None:
        drawn = f"; {figures} draws figures" if figures and target.suffix.lower() in _FIGURES else ""
        raise InputError(f"{path} cannot be written: expected a name that ends in {', '.join(writers)}{drawn}")
    try:
        with whole_file(target) as file:
            writer(file)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from None


def _write_csv(file: BinaryIO, columns: Columns) -> None:
    rows = csv.writer(_Rows(file), lineterminator="\r\n")  # the characters in a text that it puts into quotes
    rows.writerow(columns)
    rows.writerows(zip(*(plain(column) for column in columns.values()), strict=True))


class _Rows:
    """Where a csv.writer writes, a row at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix("\r\n").encode("utf-8", "backslashreplace") + b"\n")


def _write_lines(file: BinaryIO, lines: Iterable[str]) -> None:
    for line in lines:
        file.write(line.encode("ascii") + b"\n")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column begins at the left, the others end at the right.

    Args:
        rows: The cells of each row, as many in each; characters that do not print become question marks.

    Example:
        >>> from fastdc.support import aligned
        >>> aligned([["class", "images"], ["3", "44"]]).splitlines()
        ['class  images', '3          44']
    """
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in clean
    )


def html_table(head: str, columns: Columns, *, rows: int) -> str:
    """The beginning of a table as HTML, for notebooks. All text is escaped, whatever it holds.

    Args:
        head: A line above the table.
        columns: The columns, or the beginnings of long ones; of long texts in the column "image", the ends are shown.
        rows: Number of all rows.

    Example:
        >>> from fastdc.support import html_table
        >>> "<script>" in html_table("", {"name": ["<script>"]}, rows=1)
        False
    """
    names = "".join(f"<th>{_cell(name)}</th>" for name in columns)
    beginnings = {name: column[:SHOWN_ROWS] for name, column in columns.items()}
    if "image" in beginnings:  # of a path, the end says which image it is
        beginnings["image"] = [
            f"...{text[3 - _MOST_TEXT :]}" if len(text) > _MOST_TEXT else text for text in beginnings["image"]
        ]
    each = zip(*beginnings.values(), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in each)
    more = f"<p>and {rows - SHOWN_ROWS:,} more</p>" if rows > SHOWN_ROWS else ""
    return f"<p>{html.escape(head)}</p><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    known = plain(value.item() if isinstance(value, np.generic) else value)
    text = "" if known is None else f"{known:.4g}" if isinstance(known, float) else str(known)
    return html.escape(shorten(text, _MOST_TEXT))
