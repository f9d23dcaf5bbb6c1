"""Decisions: from an ErrorTable to labels and probabilities. Pure functions of errors; nothing here runs a network.

* ``mean``: the class with the smallest mean error (Li et al., arXiv 2303.16203, eq. 6).
* ``vote``: every draw votes for its smallest error; most votes win (Favero et al., arXiv 2502.03687), ties go to the
  smaller mean error.

Only draws that all surviving classes share are compared: a class that a rule dropped early has fewer draws, and errors
of different noise levels are not comparable.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.errors import mean_errors
from fastdc.exceptions import InputError

FloatArray = npt.NDArray[np.float64]
DECISIONS = ("mean", "vote")


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for n images.

    Attributes:
        labels: int64 (n,), the winning class.
        probabilities: float64 (n, K), rows sum to 1: the posterior for ``mean``, shares of votes for ``vote``.
        mean_errors: float64 (n, K), mean error over the draws a class was evaluated at; NaN where at none.
        votes: int64 (n, K), draws won.
    """

    labels: npt.NDArray[np.int64]
    probabilities: FloatArray
    mean_errors: FloatArray
    votes: npt.NDArray[np.int64]


def decide(errors: npt.NDArray[np.floating], *, decision: str = "mean", temperature: float = 1.0) -> Decision:
    """Labels, probabilities and votes of an error table.

    Args:
        errors: (n, K, J), NaN where not evaluated; every image needs one evaluated cell.
        decision: One of :data:`DECISIONS`.
        temperature: Of the posterior, positive.

    Raises:
        InputError: Wrong shape, unknown decision, temperature not positive, an image without any error, or one whose
            most evaluated classes share no draw.
    """
    if errors.ndim != 3 or 0 in errors.shape[1:]:
        raise InputError(f"errors must have shape (n, K, J) with K, J > 0, got {errors.shape}")
    if decision not in DECISIONS:
        raise InputError(f"decision must be one of {', '.join(DECISIONS)}, got {decision!r}")
    counts = np.count_nonzero(~np.isnan(errors), axis=2)
    if not np.all(counts.max(axis=1) > 0):
        raise InputError(f"image {int(np.argmin(counts.max(axis=1) > 0))} has no evaluated cell")
    survives = counts == counts.max(axis=1, keepdims=True)
    shared = np.all(~np.isnan(errors) | ~survives[:, :, None], axis=1)
    if not np.all(shared.any(axis=1)):
        raise InputError(f"the most evaluated classes of image {int(np.argmin(shared.any(axis=1)))} share no draw")
    means = mean_errors(errors)
    compared = means if np.all(shared) else mean_errors(np.where(shared[:, None, :], errors, np.nan))
    ranked = np.where(survives, compared, np.inf)
    votes = _votes(errors, survives, shared)
    if decision == "mean":
        labels = np.argmin(ranked, axis=1)
        probabilities = posterior(means, temperature)
    else:
        tied = votes == votes.max(axis=1, keepdims=True)
        labels = np.argmin(np.where(tied, ranked, np.inf), axis=1)
        probabilities = votes / votes.sum(axis=1, keepdims=True)
    return Decision(labels.astype(np.int64), probabilities, means, votes)


def _votes(
    errors: npt.NDArray[np.floating], survives: npt.NDArray[np.bool_], shared: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Draws won by each class, over the draws (n, J) at which every surviving class (n, K) was evaluated."""
    n_classes = errors.shape[1]
    winners = np.argmin(np.where(survives[:, :, None] & ~np.isnan(errors), errors, np.inf), axis=1)
    won = (winners[:, None, :] == np.arange(n_classes)[None, :, None]) & shared[:, None, :]
    return np.asarray(np.count_nonzero(won, axis=2), dtype=np.int64)


def posterior(means: FloatArray, temperature: float = 1.0) -> FloatArray:
    """softmax(-mean error / temperature) over classes (Li et al., eq. 8), float64 (n, K); 0 for classes that are NaN.

    Raises:
        InputError: temperature is not positive.
    """
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature must be positive, got {temperature}")
    known = np.where(np.isnan(means), np.inf, means)
    # The gap before the division: a tiny temperature may overflow the quotient, but never that of the best class.
    with np.errstate(over="ignore"):
        weights = np.exp(-(known - known.min(axis=1, keepdims=True)) / temperature)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def negative_log_likelihood(means: FloatArray, labels: npt.NDArray[np.int64], temperature: float) -> float:
    """Mean of -ln p(label) under the posterior, in nats."""
    logits = -means / temperature
    peak = logits.max(axis=1)
    log_total = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
    return float(np.mean(log_total - logits[np.arange(len(labels)), labels]))


def fit_temperature(errors: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """The temperature whose posterior fits labelled validation images best (temperature scaling, Guo et al., 2017).

    Args:
        errors: Mean errors (n, K), without NaN.
        labels: int64 (n,).

    Returns:
        The minimiser of the mean negative log-likelihood within a factor 10^6 around the typical gap between classes.

    Raises:
        InputError: Shapes do not fit, NaN, a label that is no class, or all classes have equal errors.
    """
    from scipy.optimize import minimize_scalar

    means = np.asarray(errors, dtype=np.float64)
    labels = np.asarray(labels)
    if means.ndim != 2 or labels.shape != means.shape[:1] or len(means) == 0 or not np.all(np.isfinite(means)):
        raise InputError(f"errors must be finite (n, K) with a label each, got {means.shape}, labels {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= means.shape[1]:
        raise InputError(f"labels must be classes in [0, {means.shape[1]}), got {labels.dtype} {labels.min()} ...")
    gap = float(np.median(np.abs(means - means.min(axis=1, keepdims=True)).max(axis=1)))
    if not gap > 0:
        raise InputError("all classes have equal errors: there is no temperature to fit")
    result = minimize_scalar(
        lambda log_t: negative_log_likelihood(means, labels, float(np.exp(log_t))),
        bounds=(np.log(gap * 1e-3), np.log(gap * 1e3)),
        method="bounded",
    )
    return float(np.exp(result.x))
