"""Plot of which noise levels tell right texts from wrong ones: a line per kind of wrong text, a panel per measure.

Points are at the geometric middle of a bin of levels, and those of several kinds side by side around it, so that none
hides another; bands are 95 % intervals. Source of the palette: Okabe & Ito,
"Color universal design" (2008).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.matching import LevelAnalysis

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#111111")
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_ASIDE = 0.012  # of the panel's width, between points of kinds of the same bin


def level_sheet(path: str | os.PathLike[str], analysis: LevelAnalysis, *, title: str | None = None) -> Path:
    """Draws which noise levels tell which kinds of wrong texts apart.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        analysis: What :func:`fastdc.matching.level_analysis` found.
        title: Line above the plot; default: the model.

    Returns:
        The path written.

    Raises:
        InputError: The suffix is none of the three, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.matching import DiffusionMatcher, Trials, level_analysis
        >>> trials = Trials.of(images[:2], [["7", "1"], ["9", "3"]])
        >>> found = level_analysis(DiffusionMatcher(clf, draws=16).errors(trials), trials, bins=2)
        >>> fastdc.figures.level_sheet(folder / "levels.svg", found).name
        'levels.svg'
    """
    target = figure_path(path)
    with default_style({"text.parse_math": False}) as figures:
        figure = figures.Figure(figsize=(9.6, 4.2), dpi=130, facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, analysis, analysis.single, "one draw: right text ahead, %")
        left.axhline(50, color="#888888", linewidth=0.9, linestyle=":")
        _panel(right, analysis, analysis.together, "all draws of a bin: right text ahead, % of images")
        right.legend(frameon=False, fontsize=8.5, loc="best")
        figure.suptitle(printable(analysis.model if title is None else title), fontsize=11)
        write_figure(figure, target)
    return target


def _panel(axes: Any, analysis: LevelAnalysis, found: Any, label: str) -> None:
    """A measure over the levels, a line per kind."""
    middles = np.sqrt(analysis.levels[:, 0] * analysis.levels[:, 1])
    finite = middles[np.isfinite(middles) & (middles > 0)]
    aside = (finite.max() / finite.min()) ** _ASIDE if len(finite) else 1.0
    for number, (kind, images) in enumerate(zip(analysis.kinds, analysis.images, strict=True)):
        colour, style = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        places = middles * aside ** (number - (len(analysis.kinds) - 1) / 2)
        value, low, high = 100 * np.array(found[kind], np.float64).T
        name = f"{printable(kind)[:40].lstrip('_')} ({images} image{'s'[: images != 1]})"
        drawn = {"marker": _MARKERS[number % len(_MARKERS)], "linestyle": style, "markersize": 4, "linewidth": 1.5}
        axes.plot(places, value, color=colour, label=name, **drawn)
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(lambda level, _: f"{level:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(min(45.0, *axes.get_ylim()) if "one draw" in label else 0, 101)
    axes.set_xlabel("noise-to-signal ratio sigma / alpha  (bands: 95 % intervals)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
