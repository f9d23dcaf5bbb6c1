"""Other classifiers beside the one that is scored, on the same images.

The images are the same, so accuracies are compared in pairs: of b images only this classifier is right, of c only the
other. The difference (b - c) / n has the interval of Agresti and Min (2005), and McNemar's exact test asks how likely
so uneven a split is between equally good classifiers. The difference of mean AUROCs has a bootstrap interval whose
resamples take the same images for both.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdc.certification import Estimate, mcnemar, paired_difference
from fastdc.scoring.bootstrap import Ranked, Weights, auroc, intervals_of, resamples_for
from fastdc.scoring.numbers import Rival, ScoreNumbers
from fastdc.scoring.positive import NOT_KNOWN
from fastdc.support import Float64, Int64


def rival_of(
    name: str,
    labels: Int64,
    scored: tuple[Int64, Float64],
    rival: tuple[Int64, Float64],
    score: ScoreNumbers,
    facts: dict[str, Any],
) -> Rival:
    """The comparison of two classifiers on n images.

    Args:
        name: Name of the other classifier.
        labels: int64 (n,), true classes.
        scored: Answers int64 (n,) and probabilities float64 (n, K) of the scored classifier.
        rival: Those of the other one.
        score: The other's score.
        facts: What is known of the other.

    Example:
        >>> from fastdc.scoring import rival_of, score
        >>> p = np.eye(10)[labels]
        >>> rival_of("perfect", labels, (labels, p), (labels, p), score(labels, p), {}).p_value
        1.0
    """
    right, other = scored[0] == labels, rival[0] == labels
    b, c = int((right & ~other).sum()), int((other & ~right).sum())
    areas = _auroc_difference(labels, scored[1], rival[1])
    return Rival(name, score, b, c, paired_difference(b, c, len(labels)), mcnemar(b, c), areas, facts)


def _auroc_difference(labels: Int64, scored: Float64, rival: Float64) -> Estimate:
    n, k = scored.shape
    present: Sequence[int] = np.unique(labels).tolist()
    if len(present) < 2:
        return NOT_KNOWN
    ranked = [[Ranked.of(labels == j, p[:, j]) for j in present] for p in (scored, rival)]

    def measured(weights: Weights) -> Float64:
        means = [np.mean([auroc(*one.counts(weights)) for one in side], axis=0) for side in ranked]
        return np.asarray(means[0] - means[1])

    value = float(measured(np.ones((1, n), np.float32))[0])
    count = resamples_for(n, 2 * k)
    low, high = intervals_of(labels, count, measured)[0].tolist() if count else (float("nan"),) * 2
    return Estimate(value, low, high)
