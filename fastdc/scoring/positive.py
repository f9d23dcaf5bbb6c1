"""Measures of one class against the rest, such as disease against none: what a test of images is judged by.

    sensitivity   share of the class's images with this answer (its recall)
    specificity   share of the other images with another answer
    precision     share of the answers that are right (positive predictive value)
    specificity at sensitivity s: where the largest threshold on the class's probability that finds a share s of its
                  images leaves them out

That threshold is chosen on the very images that it is measured on, which is optimistic: on others the sensitivity
varies around s. A threshold found on validation images and given here is not: both shares are then measured at it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.certification import Estimate, share
from fastdc.scoring.bootstrap import (
    Ranked,
    Weights,
    auprc,
    auroc,
    f1_of,
    first_reaching,
    intervals_of,
    resamples_for,
    specificity_at,
)
from fastdc.support import Float64, InputError, Int64, Mask, checks

NOT_KNOWN = Estimate(float("nan"), float("nan"), float("nan"))
"""A measure that is not defined."""


@dataclass(frozen=True)
class Operating:
    """What is asked of the class that counts as positive.

    Attributes:
        positive: Index of the class.
        sensitivity: Share of its images that a threshold must find, in (0, 1].
        threshold: Threshold on its probability that was found on other images; None: it is found on these.
    """

    positive: int
    sensitivity: float = 0.95
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not checks.is_finite(self.sensitivity) or not 0 < self.sensitivity <= 1:
            raise InputError(f"sensitivity must be in (0, 1], got {self.sensitivity}")
        if self.threshold is not None and not (checks.is_finite(self.threshold) and 0 <= self.threshold <= 1):
            raise InputError(f"threshold must be a probability in [0, 1], got {self.threshold}")


@dataclass(frozen=True)
class PositiveMeasures:
    """Measures of a class against the rest, each with a 95 % interval; NaN where it is not defined.

    Shares have Wilson's interval, the others that of :mod:`fastdc.scoring.bootstrap`.

    Attributes:
        name: The class.
        images: Number of its images.
        others: Number of the other images.
        sensitivity: Share of its images that are answered so.
        specificity: Share of the others that are answered otherwise.
        precision: Share of its answers that are right.
        f1: F1.
        auroc: Area under the ROC curve of its probability.
        auprc: Average precision of its probability; by chance, the share of its images.
        wanted: The sensitivity that the threshold was to reach.
        threshold: The threshold: a probability of at least this counts as the class. None if it has no images.
        fixed: Whether the threshold was found on other images.
        sensitivity_at: Sensitivity at the threshold; without an interval unless it is fixed.
        specificity_at: Specificity at the threshold. If the threshold is not fixed, every resample finds its own.
    """

    name: str
    images: int
    others: int
    sensitivity: Estimate
    specificity: Estimate
    precision: Estimate
    f1: Estimate
    auroc: Estimate
    auprc: Estimate
    wanted: float
    threshold: float | None
    fixed: bool
    sensitivity_at: Estimate
    specificity_at: Estimate

    def estimates(self) -> dict[str, Estimate]:
        """The measures by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        rest = ("name", "images", "others", "wanted", "threshold", "fixed")
        found = {name: getattr(self, name) for name in rest}
        return {**found, **{name: one.to_dict() for name, one in self.estimates().items()}}


def positive_measures(
    name: str, labels: Int64, answers: Int64, probabilities: Float64, asked: Operating
) -> PositiveMeasures:
    """The measures of a class.

    Args:
        name: Name of the class.
        labels: int64 (n,), true classes.
        answers: int64 (n,).
        probabilities: float64 (n, K).
        asked: The class, and what is asked of it.
    """
    own, named, p = labels == asked.positive, answers == asked.positive, probabilities[:, asked.positive]
    right, images, others = int((own & named).sum()), int(own.sum()), int((~own).sum())
    values = {
        "sensitivity": share(right, images) if images else NOT_KNOWN,
        "specificity": share(int((~own & ~named).sum()), others) if others else NOT_KNOWN,
        "precision": share(right, int(named.sum())) if named.any() else NOT_KNOWN,
    }
    threshold = None if asked.threshold is None else float(asked.threshold)
    ranked = Ranked.of(own, p)
    counts = ranked.counts(np.ones((1, len(p)), np.float32))
    if threshold is None and images:
        threshold = float(ranked.scores[first_reaching(counts[0], asked.sensitivity)[0]])
    at = {"sensitivity_at": NOT_KNOWN, "specificity_at": NOT_KNOWN}
    if threshold is not None:
        found = p >= threshold
        at["sensitivity_at"] = share(int((own & found).sum()), images) if images else NOT_KNOWN
        at["specificity_at"] = share(int((~own & ~found).sum()), others) if others else NOT_KNOWN
    fixed = asked.threshold is not None
    if not fixed:
        at["sensitivity_at"] = Estimate(at["sensitivity_at"].value, float("nan"), float("nan"))
    measured = _measured(ranked, own, named, asked.sensitivity, labels)
    if not fixed and others and images:
        at["specificity_at"] = measured["specificity_at"]
    values |= {key: measured[key] for key in ("f1", "auroc", "auprc")} | at
    return PositiveMeasures(name, images, others, **values, wanted=asked.sensitivity, threshold=threshold, fixed=fixed)


def _measured(ranked: Ranked, own: Mask, named: Mask, sensitivity: float, labels: Int64) -> dict[str, Estimate]:
    """F1, areas and the specificity with bootstrap intervals; NaN without the class, and without others but for F1."""
    names = ("f1", "auroc", "auprc", "specificity_at")
    if not own.any():
        return dict.fromkeys(names, NOT_KNOWN)
    sides = np.stack([own & named, named, own], axis=1).astype(np.float32)

    def measured(weights: Weights) -> Float64:
        f1 = f1_of(*(weights @ sides).T.astype(np.float64))
        if own.all():
            return np.stack([f1, *np.full((3, len(f1)), np.nan)], axis=1)
        counts = ranked.counts(weights)
        return np.stack([f1, auroc(*counts), auprc(*counts), specificity_at(*counts, sensitivity)], axis=1)

    (values,) = measured(np.ones((1, len(own)), np.float32)).tolist()
    count = resamples_for(len(own), 1)
    low, high = intervals_of(labels, count, measured)[0].tolist() if count else [[float("nan")] * 4] * 2
    return {name: Estimate(*of) for name, *of in zip(names, values, low, high, strict=True)}
