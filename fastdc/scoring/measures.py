"""Measures of answers: pure functions of n true classes, n answers, and their probabilities p (n, K).

    recall of k       right answers k / images of class k                  also: sensitivity
    precision of k    right answers k / answers k                          also: positive predictive value
    specificity of k  other answers to images of other classes / images of other classes
    F1 of k           harmonic mean of recall and precision
    AUROC of k        probability that an image of class k has a larger p_k than one of another class; ties count half
    AUPRC of k        average precision of p_k: sum over its thresholds of precision times the rise of recall
    ECE               sum over bins of (images in the bin / n) |share of right answers - mean confidence|,
                      in 15 bins of equal width of the confidence, the probability of the answer (Guo et al. 2017)
    Brier score       mean over images of sum_k (p_k - [k is the true class])^2, from 0 to 2 (Brier 1950)
    log loss          mean over images of -log p_true

scikit-learn computes precision, recall, F1, AUROC and AUPRC. What is not defined is NaN: recall and F1 of a class
without images, the precision of a class that is never the answer, AUROC, AUPRC and specificity if all images are of one
class, and log loss if an image gives its own class the probability 0.
"""

from dataclasses import dataclass

import numpy as np

from fastdc.support import Float64, Int64, require

BINS = 15
"""Bins of the expected calibration error."""


@dataclass(frozen=True, eq=False)
class ClassMeasures:
    """Measures of each of K classes, one against the rest.

    Attributes:
        support: int64 (K,), images of the class.
        predicted: int64 (K,), answers that name it.
        right: int64 (K,), right answers that name it.
        precision: float64 (K,), NaN for a class that is never the answer.
        recall: float64 (K,), NaN for a class without images.
        f1: float64 (K,), NaN for a class without images.
        specificity: float64 (K,), NaN for a class of all images.
        auroc: float64 (K,), NaN for a class of no image, or of all.
        auprc: float64 (K,), NaN for a class of no image, or of all.
    """

    support: Int64
    predicted: Int64
    right: Int64
    precision: Float64
    recall: Float64
    f1: Float64
    specificity: Float64
    auroc: Float64
    auprc: Float64


@dataclass(frozen=True, eq=False)
class Reliability:
    """How sure the answers are and how often they are right, in B bins (0, 1/B], ... of the answer's probability.

    Attributes:
        counts: int64 (B,), answers in each bin.
        confidence: float64 (B,), mean probability of these answers; NaN in an empty bin.
        accuracy: float64 (B,), share of them that is right; NaN in an empty bin.
    """

    counts: Int64
    confidence: Float64
    accuracy: Float64

    @property
    def ece(self) -> float:
        """The expected calibration error, in [0, 1]."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.counts[filled]).sum() / self.counts.sum())


def confusion_of(labels: Int64, predicted: Int64, classes: int) -> Int64:
    """The number of images of each class (rows) with each answer (columns), int64 (K, K)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).astype(np.int64).reshape(classes, classes)


def class_measures(labels: Int64, predicted: Int64, probabilities: Float64) -> ClassMeasures:
    """The measures of each class.

    Args:
        labels: int64 (n,), true classes.
        predicted: int64 (n,), answers.
        probabilities: float64 (n, K).
    """
    metrics = require("sklearn.metrics", extra="sklearn")
    n, k = probabilities.shape
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(k), zero_division=np.nan
    )
    auroc, auprc = np.full((2, k), np.nan)
    for one in np.flatnonzero((support > 0) & (support < n)):
        auroc[one] = metrics.roc_auc_score(labels == one, probabilities[:, one])
        auprc[one] = metrics.average_precision_score(labels == one, probabilities[:, one])
    answers = np.bincount(predicted, minlength=k).astype(np.int64)
    right = np.bincount(labels[labels == predicted], minlength=k).astype(np.int64)
    others = n - support
    return ClassMeasures(
        support=np.asarray(support, np.int64),
        predicted=answers,
        right=right,
        precision=np.where(answers > 0, precision, np.nan),
        recall=np.where(support > 0, recall, np.nan),
        f1=np.where(support > 0, f1, np.nan),
        specificity=np.where(others > 0, 1 - (answers - right) / np.maximum(others, 1), np.nan),
        auroc=auroc,
        auprc=auprc,
    )


def reliability_of(right: Int64, confidence: Float64, bins: int = BINS) -> Reliability:
    """The reliability diagram.

    Args:
        right: (n,), 1 where the answer is right, 0 elsewhere.
        confidence: float64 (n,), probability of each answer, in [0, 1].
        bins: Number of bins of equal width; each has its upper end, and the first has 0 as well.
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    sums = (np.bincount(place, weights=values, minlength=bins) for values in (confidence, right))
    mean_confidence, accuracy = (np.where(counts > 0, total / np.maximum(counts, 1), np.nan) for total in sums)
    return Reliability(counts, mean_confidence, accuracy)


def brier_score(labels: Int64, probabilities: Float64) -> float:
    """The Brier score over all classes, in [0, 2]."""
    off = probabilities.copy()
    off[np.arange(len(labels)), labels] -= 1
    return float((off**2).sum(axis=1).mean())


def log_loss(labels: Int64, probabilities: Float64) -> float:
    """The log loss in nats; NaN if an image's own class has the probability 0, which would make it infinite."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(own).mean() + 0.0) if own.all() else float("nan")  # scikit-learn's has a largest value
