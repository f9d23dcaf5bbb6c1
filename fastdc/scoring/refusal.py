"""Refusing the least certain answers: how often the others are right.

Images are refused in order of their uncertainty, the largest first, as 1 minus the probability of the answer. For
shares of votes p this is the order of p (1 - p), the uncertainty of Favero et al. (arXiv 2502.03687), wherever p is at
least one half; below, where p (1 - p) falls again, an answer with fewer votes is still refused first. Images of equal
uncertainty are refused in random order: accuracies are the means over it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.support import Float64, Int64

_POINTS = 100  # most points of a curve, at equal steps of the refused share


@dataclass(frozen=True, eq=False)
class Refusal:
    """The accuracy of the answers that are left when the least certain ones are refused.

    Attributes:
        refused: float64 (m,), shares of refused images in [0, 1), increasing from 0; at most 100.
        accuracy: float64 (m,), share of right answers among the others.
        area: Mean accuracy over all numbers of refused images, 0 ... n - 1: the area under the whole curve.
    """

    refused: Float64
    accuracy: Float64
    area: float

    def at(self, share: float) -> float:
        """The accuracy when at most this share of the images is refused.

        Args:
            share: In [0, 1).
        """
        return float(self.accuracy[np.searchsorted(self.refused, share + 1e-12, side="right") - 1])

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"refused": self.refused.tolist(), "accuracy": self.accuracy.tolist(), "area": self.area}


def refusal_of(right: Int64, confidence: Float64) -> Refusal:
    """The curve of n answers.

    Args:
        right: (n,), 1 where the answer is right, 0 elsewhere.
        confidence: float64 (n,), probability of each answer.
    """
    n = len(right)
    _, group = np.unique(-confidence, return_inverse=True)  # groups of equal confidence, the most certain first
    shares = np.bincount(group, weights=right) / np.bincount(group)
    kept_right = np.cumsum(shares[np.sort(group)])  # of the k most certain images, k = 1 ... n
    accuracy = (kept_right / np.arange(1, n + 1))[::-1]  # with 0 ... n - 1 of them refused
    chosen = np.unique(np.arange(_POINTS) * n // _POINTS)
    return Refusal(chosen / n, accuracy[chosen], float(accuracy.mean()))
