"""The ErrorTable: the error of every (image, class, draw), the narrow waist between running a network and deciding.

Decisions, uncertainty and metrics are pure functions of it. A saved table carries what reproduces it (seed, streams,
plan, model identity, version) and replays them all without a network.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.exceptions import InputError
from fastdc.model import Model
from fastdc.plan import Plan
from fastdc.version import __version__

FORMAT = "fastdc-errors"
VERSION = 1


def mean_errors(errors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The mean error of each class over the draws it was evaluated at, float64 (n, K); NaN where at none.

    Args:
        errors: (n, K, J), NaN where not evaluated.
    """
    known = ~np.isnan(errors)
    totals = np.where(known, errors, 0).sum(axis=2, dtype=np.float64)
    counts = np.count_nonzero(known, axis=2)
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), dtype=np.float64)


@dataclass(frozen=True)
class ErrorTable:
    """Errors of a run.

    Attributes:
        errors: float32 (n, K, J): weighted denoising error of image, class, draw; NaN where not evaluated. Paired: all
            classes of an (image, draw) saw the same noise.
        sigma: float64 (J,), noise-to-signal ratio sigma / alpha of each draw in units of x in the model's value range.
        weights: float32 (J,), the weight that each error already contains.
        streams: int64 (n,), the noise stream of each image.
        seed: Philox key.
        class_names: K names.
        plan: The plan's configuration, plain values.
        model: Name of the model.
        identity: Which exact model, a bundle's sha256.
        version: Of fastdc.
    """

    errors: npt.NDArray[np.float32] = field(repr=False)
    sigma: npt.NDArray[np.float64] = field(repr=False)
    weights: npt.NDArray[np.float32] = field(repr=False)
    streams: npt.NDArray[np.int64] = field(repr=False)
    seed: int
    class_names: tuple[str, ...]
    plan: dict[str, Any]
    model: str
    identity: str
    version: str = __version__

    @classmethod
    def empty(cls, model: Model, plan: Plan, streams: npt.NDArray[np.int64], seed: int) -> "ErrorTable":
        """A table of NaN for a run to fill."""
        return cls(
            errors=np.full((len(streams), model.num_classes, plan.draws), np.nan, np.float32),
            sigma=plan.levels.sigma / plan.levels.alpha,
            weights=plan.rows[:, 6].copy(),
            streams=streams,
            seed=seed,
            class_names=model.class_names,
            plan=plan.config.to_dict(),
            model=model.name,
            identity=model.identity,
        )

    @classmethod
    def concatenate(cls, tables: Sequence["ErrorTable"]) -> "ErrorTable":
        """One table of the images of several runs that differ in nothing else.

        Raises:
            InputError: No table, or runs with different plans, seeds, models or classes.
        """
        if not tables:
            raise InputError("there is no table to concatenate")
        first = tables[0]
        for table in tables[1:]:
            for name in ("seed", "class_names", "plan", "model", "identity"):
                if getattr(table, name) != getattr(first, name):
                    raise InputError(f"tables of different {name} cannot be concatenated")
        return replace(
            first,
            errors=np.concatenate([table.errors for table in tables]),
            streams=np.concatenate([table.streams for table in tables]),
        )

    @property
    def evaluations(self) -> npt.NDArray[np.int64]:
        """Network evaluations (NFE) of each image, int64 (n,)."""
        return np.asarray(np.count_nonzero(~np.isnan(self.errors), axis=(1, 2)), dtype=np.int64)

    def mean(self) -> npt.NDArray[np.float64]:
        """:func:`mean_errors` of the table, float64 (n, K)."""
        return mean_errors(self.errors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to an .npz file, all of it or nothing."""
        target = Path(path)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "seed": self.seed,
            "class_names": list(self.class_names),
            "plan": self.plan,
            "model": self.model,
            "identity": self.identity,
            "fastdc": self.version,
        }
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", suffix=".npz", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(
                    file,
                    errors=self.errors,
                    sigma=self.sigma,
                    weights=self.weights,
                    streams=self.streams,
                    meta=np.array(json.dumps(meta)),
                )
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ErrorTable":
        """Reads a table.

        Raises:
            InputError: Not a table, corrupt, or written by a newer format.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in ("errors", "sigma", "weights", "streams")}
                meta = json.loads(str(data["meta"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not a fastdc error table: {error}") from None
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise InputError(f"{path} is not a fastdc error table")
        if meta["version"] > VERSION:
            raise InputError(f"{path} has format version {meta['version']}, this fastdc reads up to {VERSION}")
        n, k, j = arrays["errors"].shape if arrays["errors"].ndim == 3 else (-1, -1, -1)
        lengths = (len(arrays["streams"]), len(meta["class_names"]), len(arrays["sigma"]), len(arrays["weights"]))
        if lengths != (n, k, j, j):
            raise InputError(f"{path}: errors of shape {arrays['errors'].shape} do not fit (n, K, J, J) = {lengths}")
        return cls(
            errors=arrays["errors"],
            sigma=arrays["sigma"],
            weights=arrays["weights"],
            streams=arrays["streams"],
            seed=meta["seed"],
            class_names=tuple(meta["class_names"]),
            plan=meta["plan"],
            model=meta["model"],
            identity=meta["identity"],
            version=meta["fastdc"],
        )
