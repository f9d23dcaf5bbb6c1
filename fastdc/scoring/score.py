"""The score of a classifier on labelled images, as people and other programs read it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastdc.scoring.html_page import html_body, html_page
from fastdc.scoring.mistakes import Mistake
from fastdc.scoring.numbers import ScoreNumbers
from fastdc.scoring.text_page import text_page
from fastdc.support import data_frame, save_table


@dataclass(frozen=True, eq=False, repr=False)
class Score(ScoreNumbers):
    """How good n answers are: numbers that can be printed, shown in a notebook and saved. See :class:`ScoreNumbers`."""

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``: a row for the whole set and for each group, each followed by a row per class.

        In the row of a class, accuracy is the share of its images that are right, its recall. NaN is not defined.

        Example:
            >>> from fastdc.scoring import score_of
            >>> score_of(clf.classify(images), labels).to_pandas()["class"].tolist()[:3]
            ['', '0', '1']

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return data_frame(self.table)

    def save(self, path: str | os.PathLike[str], *, mistakes: Sequence[Mistake] = ()) -> None:
        """Writes the score to a file, all of it or nothing, in the format that its name asks for.

        Args:
            path: A name that ends in .csv (the table of :meth:`to_pandas`), .json (:meth:`to_dict`), or .html: a page
                for people, with pictures, that needs no other file.
            mistakes: Kinds of mistakes with examples, of :func:`mistakes_of`, which the page shows, too.

        Example:
            >>> from fastdc.scoring import score_of
            >>> score_of(clf.classify(images), labels).save(folder / "score.html")

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """

        def write(file: BinaryIO) -> None:
            file.write(html_page(self, mistakes).encode("utf-8", "backslashreplace"))

        save_table(path, columns=self.table, whole=self.to_dict, more={".html": write})

    def __str__(self) -> str:
        return text_page(self)

    def __repr__(self) -> str:
        area = "" if self.auroc is None else f", AUROC {self.auroc:.4f}"
        return (
            f"Score({self.images} image{'s'[: self.images != 1]} of {len(self.class_names)} classes: accuracy "
            f"{self.accuracy.percent()}{area}, ECE {self.ece:.4f})"
        )

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        return html_body(self)
