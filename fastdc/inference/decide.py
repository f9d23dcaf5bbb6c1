"""Decisions: from an ErrorTable to labels and probabilities. Pure functions of errors; nothing here runs a network.

* ``mean``: the class with the smallest mean error (Li et al., arXiv 2303.16203, eq. 6).
* ``vote``: every draw votes for its smallest error; most votes win (Favero et al., arXiv 2502.03687), ties go to the
  smaller mean error.

A rule that stops early leaves classes with different numbers of draws, and errors of different noise levels are not
comparable. The *survivors* of an image are its classes with the most draws; they are compared at the draws that all of
them share, and only a survivor can win. The losers of a rule's last look have as many draws as its winner: they are
survivors here, and the rule's leader, whose mean over those same draws is the smallest, is the label of ``mean``.

A class that was dropped earlier is placed by its paired differences to the leader w, the survivor with the smallest
mean m_w over the shared draws. Paired differences, at equal noise, are all that the posterior consists of (eq. 8), and
in them what the draws have in common cancels:

    mean error of k = m_w + mean over k's own draws of (e_k - e_w),    but above m_w

The bound is needed because k may have been dropped in favour of a third class that lost later: at its few draws k can
look better than w, and a class that a rule dropped must not win afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.inference.error_table import ErrorTable, mean_errors
from fastdc.support import Float64, InputError

DECISIONS = ("mean", "vote")


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided for n images.

    Attributes:
        labels: int64 (n,), the winning class.
        probabilities: float64 (n, K), rows sum to 1: the posterior of `mean_errors` for ``mean``, shares of votes for
            ``vote``. For ``mean``, the first largest entry is the label's.
        mean_errors: float64 (n, K). Of a survivor, its mean error over the draws that all survivors share, which are
            all draws if everything was evaluated. Of a class dropped earlier, the leader's plus its mean paired
            difference to the leader, and above the leader's. NaN for a class that shares no draw with the leader. The
            same for every decision; the smallest entry, the first if several are, is the label of ``mean``.
        votes: int64 (n, K), draws won among the survivors, at the draws that all of them share; 0 for a class dropped
            earlier. Rows sum to the number of shared draws: a lone survivor has all votes, which says that the rule had
            settled on it, not how clear a win it was.
    """

    labels: npt.NDArray[np.int64]
    probabilities: Float64
    mean_errors: Float64
    votes: npt.NDArray[np.int64]


def decide(errors: npt.NDArray[np.floating], *, decision: str = "mean", temperature: float = 1.0) -> Decision:
    """Labels, probabilities and votes of dense errors.

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
    known = ~np.isnan(errors)
    counts = np.count_nonzero(known, axis=2)
    _check_evaluated(counts)
    survives = counts == counts.max(axis=1, keepdims=True)
    shared = np.all(known | ~survives[:, :, None], axis=1)
    if not np.all(shared.any(axis=1)):
        raise InputError(f"the most evaluated classes of image {int(np.argmin(shared.any(axis=1)))} share no draw")
    means = mean_errors(errors if np.all(shared) else np.where(shared[:, None, :], errors, np.nan))
    ranked = np.where(survives, means, np.inf)
    leaders = np.argmin(ranked, axis=1).astype(np.int64)
    means = ranked if np.all(survives) else _place_dropped(errors, ranked, survives, leaders)
    votes = _votes(errors, survives, shared)
    if decision == "mean":
        return Decision(leaders, _leading(posterior(means, temperature), leaders), means, votes)
    tied = votes == votes.max(axis=1, keepdims=True)
    labels = np.argmin(np.where(tied, ranked, np.inf), axis=1).astype(np.int64)
    return Decision(labels, votes / votes.sum(axis=1, keepdims=True), means, votes)


def decide_table(table: ErrorTable, *, decision: str = "mean", temperature: float = 1.0) -> Decision:
    """:func:`decide` on a table: the same numbers, with only a chunk of its images dense at a time.

    Args:
        table: Every image needs one evaluated cell.
        decision: One of :data:`DECISIONS`.
        temperature: Of the posterior, positive.

    Raises:
        InputError: See :func:`decide`.
    """
    if table.counts.shape[1]:
        _check_evaluated(table.counts)  # before the chunks, whose images have other numbers
    parts = [decide(part.errors, decision=decision, temperature=temperature) for part in table.chunks()]
    return Decision(
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        mean_errors=np.concatenate([part.mean_errors for part in parts]),
        votes=np.concatenate([part.votes for part in parts]),
    )


def by_class(
    decided: Decision, class_of: Sequence[int], *, n_classes: int, decision: str = "mean", temperature: float = 1.0
) -> Decision:
    """The decision about classes, from one about prompts of which several may describe a class: the best one counts.

    Args:
        decided: About P prompts.
        class_of: The class of each prompt.
        n_classes: K; every class has a prompt.
        decision: How it was decided, one of :data:`DECISIONS`.
        temperature: Of the posterior, positive.
    """
    classes = np.asarray(class_of)
    n = len(decided.labels)
    means, votes = np.full((n, n_classes), np.inf), np.zeros((n, n_classes), np.int64)
    for prompt, k in enumerate(classes.tolist()):
        means[:, k] = np.fmin(means[:, k], decided.mean_errors[:, prompt])
        votes[:, k] += decided.votes[:, prompt]
    means[np.isinf(means)] = np.nan
    if decision == "mean":
        labels = classes[decided.labels].astype(np.int64)
        return Decision(labels, _leading(posterior(means, temperature), labels), means, votes)
    tied = votes == votes.max(axis=1, keepdims=True)
    labels = np.argmin(np.where(tied & ~np.isnan(means), means, np.inf), axis=1).astype(np.int64)
    return Decision(labels, votes / votes.sum(axis=1, keepdims=True), means, votes)


def _check_evaluated(counts: npt.NDArray[np.integer]) -> None:
    evaluated = counts.max(axis=1) > 0
    if not np.all(evaluated):
        raise InputError(f"image {int(np.argmin(evaluated))} has no evaluated cell")


def _place_dropped(
    errors: npt.NDArray[np.floating],
    ranked: Float64,
    survives: npt.NDArray[np.bool_],
    leaders: npt.NDArray[np.int64],
) -> Float64:
    """Mean errors (n, K): those of survivors as they are, those of dropped classes by paired differences to leaders.

    Args:
        errors: (n, K, J), NaN where not evaluated.
        ranked: (n, K), mean errors of the survivors.
        survives: (n, K), which classes these are.
        leaders: (n,), the survivor with the smallest mean of each image.
    """
    images = np.arange(len(errors))
    best = ranked[images, leaders][:, None]
    leading = errors[images, leaders].astype(np.float64)  # float32 would round the differences
    behind = mean_errors(errors - leading[:, None, :])  # NaN, and so left out, unless both were evaluated
    # Above the leader by at least one float, so that a tie is not one with a class that lost.
    placed = np.maximum(best + behind, np.nextafter(best, np.inf))
    return np.where(survives, ranked, placed)


def _leading(probabilities: Float64, labels: npt.NDArray[np.int64]) -> Float64:
    """Probabilities whose first largest entry is the label's.

    The softmax rounds small gaps between errors to none: the label gains one float where an earlier class equals it.
    """
    images = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    probabilities[images, labels[images]] = np.nextafter(probabilities[images, labels[images]], np.inf)
    return probabilities


def _votes(
    errors: npt.NDArray[np.floating], survives: npt.NDArray[np.bool_], shared: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Draws won by each class, over the draws (n, J) at which every surviving class (n, K) was evaluated."""
    n_classes = errors.shape[1]
    winners = np.argmin(np.where(survives[:, :, None] & ~np.isnan(errors), errors, np.inf), axis=1)
    won = (winners[:, None, :] == np.arange(n_classes)[None, :, None]) & shared[:, None, :]
    return np.asarray(np.count_nonzero(won, axis=2), dtype=np.int64)


def posterior(means: Float64, temperature: float = 1.0) -> Float64:
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
