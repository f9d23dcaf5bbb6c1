"""Sheet of counterfactuals: for each image the input, the factual reconstruction, the counterfactual, the difference.

The difference is signed, counterfactual minus factual reconstruction, and the mean over channels: green where the class
to reach makes pixels brighter, purple where it makes them darker, as on the page of an explanation. All images share
one scale, which the sheet states: the 99th percentile of the magnitudes, unless it is told another. Images whose answer
did not flip, and reconstructions that lost their class, are marked.
"""

import math
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.explanation import Counterfactuals, ImageCounterfactual, brightness_picture, scale_of
from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.support import InputError, checks, shorten

MAX_IMAGES = 100

_PANELS = ("input", "factual", "counterfactual", "difference")
_GOOD, _BAD, _INK, _FAINT = "#0072b2", "#d55e00", "#222222", "#80868e"
# Inches.
_SIDE, _GAP, _HEAD, _BLOCK, _MARGIN, _TOP, _LINE = 0.72, 0.06, 0.24, 0.4, 0.3, 0.72, 0.13
_WIDTH = len(_PANELS) * (_SIDE + _GAP) - _GAP  # of the pictures of an image
_NAME_CHARS = 24
_CHAR = 0.0078  # width of a character, for each point of its size


def counterfactual_sheet(
    path: str | os.PathLike[str],
    made: Counterfactuals,
    *,
    columns: int = 2,
    scale: float | None = None,
    max_images: int = 40,
    title: str | None = None,
) -> Path:
    """Draws counterfactuals and writes the sheet to a file.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        made: The counterfactuals, of images with 1 or 3 channels.
        columns: Number of images side by side.
        scale: Difference of pixels in [0, 1] that has the full colour, positive; None: the 99th percentile of the
            magnitudes of all that are drawn.
        max_images: Largest number of images to draw, in [1, 100]; the sheet draws the first ones and states the total.
        title: Line above the sheet.

    Returns:
        The path written.

    Example:
        >>> from fastdc.explanation import counterfactuals
        >>> from fastdc.figures import counterfactual_sheet
        >>> counterfactual_sheet(folder / "sheet.png", counterfactuals(clf, images[:1], to="8", steps=4)).name
        'sheet.png'

    Raises:
        InputError: There is no image, an option cannot be used, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    target = figure_path(path)
    columns = checks.whole("columns", columns, high=10)
    full = None if scale is None else checks.positive("scale", scale)
    shown = min(len(made), checks.whole("max_images", max_images, high=MAX_IMAGES))
    _check(made, shown)
    full = scale_of(made[:shown].difference(grey=True)) if full is None else full
    columns = min(columns, shown)
    width = 2 * _MARGIN + columns * (_WIDTH + _BLOCK) - _BLOCK
    above, below = (_lines(text, width, size) for text, size in ((_counts(made, shown), 7.5), (_legend(full), 6)))
    top = _TOP + (len(above) - 1) * _LINE
    bottom = top + math.ceil(shown / columns) * (_HEAD + _SIDE + 0.1) + 0.22
    height = bottom + len(below) * _LINE + 0.07
    with default_style({"image.composite_image": False}) as figures:
        figure = figures.Figure(figsize=(width, height), dpi=130, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.set_axis_off()
        for i in range(shown):
            row, column = divmod(i, columns)
            corner = (_MARGIN + column * (_WIDTH + _BLOCK), top + row * (_HEAD + _SIDE + 0.1))
            _draw_image(axes, made[i], corner, full)
        _draw_names(axes, columns, top - 0.1)
        if title:
            _text(axes, (_MARGIN, 0.22), printable(title), 10, _INK, weight="bold")
        _draw_lines(axes, above, 0.42 if title else 0.3, 7.5)
        _draw_lines(axes, below, bottom, 6)
        write_figure(figure, target)
    return target


def _check(made: Counterfactuals, shown: int) -> None:
    """Refuses what a sheet cannot show.

    Raises:
        InputError: There is no image, or its channels are neither grey nor colours.
    """
    if not shown:
        raise InputError("there is nothing to draw: expected one image or more")
    if made.images.shape[1] not in (1, 3):
        raise InputError(f"a sheet shows images of 1 or 3 channels, got {made.images.shape[1]}")


def _draw_names(axes: Any, columns: int, y: float) -> None:
    for column in range(columns):
        for k, name in enumerate(_PANELS):
            x = _MARGIN + column * (_WIDTH + _BLOCK) + k * (_SIDE + _GAP) + _SIDE / 2
            _text(axes, (x, y), name, 6.5, _FAINT, ha="center")


def _draw_lines(axes: Any, lines: list[str], y: float, size: float) -> None:
    for k, line in enumerate(lines):
        _text(axes, (_MARGIN, y + k * _LINE), line, size, _FAINT)


def _draw_image(axes: Any, one: ImageCounterfactual, corner: tuple[float, float], scale: float) -> None:
    x, y = corner
    names = f"{_cut(one.own)} → {_cut(one.target)}"
    before, after = (answer.probabilities[one.target] for answer in (one.before, one.after))
    colour = _INK if one.same else _GOOD if one.flipped else _BAD
    _text(axes, (x, y + 0.1), names, 8, colour, weight="bold")
    told = f"p {before:.2g} → {after:.2g}"
    if one.same:
        told = f"its own class, {told}"
    elif not one.flipped:
        told = f"not flipped, {told}"
    if not one.kept:
        told = f"factual is {_cut(one.of_factual.name)}; {told}"
    _text(axes, (x + _WIDTH, y + 0.1), told, 6.5, _INK if (one.flipped or one.same) and one.kept else _BAD, ha="right")
    difference = brightness_picture((one.counterfactual - one.factual).mean(axis=0), scale)
    pictures = [*(_picture(each) for each in (one.input, one.factual, one.counterfactual)), difference]
    for k, picture in enumerate(pictures):
        left, top = x + k * (_SIDE + _GAP), y + _HEAD - 0.04
        extent = (left, left + _SIDE, top + _SIDE, top)
        axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto", cmap="gray", vmin=0, vmax=1)
        xs, ys = (left, left + _SIDE, left + _SIDE, left, left), (top, top, top + _SIDE, top + _SIDE, top)
        axes.plot(xs, ys, color=_FAINT, linewidth=0.5)


def _counts(made: Counterfactuals, shown: int) -> str:
    n = len(made)
    some = f"{n} image{'s'[: n != 1]}" if shown == n else f"the first {shown} of {n} images"
    return f"{some}: {made.outcome}"


def _legend(scale: float) -> str:
    return (
        f"difference: counterfactual minus factual, green brighter, purple darker, full colour at ±{scale:.2g}; "
        "p: probability of the new class"
    )


def _lines(text: str, width: float, size: float) -> list[str]:
    """Lines of a text that fit between the margins of a sheet."""
    return textwrap.wrap(text, int((width - 2 * _MARGIN) / (_CHAR * size)))


def _picture(image: Any) -> Any:
    """(h, w) of one channel, (h, w, 3) of three."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)


def _cut(name: str) -> str:
    return shorten(printable(name), _NAME_CHARS)


def _text(axes: Any, at: tuple[float, float], text: str, size: float, colour: str, **options: Any) -> None:
    axes.text(*at, text, fontsize=size, color=colour, va="center_baseline", parse_math=False, **options)
