"""Condition tables of a bundle: arrays with one row per condition, from which the network's graph gathers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import TABLES, Bundle, Model
from fastdc.support import BundleError, Float32, one_line, shown


def condition_rows(model: Model) -> int:
    """Number of class labels that the network takes: one per condition, and the null class if the model has one."""
    return max(len(model.conditions), 1 + (model.null_class or 0))


def condition_tables(bundle: Bundle) -> dict[str, Float32]:
    """The condition tables of a bundle by name, float32 (rows, ...); empty if a condition is only an index.

    Raises:
        BundleError: The file is corrupt, or does not hold float32 tables with one row per condition.
    """
    if bundle.tables is not None:
        return dict(bundle.tables)
    if TABLES not in bundle.files:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tables: dict[str, npt.NDArray[Any]] = load(bundle.read(TABLES))
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{bundle.path / TABLES} cannot be read: {one_line(error)}") from None
    rows = condition_rows(bundle.model)
    for name, table in tables.items():
        if table.dtype != np.float32 or table.ndim < 2 or len(table) != rows:
            raise BundleError(
                f"{bundle.path / TABLES}: {shown(name, 60)} must be float32 with {rows} rows, one per condition, "
                f"got {table.dtype} of shape {table.shape}"
            )
    return tables
