"""Manifests: tables that name image files, with their classes, their splits and whatever else is known of them.

CSV, TSV, JSON lines and Parquet. One row is one image. These columns have a meaning, by their names in any case; all
others are kept as text:

    path, file_name, filename, file, image_path, image, ...    the image file, relative to the manifest's folder
    label, class, class_name, target, category                 its class: a name or a whole number
    split, subset, partition                                   train, val, test or another name

A folder with a metadata.csv, .jsonl or .parquet that has a column file_name is such a table, as for Hugging Face's
`imagefolder`. Rows are read one by one with the readers of Python and of pyarrow.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fastdc.data.budget import Budget
from fastdc.data.notes import reading, show
from fastdc.support import InputError, require

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

PATH_NAMES = (
    "path",
    "file_name",
    "filename",
    "file",
    "image_path",
    "image_file",
    "file_path",
    "filepath",
    "image",
    "img",
)
"""Columns of the image files, in this order."""

LABEL_NAMES = ("label", "class", "class_name", "target", "category")
"""Columns of the labels, in this order."""

_SPLIT = ("split", "subset", "partition")
_METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES)
_OUTPUT = {"probabilities", "errors", "evaluations"}  # columns of what `fastdc classify --json` prints
_NOT_TEXT = ("struct", "list", "large_list", "fixed_size_list", "map", "binary", "large_binary", "fixed_size_binary")
_COLUMNS_SHOWN = 8

Row: TypeAlias = tuple[int, list[str]]
"""The number of a line, or of a row where there are no lines, and its cells."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """The rows of a manifest, n of them.

    Attributes:
        path: The manifest.
        lines: Number of each row's line.
        files: The image file that each row names, as it is spelled; "" if it names none.
        labels: The class of each row, "" if it has none; None if there is no such column.
        splits: The split of each row, "" if it has none; None if there is no such column.
        columns: n values of each other column.
    """

    path: Path
    lines: list[int]
    files: list[str]
    labels: list[str] | None
    splits: list[str] | None
    columns: dict[str, list[str]]


def is_manifest(path: Path) -> bool:
    """Whether a path is that of a manifest, by its suffix."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def metadata_of(folder: Path) -> Path | None:
    """The manifest in a folder, as Hugging Face's `imagefolder` has it: with a column file_name; None if there is none.

    Raises:
        InputError: A file of this name cannot be read.
    """
    for path in (folder / name for name in _METADATA):
        if path.is_file() and "file_name" in map(plain_column, next(table_rows(path), (0, []))[1]):
            return path
    return None


def read_manifest(path: Path, budget: Budget) -> Manifest:
    """Reads a manifest.

    Args:
        path: The manifest.
        budget: Bounds the size of the file and the number of rows.

    Raises:
        InputError: It is damaged, has no rows or no column for image files, or is too large; with the line.
        MissingDependencyError: It is a Parquet file, and pyarrow is not installed.
    """
    name = show(path)
    with reading(path, "a manifest"):
        budget.stored((path.stat().st_size,), 1, name)
    rows = table_rows(path, budget)
    header = next(rows, None)
    if header is None:
        raise InputError(f"{name}: is empty: expected a header with a column {_either(PATH_NAMES)}")
    names = header[1]
    places = _places(names, name)
    lines: list[int] = []
    columns: list[list[str]] = [[] for _ in names]
    same: dict[str, str] = {}  # many cells are equal
    for line, cells in rows:
        lines.append(line)
        for column, cell in zip(columns, cells, strict=True):
            column.append(same.setdefault(cell, cell) if len(same) < 2**16 else cell)
        if len(lines) % 1024 == 0:
            budget.hold(len(lines), (1, 1, 1), 1)
    if not lines:
        raise InputError(f"{name}: has a header and no rows: expected one for each image")
    budget.hold(len(lines), (1, 1, 1), 1)

    def taken(kind: str) -> list[str] | None:
        return [cell.strip() for cell in columns[places[kind]]] if kind in places else None

    others = {names[k]: columns[k] for k in range(len(names)) if k not in places.values()}
    return Manifest(path, lines, taken("path") or [], taken("label"), taken("split"), others)


def _places(names: list[str], name: str) -> dict[str, int]:
    """The place of the columns that have a meaning, by the kind of meaning.

    Raises:
        InputError: There is no column for image files, two columns have one name, or the labels are predictions.
    """
    plain = [plain_column(column) for column in names]
    found = ", ".join(show(column)[:40] for column in names[:_COLUMNS_SHOWN]) + ", ..." * (len(names) > _COLUMNS_SHOWN)
    if twice := [column for k, column in enumerate(names) if column in names[:k]]:
        raise InputError(f"{name}: has two columns {show(twice[0])!r:.60}; its columns are {found}")
    if set(plain) >= _OUTPUT:
        raise InputError(f"{name}: holds predictions of fastdc classify, not images with their true classes")
    places = {}
    for kind, known in (("path", PATH_NAMES), ("label", LABEL_NAMES), ("split", _SPLIT)):
        if here := [plain.index(column) for column in known if column in plain]:
            places[kind] = here[0]
    if "path" not in places:
        raise InputError(f"{name}: has no column for the image files, {_either(PATH_NAMES)}; its columns are {found}"
                         f"{manifest_hint(names)}")  # fmt: skip
    return places


def layout_of(names: list[str]) -> str | None:
    """The layout of a published table that is no manifest yet, by the names of its columns; None of others.

    Args:
        names: Names of the columns.
    """
    plain = set(map(plain_column, names))
    if {"path", "no_finding"} <= plain:
        return "chexpert"
    return "isic" if {"image_name", "target"} <= plain else None


def manifest_hint(names: list[str]) -> str:
    """What to do with a table of a layout that is no manifest; "" of others."""
    layout = layout_of(names)
    return "" if layout is None else f"; fastdc manifest makes a manifest of this {layout} table"


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:4])} or {names[4]}"


def plain_column(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def table_rows(path: Path, budget: Budget | None = None) -> Iterator[Row]:
    """The header of a table, and its rows, each with as many cells as the header.

    Args:
        path: The table: .csv, .tsv, .jsonl or .parquet.
        budget: Refuses a Parquet file that is too large; None: nothing does.

    Example:
        >>> from fastdc.data import table_rows
        >>> (folder / "pets.csv").write_text("image,prompt\\na.png,a cat\\n") > 0
        True
        >>> list(table_rows(folder / "pets.csv"))
        [(1, ['image', 'prompt']), (2, ['a.png', 'a cat'])]

    Raises:
        InputError: The file cannot be read, or a row does not fit the header; the message names its line.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, budget)
    return _json_rows(path) if suffix == ".jsonl" else _csv_rows(path)


def _csv_rows(path: Path) -> Iterator[Row]:
    name, width = show(path), 0
    rows = None
    with reading(path, "a table"), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline(2**16)
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(path, first), strict=True)
            for cells in rows:
                if not cells:  # an empty line
                    continue
                width = width or len(cells)
                if len(cells) != width:
                    raise InputError(f"{name}: line {rows.line_num} has {len(cells)} cells, and the header has {width}")
                yield rows.line_num, cells
        except UnicodeDecodeError:
            raise InputError(f"{name}: is not UTF-8 text: save it as CSV in UTF-8") from None
        except csv.Error as error:
            line = "" if rows is None else f"line {rows.line_num}: "
            raise InputError(f"{name}: {line}{show(error)}") from error


def _delimiter(path: Path, header: str) -> str:
    """A tab in .tsv files; otherwise a comma, or a semicolon as spreadsheets write where the comma is for decimals."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _json_rows(path: Path) -> Iterator[Row]:
    """The rows of JSON lines; the first object says which columns there are."""
    name, keys = show(path), list[str]()
    with reading(path, "a table"), path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except ValueError as error:
                raise InputError(f"{name}: line {line} is not JSON: {show(error)}") from error
            if not isinstance(values, dict):
                raise InputError(f"{name}: line {line} must be an object with a file_name, got {show(text)[:40]!r}")
            if not keys:
                keys = list(values)
                yield line, keys
            if strange := [key for key in values if key not in keys]:
                raise InputError(f"{name}: line {line} has {show(strange[0])!r:.60}, which the first object has not")
            yield line, [_text(values.get(key)) for key in keys]


def _parquet_rows(path: Path, budget: Budget | None) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", extra="parquet")
    name, line = show(path), 0
    with reading(path, "a Parquet file"), parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        kinds = {key: str(schema.field(key).type) for key in schema.names}
        keys = [key for key, kind in kinds.items() if not kind.startswith(_NOT_TEXT)]
        if embedded := [key for key in kinds if key not in keys and plain_column(key) in PATH_NAMES]:
            raise InputError(
                f"{name}: column {show(embedded[0])} holds {kinds[embedded[0]]:.40}, not paths: save them as files"
            )
        yield 0, keys
        if budget is not None:  # sizes as declared, before anything is decoded
            groups = [file.metadata.row_group(k) for k in range(file.metadata.num_row_groups)]
            budget.hold(file.metadata.num_rows, (1, 1, 1), 1)
            budget.stored((sum(group.total_byte_size for group in groups),), 1, name)
        for batch in file.iter_batches(batch_size=4096, columns=keys):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                line += 1
                yield line, [_text(cell) for cell in cells]


def _text(value: Any) -> str:
    """A value of JSON or Parquet as text; "" for none and for NaN. Whole numbers have no decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
