"""Decisions: from an ErrorTable to labels and probabilities. Pure functions of errors; nothing here runs a network.

* ``mean``: the class with the smallest mean error (Li et al., arXiv 2303.16203, eq. 6).
* ``vote``: every draw votes for its smallest error; most votes win (Favero et al., arXiv 2502.03687), ties go to the
  smaller mean error.

A rule that stops early leaves classes with different numbers of draws, and errors at different noise levels are not
comparable. The *survivors* of an image are its classes with the most draws. They are compared at the draws that all of
them share, and only a survivor can win. The losers of a rule's last look have as many draws as its winner: they are
survivors here, and the rule's leader, which has the smallest mean over those same draws, is the label of ``mean``.

A class that was dropped earlier is placed by its paired differences to the leader w, the survivor with the smallest
mean m_w over the shared draws. The posterior consists of paired differences, at equal noise, only (eq. 8), and
everything that the draws have in common cancels in them:

    mean error of k = m_w + mean over k's own draws of (e_k - e_w),    but above m_w

With a prior, every class adds a constant to its errors, -temperature log(prior), and all of this is about the sums:
the class with the smallest mean after the shift wins. Reported mean errors and votes are those without the shift.

The bound is needed because k may have been dropped in favour of a third class that lost later: at its few draws k can
look better than w, and a class that a rule dropped must not win afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.inference.error_table import ErrorTable, mean_errors
from fastdc.support import Float64, Floats, InputError, Int64, Mask, checks, shown

DECISIONS = ("mean", "vote")

VotesOf: TypeAlias = Callable[[Floats], Int64 | None]
"""Votes (n, K) of dense errors (n, K, J), if they are not counted as :func:`decide` does."""


@dataclass(frozen=True, eq=False)
class Decision:
    """The decisions about n images.

    Attributes:
        labels: int64 (n,), the winning class.
        probabilities: float64 (n, K), rows sum to 1: the posterior of `mean_errors` for ``mean``, shares of votes for
            ``vote``. For ``mean``, the first largest entry is the label's.
        mean_errors: float64 (n, K), the same for every decision; without a prior, the first smallest entry is the label
            of ``mean``. For a survivor, the mean error over the draws that all survivors share (all draws if everything
            was evaluated). For a class dropped earlier, the leader's mean error plus the mean paired difference to the
            leader, and always above the leader's. NaN for a class that shares no draw with the leader.
        votes: int64 (n, K), draws won among the survivors, at the draws that all of them share; 0 for a class dropped
            earlier. Rows sum to the number of shared draws. A lone survivor has all votes: the rule had settled on it,
            which does not mean that it won clearly.
    """

    labels: Int64
    probabilities: Float64
    mean_errors: Float64
    votes: Int64


def decide(
    errors: Floats,
    *,
    decision: str = "mean",
    temperature: float = 1.0,
    prior: npt.ArrayLike | None = None,
    votes: Int64 | None = None,
) -> Decision:
    """Labels, probabilities and votes of dense errors.

    Args:
        errors: (n, K, J), NaN where not evaluated; every image needs one evaluated cell.
        decision: One of :data:`DECISIONS`.
        temperature: Temperature of the posterior, positive.
        prior: Weights (K,) of the classes, from 0, which need not sum to 1; None: equal ones. Only for "mean".
        votes: Votes int64 (n, K) that a rule has counted, of which the first largest wins; None: they are counted here.

    Example:
        >>> from fastdc.inference import decide
        >>> decide(np.array([[[1.0, 3.0], [2.0, 1.0]]])).labels
        array([1])

    Raises:
        InputError: Wrong shape, unknown decision, temperature not positive, an image without any error, or an image
            whose most evaluated classes share no draw.
    """
    if errors.ndim != 3 or 0 in errors.shape[1:]:
        raise InputError(f"errors must have shape (n, K, J) with K, J > 0, got {errors.shape}")
    checks.one_of("decision", decision, DECISIONS)
    shifts = _shifts_for(decision, prior, temperature, errors.shape[1])
    given = errors if shifts is None else np.where(np.isfinite(shifts)[:, None], errors, np.nan)
    errors = errors if shifts is None else given + shifts[:, None]
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
    counted = _votes(given, survives, shared) if votes is None else votes
    if decision == "mean":
        probabilities = _leading(posterior(means, temperature), leaders)
        if shifts is not None:  # as they were before the shift, to the bit where nothing was placed
            means = np.where(survives, mean_errors(np.where(shared[:, None, :], given, np.nan)), means - shifts)
        return Decision(leaders, probabilities, means, counted)
    tied = counted == counted.max(axis=1, keepdims=True)
    labels = np.argmin(np.where(tied, ranked if votes is None else 0, np.inf), axis=1).astype(np.int64)
    return Decision(labels, counted / counted.sum(axis=1, keepdims=True), means, counted)


def decide_table(
    table: ErrorTable,
    *,
    decision: str = "mean",
    temperature: float = 1.0,
    prior: npt.ArrayLike | None = None,
    votes_of: VotesOf | None = None,
) -> Decision:
    """The numbers of :func:`decide` for a table, with only a chunk of its images dense at a time.

    Args:
        table: Errors; every image needs one evaluated cell.
        decision: One of :data:`DECISIONS`.
        temperature: Temperature of the posterior, positive.
        prior: Weights of the table's classes, see :func:`decide`.
        votes_of: Counts the votes of dense errors, as a rule does (``AbstractRule.votes_of``); None: as :func:`decide`.

    Example:
        >>> from fastdc.inference import decide_table
        >>> bool((decide_table(clf.errors(images, draws=16)).labels == labels).all())
        True

    Raises:
        InputError: See :func:`decide`.
    """
    if table.counts.shape[1]:
        _check_evaluated(table.counts)  # before the chunks, whose images have other numbers
    how: dict[str, Any] = {"decision": decision, "temperature": temperature, "prior": prior}
    packed, classes = (table, None) if prior is not None else table.packed()
    parts = [
        decide(part.errors, **how, votes=None if votes_of is None else votes_of(part.errors))
        for part in packed.chunks()
    ]
    whole = Decision(
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        mean_errors=np.concatenate([part.mean_errors for part in parts]),
        votes=np.concatenate([part.votes for part in parts]),
    )
    return whole if classes is None else _unpacked(whole, classes, table.counts.shape, decision, temperature)


def _unpacked(decided: Decision, classes: Int64, shape: tuple[int, ...], decision: str, temperature: float) -> Decision:
    """The decision about K classes from one about those that were evaluated; `classes` as of ``ErrorTable.packed``."""
    images, columns = np.nonzero(classes >= 0)
    places = images, classes[images, columns]
    means, votes = np.full(shape, np.nan), np.zeros(shape, np.int64)
    means[places], votes[places] = decided.mean_errors[images, columns], decided.votes[images, columns]
    labels = classes[np.arange(len(classes)), decided.labels]
    if decision == "mean":  # over K classes, as of an image among others: the same sums, to the bit
        return Decision(labels, _leading(posterior(means, temperature), labels), means, votes)
    return Decision(labels, votes / votes.sum(axis=1, keepdims=True), means, votes)


def by_class(
    decided: Decision,
    class_of: Sequence[int],
    *,
    n_classes: int,
    decision: str = "mean",
    temperature: float = 1.0,
    prior: npt.ArrayLike | None = None,
) -> Decision:
    """The decision about classes, from one about prompts. If several prompts describe a class, the best one counts.

    Args:
        decided: Decision about P prompts.
        class_of: Class of each prompt.
        n_classes: K; every class has a prompt.
        decision: Kind of the decision, one of :data:`DECISIONS`.
        temperature: Temperature of the posterior, positive.
        prior: Weights (K,) of the classes, with which `decided` was made; None: equal ones.

    Example:
        >>> from fastdc.inference import by_class, decide
        >>> by_class(decide(np.array([[[2.0], [3.0], [1.0]]])), (0, 1, 1), n_classes=2).labels
        array([1])
    """
    classes = np.asarray(class_of)
    if n_classes == len(classes) and (classes == np.arange(n_classes)).all():
        return decided
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(n_classes))
    means = np.fmin.reduceat(decided.mean_errors[:, order], starts, axis=1)
    votes = np.add.reduceat(decided.votes[:, order], starts, axis=1)
    if decision == "mean":
        labels, shifts = classes[decided.labels].astype(np.int64), _shifts_for(decision, prior, temperature, n_classes)
        shifted = means if shifts is None else means + shifts
        return Decision(labels, _leading(posterior(shifted, temperature), labels), means, votes)
    tied = votes == votes.max(axis=1, keepdims=True)
    labels = np.argmin(np.where(tied & ~np.isnan(means), means, np.inf), axis=1).astype(np.int64)
    return Decision(labels, votes / votes.sum(axis=1, keepdims=True), means, votes)


def prior_shifts(prior: npt.ArrayLike, temperature: float) -> Float64 | None:
    """What a prior adds to the errors of each class: -temperature log(prior / largest prior), float64 (K,).

    Args:
        prior: Weights (K,), from 0, one of them positive.
        temperature: Temperature of the posterior, positive.

    Returns:
        The shifts, from 0, infinite for a class of prior 0; None if all weights are equal, and nothing changes.

    Example:
        >>> from fastdc.inference import prior_shifts
        >>> prior_shifts([1, 0, np.exp(2)], temperature=0.5)
        array([ 1., inf,  0.])

    Raises:
        InputError: The weights are no weights, or temperature is not positive.
    """
    weights = np.asarray(prior, dtype=np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InputError(f"prior must be weights from 0, one of them positive, got {shown(prior)}")
    if not 0 < temperature < np.inf:
        raise InputError(f"temperature must be positive, got {temperature}")
    if (weights == weights[0]).all():
        return None
    with np.errstate(divide="ignore"):
        return np.asarray(temperature * (np.log(weights.max()) - np.log(weights)))


def _shifts_for(decision: str, prior: npt.ArrayLike | None, temperature: float, n_classes: int) -> Float64 | None:
    """The shifts of a decision about K classes, if it has a prior."""
    if prior is None:
        return None
    if np.shape(prior) != (n_classes,):
        raise InputError(f"prior must be {n_classes} weights, got shape {np.shape(prior)}")
    shifts = prior_shifts(prior, temperature)
    if shifts is not None and decision != "mean":
        raise InputError(f"a prior weighs probabilities, and votes are none: expected decision mean, got {decision}")
    return shifts


def _check_evaluated(counts: npt.NDArray[np.integer]) -> None:
    evaluated = counts.max(axis=1) > 0
    if not np.all(evaluated):
        raise InputError(f"image {int(np.argmin(evaluated))} has no evaluated cell")


def _place_dropped(
    errors: Floats,
    ranked: Float64,
    survives: Mask,
    leaders: Int64,
) -> Float64:
    """Mean errors (n, K): survivors keep theirs, dropped classes get one by paired differences to the leaders.

    Args:
        errors: (n, K, J), NaN where not evaluated.
        ranked: (n, K), mean errors of the survivors.
        survives: (n, K), whether each class is a survivor.
        leaders: (n,), the survivor with the smallest mean of each image.
    """
    images = np.arange(len(errors))
    best = ranked[images, leaders][:, None]
    leading = errors[images, leaders].astype(np.float64)  # float32 would round the differences
    behind = mean_errors(errors - leading[:, None, :])  # NaN, and so left out, unless both were evaluated
    # Above the leader by at least one float, so that the leader never ties with a class that lost.
    placed = np.maximum(best + behind, np.nextafter(best, np.inf))
    return np.where(survives, ranked, placed)


def _leading(probabilities: Float64, labels: Int64) -> Float64:
    """Probabilities whose first largest entry is the label's.

    The softmax rounds small gaps between errors to none: the label gains one float where an earlier class equals it.
    """
    images = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    probabilities[images, labels[images]] = np.nextafter(probabilities[images, labels[images]], np.inf)
    return probabilities


def _votes(errors: Floats, survives: Mask, shared: Mask) -> Int64:
    """Draws won by each class, over the draws (n, J) at which every surviving class (n, K) was evaluated."""
    n_classes = errors.shape[1]
    winners = np.argmin(np.where(survives[:, :, None] & ~np.isnan(errors), errors, np.inf), axis=1)
    won = (winners[:, None, :] == np.arange(n_classes)[None, :, None]) & shared[:, None, :]
    return np.asarray(np.count_nonzero(won, axis=2), dtype=np.int64)


def posterior(means: Float64, temperature: float = 1.0) -> Float64:
    """softmax(-mean error / temperature) over classes (Li et al., eq. 8), float64 (n, K); 0 for classes that are NaN.

    Args:
        means: Mean errors, float64 (n, K).
        temperature: Temperature, positive.

    Example:
        >>> from fastdc.inference import posterior
        >>> posterior(np.array([[1.0, 1.0, np.nan]]))
        array([[0.5, 0.5, 0. ]])

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
