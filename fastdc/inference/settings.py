"""Settings: a job, and how its errors become labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastdc.backends import AbstractEncoder, AbstractNetwork, chosen_by
from fastdc.bundle import Model
from fastdc.inference.decide import DECISIONS
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.job import Job
from fastdc.inference.options import Options
from fastdc.inference.results import Classification
from fastdc.inference.self_calibration import SelfCalibration
from fastdc.rules import Full
from fastdc.support import InputError, Int64, Mask, checks, shown


@dataclass(frozen=True, eq=False)
class Settings:
    """How images are run and decided.

    Attributes:
        job: Plan, rule and networks.
        decision: One of ``decide.DECISIONS``.
        temperature: Temperature of the posterior, positive.
        self_calibration: The calibration that the run makes of its own images: until it has one, the job is the full
            run. None: the run makes none.
    """

    job: Job
    decision: str
    temperature: float
    self_calibration: SelfCalibration | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        networks: Sequence[AbstractNetwork],
        options: Options,
        encoder: AbstractEncoder | None = None,
    ) -> "Settings":
        """A user's options, checked and complete.

        Raises:
            InputError: An option cannot be used.
        """
        checks.one_of("decision", options.decision, DECISIONS)
        value = model.defaults.temperature if options.temperature is None else options.temperature
        if not checks.is_finite(value) or value <= 0:
            raise InputError(f"temperature must be positive, got {shown(value)}")
        own = SelfCalibration.of(options)
        if own is not None:
            options = own.options(model, options)
        job = Job.of(model, networks, options, encoder)
        if job.rule.decision not in (None, options.decision):
            raise InputError(f"{job.rule.called} needs decision={job.rule.decision}, got {options.decision}")
        return cls(job, options.decision, float(value), own)

    @property
    def races(self) -> bool:
        """Whether the run may drop a class that could win."""
        weights = None if self.job.prior is None else self.job.prior.weights
        rivals = self.job.model.num_classes if weights is None else int(np.count_nonzero(weights))
        return rivals > 1 and (self.self_calibration is not None or not isinstance(self.job.rule, Full))

    @property
    def promised(self) -> float | None:
        """Share of the answers of a race that are promised to be those of the full run; None: no promise is made."""
        if self.self_calibration is not None:
            return 1 - self.self_calibration.delta
        return self.job.promised if self.decision == "mean" else None  # calibrations are about mean errors

    @property
    def in_full(self) -> bool:
        """Whether a run that calibrates itself takes images in full."""
        return self.self_calibration is not None and self.self_calibration.found is None

    def first_in_full(self) -> "Settings":
        """These settings for images that come one by one: if any are run in full, the first ones."""
        own = self.self_calibration
        return self if own is None else replace(self, self_calibration=replace(own, first=True))

    def calibrated(self, table: ErrorTable) -> "Settings":
        """The settings of the images that race, from the table of those that were run in full."""
        if self.self_calibration is None:
            return self
        errors = table.packed()[0].errors if self.job.prior is None else self.job.prior.shifted(table.errors)
        own = self.self_calibration.fitted(errors, self.job.plan.config)
        job = self.job if own.found is None else self.job.but(rule=own.found.rule)
        return replace(self, job=job, self_calibration=own)

    def decide(
        self,
        table: ErrorTable,
        indices: Int64,
        *,
        seconds: float,
        ids: tuple[str, ...] | None = None,
        full: Mask | None = None,
    ) -> Classification:
        """The result of a table whose rows are the images `indices`, with everything that reproduces it.

        Args:
            table: Errors of the images.
            indices: int64 (m,), their indices.
            seconds: Wall time.
            ids: Their names; None: they have none.
            full: Which of them were run in full, bool (m,), if the run calibrates itself; None: all.
        """
        job, network, own = self.job, self.job.networks[0], self.self_calibration
        full = np.ones(len(indices), np.bool_) if full is None else full
        choice = chosen_by(network)
        provenance = {
            **job.describe(),
            "batch": network.batch,
            **({} if choice is None else {"chosen_by": choice.origin}),
            "decision": self.decision,
            "temperature": self.temperature,
            **({} if own is None else {"self_calibration": own.describe()}),
            "plan": table.plan,
            "fastdc": table.version,
        }
        return Classification.of_table(
            table,
            indices,
            decision=self.decision,
            temperature=self.temperature,
            seconds=seconds,
            provenance=provenance,
            class_names=job.model.class_names,
            class_of=job.model.class_of,
            denoising=job.denoisings,
            prior=None if job.prior is None else job.prior.weights,
            votes_of=job.rule.votes_of,
            ids=ids,
            promises=None if own is None else own.promises(full),
        )
