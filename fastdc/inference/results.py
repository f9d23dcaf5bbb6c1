"""Results of classifying, and how a run tells its progress."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.inference.decide import by_class, decide_table
from fastdc.inference.error_table import ErrorTable


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        finished: Images decided.
        images: Images in all.
        evaluations: Network evaluations so far.
        at_most: Evaluations so far and still to come, at most; falls as classes are dropped.
    """

    finished: int
    images: int
    evaluations: int
    at_most: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Classification:
    """The result of classifying m images.

    Attributes:
        indices: int64 (m,), which of the images given each row is: 0 ... n - 1 unless the run was interrupted.
        labels: int64 (m,), the predicted class.
        probabilities: float64 (m, K): temperature-scaled posterior, or shares of votes with ``decision="vote"``.
        errors: float64 (m, K), mean weighted denoising error of each class; the smallest wins. A class that was dropped
            early is placed by its paired differences to the best, see ``decide.Decision.mean_errors``.
        evaluations: int64 (m,), network evaluations spent on each image (NFE).
        votes: int64 (m, K), draws at which each class had the smallest error, among those shared by the classes that
            were never dropped.
        class_names: K names.
        seconds: Wall time of the run so far.
        provenance: What reproduces the result: seed, plan, method, rule, decision, model, its sha256, backend, version.
        table: Every error, to replay decisions or save; of prompts where classes are described by prompts.
    """

    indices: npt.NDArray[np.int64] = field(repr=False)
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64] = field(repr=False)
    errors: npt.NDArray[np.float64] = field(repr=False)
    evaluations: npt.NDArray[np.int64] = field(repr=False)
    votes: npt.NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    seconds: float
    provenance: dict[str, Any] = field(repr=False)
    table: ErrorTable = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the predicted classes."""
        return tuple(self.class_names[label] for label in self.labels)

    @classmethod
    def of_table(
        cls,
        table: ErrorTable,
        indices: npt.NDArray[np.int64],
        *,
        decision: str,
        temperature: float,
        seconds: float,
        provenance: dict[str, Any],
        class_names: tuple[str, ...] = (),
        class_of: tuple[int, ...] = (),
        denoising: int = 0,
    ) -> "Classification":
        """Decides every image of a table.

        Args:
            table: Errors of classes, or of prompts.
            indices: See the class.
            decision: One of ``decide.DECISIONS``.
            temperature: Of the posterior, positive.
            seconds: See the class.
            provenance: See the class.
            class_names: Where the table is of prompts: K names.
            class_of: Where the table is of prompts: the class of each.
            denoising: Evaluations of each image that are not in the table.

        Raises:
            InputError: See ``decide.decide_table``.
        """
        decided = decide_table(table, decision=decision, temperature=temperature)
        if class_of:
            decided = by_class(
                decided, class_of, n_classes=len(class_names), decision=decision, temperature=temperature
            )
        return cls(
            indices=indices,
            labels=decided.labels,
            probabilities=decided.probabilities,
            errors=decided.mean_errors,
            evaluations=table.evaluations + denoising,
            votes=decided.votes,
            class_names=class_names or table.class_names,
            seconds=seconds,
            provenance=provenance,
            table=table,
        )
