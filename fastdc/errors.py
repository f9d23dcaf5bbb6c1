"""The ErrorTable: the error of every (image, class, draw), the narrow waist between running a network and deciding.

Decisions, uncertainty and metrics are pure functions of it. A saved table carries what reproduces it (seed, streams,
plan, model identity, version) and replays them all without a network.
"""

import json
import os
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.exceptions import InputError
from fastdc.model import Model
from fastdc.ops import MAX_SEED
from fastdc.plan import Plan
from fastdc.version import __version__

FORMAT = "fastdc-errors"
VERSION = 1

_ARRAYS = {"errors": np.float32, "sigma": np.float64, "weights": np.float32, "streams": np.int64}
_META = {"version": int, "seed": int, "class_names": list, "plan": dict, "model": str, "identity": str, "fastdc": str}


def mean_errors(errors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The mean error of each class over the draws it was evaluated at, float64 (n, K); NaN where at none.

    Args:
        errors: (n, K, J), NaN where not evaluated.
    """
    known = ~np.isnan(errors)
    totals = np.where(known, errors, 0).sum(axis=2, dtype=np.float64)
    counts = np.count_nonzero(known, axis=2)
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), dtype=np.float64)


@dataclass(frozen=True, eq=False)
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
            for name in ("sigma", "weights"):  # models made by hand have no identity
                if not np.array_equal(getattr(table, name), getattr(first, name)):
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
        """Writes the table to an .npz file, all of it or nothing.

        Raises:
            InputError: The file cannot be written.
        """
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
        # Beside the target, so that the last step is a rename. Not mkstemp: its files are for their owner only.
        staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
        try:
            with staging.open("xb") as file:
                np.savez_compressed(
                    file,
                    errors=self.errors,
                    sigma=self.sigma,
                    weights=self.weights,
                    streams=self.streams,
                    meta=np.array(json.dumps(meta)),
                )
            staging.replace(target)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror or error}") from None
        finally:
            staging.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ErrorTable":
        """Reads a table.

        Raises:
            InputError: Not a table, corrupt, or written by a newer format.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = {name: _read_array(archive, name) for name in (*_ARRAYS, "meta")}
            meta = json.loads(str(arrays.pop("meta")))
        except Exception as error:  # numpy, zipfile and zlib raise nearly anything on bytes that are not theirs
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{path} is not a fastdc error table: {reason}") from None
        _check_meta(meta, path)
        n, k, j = arrays["errors"].shape if arrays["errors"].ndim == 3 else (-1, -1, -1)
        expected = {"errors": (n, k, j), "sigma": (j,), "weights": (j,), "streams": (n,)}
        for name, dtype in _ARRAYS.items():
            array = arrays[name]
            if array.shape != expected[name] or array.dtype != dtype:
                wanted = f"{dtype.__name__} of shape {expected[name] if n >= 0 else '(n, K, J)'}"
                raise InputError(f"{path}: {name} must be {wanted}, got {array.dtype} of shape {array.shape}")
        if len(meta["class_names"]) != k:
            raise InputError(f"{path}: {len(meta['class_names'])} class_names do not fit errors of {k} classes")
        return cls(
            **arrays,
            seed=meta["seed"],
            class_names=tuple(meta["class_names"]),
            plan=meta["plan"],
            model=meta["model"],
            identity=meta["identity"],
            version=meta["fastdc"],
        )


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # reaching the end makes zipfile verify the checksum
        return array


def _check_meta(meta: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{path} is not a fastdc error table: expected format {FORMAT!r}")
    for name, kind in _META.items():
        value = meta.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{path}: {name} must be {kind.__name__}, got {value!r:.80}")
        if name == "version" and meta[name] > VERSION:  # before the other fields, which may have changed
            raise InputError(f"{path} has format version {value}, this fastdc reads up to {VERSION}: upgrade fastdc")
    if not all(isinstance(name, str) for name in meta["class_names"]):
        raise InputError(f"{path}: class_names must be strings")
    if not 0 <= meta["seed"] <= MAX_SEED:
        raise InputError(f"{path}: seed must be in [0, 2^64), got {meta['seed']!r:.80}")
