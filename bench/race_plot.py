"""The plot of ``race.py``: accuracy and agreement against NFE, one panel per condition.

python bench/race_plot.py bench/results/race.json [race.png]      draws it again from the JSON
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.support import require
from tables import interval

# Okabe & Ito's palette; shapes distinguish families without colour.
STYLES = {
    "full": ("#555555", "o", "full, fewer draws"),
    "staged": ("#e69f00", "s", "staged"),
    "sift": ("#cc79a7", "X", "sift"),
    "ttest": ("#d55e00", "^", "t-test, uncorrected"),
    "paired": ("#56b4e9", "D", "paired"),
    "betting": ("#009e73", "v", "betting"),
    "race, clean calibration": ("#111111", "P", "race, calibrated on clean images"),
    "race": ("#0072b2", "*", "race, calibrated"),
}
LINES = ("full", "race")
LEAST, MOST = 1.5, 8.0  # range of an axis below the full run, in points; worse rules are marked at its edge
ROWS = {"accuracy": "accuracy, %", "agreement": "agreement with the full run, %"}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws a result of ``race.py``."""
    matplotlib = require("matplotlib")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot")
    conditions = result["conditions"]
    figure, axes = pyplot.subplots(2, len(conditions), figsize=(4.4 * len(conditions) + 0.6, 8.2), squeeze=False)
    for column, condition in enumerate(conditions):
        for row, measure in enumerate(ROWS):
            axis = axes[row][column]
            _panel(axis, condition["records"], measure)
            if row == 0:
                axis.set_title("clean" if not condition["sigma"] else f"Gaussian noise, std {condition['sigma']:g}")
            if column == 0:
                axis.set_ylabel(ROWS[measure])
            if row == 1:
                axis.set_xlabel("network evaluations per image (NFE)")
    handles, names = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncol=4, frameon=False, fontsize=9)
    figure.suptitle(
        f"{result['model']}: {result['images']} test images, mean and 95 % interval over {result['seeds']} noise seeds"
    )
    figure.tight_layout(rect=(0, 0.07, 1, 0.99))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"written to {path}")


def _panel(axis: Any, records: list[dict[str, Any]], measure: str) -> None:
    """Draws one measure against NFE."""
    full = [record for record in records if record["family"] == "full"]
    top = interval(full[-1][measure])[0]
    worst = min(interval(record[measure])[0] for record in records if record["family"] not in ("full", "vote"))
    span = min(max(top - worst + 0.3, LEAST), MOST)
    low = top - span
    for family, (colour, marker, name) in STYLES.items():
        points = [record for record in records if record["family"] == family]
        if not points:
            continue
        x = np.array([interval(record["nfe"])[0] for record in points])
        y, half = np.array([interval(record[measure]) for record in points]).T
        order = np.argsort(x)
        inside = y >= low
        style = {"color": colour, "markersize": 11 if marker == "*" else 6.5, "zorder": 4 if family == "race" else 3}
        if family in LINES:
            axis.plot(x[order], np.maximum(y, low)[order], "-", color=colour, linewidth=1.1, alpha=0.6, zorder=2)
        axis.errorbar(
            x[inside], y[inside], yerr=half[inside], fmt=marker, capsize=2.5, elinewidth=1, label=name, **style
        )
        for at, value in zip(x[~inside], y[~inside], strict=True):
            axis.plot(at, low, marker, **style, fillstyle="none")
            axis.annotate(f"{value:.0f}", (at, low), (0, 8), textcoords="offset points", ha="center", fontsize=7)
    axis.axhline(top, color="#999999", linewidth=0.8, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks([10, 20, 40, 80, 160, 320, 640, 1280], ["10", "20", "40", "80", "160", "320", "640", "1280"])
    axis.minorticks_off()
    axis.set_ylim(low - 0.05 * span, min(top + 0.3 * span, 100 + 0.05 * span))
    axis.grid(alpha=0.25)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: race_plot.py RACE.json [OUT.png]")
    source = Path(sys.argv[1])
    plot(json.loads(source.read_text(encoding="utf-8")), Path(sys.argv[-1]).with_suffix(".png"))


if __name__ == "__main__":
    main()
