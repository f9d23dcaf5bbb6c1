"""The ErrorTable: the error of every evaluated (image, class, draw), the narrow waist between network and decision.

Decisions, uncertainty and metrics are pure functions of it. A saved table carries what reproduces it (seed, streams,
plan, rule, model identity, version) and replays them all without a network.

Every rule evaluates a class of an image at a prefix of the plan's draws: at those 0 ... count - 1, whatever the rule.
A table is therefore *ragged*: a count for each (image, class) and the errors that exist, end to end. Its size is that
of what was evaluated, not images x classes x draws, which early stopping leaves mostly empty. :func:`dense` and
:func:`ragged` turn one form into the other; :meth:`ErrorTable.chunks` bounds how much is dense at a time.
"""

import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.diffusion import Plan
from fastdc.support import InputError, __version__, checks

FORMAT = "fastdc-errors"
VERSION = 2
"""Version 1 held one dense array, NaN where not evaluated, and no rule."""

CHUNK_CELLS = 2**21
"""Cells of a chunk made dense: 8 MiB of float32."""

_ARRAYS = {
    "counts": np.int32,
    "values": np.float32,
    "sigma": np.float64,
    "weights": np.float32,
    "streams": np.int64,
}
_META = {
    "version": int,
    "seed": int,
    "class_names": list,
    "plan": dict,
    "model": str,
    "identity": str,
    "fastdc": str,
    "rule": str,
}


def mean_errors(errors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The mean error of each class over the draws it was evaluated at, float64 (n, K); NaN where at none.

    Args:
        errors: (n, K, J), NaN where not evaluated.
    """
    known = ~np.isnan(errors)
    totals = np.where(known, errors, 0).sum(axis=2, dtype=np.float64)
    counts = np.count_nonzero(known, axis=2)
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), dtype=np.float64)


def dense(counts: npt.NDArray[np.int32], values: npt.NDArray[np.float32], draws: int) -> npt.NDArray[np.float32]:
    """The errors as one read-only float32 array (n, K, J), NaN where not evaluated.

    Args:
        counts: int32 (n, K), evaluated draws of each class, in [0, draws].
        values: float32 (sum of counts,) in (image, class, draw) order. Not copied if every count is `draws`.
        draws: J.
    """
    shape = (*counts.shape, draws)
    if len(values) == counts.size * draws:
        errors = values.reshape(shape)  # a new view: the flag below is not the caller's
    else:
        errors = np.full(shape, np.nan, np.float32)
        errors[np.arange(draws) < counts[:, :, None]] = values
    errors.flags.writeable = False
    return errors


def ragged(errors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Counts and values, see :func:`dense`, of a dense array; the values are its memory if it has no NaN.

    Args:
        errors: float32 (n, K, J), NaN where not evaluated.

    Raises:
        InputError: Other shape or type, or a class with an evaluated draw after one that is not.
    """
    if errors.ndim != 3 or errors.dtype != np.float32:
        raise InputError(f"errors must be float32 of shape (n, K, J), got {errors.dtype} of shape {errors.shape}")
    draws = errors.shape[2]
    if errors.size == 0 or not np.isnan(errors.max()):  # the usual table, without a mask as large as a quarter of it
        return np.full(errors.shape[:2], draws, np.int32), errors.reshape(-1)
    known = ~np.isnan(errors)
    late = known[:, :, 1:] & ~known[:, :, :-1]
    if late.any():
        image, label, draw = np.argwhere(late)[0].tolist()
        raise InputError(
            f"each class must be evaluated at a prefix of the draws, got image {image}, class {label} evaluated at "
            f"draw {draw + 1} but not at draw {draw}"
        )
    return np.count_nonzero(known, axis=2).astype(np.int32), errors[known]


@dataclass(frozen=True, eq=False)
class ErrorTable:
    """Errors of a run over n images, K classes and at most J draws.

    Attributes:
        counts: int32 (n, K), draws at which each class of each image was evaluated: those 0 ... count - 1 of the plan,
            in [0, J].
        values: float32 (sum of counts,), weighted denoising errors in (image, class, draw) order, finite. Paired: all
            classes of an (image, draw) saw the same noise.
        sigma: float64 (J,), noise-to-signal ratio sigma / alpha of each draw in units of x in the model's value range.
        weights: float32 (J,), the weight that each error already contains.
        streams: int64 (n,), the noise stream of each image.
        seed: Philox key.
        class_names: K names.
        plan: The plan's configuration, plain values.
        model: Name of the model.
        identity: Which exact model, a bundle's sha256.
        rule: Name of the rule that chose what to evaluate; "full": everything.
        version: Of fastdc.

    Raises:
        InputError: Arrays of other types, or that do not fit one another; a count out of [0, J]; values that are not
            finite.
    """

    counts: npt.NDArray[np.int32] = field(repr=False)
    values: npt.NDArray[np.float32] = field(repr=False)
    sigma: npt.NDArray[np.float64] = field(repr=False)
    weights: npt.NDArray[np.float32] = field(repr=False)
    streams: npt.NDArray[np.int64] = field(repr=False)
    seed: int
    class_names: tuple[str, ...]
    plan: dict[str, Any]
    model: str
    identity: str
    rule: str = "full"
    version: str = __version__

    def __post_init__(self) -> None:
        if self.counts.ndim != 2:
            raise InputError(f"counts must be int32 of shape (n, K), got shape {self.counts.shape}")
        n, k = self.counts.shape
        j = len(self.sigma) if self.sigma.ndim else 0
        self._check_array("counts", (n, k))
        if self.counts.size and not 0 <= self.counts.min() <= self.counts.max() <= j:
            found = f"{self.counts.min()} to {self.counts.max()}"
            raise InputError(f"counts must be in 0..{j}, the draws of sigma, found {found}")
        cells = int(self.counts.sum(dtype=np.int64))
        for name, shape in {"values": (cells,), "sigma": (j,), "weights": (j,), "streams": (n,)}.items():
            self._check_array(name, shape)
        if cells and not np.isfinite([self.values.min(), self.values.max()]).all():  # no mask as long as the values
            raise InputError(f"values must be finite, found {self.values[~np.isfinite(self.values)][0]}")
        if len(self.class_names) != k:
            raise InputError(f"{len(self.class_names)} class_names do not fit counts of {k} classes")

    def _check_array(self, name: str, shape: tuple[int, ...]) -> None:
        array, dtype = getattr(self, name), _ARRAYS[name]
        if array.shape != shape or array.dtype != dtype:
            raise InputError(
                f"{name} must be {dtype.__name__} of shape {shape}, got {array.dtype} of shape {array.shape}"
            )

    @classmethod
    def from_rows(
        cls,
        model: Model,
        plan: Plan,
        streams: npt.NDArray[np.int64],
        seed: int,
        rows: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]],
        *,
        rule: str = "full",
    ) -> "ErrorTable":
        """The table of a run that evaluated image after image.

        Args:
            model: The model that was run.
            plan: Its draws.
            streams: int64 (n,), the noise stream of each image.
            seed: Philox key.
            rows: For each image in order its counts, int32 (K,), all 0 if nothing was evaluated, and its values,
                float32 (sum of counts,) in (class, draw) order.
            rule: Name of the rule.

        Raises:
            InputError: Rows that do not fit the model, the plan, the streams or their own counts.
        """
        counts = np.empty((len(rows), len(model.conditions)), np.int32)
        for i, (row, errors) in enumerate(rows):
            if row.shape != counts.shape[1:] or errors.shape != (row.sum(),):  # sums that cancel between images
                raise InputError(
                    f"image {i} needs counts of shape {counts.shape[1:]} and as many values as they sum to, "
                    f"got shapes {row.shape} and {errors.shape}"
                )
            counts[i] = row
        values = np.concatenate([np.empty(0, np.float32), *(errors for _, errors in rows)])
        return cls._of_run(counts, values, model, plan, streams, seed, rule)

    @classmethod
    def from_errors(
        cls,
        model: Model,
        plan: Plan,
        streams: npt.NDArray[np.int64],
        seed: int,
        errors: npt.NDArray[np.float32],
        *,
        rule: str = "full",
    ) -> "ErrorTable":
        """The table of a run whose errors are dense, see :meth:`from_rows` and :func:`ragged`.

        Args:
            model: The model that was run.
            plan: Its draws.
            streams: int64 (n,), the noise stream of each image.
            seed: Philox key.
            errors: float32 (n, K, J), NaN where not evaluated; not copied if nothing is NaN.
            rule: Name of the rule.

        Raises:
            InputError: Errors that do not fit, or whose classes were not evaluated at prefixes of the draws.
        """
        wanted = (len(streams), len(model.conditions), plan.draws)
        if errors.shape != wanted:
            raise InputError(f"errors must have shape {wanted} (images, classes, draws), got {errors.shape}")
        return cls._of_run(*ragged(errors), model, plan, streams, seed, rule)

    @classmethod
    def _of_run(
        cls,
        counts: npt.NDArray[np.int32],
        values: npt.NDArray[np.float32],
        model: Model,
        plan: Plan,
        streams: npt.NDArray[np.int64],
        seed: int,
        rule: str,
    ) -> "ErrorTable":
        return cls(
            counts=counts,
            values=values,
            sigma=plan.levels.sigma / plan.levels.alpha,
            weights=plan.rows[:, 6].copy(),
            streams=streams,
            seed=seed,
            class_names=model.conditions,
            plan=plan.config.to_dict(),
            model=model.name,
            identity=model.identity,
            rule=rule,
        )

    @classmethod
    def concatenate(cls, tables: Sequence["ErrorTable"]) -> "ErrorTable":
        """One table of the images of several runs that differ in nothing else.

        Raises:
            InputError: No table, or runs with different plans, seeds, rules, models or classes.
        """
        if not tables:
            raise InputError("there is no table to concatenate")
        first = tables[0]
        for table in tables[1:]:
            for name in ("seed", "class_names", "plan", "rule", "model", "identity"):
                if getattr(table, name) != getattr(first, name):
                    raise InputError(f"tables of different {name} cannot be concatenated")
            for name in ("sigma", "weights"):  # models made by hand have no identity
                if not np.array_equal(getattr(table, name), getattr(first, name)):
                    raise InputError(f"tables of different {name} cannot be concatenated")
        return replace(
            first,
            counts=np.concatenate([table.counts for table in tables]),
            values=np.concatenate([table.values for table in tables]),
            streams=np.concatenate([table.streams for table in tables]),
        )

    def __len__(self) -> int:
        """n, the number of images."""
        return len(self.counts)

    @property
    def draws(self) -> int:
        """J, the draws of the plan."""
        return len(self.sigma)

    @property
    def errors(self) -> npt.NDArray[np.float32]:
        """The errors as a read-only float32 (n, K, J), NaN where not evaluated.

        A view if everything was evaluated, else made anew at every access: of a large table read :meth:`chunks`.
        """
        return dense(self.counts, self.values, self.draws)

    @property
    def evaluations(self) -> npt.NDArray[np.int64]:
        """Network evaluations (NFE) of each image, int64 (n,)."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.int64))

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        """int64 (n + 1,), where the values of each image begin, and the end."""
        return np.concatenate([[0], np.cumsum(self.evaluations)])

    def rows(self, start: int, stop: int) -> "ErrorTable":
        """The table of the images start ... stop - 1, cut off at n; views of this table's arrays."""
        first, last, _ = slice(start, stop).indices(len(self))
        return replace(
            self,
            counts=self.counts[first:last],
            values=self.values[self._offsets[first] : self._offsets[last]],
            streams=self.streams[first:last],
        )

    def chunks(self, cells: int = CHUNK_CELLS) -> Iterator["ErrorTable"]:
        """The table in parts of at most `cells` cells (n, K, J) each, but at least one image; one part if it is empty.

        For work on dense errors in bounded memory.
        """
        step = max(1, cells // max(1, self.counts.shape[1] * self.draws))
        for start in range(0, max(1, len(self)), step):
            yield self.rows(start, start + step)

    def mean(self) -> npt.NDArray[np.float64]:
        """:func:`mean_errors` of the table, float64 (n, K)."""
        return np.concatenate([mean_errors(part.errors) for part in self.chunks()])

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
            "rule": self.rule,
        }
        # Beside the target, so that the last step is a rename. Not mkstemp: its files are for their owner only.
        staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
        try:
            with staging.open("xb") as file:
                arrays = {name: getattr(self, name) for name in _ARRAYS}
                np.savez_compressed(file, **arrays, meta=np.array(json.dumps(meta)))
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
                meta = json.loads(str(_read_array(archive, "meta")))
                _check_meta(meta)
                old = meta["version"] == 1
                names = ("errors", "sigma", "weights", "streams") if old else tuple(_ARRAYS)
                arrays = {name: _read_array(archive, name) for name in names}
            if old:
                arrays["counts"], arrays["values"] = ragged(arrays.pop("errors"))
            return cls(
                **arrays,
                seed=meta["seed"],
                class_names=tuple(meta["class_names"]),
                plan=meta["plan"],
                model=meta["model"],
                identity=meta["identity"],
                rule="full" if old else meta["rule"],
                version=meta["fastdc"],
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # numpy, zipfile and zlib raise nearly anything on bytes that are not theirs
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{path} is not a fastdc error table: {reason}") from None


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # reaching the end makes zipfile verify the checksum
        return array


def _check_meta(meta: Any) -> None:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"not a fastdc error table: expected format {FORMAT!r}")
    for name, kind in _META.items():
        value = meta.get(name)
        if name == "rule" and meta["version"] == 1:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{name} must be {kind.__name__}, got {value!r:.80}")
        if name == "version" and not 1 <= meta[name] <= VERSION:  # before the other fields, which may have changed
            raise InputError(f"format version {value!r:.80}, this fastdc reads 1 to {VERSION}: upgrade fastdc")
    if not all(isinstance(name, str) for name in meta["class_names"]):
        raise InputError("class_names must be strings")
    if not 0 <= meta["seed"] <= checks.MAX_SEED:
        raise InputError(f"seed must be in [0, 2^64), got {meta['seed']!r:.80}")
