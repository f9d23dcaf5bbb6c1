"""Several models on the same images with the same candidates: accuracy, kinds of errors, cost, and paired tests.

Accuracy and kinds of errors are shares of all images of a cell (a task, split and setting). Accuracies have Wilson's
95 % intervals. Two models are compared in pairs on the images that both have answered: of b images only the first is
right, of c only the second. The difference (b - c) / n has the interval of Agresti and Min (2005), and McNemar's exact
test asks how likely so uneven a split is between equally good models. P-values of all comparisons of a table are
corrected together (Holm, Scandinavian Journal of Statistics 6, 1979): the probability that any comparison of equally
good models is at most alpha is at most alpha.

All of these take images for independent. Images of one scene or one pair share their candidates, and intervals are then
too narrow for other scenes and pairs. With the released scoring every image counts once per pair: intervals are too
narrow, and there are no tests.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Self

import numpy as np

from fastdc.certification import Estimate, mcnemar, paired_difference, share
from fastdc.matching.cells import Cell
from fastdc.matching.kinds import KINDS, WRONG
from fastdc.matching.matched import Matched
from fastdc.matching.trials import RIGHT, Trials
from fastdc.support import Float64, InputError, plain


@dataclass(frozen=True, eq=False)
class Answered:
    """What one model answered in one cell.

    Attributes:
        cell: Task, split and setting.
        trials: The images with their candidates.
        matched: The model's answers; fewer than the trials if the run was interrupted.
    """

    cell: Cell
    trials: Trials
    matched: Matched

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each answer; right and wrong where trials have no kinds."""
        given = self.trials.kinds
        right = self.matched.right(self.trials)
        chosen = zip(right.tolist(), self.matched.rows.tolist(), self.matched.answers.tolist(), strict=True)
        return tuple(RIGHT if good else given[row][answer] if given else WRONG for good, row, answer in chosen)


@dataclass(frozen=True)
class CellScore:
    """One model in one cell.

    Attributes:
        cell: Task, split and setting.
        name: The model's name.
        images: Number of images that were answered.
        wanted: Number of all images of the cell.
        accuracy: Share of right answers, with Wilson's 95 % interval.
        kinds: Share of all answered images for each kind of error that the cell's candidates have.
        candidates: Mean number of candidates per image.
        chance: Accuracy of a random choice.
        evaluations: Mean number of network evaluations per image, or of texts compared.
        seconds: Wall time.
        facts: What reproduces the answers.
    """

    cell: Cell
    name: str
    images: int
    wanted: int
    accuracy: Estimate
    kinds: Mapping[str, float]
    candidates: float
    chance: float
    evaluations: float
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, answered: Answered) -> "CellScore":
        """The score of a model's answers in a cell.

        Raises:
            InputError: There are no answers, or a right text is not known.
        """
        trials, matched = answered.trials, answered.matched
        check_known(answered.cell, trials)
        n, kinds = len(matched), answered.kinds
        if not n:
            raise InputError(f"{matched.name}, {answered.cell}: expected answers of an image or more, got none")
        counts = Counter(kinds)
        sizes = np.array([len(trials.candidates[row]) for row in matched.rows])
        return cls(
            cell=answered.cell,
            name=matched.name,
            images=n,
            wanted=len(trials),
            accuracy=share(int(matched.right(trials).sum()), n),
            kinds={kind: counts[kind] / n for kind in _errors_of(answered)},
            candidates=float(sizes.mean()),
            chance=float((1 / sizes).mean()),
            evaluations=float(matched.evaluations.mean()),
            seconds=matched.seconds,
            facts=matched.facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {
            **_cell_dict(self.cell),
            "model": self.name,
            "images": self.images,
            "images_wanted": self.wanted,
            "accuracy": self.accuracy.to_dict(),
            "errors": dict(self.kinds),
            "candidates_per_image": self.candidates,
            "chance": self.chance,
            "evaluations_per_image": self.evaluations,
            "seconds": self.seconds,
            "facts": plain(self.facts),
        }


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same images of a cell.

    Attributes:
        cell: Task, split and setting.
        first: Name of a model.
        second: Name of the other one.
        images: Number of images that both have answered.
        first_only: Images of which only the first is right.
        second_only: Images of which only the second is right.
        difference: Accuracy of the first minus that of the second, with its 95 % interval.
        p_value: McNemar's exact two-sided test.
        corrected: The p-value corrected for all comparisons of the table (Holm).
    """

    cell: Cell
    first: str
    second: str
    images: int
    first_only: int
    second_only: int
    difference: Estimate
    p_value: float
    corrected: float

    @property
    def ties(self) -> int:
        """Images of which both are right or both are wrong."""
        return self.images - self.first_only - self.second_only

    def to_dict(self) -> dict[str, Any]:
        """The test as JSON values."""
        return {
            **_cell_dict(self.cell),
            "first": self.first,
            "second": self.second,
            "images": self.images,
            "first_only": self.first_only,
            "second_only": self.second_only,
            "ties": self.ties,
            "difference": self.difference.to_dict(),
            "p_value": self.p_value,
            "p_value_corrected": self.corrected,
        }


def holm(p_values: Sequence[float]) -> Float64:
    """P-values corrected for the number of tests, by Holm's step-down method (1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least as large as the one before, and at most 1.

    Args:
        p_values: P-values (m,) in [0, 1].

    Returns:
        float64 (m,).

    Example:
        >>> from fastdc.matching import holm
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


@dataclass(frozen=True, eq=False)
class ComparisonNumbers:
    """The answers of several models in several cells.

    Attributes:
        answered: Each model's answers in each cell, by cell, and in it by model.
        scores: The score of each.
        tests: Paired tests of all pairs of models with the same trials, cell by cell, where no image is there twice.
        facts: What holds for all, such as the data.
        notes: What a reader should know.
    """

    answered: tuple[Answered, ...]
    scores: tuple[CellScore, ...]
    tests: tuple[PairedTest, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, answered: Sequence[Answered], *, facts: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
    ) -> Self:
        """Compares answers; those of no image are left out.

        Args:
            answered: Each model's answers in each cell, in any order.
            facts: What holds for all.
            notes: What a reader should know.

        Raises:
            InputError: There are none, two answers are of one model and cell, or a right text is not known.
        """
        some = [one for one in answered if len(one.matched)]
        if not some:
            raise InputError("expected the answers of a model or more, got none")
        twice = [key for key, count in Counter((str(one.cell), one.matched.name) for one in some).items() if count > 1]
        if twice:
            raise InputError(f"{twice[0][0]}: expected models with different names, got {twice[0][1]!r:.80} twice")
        cells = list(dict.fromkeys(one.cell for one in some))
        grouped = [one for cell in cells for one in some if one.cell == cell]
        scores = tuple(CellScore.of(one) for one in grouped)
        return cls(tuple(grouped), scores, _tests(grouped), dict(facts or {}), tuple(notes))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in order."""
        return tuple(dict.fromkeys(score.cell for score in self.scores))

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in order."""
        return tuple(dict.fromkeys(score.name for score in self.scores))

    def score(self, name: str, cell: Cell) -> CellScore | None:
        """The score of a model in a cell; None if it was not asked there."""
        return next((one for one in self.scores if (one.name, one.cell) == (name, cell)), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the answers of single images, as JSON values."""
        return {
            "scores": [score.to_dict() for score in self.scores],
            "tests": [test.to_dict() for test in self.tests],
            "facts": plain(self.facts),
            "notes": list(self.notes),
        }


def check_known(cell: Cell, trials: Trials) -> None:
    """Refuses images whose right text is not known: every answer would count as wrong.

    Raises:
        InputError: There is one.
    """
    unknown = np.flatnonzero(trials.truth < 0)
    if len(unknown):
        raise InputError(f"{cell}, {trials.ids[unknown[0]]!r:.80}: expected a right text, to count answers by")


def _errors_of(answered: Answered) -> list[str]:
    """The kinds of errors that the candidates of a cell allow: the paper's in its order, then others by name."""
    own = KINDS.get(answered.cell.task, ())
    there = (
        {kind for kinds in set(answered.trials.kinds) for kind in kinds} - {RIGHT} if answered.trials.kinds else {WRONG}
    )
    return [*own, *sorted(there - set(own))]


def _tests(answered: Sequence[Answered]) -> tuple[PairedTest, ...]:
    """All pairs of models in each cell, on the images that both have answered; Holm's correction over all of them.

    Where an image is there more than once, as with the released scoring, its answers depend on each other, and counts
    of them are no evidence: there are no tests.
    """
    found: list[tuple[Cell, str, str, int, int, int]] = []
    for first, second in combinations(answered, 2):
        if first.cell != second.cell or not _same(first.trials, second.trials) or _repeats(first.trials):
            continue
        _, a, b = np.intersect1d(first.matched.rows, second.matched.rows, return_indices=True)
        if not len(a):
            continue
        right, other = first.matched.right(first.trials)[a], second.matched.right(second.trials)[b]
        only = int((right & ~other).sum()), int((other & ~right).sum())
        found.append((first.cell, first.matched.name, second.matched.name, len(a), *only))
    p_values = [mcnemar(b, c) for *_, b, c in found]
    corrected = holm(p_values).tolist()
    return tuple(
        PairedTest(cell, first, second, n, b, c, paired_difference(b, c, n), p, adjusted)
        for (cell, first, second, n, b, c), p, adjusted in zip(found, p_values, corrected, strict=True)
    )


def _same(first: Trials, second: Trials) -> bool:
    """Whether two models were asked the same."""
    if first is second:
        return True
    if first.ids != second.ids or not np.array_equal(first.truth, second.truth):
        return False
    return all(first.texts_of(i) == second.texts_of(i) for i in range(len(first)))


def _repeats(trials: Trials) -> bool:
    """Whether an image file is there more than once."""
    return isinstance(trials.images, tuple) and len(set(trials.images)) < len(trials)


def _cell_dict(cell: Cell) -> dict[str, Any]:
    return {"task": cell.task, "split": cell.split, "setting": cell.setting}
