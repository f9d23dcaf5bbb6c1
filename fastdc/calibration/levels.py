"""The noise levels that separate the classes, from the errors of labelled images: weights, the best level, a good band.

Draws are put into bins of equal size along the noise-to-signal ratio, because a single draw says too little about its
level.

* :func:`fit_level_weights`, after Clark & Jaini (arXiv 2303.15233, learned weights: 20 buckets, logistic regression on
  the mean scores of the buckets). With E_ikb the share of bin b in the mean error of image i and class k, it maximises
  the likelihood of the labels under softmax_k(-sum_b w_b E_ikb), w_b >= 0. It differs from the source in three ways:
  there is no bias, the scale of each bin is removed before fitting and restored afterwards, and a small penalty makes
  neighbouring weights similar.
* :func:`informative_levels` counts how often the smallest error of a single draw names the winner. From the counts,
  :func:`most_informative` finds the best level for the first draw of a stopping rule, and :func:`informative_band` the
  part of a schedule that is worth its draws.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import LevelWeights
from fastdc.support import Float64, Floats, InputError, Int64, checks


@dataclass(frozen=True)
class _Bins:
    """Draws in bins along the noise-to-signal ratio.

    Attributes:
        of: int64 (J,), bin of each draw, in [0, B).
        centre: float64 (B,), geometric mean of the ratios in each bin, increasing.
        edges: float64 (B + 1,), increasing: the smallest ratio, geometric means between neighbours, the largest ratio.
    """

    of: Int64
    centre: Float64
    edges: Float64


def _bins(ratio: Float64, bins: int) -> _Bins:
    """Makes bins of about J / bins draws each. Equal ratios share a bin, so that there may be fewer bins."""
    values, inverse, counts = np.unique(ratio, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # rank of the middle draw of each ratio, in the order of ratios
    _, bin_of_value = np.unique(np.floor(middle * bins / len(ratio)), return_inverse=True)
    of = bin_of_value[inverse].astype(np.int64)
    log_ratio = np.log(ratio)
    centre = np.exp(np.bincount(of, weights=log_ratio) / np.bincount(of))
    last = np.flatnonzero(np.diff(bin_of_value))  # the largest ratio of each bin but the last
    edges = np.concatenate([values[:1], np.sqrt(values[last] * values[last + 1]), values[-1:]])
    return _Bins(of=of, centre=centre, edges=edges)


def _checked(
    errors: npt.ArrayLike, ratio: npt.ArrayLike, labels: npt.ArrayLike, bins: int
) -> tuple[Floats, Float64, Int64]:
    """Returns (errors, ratio, labels) as arrays.

    Raises:
        InputError: An argument is wrong, or the arguments do not fit each other.
    """
    table = np.asarray(errors)
    if table.ndim != 3 or table.dtype.kind != "f" or 0 in table.shape:
        raise InputError(f"errors must be floats of shape (n, K, J), got {table.dtype} of shape {table.shape}")
    if not np.all(np.isfinite(table)):
        raise InputError("errors must be finite: expected every class at every draw")
    if table.shape[1] < 2:
        raise InputError(f"errors must have at least 2 classes, got {table.shape[1]}")
    ratios = np.asarray(ratio, dtype=np.float64)
    if ratios.shape != table.shape[2:] or not np.all((ratios > 0) & (ratios < np.inf)):
        raise InputError(f"ratio must be {table.shape[2]} positive numbers, one per draw, got shape {ratios.shape}")
    if ratios.min() == ratios.max():
        raise InputError(f"draws must be at two noise levels or more, got only {ratios[0]:.4g}")
    wanted = np.asarray(labels)
    if wanted.shape != table.shape[:1] or wanted.dtype.kind not in "iu":
        raise InputError(f"labels must be {table.shape[0]} whole numbers, got {wanted.dtype} of shape {wanted.shape}")
    if wanted.min() < 0 or wanted.max() >= table.shape[1]:
        raise InputError(f"labels must be in [0, {table.shape[1]}), got {wanted.min()} to {wanted.max()}")
    checks.whole("bins", bins, low=2)
    return table, ratios, wanted.astype(np.int64)


def _objective(
    theta: Float64, features: Float64, labels: Int64, smoothness: float, ridge: float
) -> tuple[float, Float64]:
    """Computes the mean negative log-likelihood plus penalties, and its gradient (B,).

    Args:
        theta: Coefficients (B,), not negative.
        features: (n, K, B); class probabilities are softmax_k(-features theta).
        labels: (n,) in [0, K).
        smoothness: Factor of the sum of squared differences of neighbours.
        ridge: Factor of the sum of squares.
    """
    n = len(labels)
    scores = -(features @ theta)
    scores -= scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores)
    totals = probabilities.sum(axis=1)
    probabilities /= totals[:, None]
    slope = np.diff(theta)
    value = float(np.mean(np.log(totals) - scores[np.arange(n), labels]))
    value += smoothness * float(slope @ slope) + ridge * float(theta @ theta)
    probabilities[np.arange(n), labels] -= 1
    gradient = 2 * ridge * theta - np.tensordot(probabilities, features, axes=2) / n
    gradient[1:] += 2 * smoothness * slope
    gradient[:-1] -= 2 * smoothness * slope
    return value, gradient


def _features(table: Floats, bins: _Bins) -> tuple[Float64, Float64]:
    """Makes the features (n, K, B) of the fit, of unit variance, and their spread (B,) before scaling; inf for none."""
    knots, draws = len(bins.centre), table.shape[2]
    # Shares of the mean over all draws, not means of the bins, so that a coefficient is the weight of a draw.
    features = np.stack([table[:, :, bins.of == b].sum(axis=2, dtype=np.float64) for b in range(knots)], axis=2)
    features /= draws
    size = np.sqrt(np.mean(features**2, axis=(0, 1)))
    features -= features.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.mean(features**2, axis=(0, 1)))
    # A smaller spread is the rounding of float32: the bin gets no weight.
    spread = np.where(spread > 2.0**-24 * size, spread, np.inf)
    return features / spread, spread


def fit_level_weights(
    errors: npt.ArrayLike,
    ratio: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    bins: int = 20,
    smoothness: float = 0.01,
    ridge: float = 0.001,
) -> LevelWeights:
    """Fits the curve of weights under which the errors of labelled images predict their labels best.

    The curve cancels a factor common to the errors of a bin, so that the product of weighting and curve hardly depends
    on the weighting. Coefficients multiply features of unit variance, and the penalties are in units of the mean
    log-likelihood per squared coefficient. The defaults suit about 200 images.

    Args:
        errors: (n, K, J), errors of n labelled images that the model was not trained on, every class at every draw,
            under the weighting that the curve will multiply: the ``errors`` of an ``ErrorTable``.
        ratio: (J,), noise-to-signal ratio of each draw: the table's ``sigma``.
        labels: (n,), whole numbers in [0, K).
        bins: Largest number of knots, from 2; there are fewer if the draws have fewer levels.
        smoothness: Penalty on the squared differences of neighbouring bins, from 0.
        ridge: Penalty on the squares, from 0.

    Returns:
        A curve with knots at the geometric means of the bins and weights with mean 1.

    Raises:
        InputError: The arguments do not fit each other, or the errors say nothing about the labels at any level.

    Example:
        >>> from fastdc.calibration import fit_level_weights
        >>> table = clf.errors(images, draws=8)
        >>> len(fit_level_weights(table.errors, table.sigma, labels, bins=4).weight)
        4
    """
    from scipy.optimize import minimize

    table, ratios, wanted = _checked(errors, ratio, labels, bins)
    penalties = (checks.positive("smoothness", smoothness, zero=True), checks.positive("ridge", ridge, zero=True))
    found = _bins(ratios, bins)
    knots = len(found.centre)
    features, spread = _features(table, found)
    fitted = minimize(
        _objective,
        np.ones(knots),
        args=(features, wanted, *penalties),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * knots,
        options={"ftol": 1e-12, "gtol": 1e-8, "maxiter": 2000},
    )
    weight = fitted.x / spread
    if not np.any(fitted.x[np.isfinite(spread)] > 1e-6):  # coefficients start at 1
        raise InputError("the errors do not tell the labels apart at any noise level: there is no weight to fit")
    return LevelWeights(ratio=tuple(found.centre.tolist()), weight=tuple((weight / weight.mean()).tolist()))


@dataclass(frozen=True)
class LevelAccuracy:
    """Accuracy of single draws, by noise level.

    Attributes:
        ratio: Geometric mean of the noise-to-signal ratios of each of B bins, increasing.
        edges: B + 1 ratios that enclose the bins.
        accuracy: Share of the images and draws of each bin at which the draw names the winner, in [0, 1].
        draws: Number of draws in each bin.
    """

    ratio: tuple[float, ...]
    edges: tuple[float, ...]
    accuracy: tuple[float, ...]
    draws: tuple[int, ...]

    @property
    def smoothed(self) -> Float64:
        """Accuracies averaged with their neighbours, with weights 1 : 2 : 1 times their draws; float64 (B,)."""
        kernel = np.array([0.25, 0.5, 0.25])
        draws = np.asarray(self.draws, dtype=np.float64)
        won = np.pad(draws * np.asarray(self.accuracy), 1)
        return np.asarray(np.convolve(won, kernel, "valid") / np.convolve(np.pad(draws, 1), kernel, "valid"))


def informative_levels(
    errors: npt.ArrayLike, ratio: npt.ArrayLike, winners: npt.ArrayLike, *, bins: int = 20
) -> LevelAccuracy:
    """Counts how often the smallest error of a single draw names the winner, by noise level.

    Args:
        errors: (n, K, J), every class at every draw. Weights do not matter unless they are zero; a tie counts in part.
        ratio: (J,), noise-to-signal ratio of each draw.
        winners: (n,), in [0, K): true labels, or the decisions of all draws together.
        bins: Largest number of bins, from 2; there are fewer if the draws have fewer levels.

    Returns:
        The accuracy of each bin.

    Raises:
        InputError: The arguments do not fit each other.

    Example:
        >>> from fastdc.calibration import informative_levels
        >>> table = clf.errors(images, draws=8)
        >>> informative_levels(table.errors, table.sigma, labels, bins=4).draws
        (2, 2, 2, 2)
    """
    table, ratios, wanted = _checked(errors, ratio, winners, bins)
    found = _bins(ratios, bins)
    smallest = table == table.min(axis=1, keepdims=True)
    named = smallest[np.arange(len(wanted)), wanted] / smallest.sum(axis=1)
    draws = np.bincount(found.of)
    return LevelAccuracy(
        ratio=tuple(found.centre.tolist()),
        edges=tuple(found.edges.tolist()),
        accuracy=tuple((np.bincount(found.of, weights=named.mean(axis=0)) / draws).tolist()),
        draws=tuple(draws.tolist()),
    )


def most_informative(levels: LevelAccuracy) -> float:
    """Finds the noise-to-signal ratio at which a single draw names the winner most often, after smoothing.

    Args:
        levels: Result of :func:`informative_levels`.

    Returns:
        The ratio of the best bin.

    Example:
        >>> from fastdc.calibration import informative_levels, most_informative
        >>> table = clf.errors(images, draws=8)
        >>> most_informative(informative_levels(table.errors, table.sigma, labels)) > 0
        True
    """
    return levels.ratio[int(np.argmax(levels.smoothed))]


def informative_band(levels: LevelAccuracy, *, tolerance: float = 0.02) -> tuple[float, float]:
    """Finds the band around the most informative level in which single draws are nearly as good.

    Args:
        levels: Result of :func:`informative_levels`.
        tolerance: Largest deficit of the smoothed accuracy from the best one, from 0.

    Returns:
        Noise-to-signal ratios (low, high): the edges of the longest sequence of neighbouring bins that contains the
        best one and stays within the tolerance.

    Raises:
        InputError: The tolerance is negative or not a finite number.

    Example:
        >>> from fastdc.calibration import informative_band, informative_levels
        >>> table = clf.errors(images, draws=8)
        >>> len(informative_band(informative_levels(table.errors, table.sigma, labels)))
        2
    """
    checks.positive("tolerance", tolerance, zero=True)
    smoothed = levels.smoothed
    best = int(np.argmax(smoothed))
    good = smoothed >= smoothed[best] - tolerance
    low, high = best, best + 1
    while low > 0 and good[low - 1]:
        low -= 1
    while high < len(good) and good[high]:
        high += 1
    return levels.edges[low], levels.edges[high]
