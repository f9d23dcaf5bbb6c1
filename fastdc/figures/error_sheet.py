"""Sheet of results to look at: each image beside a bar for the denoising error of each class.

A diffusion classifier's errors differ by some percent around a large common value. So a bar shows how far a class is
*behind the best one*, (e_k - e_best) / e_best, and each image has its own scale: the best class has no bar, and a close
rival has a short one. Up to twelve classes are listed in class order, which keeps a class in the same place everywhere.
Of more classes, the best ten are listed by error, with the predicted and the true class below if they are not among
them.

Everything is drawn on one axes object whose units are inches on the page, with y pointing down: forty small plots would
take ten times as long. Source of the palette: Okabe & Ito, "Color universal design" (2008).
"""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.support import Float32, Float64, InputError, Int64, checks

ALL_CLASSES = 12  # up to this number, every class gets a row
BEST_CLASSES = 10  # of more classes, this many do
MAX_IMAGES = 400  # 70 million pixels as PNG; nobody reads a larger sheet
NAME_CHARS = 18  # longer class names are cut

_RIGHT, _WRONG = "#0072b2", "#d55e00"  # distinct with any colour vision; a wrong image also has a frame
_BAR, _INK, _FAINT = "#c9cdd3", "#222222", "#80868e"

# Inches. Widths: image, name and bars side by side; heights: a header line over the rows.
_MARGIN, _GAP, _HEAD, _ROW, _IMAGE, _BARS, _NUMBER = 0.35, 0.34, 0.22, 0.14, 1.12, 0.85, 0.42
_CHAR = 0.066  # a character of a name at 7 points: average width and some room
_ASPECT = 1.25  # width to height of the whole page, roughly
_LEGEND = 5.2  # the page is at least wide enough for the legend
_TOP, _BOTTOM = 0.75, 0.78  # title and legend
_DPI = 130


@dataclass(frozen=True, eq=False)
class _Results:
    """Checked arguments: pictures float32 (n, h, w) or (n, h, w, 3) in [0, 1], errors float64 (n, K)."""

    pictures: Float32
    errors: Float64
    names: tuple[str, ...]
    labels: Int64
    truth: Int64 | None
    numbers: Int64

    def verdict(self, i: int) -> tuple[int, int, str]:
        """For image `i`: the predicted class (-1: abstained), the true class if missed (else -1), and the colour."""
        label, true = int(self.labels[i]), -1 if self.truth is None else int(self.truth[i])
        missed = true if true != label else -1
        return label, missed, _INK if label < 0 else _WRONG if missed >= 0 else _RIGHT


@dataclass(frozen=True)
class _Layout:
    """Positions and sizes on the page, in inches."""

    columns: int
    row: float
    name: float
    cell: tuple[float, float]
    page: tuple[float, float]

    def corner(self, i: int) -> tuple[float, float]:
        """The top left corner of cell `i`."""
        row, column = divmod(i, self.columns)
        return _MARGIN + column * (self.cell[0] + _GAP), _TOP + row * (self.cell[1] + _GAP)


def error_sheet(
    path: str | os.PathLike[str],
    images: ArrayLike,
    errors: ArrayLike,
    class_names: Sequence[str],
    *,
    labels: ArrayLike | None = None,
    true_labels: ArrayLike | None = None,
    numbers: ArrayLike | None = None,
    max_images: int = 40,
    title: str | None = None,
) -> Path:
    """Draws images beside their per-class errors and writes the sheet to a file.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        images: Images (n, c, h, w) with c = 1 or 3, uint8 or float in [0, 1].
        errors: (n, K), mean denoising error of each class; NaN if a class was not evaluated.
        class_names: Names of the K classes.
        labels: (n,), predicted class of each image, -1 for an abstention; default: the class of smallest error.
        true_labels: (n,), true class of each image, if known. The sheet marks it, and flags wrong images.
        numbers: (n,), number that is printed beside each image, such as its index in a data set; default: 0 to n - 1.
        max_images: Largest number of images to draw, in [1, 400]; the sheet draws the first ones and states the total.
        title: Line above the sheet.

    Returns:
        The path written.

    Raises:
        InputError: The arguments do not fit each other, the suffix is none of the three, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.figures import error_sheet
        >>> error_sheet(folder / "sheet.svg", images[:1], [[1.0, 1.2]], ["zero", "one"]).name
        'sheet.svg'
    """
    target = figure_path(path)
    max_images = checks.whole("max_images", max_images, high=MAX_IMAGES)
    results = _check(images, errors, class_names, labels, true_labels, numbers)
    shown = min(len(results.errors), max_images)
    style = default_style({"image.composite_image": False, "path.simplify": False})
    with style as figures, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # the font may lack a script that a name uses
        layout = _layout(results, shown)
        figure = figures.Figure(figsize=layout.page, dpi=_DPI, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, layout.page[0]), ylim=(layout.page[1], 0), autoscale_on=False)
        axes.set_axis_off()
        vector = target.suffix.lower() != ".png"
        for i in range(shown):
            _draw_cell(axes, results, i, layout, vector)
        _draw_legend(axes, results, shown, layout, title)
        write_figure(figure, target)
    return target


def _check(
    images: ArrayLike,
    errors: ArrayLike,
    class_names: Sequence[str],
    labels: ArrayLike | None,
    truth: ArrayLike | None,
    numbers: ArrayLike | None,
) -> _Results:
    pictures, table = np.asarray(images), np.asarray(errors)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape:
        raise InputError(f"images must have shape (n, 1 or 3, h, w), got {pictures.shape}")
    if pictures.dtype == np.uint8:
        pictures = pictures / np.float32(255)
    elif pictures.dtype.kind != "f" or not (pictures.min() >= 0 and pictures.max() <= 1):  # NaN fails both
        raise InputError(f"images must be uint8, or float in [0, 1], got {pictures.dtype} out of this range")
    n, k = len(pictures), len(class_names)
    if table.shape != (n, k) or k < 1 or table.dtype.kind not in "fiu":
        raise InputError(f"errors must be numbers of shape {(n, k)} (images, classes), got {table.shape}")
    table = table.astype(np.float64)
    if np.isinf(table).any() or np.isnan(table).all(axis=1).any():
        raise InputError("errors must be finite or NaN, with at least one evaluated class for each image")
    predicted = np.nanargmin(table, axis=1) if labels is None else _check_labels(labels, n, range(-1, k), "labels")
    known = None if truth is None else _check_labels(truth, n, range(k), "true_labels")
    shown = np.arange(n) if numbers is None else np.asarray(numbers)
    if shown.shape != (n,) or shown.dtype.kind not in "iu":
        raise InputError(f"numbers must be integers of shape ({n},), got {shown.dtype} of shape {shown.shape}")
    names = tuple(_cut(name) for name in class_names)
    grey = pictures.shape[1] == 1
    pictures = pictures[:, 0] if grey else pictures.transpose(0, 2, 3, 1)
    return _Results(
        pictures.astype(np.float32), table, names, predicted.astype(np.int64), known, shown.astype(np.int64)
    )


def _check_labels(labels: ArrayLike, n: int, allowed: range, name: str) -> Int64:
    array = np.asarray(labels)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers of shape ({n},), got {array.dtype} of shape {array.shape}")
    if array.min() < allowed[0] or array.max() > allowed[-1]:
        raise InputError(f"{name} must be in {allowed[0]}..{allowed[-1]}, found {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _cut(name: str) -> str:
    text = printable(name)
    return text if len(text) <= NAME_CHARS else text[: NAME_CHARS - 1].rstrip() + "…"


def _listed(results: _Results, i: int) -> list[int]:
    """The classes that get a row for image `i`, from top to bottom."""
    k = len(results.names)
    if k <= ALL_CLASSES:
        return list(range(k))
    order = [int(c) for c in np.argsort(results.errors[i], kind="stable")]  # NaN comes last
    chosen = [c for c in order[:BEST_CLASSES] if not np.isnan(results.errors[i, c])]
    marked = {int(results.labels[i])} | (set() if results.truth is None else {int(results.truth[i])})
    return chosen + [c for c in order if c in marked and c not in chosen]


def _layout(results: _Results, shown: int) -> _Layout:
    lists = [_listed(results, i) for i in range(shown)]
    longest = max(len(results.names[c]) for listed in lists for c in listed)
    most = max(len(listed) for listed in lists)
    row = min(max(_ROW, _IMAGE / most), 1.5 * _ROW)
    name = _CHAR * longest + 0.1
    width, height = _IMAGE + 0.08 + name + _BARS + _NUMBER, _HEAD + max(_IMAGE, row * most)
    columns = math.ceil(math.sqrt(shown * _ASPECT * (height + _GAP) / (width + _GAP)))
    columns = min(shown, columns)
    rows = math.ceil(shown / columns)
    page_width = max(2 * _MARGIN + columns * (width + _GAP) - _GAP, _LEGEND)
    page = (page_width, _TOP + _BOTTOM + rows * (height + _GAP) - _GAP)
    return _Layout(columns, row, name, (width, height), page)


def _draw_cell(axes: Any, results: _Results, i: int, layout: _Layout, vector: bool) -> None:
    x, y = layout.corner(i)
    label, missed, colour = results.verdict(i)
    header = results.names[label] if label >= 0 else "abstains"
    if missed >= 0:
        header += f", {'not' if label >= 0 else 'true class'} {results.names[missed]}"
    _text(axes, (x, y + 0.06), header, 8, colour, weight="bold")
    _text(axes, (x + layout.cell[0], y + 0.06), f"#{results.numbers[i]}", 6.5, _FAINT, ha="right")
    _draw_image(axes, results.pictures[i], (x, y + _HEAD), vector, colour if colour == _WRONG else None)
    _draw_bars(axes, results, i, (x + _IMAGE + 0.08 + layout.name, y + _HEAD), layout.row)


def _draw_bars(axes: Any, results: _Results, i: int, zero: tuple[float, float], height: float) -> None:
    """Draws the rows of image `i`, each `height` tall, from `zero` = (x, y) down: names left, bars right."""
    errors, listed, (left, top) = results.errors[i], _listed(results, i), zero
    label, missed, colour = results.verdict(i)
    best = float(np.nanmin(errors))
    behind = errors - best
    runner_up = int(np.argsort(behind, kind="stable")[min(1, len(behind) - 1)])
    # A true class far behind the best ten must not flatten their bars: its own bar is cut at full length.
    scale = max(float(np.nanmax(behind[listed if len(behind) <= ALL_CLASSES else listed[:BEST_CLASSES]])), 1e-300)
    ends = left + _BARS * np.minimum(np.nan_to_num(behind[listed]) / scale, 1.0)
    middles = top + height * (np.arange(len(listed)) + 0.5)
    colours = [colour if c == label else _BAR for c in listed]
    axes.barh(middles, ends - left, 0.66 * height, left=left, color=colours, linewidth=0)
    axes.plot([left, left], [top, top + height * len(listed)], color=_FAINT, linewidth=0.6, zorder=0.5)
    for c, end, middle in zip(listed, ends, middles, strict=True):
        bold = "bold" if c in (label, missed) else None
        ink = colour if c == label else _INK if c == missed else _FAINT
        _text(axes, (left - 0.07, middle), results.names[c], 7, ink, ha="right", weight=bold)
        if c == label:
            _mark(axes, (end, middle), "o", colour, colour)
        elif c == missed:
            _mark(axes, (end, middle), "D", "white", _INK)
        if behind[c] > scale:
            axes.plot([end - 0.22, end - 0.16], [middle + 0.06, middle - 0.06], color="white", linewidth=1.5)
        if np.isnan(behind[c]):
            _text(axes, (left + 0.1, middle), "not run", 6, _FAINT)
        elif behind[c] > 0 and (c == missed or (c == runner_up and c != label)):
            _text(axes, (end + 0.09, middle), _amount(float(behind[c]), best), 6.5, _INK)


def _draw_image(axes: Any, picture: Float32, corner: tuple[float, float], vector: bool, frame: str | None) -> None:
    """Draws a picture at `corner` with the longer side _IMAGE; `frame` is the colour of a thick frame, if any."""
    h, w = picture.shape[:2]
    width, height = _IMAGE * w / max(h, w), _IMAGE * h / max(h, w)
    left, top = corner
    smooth = "none" if vector else "nearest" if max(h, w) <= 64 else "auto"
    if vector:  # some viewers blur small pictures despite what the file asks for: enlarge them here
        picture = np.kron(picture, np.ones((max(1, 128 // max(h, w)),) * 2 + (1,) * (picture.ndim - 2)))
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation=smooth, aspect="auto")
    xs, ys = (left, left + width, left + width, left, left), (top, top, top + height, top + height, top)
    axes.plot(xs, ys, color=frame or _FAINT, linewidth=1.8 if frame else 0.5, solid_joinstyle="miter")


def _draw_legend(axes: Any, results: _Results, shown: int, layout: _Layout, title: str | None) -> None:
    n = len(results.errors)
    summary = [f"{n} image{'s'[: n != 1]}" if shown == n else f"the first {shown} of {n} images"]
    abstained = results.labels < 0
    if results.truth is not None:
        summary.append(f"{int(((results.labels != results.truth) & ~abstained).sum())} of {n} wrong")
    if abstained.any():
        summary.append(f"{int(abstained.sum())} abstained")
    if title:
        _text(axes, (_MARGIN, 0.26), printable(title), 11, _INK, weight="bold")
    _text(axes, (_MARGIN, 0.48 if title else 0.34), ", ".join(summary), 8, _FAINT)
    y, x = layout.page[1] - 0.46, _MARGIN
    entries = [("o", _RIGHT, _RIGHT, "predicted")]
    if results.truth is not None:
        entries += [("o", _WRONG, _WRONG, "predicted, wrong"), ("D", "white", _INK, "true class")]
    for marker, face, edge, text in entries:
        _mark(axes, (x + 0.04, y), marker, face, edge)
        _text(axes, (x + 0.14, y), text, 7, _INK)
        x += 0.3 + 0.06 * len(text)
    text = "bar: error above the best class, scaled per image; numbers: the runner-up and a missed class"
    _text(axes, (_MARGIN, y + 0.2), text, 7, _FAINT)


def _mark(axes: Any, at: tuple[float, float], marker: str, face: str, edge: str) -> None:
    size = 4.2 if marker == "o" else 3.6
    axes.plot(*at, marker, markerfacecolor=face, markeredgecolor=edge, markersize=size, markeredgewidth=0.9)


def _amount(behind: float, best: float) -> str:
    """How far a class is behind: relative to the best error, or absolute if the best error is not positive."""
    if best <= 0:
        return f"+{behind:.2g}"
    part = behind / best
    return f"+{100 * part:.2g}%" if part < 0.1 else f"+{part:.0%}" if part < 9.995 else f"{part + 1:.3g}x"


def _text(axes: Any, at: tuple[float, float], text: str, size: float, colour: str, **options: Any) -> None:
    # parse_math=False: a dollar sign in a class name stays a dollar sign
    axes.text(*at, text, fontsize=size, color=colour, va="center_baseline", parse_math=False, **options)
