"""Sheet of explanations: for each image a row with the image, its error map, and the errors by class and noise level.

Blue pixels speak for the class that is explained, orange ones for the class against it; over the image, pixels that are
not significant keep the image's grey. Source of the palette: Okabe & Ito, "Color universal design" (2008).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.explanation import (
    Explanation,
    ImageExplanation,
    level_curves,
    overlay_picture,
    scale_of,
    signed_picture,
)
from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.support import checks, html_pages, shorten

MAX_IMAGES = 60
"""Most images of a sheet."""

_BLUE, _ORANGE, _GREY, _INK = "#0072b2", "#d55e00", "#9fb8c8", "#222222"
_CLASSES = 8  # most classes with a bar
_NAME = 24  # characters of a name
_ROW = 2.1  # inches


def explanation_sheet(
    path: str | os.PathLike[str], explanation: Explanation, *, max_images: int = 20, title: str | None = None
) -> Path:
    """Draws explanations and writes the sheet to a file.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        explanation: The explanation.
        max_images: Largest number of images to draw, in [1, 60]; the sheet draws the first ones and states the total.
        title: Line above the sheet.

    Returns:
        The path written.

    Raises:
        InputError: The suffix is none of the three, max_images is out of range, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.figures import explanation_sheet
        >>> explanation_sheet(folder / "maps.svg", clf.explain(images[:1], map_draws=8)).name
        'maps.svg'
    """
    target = figure_path(path)
    shown = explanation[: checks.whole("max_images", max_images, high=MAX_IMAGES)]
    with default_style({"text.parse_math": False, "font.size": 7.5}) as figures:
        rows = max(1, len(shown))
        figure = figures.Figure(figsize=(11.5, 0.8 + _ROW * rows), dpi=130, facecolor="white", layout="constrained")
        axes = figure.subplots(rows, 5, squeeze=False, width_ratios=(1, 1, 1, 1.35, 1.35))
        for row, one in enumerate(shown):
            _pictures(axes[row], one, shown.images[row])
            _errors(axes[row, 3], one)
            _levels(axes[row, 4], one, shown)
        for empty in axes[len(shown) :].ravel():
            empty.set_axis_off()
        where = "" if explanation.space == "pixels" else f"; maps of {explanation.space}"
        test, n = explanation.test, len(explanation)
        some = "" if len(shown) == n else f"the first {len(shown)} of {n} images; "
        legend = (
            f"{some}blue: for the class that is explained; orange: against it; significant at "
            f"{100 * test['alpha']:.3g} % ({test['control']}), {explanation.ratio.size} draws{where}"
        )
        figure.suptitle("\n".join(filter(None, [printable(title or ""), legend])), fontsize=9)
        write_figure(figure, target)
    return target


def _pictures(axes: Any, one: ImageExplanation, image: Any) -> None:
    scale = scale_of(one.map)
    share = f"{100 * one.region_for.share:.3g} % for, {100 * one.region_against.share:.3g} % against"
    answer = f"{_cut(one.name)}, probability {one.probability:.3f}"
    pictures = (
        (html_pages.picture(image), answer + "\nundecided" * bool(one.undecided)),
        (overlay_picture(image, one.map, one.significant, scale), share),
        (signed_picture(one.map, scale), f"all pixels, colours to ±{scale:.2g}"),
    )
    for place, (picture, text) in zip(axes, pictures, strict=False):
        place.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        place.set_title(text, fontsize=7.5)
        place.set_xticks([])
        place.set_yticks([])
    axes[0].set_ylabel(_cut(f"image {one.index}" if one.image is None else Path(one.image).name))


def _errors(axes: Any, one: ImageExplanation) -> None:
    known = sorted((item for item in one.errors.items() if np.isfinite(item[1])), key=lambda item: item[1])
    kept = [item for rank, item in enumerate(known) if rank < _CLASSES or item[0] in one.names]
    names, values = [name for name, _ in kept], np.array([value for _, value in kept])
    colours = [_BLUE if name == one.names[0] else _ORANGE if name == one.names[1] else _GREY for name in names]
    above = values - values.min(initial=np.inf)
    axes.barh(range(len(names)), above, color=colours)
    axes.set_xlim(0, 1.05 * max(above.max(initial=0.0), one.smallest_difference))
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes.xaxis.get_offset_text().set_fontsize(6.5)
    axes.set_yticks(range(len(names)), [_cut(name) for name in names])
    axes.invert_yaxis()
    more = len(known) - len(kept)
    axes.set_title("error above the smallest" + (f" ({more} more)" if more else ""), fontsize=7.5)
    _plain(axes)


def _levels(axes: Any, one: ImageExplanation, explanation: Explanation) -> None:
    ratios, means = level_curves(explanation.ratio, one.pair_errors)
    for row, (colour, style) in enumerate(((_BLUE, "o-"), (_ORANGE, "s--"))):
        axes.plot(ratios, means[row], style, color=colour, markersize=2.5, linewidth=1.2, label=_cut(one.names[row]))
    if len(ratios):
        axes.set_xscale("log")
        ticks = sorted({float(ratios[0]), float(ratios[len(ratios) // 2]), float(ratios[-1])})
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
    axes.set_title("error by noise level (sigma / alpha)", fontsize=7.5)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=6.5, colors=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _cut(text: str) -> str:
    return printable(shorten(text, _NAME))
