"""Plot of a score: the confusion matrix, how often answers are right by their probability, and the refusal curve.

A cell's colour is the share of its row, so that rare classes show as well as frequent ones; its number is the count.
Source of the palette: Okabe & Ito, "Color universal design" (2008).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.scoring import Score
from fastdc.support import shorten

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#9fb8c8"
_COUNTED = 20  # most classes whose cells have their counts
_NAMED = 60  # most classes whose names stand beside the matrix
_NAME = 26  # characters of a name


def score_sheet(path: str | os.PathLike[str], score: Score, *, title: str | None = None) -> Path:
    """Draws the confusion matrix, the reliability diagram and the refusal curve of a score.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        score: The score.
        title: Line above the plot.

    Returns:
        The path written.

    Raises:
        InputError: The suffix is none of the three, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.figures import score_sheet
        >>> from fastdc.scoring import score_of
        >>> score_sheet(folder / "score.svg", score_of(clf.classify(images), labels)).name
        'score.svg'
    """
    target = figure_path(path)
    k = len(score.class_names)
    side = 2.6 + 0.34 * min(k, 24) + 0.09 * max(0, min(k, _NAMED) - 24)
    with default_style({"text.parse_math": False}) as figures:
        figure = figures.Figure(figsize=(side + 8.6, max(side, 4.6)), dpi=130, facecolor="white", layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(side, 4.2, 4.2))
        _matrix(left, score)
        _reliability(middle, score)
        _refusal(right, score)
        figure.suptitle(printable(title or ""), fontsize=11)
        write_figure(figure, target)
    return target


def _matrix(axes: Any, score: Score) -> None:
    counts, k = score.confusion, len(score.class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for i, j in np.argwhere(counts) if k <= _COUNTED else ():
        ink = "white" if shares[i, j] > 0.55 else "#222222"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7.5, color=ink)
    if k <= _NAMED:
        names = [printable(shorten(name, _NAME)) for name in score.class_names]
        size = 8 if k <= 24 else 5
        axes.set_xticks(range(k), names, rotation=90, fontsize=size)
        axes.set_yticks(range(k), names, fontsize=size)
        axes.tick_params(length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    axes.set_title(f"accuracy {score.accuracy.percent()}", fontsize=9)


def _reliability(axes: Any, score: Score) -> None:
    found = score.reliability
    bins = len(found.counts)
    filled = np.flatnonzero(found.counts)
    middles = (filled + 0.5) / bins
    axes.plot([0, 1], [0, 1], "--", color="#222222", linewidth=1)
    axes.bar(middles, found.accuracy[filled], 0.9 / bins, color=_BLUE, label="share of right answers")
    axes.plot(found.confidence[filled], found.accuracy[filled], "o", color=_ORANGE, markersize=4, label="mean of a bin")
    heights = 0.25 * found.counts[filled] / found.counts.max()
    axes.bar(middles, heights, 0.3 / bins, color=_GREY, label="images (scaled)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the answer")
    axes.set_title(f"ECE {score.ece:.4f}, {bins} bins", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _refusal(axes: Any, score: Score) -> None:
    found = score.refusal
    axes.plot(found.refused, found.accuracy, color=_BLUE, linewidth=2)
    axes.axhline(found.accuracy[0], color="#222222", linestyle="--", linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of images refused, the least certain first")
    axes.set_ylabel("share of right answers among the others")
    axes.set_title(f"refusal curve, mean {found.area:.4f}", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
