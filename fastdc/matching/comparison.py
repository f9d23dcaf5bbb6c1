"""Several models on the same images with the same candidates, as numbers, tables and files."""

import os
from collections.abc import Callable
from typing import BinaryIO

from fastdc.matching.comparison_numbers import ComparisonNumbers
from fastdc.matching.comparison_tables import (
    answer_columns,
    html_page,
    latex_tables,
    score_columns,
    test_columns,
    text_page,
)
from fastdc.support import plain, save_table


class Comparison(ComparisonNumbers):
    """The answers of several models in several cells; :meth:`of` makes it.

    Example:
        >>> from fastdc.matching import Answered, Cell, Comparison, Matched, Trials
        >>> one = Trials.of(["a.png"], [["red cube", "red cone"]])
        >>> matched = Matched("none", np.array([0]), (np.array([2.0, 1.0]),), np.array([0]), np.array([2]), 0.1)
        >>> print(Comparison.of([Answered(Cell("single", "val"), one, matched)]).scores[0].accuracy.value)
        1.0
    """

    def to_text(self) -> str:
        """Tables of accuracies, errors and tests as text."""
        return text_page(self)

    def to_latex(self) -> str:
        """The same as LaTeX, for the package booktabs."""
        return latex_tables(self)

    def to_html(self) -> str:
        """The same as one page that needs no other file."""
        return html_page(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the comparison in the format that the end of the name asks for.

        Args:
            path: The file: .csv has a row per model and cell, .json everything but answers, .tex and .html the tables.

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """
        more: dict[str, Callable[[BinaryIO], None]] = {
            ".tex": lambda file: _write(file, self.to_latex()),
            ".html": lambda file: _write(file, self.to_html()),
        }
        save_table(path, columns=score_columns(self), whole=self.to_dict, more=more)

    def save_tests(self, path: str | os.PathLike[str]) -> None:
        """Writes the paired tests as .csv or .json.

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """
        save_table(path, columns=test_columns(self), whole=lambda: [test.to_dict() for test in self.tests])

    def save_answers(self, path: str | os.PathLike[str]) -> None:
        """Writes every image's answers, of each model with the kind of the answer, as .csv or .json.

        Raises:
            InputError: The name has another end, or the file cannot be written.
        """
        columns = answer_columns(self)
        save_table(path, columns=columns, whole=lambda: plain(columns))


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))
