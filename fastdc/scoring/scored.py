"""Scores of labels and probabilities, and of the result of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.certification import share
from fastdc.inference import Classification, class_keys, named_indices
from fastdc.rules import Hierarchy
from fastdc.scoring.agreement import Agreement
from fastdc.scoring.intervals import bootstrap_intervals
from fastdc.scoring.measures import (
    ClassMeasures,
    brier_score,
    class_measures,
    confusion_of,
    log_loss,
    reliability_of,
)
from fastdc.scoring.positive import Operating, positive_measures
from fastdc.scoring.refusal import refusal_of
from fastdc.scoring.score import Score
from fastdc.support import Float64, InputError, Int64, require, shown

MOST_GROUPS = 500
"""Most groups of a column: more are probably names or numbers of images."""


def score(
    labels: Any,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    predicted: Any = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    evaluations: npt.ArrayLike | None = None,
    positive: Any = None,
    sensitivity: float = 0.95,
    threshold: float | None = None,
    intervals: bool = True,
) -> Score:
    """The score of any classifier's answers.

    Args:
        labels: True classes of n images, indices or names.
        probabilities: (n, K), in [0, 1], rows sum to 1.
        class_names: K names; default: their numbers.
        predicted: Answers, n indices or names; default: the most probable class.
        groups: By the name of a column, n values; each value makes a group.
        evaluations: Network evaluations of each image (n,).
        positive: The class, index or name, whose sensitivity, specificity and areas are wanted; None: none.
        sensitivity: Share of its images that a threshold must find, in (0, 1], for its specificity there.
        threshold: Threshold on its probability that was found on other images, in [0, 1]; None: it is found on these.
        intervals: Whether to compute bootstrap intervals.

    Example:
        >>> from fastdc.scoring import score
        >>> score(["cat", "dog"], [[0.8, 0.2], [0.6, 0.4]], ["cat", "dog"]).accuracy.value
        0.5

    Raises:
        InputError: The arguments do not fit each other.
        MissingDependencyError: scikit-learn is not installed.
    """
    require("sklearn", extra="sklearn")
    p = _checked_probabilities(probabilities)
    names = tuple(map(str, range(p.shape[1]))) if class_names is None else tuple(class_names)
    if len(names) != p.shape[1]:
        raise InputError(f"class_names must be {p.shape[1]} names, got {len(names)}")
    truth = _of_images(named_indices(labels, names, "labels"), "labels", len(p))
    answers = p.argmax(axis=1) if predicted is None else named_indices(predicted, names, "predicted")
    answers = _of_images(answers, "predicted", len(p))
    cost = None if evaluations is None else _of_images(np.asarray(evaluations), "evaluations", len(p))
    check_groups(groups or {})
    columns = {by: _of_images(np.array(values, object), by, len(p)) for by, values in (groups or {}).items()}
    asked, keys = operating(names, positive, sensitivity, threshold), class_keys(names)

    def of(rows: Any) -> Score:
        spent = None if cost is None else cost[rows]
        return _measured(keys, truth[rows], answers[rows], p[rows], spent, asked, intervals)

    parts = {
        by: {str(name): of(np.flatnonzero(values == name)) for name in sorted(set(values.tolist()))}
        for by, values in columns.items()
    }
    return replace(of(slice(None)), groups=parts)


def score_of(
    result: Classification,
    labels: Any,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    agreement: Agreement | None = None,
    **options: Any,
) -> Score:
    """The score of the result of a run.

    Args:
        result: The result.
        labels: True class of each of its images, indices or names. Of a part of a result, or after an interruption,
            these are ``labels[result.indices]``.
        columns: By the name of a column, a value for each image; each value makes a group.
        agreement: Agreement with the full run, see :func:`agreement`.
        **options: Of :func:`score`: positive, sensitivity, threshold and intervals.

    Example:
        >>> from fastdc.scoring import score_of
        >>> score_of(clf.classify(images), labels)
        Score(20 images of 10 classes: accuracy 100.00 % (95 % interval 83.89 to 100.00 %), AUROC 1.0000, ECE 0.0...)

    Raises:
        InputError: Labels or columns do not fit.
        MissingDependencyError: scikit-learn is not installed.
    """
    found = score(
        labels,
        result.probabilities,
        result.class_names,
        predicted=result.labels,
        groups=columns,
        evaluations=result.evaluations,
        **options,
    )
    draws = result.provenance.get("plan", {}).get("draws")
    whole = np.array_equal(result.indices, np.arange(len(result)))  # the time of a run is not that of a part
    return replace(
        found,
        agreement=agreement,
        seconds=result.seconds if whole else None,
        full=draws and _full(result, draws),
        provenance=result.provenance,
        notes=probability_notes(result.provenance),
    )


def _full(result: Classification, draws: int) -> int | None:
    """Evaluations of a full run, per image: of the classes that competed, the mean over images.

    They are those with an error: no other is a candidate or has a prior above 0. A hierarchy begins with some classes
    only, and then all count, or it is not known which.
    """
    table = result.table
    if result.provenance["rule"]["name"] == Hierarchy.name or not len(table):
        return None if "prior" in result.provenance else draws * len(table.class_names)
    return round(draws * float(np.count_nonzero(table.counts, axis=1).mean()))


def check_groups(columns: Mapping[str, Sequence[str]]) -> None:
    """Refuses columns of too many values to make groups.

    Args:
        columns: By the name of a column, a value for each image.

    Example:
        >>> from fastdc.scoring import check_groups
        >>> check_groups({"site": ["north", "south", "north"]})

    Raises:
        InputError: A column has more than 500 values.
    """
    for by, values in columns.items():
        count = len(set(values))
        if count > MOST_GROUPS:
            raise InputError(f"column {shown(by)} has {count} values: expected at most {MOST_GROUPS} groups")


def probability_notes(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of ECE, Brier score, log loss and AUROC should know about the probabilities of a run.

    Args:
        provenance: Everything that reproduces the run.

    Example:
        >>> from fastdc.scoring import probability_notes
        >>> probability_notes({"decision": "vote"})[0][:38]
        'probabilities are shares of votes: ECE'
    """
    if provenance.get("decision") == "vote":
        return (
            "probabilities are shares of votes: ECE, Brier score, log loss and AUROC are about these and not about "
            "the posterior of --decision mean",
        )
    if provenance.get("temperature") == 1.0:
        return (
            "the temperature of the probabilities is 1, as before any fit: ECE, Brier score and log loss say little "
            "until `fastdc export --calibrate` has fitted it",
        )
    return ()


def operating(
    names: Sequence[str], positive: Any, sensitivity: float = 0.95, threshold: float | None = None
) -> Operating | None:
    """What is asked of the class that counts as positive.

    Args:
        names: K names of classes.
        positive: Name or index of the class; None: no class counts as positive.
        sensitivity: Share of its images that a threshold must find, in (0, 1].
        threshold: Threshold found on other images, in [0, 1]; None: it is found on the images that are scored.

    Example:
        >>> from fastdc.scoring import operating
        >>> operating(["benign", "melanoma"], "melanoma").positive
        1

    Raises:
        InputError: There is no such class, or a number is out of range.
    """
    if positive is None:
        return None
    place = int(named_indices([positive], tuple(names), "positive")[0])
    return Operating(place, sensitivity, threshold)


def _measured(
    names: tuple[str, ...],
    truth: Int64,
    answers: Int64,
    p: Float64,
    cost: Any,
    asked: Operating | None,
    intervals: bool,
) -> Score:
    """The score of images of one group, or of all."""
    n, right = len(truth), truth == answers
    of = class_measures(truth, answers, p)
    held = reliability_of(right.astype(np.int64), p[np.arange(n), answers])
    loss, known = log_loss(truth, p), of.support > 0
    return Score(
        class_names=names,
        images=n,
        accuracy=share(int(right.sum()), n),
        balanced_accuracy=float(of.recall[known].mean()),
        macro_f1=float(of.f1[known].mean()),
        auroc=float(np.nanmean(of.auroc)) if np.isfinite(of.auroc).any() else None,
        auprc=float(np.nanmean(of.auprc)) if np.isfinite(of.auprc).any() else None,
        ece=held.ece,
        brier=brier_score(truth, p),
        log_loss=loss if math.isfinite(loss) else None,
        classes=of,
        confusion=confusion_of(truth, answers, len(names)),
        reliability=held,
        refusal=refusal_of(right.astype(np.int64), p[np.arange(n), answers]),
        intervals=bootstrap_intervals(truth, answers, p, wanted=intervals),
        positive=None if asked is None else positive_measures(names[asked.positive], truth, answers, p, asked),
        evaluations=None if cost is None else float(np.mean(cost)),
        groups={},
        undefined=_reasons(names, of, truth, p),
        given=n,
    )


def _reasons(names: tuple[str, ...], of: ClassMeasures, truth: Int64, p: Float64) -> dict[str, str]:
    """Why measures are not defined, or are means over some of the classes."""
    reasons: dict[str, str] = {}
    absent, present = np.flatnonzero(of.support == 0), int((of.support > 0).sum())
    if len(absent):
        reasons |= dict.fromkeys(("recall", "f1"), f"{_listed(names, absent)}: no images")
        mean = f"mean over the {present} of {len(names)} classes that have images"
        reasons |= dict.fromkeys(("balanced_accuracy", "macro_f1", "auroc", "auprc"), mean)
    if present == 1:
        reasons |= dict.fromkeys(("auroc", "auprc"), f"all images are of the class {shown(names[int(truth[0])], 60)}")
    silent = np.flatnonzero(of.predicted == 0)
    if len(silent):
        reasons["precision"] = f"{_listed(names, silent)}: never the answer"
    lost = int((p[np.arange(len(truth)), truth] == 0).sum())
    if lost:
        reasons["log_loss"] = f"infinite: {lost} image{'s'[: lost != 1]} with probability 0 for the own class"
    return reasons


def _listed(names: tuple[str, ...], which: Int64) -> str:
    some = ", ".join(shown(names[k], 40) for k in which[:3])
    return some if len(which) <= 3 else f"{some} and {len(which) - 3} more classes"


def _checked_probabilities(given: npt.ArrayLike) -> Float64:
    try:
        p = np.asarray(given, np.float64)
    except (ValueError, TypeError):
        raise InputError(f"probabilities must be numbers (n, K), got {shown(given)}") from None
    if p.ndim != 2 or 0 in p.shape:
        raise InputError(f"probabilities must have shape (n, K), n and K at least 1, got {p.shape}")
    if not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1 + 1e-6):
        raise InputError(f"probabilities must be in [0, 1], got {p.min():g} to {p.max():g}")
    if np.abs(p.sum(axis=1) - 1).max() > 1e-4:
        worst = p.sum(axis=1)[np.abs(p.sum(axis=1) - 1).argmax()]
        raise InputError(f"the probabilities of an image must sum to 1, got {worst:g}")
    return p


def _of_images(values: Any, name: str, n: int) -> Any:
    if values.shape != (n,):
        raise InputError(f"{name} must be one for each of {n} images, got shape {values.shape}")
    return values
