"""What labelled validation images fit to a model: the temperature of its posterior, and its race.

The images must be ones that the model has not seen and that no result will be reported on. The temperature needs
labels, the race does not. Both are fitted to the same full runs: a plan of more draws begins with the draws of a plan
of fewer, so that the temperature, which is that of the default number of draws, is fitted to a part of each run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastdc.bundle import Model
from fastdc.calibration import calibrate_errors, fit_temperature, with_doubt
from fastdc.inference.decide import by_class, decide
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.results import OnProgress
from fastdc.inference.validation import CALIBRATION_DRAWS, ValidationRuns
from fastdc.rules import Calibration
from fastdc.support import Float32, Float64, InputError, Int64

CALIBRATION_SEEDS = 4
"""Noise seeds per calibration image: several give more near misses to learn the temperature from."""

# Operations of a calibration: some minutes on one core. A network that takes more is compared with shorter full runs.
_MOST_FLOPS = 2e13


@dataclass(frozen=True, eq=False)
class Fits:
    """What images fit.

    Attributes:
        temperature: Temperature of the posterior.
        race: Calibration of the race; None without a level, or if no limit is enough.
        refusal: Why there is no race although a level was given; empty otherwise.
        errors: float64 (n, K), mean errors of the classes in the first run.
        accuracy: Share of the images, on average over the runs, that get their class with `draws` draws, in [0, 1].
    """

    temperature: float
    race: Calibration | None
    refusal: str
    errors: Float64
    accuracy: float


def full_runs(flops: float, cells: int) -> tuple[int, int]:
    """Draws and seeds of the full runs that a race is compared with; fewer if they would take too long.

    Args:
        flops: Operations of an evaluation; 0 if they are unknown.
        cells: Number of images times conditions.

    Example:
        >>> from fastdc.inference import full_runs
        >>> full_runs(0, 1970), full_runs(1e8, 1970)
        ((128, 4), (64, 1))
    """
    draws, seeds = CALIBRATION_DRAWS, CALIBRATION_SEEDS
    while seeds > 1 and flops * cells * draws * seeds > _MOST_FLOPS:
        seeds //= 2
    while draws > 16 and flops * cells * draws * seeds > _MOST_FLOPS:
        draws //= 2
    return draws, seeds


def fit_runs(
    runs: ValidationRuns,
    labels: Int64,
    *,
    draws: int,
    seeds: int,
    full: int = 0,
    delta: float | None = None,
    classes: Sequence[int] | None = None,
    tables: Sequence[ErrorTable] | None = None,
    progress: OnProgress | None = None,
) -> Fits:
    """Fits temperature and race to full runs over labelled images.

    Args:
        runs: The runs, of `draws` draws or more, and of `full` or more if there is a level.
        labels: int64 (n,), in [0, K), or positions in `classes`.
        draws: Number of draws J to which the temperature is fitted.
        seeds: Number of runs.
        full: Number of draws of the full run with which the race is to agree.
        delta: Level of the race, which n images support (``calibration.check_level``); None: no race.
        classes: The classes that compete, at least two; None: all K of the model.
        tables: The `seeds` runs, if they have been made already.
        progress: Called after every step.

    Example:
        >>> from fastdc.inference import fit_runs
        >>> fit_runs(clf.validation_runs(images, draws=8), labels, draws=8, seeds=1, full=8, delta=0.05).race.images
        20

    Raises:
        InputError: All classes have equal errors.
    """
    rivals = _Rivals.of(runs.job.model, classes)
    means: list[Float64] = []

    def errors() -> Iterator[Float32]:
        for table in runs.tables(seeds, progress) if tables is None else tables:
            chosen = rivals.of_conditions(table.errors)
            means.append(rivals.means(chosen[:, :, :draws]))
            yield chosen[:, :, :full]

    race, refusal = None, ""
    if delta is None:
        for _ in errors():
            pass
    else:
        try:
            race = calibrate_errors(errors(), replace(runs.config, draws=full), delta=delta)
        except InputError as error:  # known only after the runs: no reason to lose the temperature
            refusal = str(error)
    doubtful = with_doubt(np.concatenate(means), np.tile(labels, seeds), seeds)
    accuracy = float(np.mean([run.argmin(axis=1) == labels for run in means]))
    return Fits(fit_temperature(*doubtful), race, refusal, means[0], accuracy)


@dataclass(frozen=True)
class _Rivals:
    """The classes that compete.

    Attributes:
        conditions: Their conditions; None: all of the model.
        class_of: Class of each condition, if prompts describe classes; else empty.
        n_classes: Their number.
    """

    conditions: tuple[int, ...] | None
    class_of: tuple[int, ...]
    n_classes: int

    @classmethod
    def of(cls, model: Model, classes: Sequence[int] | None) -> "_Rivals":
        if classes is None:
            return cls(None, model.class_of, model.num_classes)
        if not model.class_of:
            return cls(tuple(classes), (), len(classes))
        place = {k: position for position, k in enumerate(classes)}
        kept = tuple(condition for condition, k in enumerate(model.class_of) if k in place)
        return cls(kept, tuple(place[model.class_of[condition]] for condition in kept), len(classes))

    def of_conditions(self, errors: Float32) -> Float32:
        """The errors (n, C, J) of the rivals' conditions, of those of all conditions."""
        return errors if self.conditions is None else errors[:, list(self.conditions)]

    def means(self, errors: Float32) -> Float64:
        """Mean errors of the classes, float64 (n, K), of errors (n, C, J).

        Fitted to full runs. Fitted to races, the temperature would hardly differ: on the test digits, the
        log-likelihood of either by the temperature of the other is within 0.002 of that by its own.
        """
        decided = decide(errors)
        return (by_class(decided, self.class_of, n_classes=self.n_classes) if self.class_of else decided).mean_errors
