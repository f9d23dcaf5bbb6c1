"""Runs over validation images, prepared once and repeated under other noise: what calibration is made of.

Run number k of clean images has seed k. Of noisy images it sees their noisy copy number k, as randomized smoothing
makes them (``diffusion.noisy_copies``), under seed 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastdc.diffusion import PlanConfig, one_copy_each
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.images import Images, MappedImages
from fastdc.inference.job import Job
from fastdc.inference.results import OnProgress
from fastdc.rules import AbstractRule
from fastdc.support import Float32, Int64, checks

CALIBRATION_DRAWS = 128
"""Draws of the full runs that a race is calibrated to agree with, unless a user asks for others."""


@dataclass(frozen=True, eq=False)
class ValidationRuns:
    """The same images under the same plan, as often as there are seeds.

    Attributes:
        job: The full run: every class at every draw, seed 0.
        images: The validation images, without noise.
    """

    job: Job
    images: Images

    @cached_property
    def config(self) -> PlanConfig:
        """The configuration of the plan."""
        return self.job.plan.config

    def table(self, number: int, progress: OnProgress | None = None) -> ErrorTable:
        """The errors of full run `number`.

        Args:
            number: Number of the run, from 0.
            progress: Called after every step.
        """
        x, streams, job = self._noisy(number)
        return job.table(x, streams, progress)

    def tables(self, seeds: int, progress: OnProgress | None = None) -> Iterator[ErrorTable]:
        """The errors of full runs 0 ... seeds - 1, one after another.

        Raises:
            InputError: `seeds` is no positive whole number.
        """
        return (self.table(number, progress) for number in range(checks.whole("seeds", seeds)))

    def race(self, rule: AbstractRule, number: int, progress: OnProgress | None = None) -> float:
        """Evaluations per image that a race takes on run `number`, on average.

        Args:
            rule: The race.
            number: Number of the run; one that the calibration has not seen.
            progress: Called after every step.
        """
        x, streams, job = self._noisy(number)
        job = job.but(rule=rule)
        spent = sum(len(done.values) for finished in job.run(x, streams, progress=progress) for done in finished)
        return spent / len(x) + job.denoisings

    def _noisy(self, number: int) -> tuple[Float32 | MappedImages, Int64, Job]:
        """Images, streams and job of a run."""
        checks.whole("number", number, low=0)
        if not self.config.noise:
            return self.images.samples, self.images.streams, self.job.but(seed=number)
        options: dict[str, Any] = {"std": self.config.noise, "seed": self.job.seed}
        return *one_copy_each(self.images.x, self.images.streams, number, **options), self.job
