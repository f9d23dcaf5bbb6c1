"""Counterfactuals of images, with what shows whether they are any good: factual reconstructions and answers to both."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastdc.inference import Classification, ImageResult, class_keys
from fastdc.support import (
    SHOWN_ROWS,
    Float32,
    Int64,
    Mask,
    checks,
    chosen_rows,
    data_frame,
    html_table,
    plain,
    save_table,
    shown,
)

AGAINST = ("factual", "input")
_PER_IMAGE = ("images", "factual", "counterfactual", "own", "target", "evaluations")
_ANSWERS = ("before", "after", "of_factual")


@dataclass(frozen=True, eq=False, repr=False)
class ImageCounterfactual:
    """The counterfactual of one image.

    Attributes:
        index: Index of the image among the images given.
        own: Name of the image's class.
        target: Name of the class to reach.
        input: float32 (c, h, w) in [0, 1], the image.
        factual: float32 (c, h, w), the same edit under the image's own class.
        counterfactual: float32 (c, h, w), the edit under the class to reach.
        before: The answer to the image.
        after: The answer to the counterfactual.
        of_factual: The answer to the factual reconstruction.
        same: Whether the class to reach is the image's own, so that nothing can flip.
        flipped: Whether the answer to the counterfactual is the class to reach, and that is another class.
        kept: Whether the answer to the factual reconstruction is the image's own class.
        evaluations: Network evaluations spent on the image, for pictures and answers.
        image: Its name, such as the path of its file; None for an image in memory.
    """

    index: int
    own: str
    target: str
    input: Float32
    factual: Float32
    counterfactual: Float32
    before: ImageResult
    after: ImageResult
    of_factual: ImageResult
    same: bool
    flipped: bool
    kept: bool
    evaluations: int
    image: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but arrays as JSON values, with the mean absolute differences of pixels in [0, 1]."""
        known = {} if self.image is None else {"image": self.image}
        moved = {
            f"l1_from_{name}": float(np.abs(self.counterfactual - other).mean(dtype=np.float64))
            for name, other in (("input", self.input), ("factual", self.factual))
        }
        answers = {
            name: {"name": answer.name, "probabilities": answer.probabilities}
            for name, answer in (("before", self.before), ("after", self.after), ("of_factual", self.of_factual))
        }
        names = ("index", "own", "target", "same", "flipped", "kept", "evaluations")
        made: dict[str, Any] = plain({**known, **{name: getattr(self, name) for name in names}, **moved, **answers})
        return made

    def __repr__(self) -> str:
        return (
            f"ImageCounterfactual(index={self.index}, {shown(self.own)} to {shown(self.target)}, "
            f"flipped={self.flipped}, kept={self.kept}, evaluations={self.evaluations})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Counterfactuals(Sequence[ImageCounterfactual]):
    """Counterfactuals of m images; a sequence of one :class:`ImageCounterfactual` per image.

    ``made[3]`` is that of one image, and ``made[:10]``, ``made[rows]`` or ``made[mask]`` is one of several.

    Attributes:
        images: float32 (m, c, h, w) in [0, 1], the images.
        factual: float32 (m, c, h, w), the factual reconstructions: the same edit under the image's own class.
        counterfactual: float32 (m, c, h, w), the edits under the class to reach.
        own: int64 (m,), class of each image.
        target: int64 (m,), class to reach.
        before: Answers to the images.
        after: Answers to the counterfactuals.
        of_factual: Answers to the factual reconstructions.
        evaluations: int64 (m,), network evaluations spent on each image, for pictures and answers.
        edit: How they were made: name of the edit, steps, guidance, start.
        seconds: Wall time.
    """

    images: Float32
    factual: Float32
    counterfactual: Float32
    own: Int64
    target: Int64
    before: Classification
    after: Classification
    of_factual: Classification
    evaluations: Int64
    edit: dict[str, Any]
    seconds: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K class names."""
        return self.before.class_names

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that reproduces the pictures."""
        return {**self.before.provenance, "edit": self.edit}

    @property
    def same(self) -> Mask:
        """Bool (m,), whether the class to reach is the image's own: such images count neither as flipped nor as not."""
        return np.asarray(self.own == self.target)

    @property
    def outcome(self) -> str:
        """How many answers flipped, of the images that were to reach another class, and how many kept their class."""
        same, kept = int(self.same.sum()), int(self.kept.sum())
        had = f" ({same} {'was' if same == 1 else 'were'} of the class to reach already)" if same else ""
        check = "1 factual reconstruction kept its" if kept == 1 else f"{kept} factual reconstructions kept their"
        return f"{int(self.flipped.sum())} of {len(self) - same} flipped{had}, {check} class"

    @property
    def flipped(self) -> Mask:
        """Bool (m,), whether the answer to a counterfactual is the class to reach, and that is another class."""
        return np.asarray((self.after.labels == self.target) & (self.own != self.target))

    @property
    def kept(self) -> Mask:
        """Bool (m,), whether the answer to a factual reconstruction is the image's own class."""
        return np.asarray(self.of_factual.labels == self.own)

    def difference(self, against: str = "factual", *, absolute: bool = False, grey: bool = False) -> Float32:
        """Difference maps: counterfactual minus another picture, in pixels in [0, 1].

        What the class changed is the difference to the factual reconstruction, which saw the same noise and steps. The
        difference to the input also holds what noise and sampler changed by themselves.

        Args:
            against: "factual" or "input".
            absolute: Whether to take absolute values.
            grey: Whether to take the mean over channels, before absolute values.

        Returns:
            float32 (m, c, h, w), or (m, h, w) if grey, in [-1, 1].

        Raises:
            InputError: An option cannot be used.
        """
        checks.one_of("against", against, AGAINST)
        other = self.factual if against == "factual" else self.images
        difference: Float32 = self.counterfactual - other
        if checks.flag("grey", grey):
            difference = difference.mean(axis=1)
        return np.abs(difference) if checks.flag("absolute", absolute) else difference

    def __len__(self) -> int:
        """m, the number of images."""
        return len(self.own)

    def __iter__(self) -> Iterator[ImageCounterfactual]:
        return (self._image(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> ImageCounterfactual: ...
    @overload
    def __getitem__(self, key: slice | npt.ArrayLike) -> "Counterfactuals": ...
    def __getitem__(self, key: Any) -> "ImageCounterfactual | Counterfactuals":
        rows = chosen_rows(key, len(self))
        if isinstance(rows, int):
            return self._image(rows)
        return replace(self, **{name: getattr(self, name)[rows] for name in (*_PER_IMAGE, *_ANSWERS)})

    def _image(self, row: int) -> ImageCounterfactual:
        keys, before = class_keys(self.class_names), self.before[row]
        return ImageCounterfactual(
            index=before.index,
            own=keys[self.own[row]],
            target=keys[self.target[row]],
            input=self.images[row],
            factual=self.factual[row],
            counterfactual=self.counterfactual[row],
            before=before,
            after=self.after[row],
            of_factual=self.of_factual[row],
            same=bool(self.same[row]),
            flipped=bool(self.flipped[row]),
            kept=bool(self.kept[row]),
            evaluations=int(self.evaluations[row]),
            image=before.image,
        )

    def _columns(self) -> dict[str, Any]:
        keys, rows = np.array(class_keys(self.class_names)), np.arange(len(self))
        return {
            "index": self.before.indices,
            **({} if self.before.ids is None else {"image": self.before.ids}),
            "own": keys[self.own],
            "target": keys[self.target],
            "same": self.same,
            "flipped": self.flipped,
            "kept": self.kept,
            "p(target) before": self.before.probabilities[rows, self.target],
            "p(target) after": self.after.probabilities[rows, self.target],
            "l1 from input": self.difference("input", absolute=True).mean(axis=(1, 2, 3), dtype=np.float64),
            "l1 from factual": self.difference(absolute=True).mean(axis=(1, 2, 3), dtype=np.float64),
            "evaluations": self.evaluations,
        }

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per image: classes, whether the answer flipped, probabilities, distances.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self._columns())

    def to_dict(self) -> dict[str, Any]:
        """Everything but pictures as JSON values: images, class names, seconds and provenance."""
        rest = {name: plain(getattr(self, name)) for name in ("class_names", "seconds", "provenance")}
        return {"images": [one.to_dict() for one in self], **rest}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result to a file, all of it or nothing, in the format that its name asks for.

        ``fastdc.figures.counterfactual_sheet`` draws the pictures.

        Args:
            path: A name that ends in .npz (all arrays, for ``numpy.load``), .csv (the table of :meth:`to_pandas`),
                .json (:meth:`to_dict`) or .jsonl (a line per image).

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """
        save_table(
            path,
            columns=self._columns(),
            entries=lambda: (one.to_dict() for one in self),
            whole=self.to_dict,
            arrays=self._arrays,
            figures="fastdc.figures.counterfactual_sheet",
        )

    def _arrays(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in (*_PER_IMAGE, "same", "flipped", "kept")}
        for name in _ANSWERS:
            answers: Classification = getattr(self, name)
            arrays |= {f"{name}_labels": answers.labels, f"{name}_probabilities": answers.probabilities}
        ids = {} if self.before.ids is None else {"ids": np.array(self.before.ids)}
        return {**arrays, **ids, "indices": self.before.indices, "class_names": np.array(self.class_names)}

    def __repr__(self) -> str:
        n = len(self)
        if not n:
            return "Counterfactuals(0 images)"
        return (
            f"Counterfactuals({n} image{'s'[: n != 1]} by {self.edit['name']}: {self.outcome}; "
            f"{self.evaluations.mean():.1f} evaluations per image, {self.seconds:.2f} s)"
        )

    def _repr_html_(self) -> str:
        columns = {name: column[:SHOWN_ROWS] for name, column in self._columns().items()}
        return html_table(repr(self), columns, rows=len(self))
