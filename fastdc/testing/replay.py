"""Replays of stopping rules on tables of errors: the real rules, without a network.

A rule sees only the errors of the classes alive at the first m draws, and a prefix of a plan is the shorter plan. One
full run with J draws therefore determines the outcome of every rule with up to J draws: its evaluations and its labels.
:func:`verify` checks a replay against a real run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.classifier import DiffusionClassifier
from fastdc.inference import PlanOptions, decide
from fastdc.rules import AbstractRule, Look
from fastdc.support import Float32, InputError, Int32, Int64, Mask


@dataclass(frozen=True, eq=False)
class Replay:
    """The outcome of a rule on n images.

    Attributes:
        counts: Number of draws at which each class was evaluated, int32 (n, K).
        errors: The errors that the rule saw, float32 (n, K, J); NaN where a class was not evaluated.
        votes: Votes that the rule has counted in its own way, int64 (n, K); None: they are counted as others are.
    """

    counts: Int32
    errors: Float32
    votes: Int64 | None = None

    @property
    def evaluations(self) -> Int64:
        """Network evaluations per image, int64 (n,)."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.int64))

    def labels(self, decision: str = "mean", *, temperature: float = 1.0, prior: npt.ArrayLike | None = None) -> Int64:
        """The class of each image under a decision, int64 (n,)."""
        how: dict[str, Any] = {"temperature": temperature, "prior": prior, "votes": self.votes}
        return decide(self.errors, decision=decision, **how).labels


def replay(rule: AbstractRule, errors: Float32) -> Replay:
    """Applies a rule to the errors of a full run.

    Args:
        rule: A rule that only drops classes.
        errors: Errors of every class at every draw, float32 (n, K, J).

    Raises:
        InputError: The rule adds classes, which a replay cannot follow.

    Example:
        >>> from fastdc.rules import Calibrated
        >>> from fastdc.testing import replay
        >>> full = clf.errors(images, draws=16).errors
        >>> replay(Calibrated(2.0), full).evaluations.mean().item() < 80
        True
    """
    if rule.expands:
        raise InputError(f"rule {rule.name} adds classes: expected one that only drops them")
    n, n_classes, draws = errors.shape
    alive = np.zeros((n, n_classes), bool)
    alive[:, rule.begin(np.arange(n_classes, dtype=np.int32))] = True
    counts, began = np.zeros((n, n_classes), np.int32), int(alive[:1].sum())
    going = np.arange(n)
    looks = rule.looks(draws)
    for index, m in enumerate(looks):
        counts[going] = np.where(alive[going], m, counts[going])
        going = going[alive[going].sum(axis=1) > 1]
        if not len(going) or index + 1 == len(looks):
            break
        look = _look(index, m, alive[going], errors[going, :, :m], began)
        images, columns = np.nonzero(look.alive & ~rule.keep(look))
        alive[going[images], look.classes[images, columns]] = False
        going = going[alive[going].sum(axis=1) > 1]
    seen = np.where(np.arange(draws) < counts[:, :, None], errors, np.float32(np.nan))
    return Replay(counts, seen, rule.votes_of(seen))


def _look(index: int, draws: int, alive: Mask, errors: Float32, began: int) -> Look:
    """The look of r requests with the classes alive, bool (r, K), and their errors (r, K, m)."""
    widest = int(alive.sum(axis=1).max())
    order = np.argsort(~alive, axis=1, kind="stable")[:, :widest]
    there = np.take_along_axis(alive, order, axis=1)
    shown = np.take_along_axis(errors, order[:, :, None], axis=1)
    return Look(
        index=index,
        draws=draws,
        last=False,
        classes=np.where(there, order, -1).astype(np.int32),
        errors=np.where(there[:, :, None], shown, np.float32(np.nan)),
        began=np.full(len(alive), began, np.int32),
    )


def verify(
    classifier: DiffusionClassifier,
    images: npt.NDArray[Any],
    rule: AbstractRule,
    errors: Float32,
    *,
    seed: int,
    plan: PlanOptions,
) -> float:
    """Checks that a replay has the counts and labels of a real run.

    A network may round an error differently in a batch of another size. Therefore the errors of the real run replace
    those in the table before the replay, and the comparison is exact.

    Args:
        classifier: The classifier.
        images: Images (n, c, h, w), uint8 or float in [0, 1].
        rule: A rule with all of its options.
        errors: Errors of a full run of the same images, seed and plan, float32 (n, K, J).
        seed: Seed of the noise.
        plan: Options of the plan; the number of draws is that of `errors`.

    Returns:
        The largest relative difference between an error of the real run and the same error in the table.

    Raises:
        AssertionError: The counts or the labels differ.

    Example:
        >>> from fastdc.rules import Calibrated
        >>> from fastdc.testing import verify
        >>> full = clf.errors(images, draws=16, seed=1).errors
        >>> verify(clf, images, Calibrated(2.0), full, seed=1, plan={}) < 1e-4
        True
    """
    wanted: PlanOptions = {**plan, "draws": errors.shape[2]}
    real = classifier.classify(images, rule=rule, seed=seed, **wanted)
    known = ~np.isnan(real.table.errors)
    replayed = replay(rule, np.where(known, real.table.errors, errors))
    assert np.array_equal(replayed.counts, real.table.counts), f"rule {rule.name}: the replay has other evaluations"
    assert np.array_equal(replayed.labels(), real.labels), f"rule {rule.name}: the replay has other labels"
    return float(np.max(np.abs(real.table.errors[known] / errors[known] - 1)))
