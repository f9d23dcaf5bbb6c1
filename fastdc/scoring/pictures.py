"""The pictures of a score as SVG for a page, without any other library or file.

A cell's colour is the share of its row, so that rare classes show as well as frequent ones. Source of the palette:
Okabe & Ito, "Color universal design" (2008).
"""

import html
from collections.abc import Sequence

import numpy as np

from fastdc.scoring.measures import Reliability
from fastdc.scoring.refusal import Refusal
from fastdc.support import Int64, printable, shorten

_BLUE, _ORANGE = "#0072b2", "#d55e00"
_CELL = 34  # pixels
_NAME = 26  # characters of a class
_PLOT, _BASE = 260, 64  # sides of the diagram and of the bars below it, pixels


def confusion_svg(confusion: Int64, names: Sequence[str]) -> str:
    """A confusion matrix: blue on the diagonal, orange beside it.

    Args:
        confusion: int64 (K, K), images of each class (rows) with each answer (columns).
        names: K names.
    """
    k = len(names)
    side = max(10, min(_CELL, 720 // k))
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    labels = [html.escape(shorten(printable(name), _NAME)) for name in names]
    longest = max(map(len, names))
    left, top = 22 + 6 * min(longest, _NAME), 20 + 5 * min(longest, _NAME)
    parts = [_opened(left + max(k * side + top, 180), top + k * side + 24, "Confusion matrix")]
    for i in range(k):
        middle = top + (i + 0.65) * side
        parts.append(f'<text x="{left - 6}" y="{middle:.1f}" text-anchor="end">{labels[i]}</text>')
        x, y = left + (i + 0.65) * side, top - 6
        parts.append(f'<text x="{x:.1f}" y="{y}" transform="rotate(-50 {x:.1f} {y})">{labels[i]}</text>')
        for j in range(k):
            count = int(confusion[i, j])
            title = f"<title>{labels[i]} as {labels[j]}: {count}</title>"
            box = f'x="{left + j * side}" y="{top + i * side}" width="{side}" height="{side}"'
            colour = _shade(_BLUE if i == j else _ORANGE, float(shares[i, j]))
            parts.append(f'<rect {box} {colour} stroke="currentColor" stroke-opacity="0.2">{title}</rect>')
            if count and side >= 20:
                at = f'x="{left + (j + 0.5) * side:.1f}" y="{middle:.1f}" text-anchor="middle"'
                parts.append(f'<text {at} pointer-events="none">{count}</text>')
    parts.append(f'<text x="{left}" y="{top + k * side + 18}">rows: true class; columns: answer</text>')
    return "".join([*parts, "</svg>"])


def reliability_svg(found: Reliability) -> str:
    """A reliability diagram: share of right answers over their probability, and the number of answers below it.

    Args:
        found: The bins.
    """
    bins, left, top = len(found.counts), 52, 12
    width = _PLOT / bins
    parts = [_opened(left + _PLOT + 16, top + _PLOT + _BASE + 70, "Reliability diagram")]
    bottom = top + _PLOT
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y, x = bottom - tick * _PLOT, left + tick * _PLOT
        parts.append(f'<path d="M{left} {y}H{left + _PLOT}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x}" y="{bottom + _BASE + 38}" text-anchor="middle">{tick:g}</text>')
    most = max(1, int(found.counts.max()))
    for i in np.flatnonzero(found.counts):
        share, count = float(found.accuracy[i]), int(found.counts[i])
        said = f"{share:.3f} right, mean probability {found.confidence[i]:.3f}, {count} images"
        x = left + i * width
        low = _BASE * count / most
        bars = ((bottom - share * _PLOT, share * _PLOT), (bottom + 24 + _BASE - low, low))
        for (y, height), colour in zip(bars, (_BLUE, "#9fb8c8"), strict=True):
            box = f'x="{x + 1:.2f}" y="{y:.2f}" width="{width - 2:.2f}" height="{max(height, 1):.2f}"'
            parts.append(f'<rect {box} fill="{colour}"><title>{said}</title></rect>')
        ends = (left + found.confidence[i] * _PLOT, bottom - share * _PLOT)
        parts.append(f'<circle cx="{ends[0]:.2f}" cy="{ends[1]:.2f}" r="3" fill="{_ORANGE}"/>')
    parts.append(f'<path d="M{left} {bottom}L{left + _PLOT} {top}" stroke="currentColor" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{left}" y="{bottom + 16}">images in each bin (at most {most:,})</text>')
    across = left + _PLOT / 2
    parts.append(f'<text x="{across}" y="{bottom + _BASE + 58}" text-anchor="middle">probability of the answer</text>')
    middle = top + _PLOT / 2
    parts.append(f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">right</text>')
    return "".join([*parts, "</svg>"])


def refusal_svg(found: Refusal) -> str:
    """A refusal curve: the accuracy of the rest over the share of refused images, from a round number below it to 1.

    Args:
        found: The curve.
    """
    left, top = 52, 12
    floor = min(0.9, np.floor(10 * float(found.accuracy.min())) / 10)
    parts = [_opened(left + _PLOT + 16, top + _PLOT + 44, "Refusal curve")]
    bottom = top + _PLOT
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y, x = bottom - tick * _PLOT, left + tick * _PLOT
        parts.append(f'<path d="M{left} {y}H{left + _PLOT}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{floor + tick * (1 - floor):.4g}</text>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    heights = bottom - (found.accuracy - floor) / (1 - floor) * _PLOT
    points = " ".join(f"{left + x * _PLOT:.2f},{y:.2f}" for x, y in zip(found.refused, heights, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_BLUE}" stroke-width="2"/>')
    start = f"{heights[0]:.2f}"
    parts.append(f'<path d="M{left} {start}H{left + _PLOT}" stroke="currentColor" stroke-dasharray="4 3"/>')
    across, middle = left + _PLOT / 2, top + _PLOT / 2
    parts.append(f'<text x="{across}" y="{bottom + 38}" text-anchor="middle">share of images refused</text>')
    parts.append(f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">right</text>')
    return "".join([*parts, "</svg>"])


def _opened(width: float, height: float, title: str) -> str:
    box = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    look = 'font-family="sans-serif" font-size="11" fill="currentColor"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{title}" {box} {look}>'


def _shade(colour: str, share: float) -> str:
    """A colour through which the page shows, so that text on it can be read in light and dark; small shares show."""
    return f'fill="{colour}" fill-opacity="{0.0 if share <= 0 else 0.08 + 0.52 * share:.3f}"'
