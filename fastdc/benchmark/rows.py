"""A row of the table: what one configuration did, or why it did not."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.benchmark.configuration import Configuration
from fastdc.benchmark.statistics import Latency, Spread
from fastdc.inference import ErrorTable
from fastdc.support import Int64


@dataclass(frozen=True)
class Row:
    """What was measured of one configuration; None where the measurement did not get that far.

    Attributes:
        configuration: The configuration.
        batch: Its batch, as the backend chose it or as it was given.
        reason: Why the row is not complete, in one line; "" if it is.
        ms_per_evaluation: Time of a network evaluation in full steps, noise and errors included.
        images_per_second: Rate of the race over the images, everything included.
        evaluations_per_image: Network evaluations that the race took.
        session: Times of single images through a session in latency mode.
        classify: Times of single images by ``classify``.
        memory_bytes: Peak of resident memory above the start of the process, or device memory taken; None where the
            system does not tell.
        startup_seconds: From the start of the process to the first answer.
        error_difference: Largest relative difference of an error from the reference's, where both were evaluated.
        agreeing: Number of images whose answer is the reference's.
        compared: Number of images that were compared.
    """

    configuration: Configuration
    batch: int | None = None
    reason: str = ""
    ms_per_evaluation: Spread | None = None
    images_per_second: Spread | None = None
    evaluations_per_image: float | None = None
    session: Latency | None = None
    classify: Latency | None = None
    memory_bytes: int | None = None
    startup_seconds: float | None = None
    error_difference: float | None = None
    agreeing: int | None = None
    compared: int | None = None

    @classmethod
    def of(cls, configuration: Configuration, record: dict[str, Any]) -> "Row":
        """The row of a child's record, before it is compared."""

        def made(kind: Any, name: str) -> Any:
            return kind(**record[name]) if name in record else None

        batch = record.get("batch", configuration.batch)
        return cls(
            configuration if batch is None else configuration.with_batch(batch),
            batch=batch,
            reason=record.get("error", ""),
            ms_per_evaluation=made(Spread, "ms_per_evaluation"),
            images_per_second=made(Spread, "images_per_second"),
            evaluations_per_image=record.get("evaluations_per_image"),
            session=made(Latency, "session_ms"),
            classify=made(Latency, "classify_ms"),
            memory_bytes=record.get("memory_bytes"),
            startup_seconds=record.get("startup_seconds"),
        )

    @property
    def agrees(self) -> bool:
        """Whether every answer is the reference's."""
        return bool(self.compared) and self.agreeing == self.compared

    @property
    def quickest(self) -> Latency | None:
        """The times of single images by the way with the smaller median."""
        return min(
            (way for way in (self.session, self.classify) if way is not None), key=lambda way: way.p50, default=None
        )

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        facts = asdict(self)
        one = self.configuration
        del facts["configuration"]
        return {"backend": one.backend, "device": one.device, "precision": one.precision, "graph": one.kind, **facts}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a configuration answered.

    Attributes:
        labels: int64 (n,).
        table: Every error that was evaluated.
    """

    labels: Int64
    table: ErrorTable

    @classmethod
    def read(cls, labels: Path, table: Path) -> "Answers":
        """The answers in two files of a child."""
        return cls(np.load(labels), ErrorTable.load(table))

    def compare(self, row: Row, reference: "Answers") -> Row:
        """The row of these answers, with their agreement with the reference's."""
        n = min(len(self.labels), len(reference.labels))
        agreeing = int(np.count_nonzero(self.labels[:n] == reference.labels[:n]))
        largest = 0.0
        mine, theirs = self.table.rows(0, n).chunks(), reference.table.rows(0, n).chunks()
        for one, other in zip(mine, theirs, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = np.abs(one.errors - other.errors) / np.abs(other.errors)
            relative = relative[np.isfinite(relative)]  # NaN where one of them was not evaluated
            largest = max(largest, float(relative.max(initial=0.0)))
        return replace(row, agreeing=agreeing, compared=n, error_difference=largest)
