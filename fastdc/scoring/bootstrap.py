"""Bootstrap intervals of measures that are no shares of images: F1, AUROC, AUPRC, specificity at a sensitivity, means.

A resample takes n images with replacement, as many of each true class as there are (stratified), so that every measure
is defined in every resample. The interval is for this mixture of classes. Its ends are the percentiles 2.5 and 97.5 of
1000 resamples (Efron 1979), fewer on large sets, always the same ones: the seed is fixed. Where the measure itself lies
outside of them, the interval is extended to it: images that are taken twice are ties, and so most resamples have a
larger AUPRC than the images themselves if the classes are ranked the wrong way round. A measure at its best value on
these images, such as an AUROC of 1, has an interval without width, which does not mean that it is certain.

A resample is a row of weights, how often each image is taken. All measures are sums of weights over images that are
sorted once, so that no resample is sorted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, Int64, Mask

RESAMPLES = 1000
"""Resamples of an interval, unless the set is large."""

_FEWEST = 200
_CELLS = 3 * 10**8  # of resamples x images x classes: some seconds
_CHUNK = 2**19  # cells of resamples x images at a time
_ENDS = (2.5, 97.5)

Weights = npt.NDArray[np.float32]
"""How often each image is in a resample, float32 (b, n), whole numbers."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Images in order of their score, the largest first; equal scores are a group.

    Attributes:
        order: int64 (n,), the images.
        positive: bool (n,), which of them, in this order, are of the class.
        starts: int64 (g,), the first image of each group.
        scores: float64 (g,), the score of each group, decreasing.
    """

    order: Int64
    positive: Mask
    starts: Int64
    scores: Float64

    @classmethod
    def of(cls, positive: Mask, scores: Float64) -> "Ranked":
        """Images (n,) with their class and score, in any order."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
        return cls(order, positive[order], starts, ranked[starts])

    def counts(self, weights: Weights) -> tuple[Float64, Float64]:
        """Images of the class, and others, with a score of at least each group's, float64 (b, g) each."""
        sorted_weights = weights[:, self.order].astype(np.float64)
        found = []
        for of in (self.positive, ~self.positive):
            sums = np.where(of, sorted_weights, 0)
            found.append(np.cumsum(np.add.reduceat(sums, self.starts, axis=1), axis=1))
        return found[0], found[1]


def auroc(positives: Float64, others: Float64) -> Float64:
    """Areas under the ROC curve (b,), by trapezoids, so that ties count half."""
    before = np.diff(positives, axis=1, prepend=0) / 2 * np.diff(others, axis=1, prepend=0)
    higher = np.concatenate([np.zeros((len(positives), 1)), positives[:, :-1]], axis=1)
    area = (higher * np.diff(others, axis=1, prepend=0) + before).sum(axis=1)
    return np.asarray(area / (positives[:, -1] * others[:, -1]))


def auprc(positives: Float64, others: Float64) -> Float64:
    """Average precision (b,): the sum over thresholds of precision times the rise of recall (no interpolation)."""
    precision = positives / np.maximum(positives + others, 1)
    return np.asarray((precision * np.diff(positives, axis=1, prepend=0)).sum(axis=1) / positives[:, -1])


def first_reaching(positives: Float64, sensitivity: float) -> Int64:
    """The first group (b,) down to which the share of the class's images is at least `sensitivity`."""
    reached = positives >= sensitivity * positives[:, -1:] - 1e-9
    return np.asarray(reached.argmax(axis=1), np.int64)


def specificity_at(positives: Float64, others: Float64, sensitivity: float) -> Float64:
    """Share (b,) of the other images below the largest threshold with at least this sensitivity."""
    group = first_reaching(positives, sensitivity)
    return np.asarray(1 - others[np.arange(len(others)), group] / others[:, -1])


def f1_of(right: Float64, named: Float64, images: Float64) -> Float64:
    """F1, 2 right / (answers that name the class + images of the class); NaN without images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(images > 0, 2 * right / (named + images), np.nan)


def resamples_for(images: int, classes: int) -> int:
    """Number of resamples for a set: 1000, fewer if it is large, 0 if it is too large."""
    most = _CELLS // max(images * classes, 1)
    return 0 if most < _FEWEST else min(most, RESAMPLES)


def resampled(labels: Int64, count: int) -> Iterator[Weights]:
    """Stratified resamples of images with these true classes (n,), as weights, some rows at a time."""
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    n, step = len(labels), max(1, _CHUNK // len(labels))
    for done in range(0, count, step):
        rows = min(step, count - done)
        weights = np.zeros((rows, n), np.float32)
        for images in classes:
            m = len(images)
            drawn = rng.integers(0, m, (rows, m)) + m * np.arange(rows)[:, None]
            weights[:, images] = np.bincount(drawn.ravel(), minlength=rows * m).reshape(rows, m)
        yield weights


def ends(values: Float64) -> Float64:
    """The ends of the interval of resampled measures (b, ...), float64 (2, ...); NaN where one is not defined."""
    return np.asarray(np.percentile(values, _ENDS, axis=0))


def intervals_of(labels: Int64, count: int, *measures: Callable[[Weights], Float64]) -> tuple[Float64, ...]:
    """The intervals of several measures under the same resamples.

    Args:
        labels: int64 (n,), true classes.
        count: Number of resamples, at least 1.
        measures: Each maps weights (b, n) to its values (b, ...).

    Returns:
        The ends of each, float64 (2, ...): the percentiles, and the measure of the images themselves if it lies beyond.
    """
    once: Weights = np.ones((1, len(labels)), np.float32)
    found: list[list[Float64]] = [[] for _ in measures]
    for weights in resampled(labels, count):
        for values, measure in zip(found, measures, strict=True):
            values.append(measure(weights))
    both = zip((ends(np.concatenate(values)) for values in found), measures, strict=True)
    return tuple(_holding(of, measure(once)[0]) for of, measure in both)


def _holding(of: Float64, value: Float64) -> Float64:
    """An interval (2, ...), extended to a value (...)."""
    return np.stack([np.minimum(of[0], value), np.maximum(of[1], value)])
