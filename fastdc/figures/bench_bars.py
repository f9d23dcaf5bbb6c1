"""Plot of a benchmark: images/s and the latency of single images, a line per configuration.

Bars are medians. The dark line on a bar of images/s spans the quartiles of the repeats; on a latency it reaches from
p50 to p95. Configurations that may not be recommended, because answers differ or the row is not complete, are hatched.
Latencies have a logarithmic axis if they span more than a factor of 20. Source of the palette: Okabe & Ito, "Color
universal design" (2008).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdc.benchmark import Advice, Row, short
from fastdc.figures.figure_files import default_style, figure_path, printable, write_figure
from fastdc.support import InputError, shorten

_BEST, _OTHER, _EXCLUDED, _INK = "#0072b2", "#9fb8c8", "#e8e8e8", "#222222"
_LOG_FROM = 20.0
_REASON_CHARS = 60  # of longer reasons the beginning and the end are shown


def bench_bars(path: str | os.PathLike[str], rows: Sequence[Row], advice: Advice, *, title: str | None = None) -> Path:
    """Draws images/s and latencies of the configurations of a benchmark.

    Args:
        path: Path to write; .png, .svg or .pdf. An existing file is replaced in one step.
        rows: Rows of the benchmark, at least one.
        advice: Its recommendations, which are coloured.
        title: Line above the plot.

    Returns:
        The path written.

    Raises:
        InputError: There is no row, the suffix is none of the three, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from fastdc.benchmark import Configuration, Row, Spread, advise
        >>> row = Row(Configuration("onnx", "cpu", "float32", 8), 8, images_per_second=Spread(9.0, 8.0, 9.5, 3))
        >>> from fastdc.figures import bench_bars
        >>> bench_bars(folder / "bench.svg", [row], advise([row])).name
        'bench.svg'
    """
    target = figure_path(path)
    if not rows:
        raise InputError("there is nothing to plot: expected one row or more")
    with default_style({"text.parse_math": False, "hatch.linewidth": 0.6}) as figures:
        figure = figures.Figure(figsize=(9.6, 1.5 + 0.42 * len(rows)), dpi=130, facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        places = range(len(rows))
        _rates(left, rows, advice)
        _latencies(right, rows, advice)
        names = [f"{row.configuration}, {'-' if row.batch is None else row.batch}" for row in rows]
        left.set_yticks(list(places), [printable(name) for name in names])
        left.set_ylim(len(rows) - 0.4, -0.6)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", alpha=0.25)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        figure.suptitle(printable(title or ""), fontsize=11)
        figure.supxlabel("blue: recommended; hatched: answers differ, or not complete", fontsize=8.5, color=_INK)
        write_figure(figure, target)
    return target


def _rates(axes: Any, rows: Sequence[Row], advice: Advice) -> None:
    for place, row in enumerate(rows):
        rate = row.images_per_second
        if rate is None:
            axes.text(
                0, place, f" {printable(shorten(row.reason, _REASON_CHARS))}", va="center", fontsize=7.5, color=_INK
            )
            continue
        axes.barh(place, rate.median, 0.62, **_style(row, row is advice.throughput))
        axes.plot([rate.low, rate.high], [place, place], color=_INK, linewidth=1.2)
        axes.annotate(
            short(rate.median),
            (max(rate.high, rate.median), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.set_xlabel("images/s with the race (line: quartiles)")


def _latencies(axes: Any, rows: Sequence[Row], advice: Advice) -> None:
    shown = [value for row in rows for way in (row.session, row.classify) if way for value in (way.p50, way.p95)]
    log = bool(shown) and max(shown) > _LOG_FROM * min(shown)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    start = 0.6 * min(shown) if log else 0.0
    for place, row in enumerate(rows):
        for way, offset in ((row.session, -0.17), (row.classify, 0.17)):
            if way is None:
                continue
            axes.barh(place + offset, way.p50 - start, 0.3, left=start, **_style(row, row is advice.latency))
            axes.plot([way.p50, way.p95], [place + offset] * 2, color=_INK, linewidth=1.2)
            name = "session" if way is row.session else "classify"
            axes.annotate(
                f"{name} {short(way.p50)}",
                (way.p95, place + offset),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    axes.margins(x=0.3)
    if shown:
        axes.set_xlim(start, max(shown) * (6.0 if log else 1.45))
    axes.set_xlabel("ms of one image: p50 (line: to p95)")


def _style(row: Row, recommended: bool) -> dict[str, Any]:
    """The colours of a bar."""
    if row.reason or not row.agrees:
        return {"color": _EXCLUDED, "edgecolor": "#999999", "hatch": "////", "linewidth": 0.6}
    return {"color": _BEST if recommended else _OTHER}
