"""Bootstrap intervals of the measures of a score: of every class, and of their means over the classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.scoring.bootstrap import Ranked, Weights, auprc, auroc, f1_of, intervals_of, resamples_for
from fastdc.support import Float64, Int64, plain

TOTALS = ("balanced_accuracy", "macro_f1", "auroc", "auprc")
"""Means over classes that have an interval."""

CLASSES = ("f1", "auroc", "auprc")
"""Measures of a class that have an interval."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """The 95 % intervals of n answers.

    Attributes:
        resamples: Number of resamples; 0 if the set is too large, or by request, and every end is NaN.
        totals: By the names of :data:`TOTALS`, float64 (2,), the ends.
        classes: By the names of :data:`CLASSES`, float64 (2, K), the ends for each class.
    """

    resamples: int
    totals: dict[str, Float64]
    classes: dict[str, Float64]

    def total(self, name: str) -> dict[str, Any]:
        """The ends of a mean over classes as JSON values."""
        return _json(self.totals[name])

    def of_class(self, name: str, k: int) -> dict[str, Any]:
        """The ends of a measure of a class as JSON values."""
        return _json(self.classes[name][:, k])


def _json(ends: Float64) -> dict[str, Any]:
    low, high = plain(ends)
    return {"ci95_low": low, "ci95_high": high}


def bootstrap_intervals(labels: Int64, answers: Int64, probabilities: Float64, *, wanted: bool = True) -> Intervals:
    """The intervals.

    Args:
        labels: int64 (n,), true classes.
        answers: int64 (n,).
        probabilities: float64 (n, K).
        wanted: Whether to compute them.
    """
    n, k = probabilities.shape
    count = resamples_for(n, k) if wanted else 0
    if not count:
        none = np.full((2, k), np.nan)
        return Intervals(0, dict.fromkeys(TOTALS, none[:, 0]), dict.fromkeys(CLASSES, none))
    present = np.bincount(labels, minlength=k) > 0
    ranked = (
        {j: Ranked.of(labels == j, probabilities[:, j]) for j in np.flatnonzero(present)} if present.sum() > 1 else {}
    )
    named = np.eye(k, dtype=np.float32)[answers]
    right = named * (labels == answers)[:, None]
    images = np.bincount(labels, minlength=k).astype(np.float64)  # the same in every resample

    def measured(weights: Weights) -> Float64:
        hits = (weights @ right).astype(np.float64)
        f1 = f1_of(hits, (weights @ named).astype(np.float64), images)
        areas = np.full((2, len(weights), k), np.nan)
        for j, one in ranked.items():
            counts = one.counts(weights)
            areas[0, :, j], areas[1, :, j] = auroc(*counts), auprc(*counts)
        recall = (hits[:, present] / images[present]).mean(axis=1)
        means = [recall, f1[:, present].mean(axis=1)]
        means += [area[:, list(ranked)].mean(axis=1) if ranked else area[:, 0] for area in areas]
        return np.concatenate([np.stack(means, axis=1), f1, *areas], axis=1)

    (found,) = intervals_of(labels, count, measured)
    totals, rest = found[:, : len(TOTALS)], found[:, len(TOTALS) :].reshape(2, len(CLASSES), k)
    return Intervals(
        count,
        {name: totals[:, i] for i, name in enumerate(TOTALS)},
        {name: rest[:, i] for i, name in enumerate(CLASSES)},
    )
