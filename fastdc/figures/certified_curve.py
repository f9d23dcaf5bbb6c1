"""Plot of certified accuracy over the radius, one curve per certification file.

A curve is the staircase of :func:`fastdc.certification.certified_curve`: a step holds from the radius before it up to
and including its own. The band around it is Wilson's 95 % confidence interval. Source of the palette: Okabe & Ito,
"Color universal design" (2008); beyond eight files the lines differ in style.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.certification import Records, certified_curve, names_of, wilson_interval
from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.support import Float64

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#111111")
_LINES = ("-", "--", ":", "-.")
_NAME_CHARS = 60  # longer names are cut


def plot_curves(
    path: str | os.PathLike[str], several: Sequence[Records], *, names: Sequence[str] | None = None
) -> Path:
    """Draws certified accuracy over the radius, one line per file with a band of 95 % confidence.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        several: Records of each file.
        names: Name of each file in the legend; default: the shortest ends of their paths that tell them apart.

    Returns:
        The path written.

    Raises:
        InputError: A true class is unknown, the suffix is none of the three, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.certification import Certificate, records_of
        >>> from fastdc.figures import plot_curves
        >>> records = records_of([Certificate(3, 0.3, 0.9, 95, 100, 10, 1000, 2.0)], labels=[3])
        >>> plot_curves(folder / "curve.svg", [records]).name
        'curve.svg'
    """
    target = figure_path(path)
    curves = [certified_curve(records) for records in several]
    labels = names_of([records.path for records in several]) if names is None else names
    with default_style({"text.parse_math": False}) as figures:
        figure = figures.Figure(figsize=(7.2, 4.6), dpi=130, facecolor="white")
        _draw(figure.add_subplot(), curves, several, labels)
        figure.tight_layout()
        write_figure(figure, target)
    return target


def _draw(axes: Any, curves: list[tuple[Float64, Float64]], several: Sequence[Records], names: Sequence[str]) -> None:
    end = max((float(radii[-1]) for radii, _ in curves), default=0.0) * 1.04 or 1.0
    for i, ((radii, accuracy), records, name) in enumerate(zip(curves, several, names, strict=True)):
        colour, line = _COLOURS[i % len(_COLOURS)], _LINES[i // len(_COLOURS) % len(_LINES)]
        x, y = np.append(radii, radii[-1]), 100 * np.append(accuracy, 0.0)  # down to the axis
        low, high = wilson_interval(np.round(y / 100 * len(records)), len(records))
        acr = float((records.radius * records.correct).mean())
        shown = printable(name)[:_NAME_CHARS].lstrip("_")  # a leading underscore would hide it from the legend
        axes.step(x, y, line, where="pre", color=colour, linewidth=1.6, label=f"{shown}, average radius {acr:.3f}")
        axes.fill_between(x, 100 * low, 100 * high, step="pre", color=colour, alpha=0.13, linewidth=0)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 101)
    axes.set_xlabel("radius (L2, pixels in [0, 1])")
    axes.set_ylabel("certified accuracy, %  (band: 95 % interval)")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
