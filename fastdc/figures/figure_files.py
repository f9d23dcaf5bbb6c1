"""Files of figures: drawn in matplotlib's default style, rendered in memory, and written in one step.

The same figure gives the same bytes, even if the user has set another style. A reader sees the old file or the whole
new one, also if the process is killed while it writes.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastdc.support import InputError, require, shown, write_whole

SUFFIXES = (".png", ".svg", ".pdf")

# Text stays text in an SVG and its identifiers are reproducible; the font is the one that matplotlib brings.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "fastdc", "font.sans-serif": ["DejaVu Sans"]}

# No date in the file; a PNG has none.
_METADATA: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def figure_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a figure.

    Args:
        path: Path with the suffix .png, .svg or .pdf.

    Raises:
        InputError: It is no path, as if arguments were swapped, or has another suffix.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"the first argument is the path of the figure, and what it draws the second: got {shown(path)}"
        )
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a figure is written as .png, .svg or .pdf, got suffix {target.suffix!r}")
    return target


@contextmanager
def default_style(options: Mapping[str, Any]) -> Iterator[Any]:
    """Sets matplotlib's default style instead of the user's own, for drawing and for :func:`write_figure`.

    Args:
        options: Further options of the style (rcParams).

    Yields:
        The module ``matplotlib.figure``.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib, figures = require("matplotlib", extra="plot"), require("matplotlib.figure", extra="plot")
    style = {**matplotlib.rcParamsDefault, **_STYLE, **options}
    style.pop("backend", None)
    with matplotlib.rc_context(style):
        yield figures


def write_figure(figure: Any, target: Path) -> None:
    """Writes a figure; an existing file is replaced in one step.

    Args:
        figure: A ``matplotlib.figure.Figure``.
        target: Path that :func:`figure_path` accepts.

    Raises:
        InputError: The file cannot be written; an older file of that name is unchanged.
    """
    suffix = target.suffix.lower()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], metadata=_METADATA.get(suffix))
    try:
        write_whole(target, buffer.getvalue())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from None


def printable(text: object) -> str:
    """One line of text. Control characters, which would even make an SVG invalid, become spaces."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip()
