"""Which checkpoint is the best: the validation results of a run, in the order of its steps."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Best:
    """A checkpoint that was measured on validation images.

    Attributes:
        step: Number of steps done.
        choosing_loss: Denoising loss on the half of the validation images that may choose, [0::2].
        val_accuracy: Share of ``val_scored`` images that were classified rightly, in [0, 1].
        val_scored: Number of images of that half that were classified.
    """

    step: int
    choosing_loss: float
    val_accuracy: float
    val_scored: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Best":
        """The checkpoint of a line of the log with an accuracy."""
        return cls(*(record[field.name] for field in dataclasses.fields(cls)))

    def __str__(self) -> str:
        right = round(self.val_accuracy * self.val_scored)
        share = f"{100 * self.val_accuracy:.1f} % ({right}/{self.val_scored})"
        return f"step {self.step}: val accuracy {share}, loss {self.choosing_loss:.4f}"

    def beaten_by(self, other: "Best", top: float) -> bool:
        """Whether another checkpoint is to be kept instead of this one.

        Accuracies that differ by less than a standard error do not tell checkpoints apart; the loss, which is measured
        far more precisely, then decides. So those within one standard error of the highest accuracy count as equal, and
        of two of them the one with the lower loss is kept, the later one if their losses are equal. The other one is
        gone, also if a higher accuracy later rules out the one that was kept. The standard error is that of Agresti and
        Coull, with two right and two wrong answers added, so that it is not 0 when all answers are right.

        Args:
            other: The checkpoint.
            top: The highest accuracy so far, of all checkpoints.
        """
        count = other.val_scored
        share = (top * count + 2) / (count + 4)
        least = top - math.sqrt(share * (1 - share) / (count + 4))
        if other.val_accuracy < least:
            return False
        return self.val_accuracy < least or other.choosing_loss <= self.choosing_loss


class Measurements:
    """The validation results of a run so far: those in its log.

    Attributes:
        step: The last step with a result; 0 if there is none.
        val_loss: The last loss, on all validation images.
        val_accuracy: The last accuracy.
        best: The best checkpoint.
        since_best: Number of later checkpoints whose accuracy was measured.
    """

    def __init__(self) -> None:
        self.step, self.since_best = 0, 0
        self.val_loss: float | None = None
        self.val_accuracy: float | None = None
        self.best: Best | None = None
        self._top = 0.0

    def better(self, record: dict[str, Any]) -> Best | None:
        """The best checkpoint that a line of the log would make; None if it does not.

        Args:
            record: ``step``, ``val_loss``, and, if the accuracy was measured, the other attributes of :class:`Best`.
        """
        if "val_accuracy" not in record:
            return None
        other = Best.of(record)
        top = max(self._top, other.val_accuracy)
        return other if self.best is None or self.best.beaten_by(other, top) else None

    def add(self, record: dict[str, Any]) -> None:
        """Takes over a line of the log; see :meth:`better`."""
        best = self.better(record)
        self.step, self.val_loss = record["step"], record["val_loss"]
        if "val_accuracy" in record:
            self.val_accuracy = record["val_accuracy"]
            self._top = max(self._top, record["val_accuracy"])
            self.since_best = 0 if best is not None else self.since_best + 1
        self.best = best or self.best
