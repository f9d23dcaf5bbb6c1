"""Results of classification, and the progress of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastdc.inference.decide import by_class, decide_table
from fastdc.inference.error_table import ErrorTable
from fastdc.support import Float64, Int64


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        finished: Number of images decided.
        images: Number of all images.
        evaluations: Network evaluations so far.
        at_most: Upper bound on the evaluations of the whole run; it falls as classes are dropped.
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
        indices: int64 (m,), index of each row's image among the images given: 0 ... n - 1 unless the run was
            interrupted.
        labels: int64 (m,), the predicted class.
        probabilities: float64 (m, K), the temperature-scaled posterior, or shares of votes with ``decision="vote"``.
        errors: float64 (m, K), mean weighted denoising error of each class; the smallest wins. A class that was dropped
            early is placed by its paired differences to the best one (``inference.Decision.mean_errors``).
        evaluations: int64 (m,), network evaluations spent on each image (NFE).
        votes: int64 (m, K), draws at which each class had the smallest error, among those shared by the classes that
            were never dropped.
        class_names: K names.
        seconds: Wall time of the run so far.
        provenance: Everything that reproduces the result: seed, plan, method, rule, decision, model, its sha256,
            backend, version.
        table: Every error, to replay decisions or to save. If prompts describe the classes, its classes are prompts.
    """

    indices: Int64 = field(repr=False)
    labels: Int64
    probabilities: Float64 = field(repr=False)
    errors: Float64 = field(repr=False)
    evaluations: Int64 = field(repr=False)
    votes: Int64 = field(repr=False)
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
        indices: Int64,
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
            indices: int64 (m,), index of each row's image.
            decision: One of ``inference.DECISIONS``.
            temperature: Temperature of the posterior, positive.
            seconds: Wall time.
            provenance: Everything that reproduces the result.
            class_names: The K names, if the table's classes are prompts.
            class_of: Class of each prompt, if the table's classes are prompts.
            denoising: Evaluations per image that are not in the table.

        Example:
            >>> table = clf.errors(images, draws=16)
            >>> made = fastdc.Classification.of_table(
            ...     table, np.arange(20), decision="vote", temperature=1.0, seconds=0.0, provenance={})
            >>> bool((made.labels == labels).all())
            True

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
