"""A manifest as a part of the input: which image files its rows name, and what the rows say of them.

Paths are relative to the manifest's folder, or absolute; "~" and variables stand for themselves. Labels are names, in
sorted order or, if all are whole numbers, by size; so "7" is a class named 7, as it is for a folder of that name.
"""

import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np

from fastdc.data.arrays import MAX_CLASSES
from fastdc.data.image_files import Reader
from fastdc.data.manifests import Manifest, manifest_hint, read_manifest
from fastdc.data.notes import show
from fastdc.data.parts import Listed, Part, listed_file, part_of_files
from fastdc.data.splits import is_split
from fastdc.support import InputError, Int64

_MISSING = {"nan", "na", "n/a", "null", "none"}  # as tables write a missing value


def manifest_part(path: Path, reader: Reader, *, labelled: bool, whole: bool = False) -> Part:
    """The images that a manifest names, of the wanted split.

    Args:
        path: The manifest.
        reader: Has the budget, the wanted split, and the notes.
        labelled: Whether a row without a label is an image that cannot be used; if not, and there are some, no label
            is used.
        whole: Whether it lists a single split, and all rows are taken.

    Raises:
        InputError: The manifest is damaged, has no such split, or gives one file two labels.
        MissingDependencyError: It is a Parquet file, and pyarrow is not installed.
    """
    rows = read_manifest(path, reader.budget)
    rows = rows if whole else _in_split(rows, reader)
    labels = _labels(rows, reader, labelled)
    files = _files(rows, labels if labelled else None, reader)
    _check_repeated(rows, files, labels, reader)
    columns = {name: tuple(values) for name, values in rows.columns.items()}
    if labels is None:
        return part_of_files(path, files, columns=columns)
    names = _class_names(labels)
    if len(names) > MAX_CLASSES:
        raise InputError(f"{show(path)}: has {len(names)} different labels, the limit is {MAX_CLASSES}")
    _note_doubtful(names, path, reader)
    return part_of_files(path, files, _numbers(labels, names), names, columns)


def manifest_splits(manifest: Manifest) -> list[str]:
    """The splits of a manifest: in its column, or else the folders in which its files are, if these are splits."""
    found = _split_of_rows(manifest)
    return [] if found is None else list(dict.fromkeys(filter(None, found)))


def _split_of_rows(manifest: Manifest) -> list[str] | None:
    """The split of each row, "" if it has none; spellings that differ in case are the first one of them."""
    if manifest.splits is not None:
        first: dict[str, str] = {}
        return [first.setdefault(name.lower(), name) for name in manifest.splits] if any(manifest.splits) else None
    firsts = [file.partition("/")[0] if "/" in file else "" for file in manifest.files]
    return firsts if len(set(firsts)) > 1 and all(map(is_split, firsts)) else None


def _in_split(manifest: Manifest, reader: Reader) -> Manifest:
    """The rows of the wanted split."""
    splits = _split_of_rows(manifest)
    if splits is None:
        reader.split.missing(manifest.path)
        return manifest
    wanted = reader.split.choose(manifest_splits(manifest), manifest.path, reader.notes)
    if lost := splits.count(""):
        reader.notes.add("without a split, and not used", noun="row", count=lost)
    here = [split == wanted for split in splits]
    return Manifest(
        manifest.path,
        list(compress(manifest.lines, here)),
        list(compress(manifest.files, here)),
        None if manifest.labels is None else list(compress(manifest.labels, here)),
        None,
        {name: list(compress(values, here)) for name, values in manifest.columns.items()},
    )


def _labels(rows: Manifest, reader: Reader, labelled: bool) -> list[str] | None:
    labels = rows.labels
    if labels is None or not any(labels):
        if labelled:
            what = "no column for the labels (label, class)" if labels is None else "no label in any row"
            hint = manifest_hint(["path", *rows.columns])
            raise InputError(f"{show(rows.path)}: has {what}: labelled images are needed here{hint}")
        return None
    if not labelled and (lost := labels.count("")):
        reader.notes.add(f"without a label: no label of {show(rows.path)} is used", noun="row", count=lost)
        return None
    return labels


def _files(rows: Manifest, labels: Sequence[str] | None, reader: Reader) -> list[Listed]:
    folder, files = rows.path.parent, []
    for k, (line, name) in enumerate(zip(rows.lines, rows.files, strict=True)):
        path = folder / name
        if "\\" in name and not path.exists() and (folder / name.replace("\\", "/")).exists():
            path = folder / name.replace("\\", "/")
            reader.notes.add(r"with \ read as /", noun="path")
        if not name or "\0" in name:
            files.append(Listed(Path(f"{rows.path}, line {line}"), "names no image file"))
        elif labels is not None and not labels[k]:
            files.append(Listed(path, f"has no label in line {line} of {rows.path.name}"))
        else:
            files.append(listed_file(path))
    return files


def _check_repeated(rows: Manifest, files: Sequence[Listed], labels: Sequence[str] | None, reader: Reader) -> None:
    """Notes files that several rows name, even under different spellings or through links.

    Raises:
        InputError: Two of them have different labels.
    """
    seen: dict[str, int] = {}
    for k, file in enumerate(files):
        first = seen.setdefault(os.path.realpath(file.path), k)
        if first == k:
            continue
        reader.notes.add(f"of {show(rows.path)} naming a file again", noun="row")
        if labels is not None and labels[k] != labels[first]:
            both = f"{show(labels[first])!r:.60} in line {rows.lines[first]} and {show(labels[k])!r:.60}"
            raise InputError(f"{show(rows.path)}: line {rows.lines[k]}: {show(file.path)} has the class {both} here")


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    names = sorted(set(filter(None, labels)))
    if all(name.isascii() and name.isdigit() and (len(name) == 1 or name[0] != "0") for name in names):
        names.sort(key=lambda name: (len(name), name))
    return tuple(names)


def _note_doubtful(names: Sequence[str], path: Path, reader: Reader) -> None:
    """Notes classes that may be one class in two spellings, and those that may stand for a missing label."""
    alike: dict[str, str] = {}
    for name in names:
        plain = name.casefold()
        plain = (plain.lstrip("0") or "0") if plain.isdigit() else plain
        if (other := alike.setdefault(plain, name)) is not name:
            reader.notes.add(f"classes {show(other)!r:.60} and {show(name)!r:.60} of {show(path)} are two", noun="")
        if plain in _MISSING:
            text = "is a class: leave the cell of a missing label empty"
            reader.notes.add(f"{show(name)!r:.60} of {show(path)} {text}", noun="")


def _numbers(labels: Sequence[str], names: Sequence[str]) -> Int64:
    number = {name: k for k, name in enumerate(names)}
    return np.array([number.get(label, 0) for label in labels], np.int64)  # rows without a label cannot be used
