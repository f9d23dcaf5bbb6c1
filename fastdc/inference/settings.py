"""Settings: a job, and how its errors become labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastdc.backends import AbstractEncoder, AbstractNetwork, chosen_by
from fastdc.bundle import Model
from fastdc.inference.decide import DECISIONS
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.job import Job
from fastdc.inference.options import Options
from fastdc.inference.results import Classification
from fastdc.support import InputError, Int64, checks, shown


@dataclass(frozen=True, eq=False)
class Settings:
    """How images are run and decided.

    Attributes:
        job: Plan, rule and networks.
        decision: One of ``decide.DECISIONS``.
        temperature: Temperature of the posterior, positive.
    """

    job: Job
    decision: str
    temperature: float

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
        return cls(Job.of(model, networks, options, encoder), options.decision, float(value))

    def decide(
        self, table: ErrorTable, indices: Int64, *, seconds: float, ids: tuple[str, ...] | None = None
    ) -> Classification:
        """The result of a table whose rows are the images `indices`, with everything that reproduces it.

        `ids` are the names of these images; None: they have none.
        """
        job, network = self.job, self.job.networks[0]
        choice = chosen_by(network)
        provenance = {
            **job.describe(),
            "batch": network.batch,
            **({} if choice is None else {"chosen_by": choice.origin}),
            "decision": self.decision,
            "temperature": self.temperature,
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
            ids=ids,
        )
