"""The file of an ErrorTable: an .npz of its arrays, and of one JSON text with everything else.

Its content may come from anywhere: arrays are read without pickles, and every field is checked.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.support import InputError, checks, one_line, shown, whole_file

FORMAT = "fastdc-errors"
VERSION = 2

_TABLES = (".csv", ".json", ".jsonl", ".tsv")  # what results are saved to for other programs

META = {
    "seed": int,
    "class_names": list,
    "plan": dict,
    "model": str,
    "identity": str,
    "fastdc": str,
    "rule": str,
}
"""The fields beside the arrays, and their types in JSON."""


def meta_member(meta: dict[str, Any]) -> npt.NDArray[Any]:
    """The member of a table's file that has everything beside the arrays."""
    return np.array(json.dumps({"format": FORMAT, "version": VERSION, **meta}))


def write_table(target: Path, members: dict[str, Any]) -> None:
    """Writes the members of a table to a file, all of it or nothing.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        with whole_file(target) as file:
            np.savez_compressed(file, **members)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from None


def read_table(
    path: str | os.PathLike[str], names: tuple[str, ...]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The parts of a table: the arrays of these names, and the fields of :data:`META`.

    Raises:
        InputError: The file is not a table, is corrupt, or was written in a newer format.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"expected the path of an .npz file, got {shown(path)}")
    if Path(path).suffix.lower() in _TABLES:
        raise InputError(f'{path}: only .npz files can be loaded, as save("NAME.npz") writes them')
    try:
        with zipfile.ZipFile(path) as archive:
            meta = _checked(json.loads(str(_read_array(archive, "meta"))))
            return {name: _read_array(archive, name) for name in names}, meta
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist") from None
    except Exception as error:  # numpy, zipfile and zlib raise nearly anything on foreign bytes
        raise InputError(f"{path} is not a fastdc error table: {one_line(error)}") from None


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # reaching the end makes zipfile verify the checksum
        return array


def _checked(meta: Any) -> dict[str, Any]:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"not a fastdc error table: expected format {FORMAT!r}")
    version = meta.get("version")
    if not checks.is_whole(version) or version != VERSION:  # before the other fields, which may have changed
        raise InputError(f"format version {shown(version)}, this fastdc reads {VERSION}: upgrade fastdc")
    for name, kind in META.items():
        value = meta.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{name} must be {kind.__name__}, got {shown(value)}")
    if not all(isinstance(name, str) for name in meta["class_names"]):
        raise InputError("class_names must be strings")
    checks.seed(meta["seed"])
    return {name: meta[name] for name in META}
