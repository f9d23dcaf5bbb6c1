"""Explanations of answers, as people and other programs read them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fastdc.explanation.arrays import PER_IMAGE, ExplanationArrays
from fastdc.explanation.counterfactual_result import ImageCounterfactual
from fastdc.explanation.page import explanation_page
from fastdc.support import SHOWN_ROWS, data_frame, html_table, plain, save_table, shown


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ExplanationArrays):
    """Explanations of m images: maps and numbers that can be shown in a notebook and saved.

    See :class:`ExplanationArrays`.
    """

    def _columns(self, rows: int | None = None) -> dict[str, Any]:
        some = [self._image(row) for row in range(len(self) if rows is None else min(rows, len(self)))]
        ids = {} if self.answers.ids is None else {"image": [one.image for one in some]}
        return {
            "index": [one.index for one in some],
            **ids,
            "name": [one.name for one in some],
            "probability": [one.probability for one in some],
            "explained": [one.names[0] for one in some],
            "against": [one.names[1] for one in some],
            "gap": [one.gap for one in some],
            "gap half width": [one.gap_half_width for one in some],
            "undecided": [one.undecided for one in some],
            "share for": [one.region_for.share for one in some],
            "share against": [one.region_against.share for one in some],
            "evaluations": [one.evaluations for one in some],
        }

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row per image: the answer, against whom, the gap, shares of significant pixels.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self._columns())

    def to_dict(self) -> dict[str, Any]:
        """Everything but arrays as JSON values: images, class names, seconds and provenance."""
        rest = {name: plain(getattr(self, name)) for name in ("class_names", "seconds", "provenance", "edges")}
        return {"images": [one.to_dict() for one in self], **rest}

    def save(
        self, path: str | os.PathLike[str], *, counterfactuals: Sequence[ImageCounterfactual] | None = None
    ) -> None:
        """Writes the explanation to a file, all of it or nothing, in the format that its name asks for.

        Args:
            path: A name that ends in .npz (all arrays, for ``numpy.load``), .html (a page for people that needs no
                other file), .csv (the table of :meth:`to_pandas`), .json (:meth:`to_dict`), or .jsonl (a line per
                image).
            counterfactuals: Counterfactual of each image, which the page shows, too; other formats leave them out.

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """

        def write(file: BinaryIO) -> None:
            file.write(explanation_page(self, counterfactuals).encode("utf-8", "backslashreplace"))

        save_table(
            path,
            columns=self._columns(),
            entries=lambda: (one.to_dict() for one in self),
            whole=self.to_dict,
            arrays=self._arrays,
            more={".html": write},
            figures="fastdc.figures.explanation_sheet",
        )

    def _arrays(self) -> dict[str, Any]:
        answers = {name: getattr(self.answers, name) for name in ("indices", "labels", "probabilities", "errors")}
        own = {name: getattr(self, name) for name in (*PER_IMAGE, "edges", "ratio")}
        ids = {} if self.answers.ids is None else {"ids": np.array(self.answers.ids)}
        return {**answers, **own, **ids, "class_names": np.array(self.class_names)}

    def __repr__(self) -> str:
        n = len(self)
        cost = f"{self.evaluations.mean():.1f} evaluations per image, " if n else ""
        some = [f"{shown(self._keys[a], 40)} against {shown(self._keys[b], 40)}"
                for a, b in zip(self.classes[:3], self.against[:3], strict=True)]  # fmt: skip
        told = ", ".join([*some, *([f"{n - 3} more"] if n > 3 else [])]) or "none"
        return f"Explanation({n} image{'s'[: n != 1]}: {told}; maps of {self.space}; {cost}{self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        return html_table(repr(self), self._columns(SHOWN_ROWS), rows=len(self))
