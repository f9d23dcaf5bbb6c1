"""The ErrorTable: the error of every evaluated (image, class, draw), the narrow waist between network and decision.

Decisions, uncertainty and metrics are pure functions of it. A saved table carries everything that reproduces it (seed,
streams, plan, rule, model identity, version), and replays all of these without a network.

Every rule evaluates a class of an image at a prefix of the plan's draws: those numbered 0 ... count - 1. A table is
therefore *ragged*: a count for each (image, class) and the existing errors, end to end. Its size is the number of
evaluations, not images x classes x draws, which early stopping leaves mostly empty. :func:`dense` makes an array of it,
and :meth:`ErrorTable.chunks` bounds how much is dense at a time.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.diffusion import ROW_FIELDS, Plan
from fastdc.inference.error_table_file import META, meta_member, read_table, write_table
from fastdc.support import Float32, Float64, Floats, InputError, Int32, Int64, __version__, shown

CHUNK_CELLS = 2**21
"""Cells of a chunk made dense: 8 MiB of float32."""

_ARRAYS = {
    "counts": np.int32,
    "values": np.float32,
    "sigma": np.float64,
    "weights": np.float32,
    "streams": np.int64,
}


def mean_errors(errors: Floats) -> Float64:
    """The mean error of each class over the draws it was evaluated at, float64 (n, K); NaN if there are none.

    Args:
        errors: (n, K, J), NaN where not evaluated.

    Example:
        >>> from fastdc.inference import mean_errors
        >>> mean_errors(np.array([[[1.0, 3.0], [2.0, np.nan]]]))
        array([[2., 2.]])
    """
    known = ~np.isnan(errors)
    totals = np.where(known, errors, 0).sum(axis=2, dtype=np.float64)
    counts = np.count_nonzero(known, axis=2)
    return np.asarray(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), dtype=np.float64)


def dense(counts: Int32, values: Float32, draws: int) -> Float32:
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


@dataclass(frozen=True, eq=False, repr=False)
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
        identity: Identity of the exact model, a bundle's sha256.
        rule: Name of the rule that chose the cells; "full": all of them.
        version: Version of fastdc.

    Raises:
        InputError: Arrays have other types or do not fit one another, a count is out of [0, J], or a value is not
            finite.
    """

    counts: Int32
    values: Float32
    sigma: Float64
    weights: Float32
    streams: Int64
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
        streams: Int64,
        seed: int,
        rows: Sequence[tuple[Int32, Float32]],
        *,
        rule: str = "full",
    ) -> "ErrorTable":
        """The table of a run that evaluated image after image.

        Args:
            model: The model.
            plan: The draws.
            streams: int64 (n,), the noise stream of each image.
            seed: Philox key.
            rows: Counts and values of each image in order: int32 (K,), all 0 if nothing was evaluated, and float32 (sum
                of counts,) in (class, draw) order.
            rule: Name of the rule.

        Example:
            >>> table = clf.errors(images[:2], draws=3)
            >>> len(table), table.draws, table.evaluations.tolist()
            (2, 3, [30, 30])

        Raises:
            InputError: The rows do not fit the model, the plan, the streams or their own counts.
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
        return cls(
            counts=counts,
            values=values,
            sigma=plan.levels.sigma / plan.levels.alpha,
            weights=plan.rows[:, ROW_FIELDS.index("weight")].copy(),
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

        Example:
            >>> parts = [clf.errors(images[:3], draws=2), clf.errors(images[3:], draws=2)]
            >>> len(fastdc.ErrorTable.concatenate(parts))
            20

        Raises:
            InputError: There is no table, or the runs have different plans, seeds, rules, models or classes.
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

    def __repr__(self) -> str:
        n, k = self.counts.shape
        shape = f"{n} images x {k} classes x at most {self.draws} draws, {len(self.values):,} evaluations"
        return f"ErrorTable({shape}; rule {shown(self.rule)}, model {shown(self.model)}, seed {self.seed})"

    @property
    def draws(self) -> int:
        """J, the draws of the plan."""
        return len(self.sigma)

    @property
    def errors(self) -> Float32:
        """The errors as a read-only float32 (n, K, J), NaN where not evaluated.

        It is a view if everything was evaluated, and made anew at every access otherwise: read a large table in
        :meth:`chunks`.
        """
        return dense(self.counts, self.values, self.draws)

    @property
    def evaluations(self) -> Int64:
        """Network evaluations (NFE) of each image, int64 (n,)."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.int64))

    @cached_property
    def _offsets(self) -> Int64:
        """int64 (n + 1,), where the values of each image begin, and the end."""
        return np.concatenate([[0], np.cumsum(self.evaluations)])

    def rows(self, start: int, stop: int) -> "ErrorTable":
        """The table of the images start ... stop - 1, cut off at n; views of this table's arrays.

        Example:
            >>> len(clf.errors(images, draws=2).rows(5, 9))
            4
        """
        first, last, _ = slice(start, stop).indices(len(self))
        return replace(
            self,
            counts=self.counts[first:last],
            values=self.values[self._offsets[first] : self._offsets[last]],
            streams=self.streams[first:last],
        )

    def take(self, rows: Int64) -> "ErrorTable":
        """The table of these images, in this order.

        Args:
            rows: int64 (m,), numbers of images in [0, n).

        Example:
            >>> len(clf.errors(images, draws=2).take(np.array([5, 3])))
            2
        """
        values = [self.values[self._offsets[row] : self._offsets[row + 1]] for row in rows]
        return replace(
            self,
            counts=self.counts[rows],
            values=np.concatenate([np.empty(0, np.float32), *values]),
            streams=self.streams[rows],
        )

    def packed(self) -> tuple["ErrorTable", Int64]:
        """The table without the classes of each image that were not evaluated.

        If each image has a few candidates of many classes, work on dense errors takes this much less.

        Returns:
            A table whose column a is the a-th of the image's evaluated classes, in their order, A columns in all with
            counts of 0 where an image has fewer; and int64 (n, A), the class of each, -1 where there is none.

        Example:
            >>> table, classes = clf.classify(images, candidates=["7", "9"]).table.packed()
            >>> table.counts.shape, classes[0].tolist()
            ((20, 2), [7, 9])
        """
        known = self.counts > 0
        widest = int(known.sum(axis=1).max(initial=0))
        if widest in (0, self.counts.shape[1]):
            every = np.where(known, np.arange(self.counts.shape[1]), -1)
            return self, np.asarray(every, np.int64)
        images, found = np.nonzero(known)
        columns = np.arange(len(images)) - np.searchsorted(images, np.arange(len(self)))[images]
        counts, classes = np.zeros((len(self), widest), np.int32), np.full((len(self), widest), -1, np.int64)
        counts[images, columns], classes[images, columns] = self.counts[images, found], found
        names = tuple(f"candidate {a}" for a in range(widest))
        return replace(self, counts=counts, class_names=names), classes

    def chunks(self, cells: int = CHUNK_CELLS) -> Iterator["ErrorTable"]:
        """The table in parts of at most `cells` cells (n, K, J), for work on dense errors in bounded memory.

        A part has at least one image; an empty table is one part.

        Example:
            >>> [len(part) for part in clf.errors(images, draws=2).chunks(cells=160)]
            [8, 8, 4]
        """
        step = max(1, cells // max(1, self.counts.shape[1] * self.draws))
        for start in range(0, max(1, len(self)), step):
            yield self.rows(start, start + step)

    def mean(self) -> Float64:
        """The mean error of each class, float64 (n, K); NaN if it was not evaluated.

        Example:
            >>> bool((clf.errors(images, draws=16).mean().argmin(axis=1) == labels).all())
            True
        """
        return np.concatenate([mean_errors(part.errors) for part in self.chunks()])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to an .npz file, all of it or nothing.

        Example:
            >>> clf.errors(images, draws=2).save(folder / "errors.npz")
            >>> fastdc.ErrorTable.load(folder / "errors.npz").errors.shape
            (20, 10, 2)

        Raises:
            InputError: The file cannot be written.
        """
        write_table(Path(path), self.members())

    def members(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the table's file, by name.

        Example:
            >>> sorted(clf.errors(images, draws=2).members())
            ['counts', 'meta', 'sigma', 'streams', 'values', 'weights']
        """
        meta = {name: getattr(self, name) for name in META if name not in ("fastdc", "class_names")}
        meta |= {"class_names": list(self.class_names), "fastdc": self.version}
        return {**{name: getattr(self, name) for name in _ARRAYS}, "meta": meta_member(meta)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ErrorTable":
        """Reads a table that :meth:`save` wrote.

        Example:
            >>> clf.errors(images[:1], draws=2).save(folder / "one.npz")
            >>> fastdc.ErrorTable.load(folder / "one.npz").model
            'digits-mlp'

        Raises:
            InputError: The file is not a table, is corrupt, or was written in a newer format.
        """
        arrays, meta = read_table(path, tuple(_ARRAYS))
        meta |= {"class_names": tuple(meta["class_names"]), "version": meta.pop("fastdc")}
        try:
            parts: dict[str, Any] = {**arrays, **meta}
            return cls(**parts)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
