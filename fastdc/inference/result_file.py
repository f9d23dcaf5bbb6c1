"""The .npz of a Classification: an error table's file with the arrays of the result, and a JSON text with the rest.

Like that of a table, its content may come from anywhere.
"""

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.inference.error_table import ErrorTable
from fastdc.inference.error_table_file import read_table
from fastdc.support import InputError, checks, shown

_REST = "result"
_PER_IMAGE = ("ids", "promises")  # a text for each image, or None
_KINDS = {
    "indices": np.int64,
    "labels": np.int64,
    "probabilities": np.float64,
    "mean_errors": np.float64,
    "evaluations": np.int64,
    "votes": np.int64,
}


def members_of(arrays: dict[str, npt.NDArray[Any]], rest: dict[str, Any], table: ErrorTable) -> dict[str, Any]:
    """The arrays of the file.

    Args:
        arrays: Those of the result, by their names in the file.
        rest: class_names, seconds, provenance, ids and promises, as JSON values.
        table: Errors of the result.
    """
    return {**arrays, _REST: np.array(json.dumps(rest, allow_nan=False)), **table.members()}


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The parts of a result, by the names of ``Classification``.

    Raises:
        InputError: The file is not a result, or is corrupt.
    """
    found, _ = read_table(path, (*_KINDS, _REST))
    table = ErrorTable.load(path)
    try:
        rest = _checked_rest(str(found.pop(_REST)))
        m, k = len(table), len(rest["class_names"])
        for name in _PER_IMAGE:
            if rest[name] is not None and len(rest[name]) != m:
                raise InputError(f"{name} must be {m} strings, got {len(rest[name])}")
        for name, dtype in _KINDS.items():
            shape = (m, k) if name in ("probabilities", "mean_errors", "votes") else (m,)
            if found[name].shape != shape or found[name].dtype != dtype:
                got = f"{found[name].dtype} of shape {found[name].shape}"
                raise InputError(f"{name} must be {dtype.__name__} of shape {shape}, got {got}")
        if m and not 0 <= found["labels"].min() <= found["labels"].max() < k:
            raise InputError(f"labels must be in [0, {k}), got {found['labels'].min()} to {found['labels'].max()}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return {"errors": found.pop("mean_errors"), **found, **rest, "table": table}


def _checked_rest(text: str) -> dict[str, Any]:
    try:
        rest = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{_REST} must be JSON, got {shown(text)}") from None
    rest = rest if isinstance(rest, dict) else {}
    names, seconds, provenance = (rest.get(name) for name in ("class_names", "seconds", "provenance"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names must be strings, got {shown(names)}")
    if not checks.is_finite(seconds):
        raise InputError(f"seconds must be a number, got {shown(seconds)}")
    if not isinstance(provenance, dict):
        raise InputError(f"provenance must be an object, got {shown(provenance)}")
    per_image: dict[str, Any] = {}
    for name in _PER_IMAGE:
        texts = rest.get(name)
        if texts is not None and (not isinstance(texts, list) or not all(isinstance(text, str) for text in texts)):
            raise InputError(f"{name} must be strings, got {shown(texts)}")
        per_image[name] = None if texts is None else tuple(texts)
    return {"class_names": tuple(names), "seconds": float(seconds), "provenance": provenance, **per_image}
