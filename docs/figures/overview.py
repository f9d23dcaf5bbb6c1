"""The figure of the README: one race, and what races cost on all test images.

usage: python docs/figures/overview.py      writes docs/figures/overview.png; needs fastdc with the extras cpu and plot

Left: the digits UNet classifies one test image. The lead in error of a class over the best one grows with every draw,
and the class is dropped at the first look at which its lead exceeds the calibrated limit. Right: accuracy against
evaluations per image, from bench/results/race.json (400 test images, mean over five noise seeds).
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import fastdc
from fastdc.data import digits_test

HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "bench" / "results" / "race.json"
IMAGE = 158  # index of the test image
BLUE, ORANGE, RED, GREY = "#0072b2", "#e69f00", "#d55e00", "#80868e"  # Okabe & Ito
FAMILIES = {"full": (GREY, "o", "every class, fewer draws"), "staged": (ORANGE, "s", "staged pruning (Li et al.)")}
FAMILIES |= {"ttest": (RED, "^", "t-tests (Clark & Jaini)"), "race": (BLUE, "*", "calibrated race")}


def draw_race(axis: Any) -> None:
    """The leads of all classes of one image, draw by draw."""
    clf, test = fastdc.load("digits"), digits_test()
    calibration = clf.model.calibration
    assert calibration is not None
    result = clf.classify(test.images[IMAGE : IMAGE + 1])
    errors = result.table.errors[0].astype(float)
    totals = np.cumsum(errors, axis=1)[:, : int(result.table.counts.max())]
    best = np.nanmin(totals, axis=0)
    lead = np.arange(1, totals.shape[1] + 1) * (totals - best) / best
    axis.axhline(calibration.limit, color=GREY, linestyle="--", linewidth=1)
    axis.text(9.0, calibration.limit - 0.04, "calibrated limit", color=GREY, fontsize=8, ha="right", va="top")
    white = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
    dropped: dict[int, list[int]] = {}
    for label, row in enumerate(lead):
        known = int(np.count_nonzero(~np.isnan(row)))
        won = label == result.labels[0]
        axis.plot(np.arange(1, known + 1), row[:known], color=BLUE if won else ORANGE, linewidth=2.5 if won else 1.2)
        if not won:
            axis.plot(known, row[known - 1], "x", color=RED, markersize=6)
            dropped.setdefault(known, []).append(label)
    for look, labels in dropped.items():
        height = max(lead[label, look - 1] for label in labels)
        axis.annotate(
            f"drops {', '.join(map(str, labels))}",
            (look, height),
            (6, 2),
            textcoords="offset points",
            fontsize=8,
            bbox=white,
        )
    axis.annotate(f"class {result.labels[0]} wins", (5, 0), (0, 5), textcoords="offset points", fontsize=8, color=BLUE)
    axis.set(xlabel="draws", ylabel="lead in error over the best class", xlim=(0.8, 9.2), ylim=(-0.06, 2.6))
    total = int(result.evaluations[0])
    axis.set_title(f"One image: {total} evaluations instead of 1280", fontsize=10)
    inset = axis.inset_axes((0.83, 0.05, 0.17, 0.3))
    inset.imshow(test.images[IMAGE, 0], cmap="gray_r")
    inset.set(xticks=[], yticks=[])


def draw_costs(axis: Any) -> None:
    """Accuracy against evaluations per image of four families of rules."""
    records = json.loads(RESULTS.read_text(encoding="utf-8"))["conditions"][0]["records"]
    for family, (color, marker, name) in FAMILIES.items():
        rows = [row for row in records if row["family"] == family and row.get("decision", "mean") == "mean"]
        cost = [np.mean(row["nfe"]) for row in rows]
        accuracy = [np.mean(row["accuracy"]) for row in rows]
        axis.plot(
            cost, accuracy, marker, color=color, label=name, markersize=9 if marker == "*" else 5, linestyle="none"
        )
    axis.set(xlabel="network evaluations per image", ylabel="accuracy, %", xscale="log", ylim=(93, 100.4))
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    axis.set_title("All 400 test images", fontsize=10)


def main() -> None:
    """Writes the figure."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.5))
    draw_race(left)
    draw_costs(right)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
