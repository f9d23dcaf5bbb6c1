"""Runs stopping rules on tables of errors that exist already: the real rules, without the network.

A rule sees the errors of the classes alive at the first m draws and nothing else, and a plan's prefix is the shorter
plan. One full run of J draws therefore holds the outcome of every rule with up to J draws: what it would have evaluated
and what it would have answered. :func:`verify` holds a replay against a real run.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.classifier import DiffusionClassifier
from fastdc.inference.decide import decide
from fastdc.inference.job import PlanOptions
from fastdc.rules.protocol import AbstractRule, Look

Errors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Replay:
    """What a rule made of n images.

    Attributes:
        counts: int32 (n, K), draws at which each class was evaluated.
        errors: float32 (n, K, J), NaN where not evaluated.
    """

    counts: npt.NDArray[np.int32]
    errors: Errors

    @property
    def evaluations(self) -> npt.NDArray[np.int64]:
        """Network evaluations of each image, int64 (n,)."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.int64))

    def labels(self, decision: str = "mean") -> Labels:
        """The class of each image, int64 (n,)."""
        return decide(self.errors, decision=decision).labels


def replay(rule: AbstractRule, errors: Errors) -> Replay:
    """The rule on full errors (n, K, J), with J draws.

    Raises:
        ValueError: The rule adds classes, which replays do not follow.
    """
    if rule.expands:
        raise ValueError(f"rule {rule.name} adds classes: expected one that only drops them")
    n, n_classes, draws = errors.shape
    alive = np.zeros((n, n_classes), bool)
    alive[:, rule.begin(np.arange(n_classes, dtype=np.int32))] = True
    counts = np.zeros((n, n_classes), np.int32)
    going = np.arange(n)
    looks = rule.looks(draws)
    for index, m in enumerate(looks):
        counts[going] = np.where(alive[going], m, counts[going])
        going = going[alive[going].sum(axis=1) > 1]
        if not len(going) or index + 1 == len(looks):
            break
        look = _look(index, m, alive[going], errors[going, :, :m])
        images, columns = np.nonzero(look.alive & ~rule.keep(look))
        alive[going[images], look.classes[images, columns]] = False
        going = going[alive[going].sum(axis=1) > 1]
    return Replay(counts, np.where(np.arange(draws) < counts[:, :, None], errors, np.float32(np.nan)))


def _look(index: int, draws: int, alive: npt.NDArray[np.bool_], errors: Errors) -> Look:
    """What the rule is shown of r requests with classes alive, bool (r, K), and errors (r, K, m)."""
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
    )


def verify(
    classifier: DiffusionClassifier,
    images: npt.NDArray[np.uint8],
    rule: AbstractRule,
    errors: Errors,
    *,
    seed: int,
    plan: PlanOptions,
) -> float:
    """Asserts that a replay gives the counts and labels of a real run.

    The network may round an error differently in a batch of other size. The errors of the real run are put in their
    places in the table first, so that the comparison is exact.

    Args:
        classifier: The classifier.
        images: uint8 (n, c, h, w).
        rule: A rule with all its options given.
        errors: Full errors (n, K, J) of the same images, seed and plan.
        seed: Of the noise.
        plan: Plan options; draws are those of `errors`.

    Returns:
        The largest relative difference between an error of the real run and the table's.

    Raises:
        AssertionError: They differ.
    """
    wanted: PlanOptions = {**plan, "draws": errors.shape[2]}
    real = classifier.classify(images, rule=rule, seed=seed, **wanted)
    known = ~np.isnan(real.table.errors)
    replayed = replay(rule, np.where(known, real.table.errors, errors))
    assert np.array_equal(replayed.counts, real.table.counts), f"rule {rule.name}: a replay evaluates something else"
    assert np.array_equal(replayed.labels(), real.labels), f"rule {rule.name}: a replay answers something else"
    return float(np.max(np.abs(real.table.errors[known] / errors[known] - 1)))
