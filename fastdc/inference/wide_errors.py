"""Errors over a wide band of noise levels, under every weighting and loss: one table that replays many plans.

The draws of a wide band that lie in a narrower one cover it evenly, because the positions of a prefix of the van der
Corput sequence do in every interval. So every band is a part of the draws. Weightings and losses take no further
evaluation either (``engine.other_errors``), and fewer kernels than combinations: the residuals in two spaces differ by
a factor per level, and l2 and l1 are homogeneous, of degree p = 2 and 1, so that the error of a draw is weight |a|^p
times a number that is the same for all weightings; a is the row's coefficient of the network's output. Huber's loss is
not homogeneous; its errors are made once per space, and weights are factors within a space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastdc.bundle import Model
from fastdc.diffusion import LOSSES, ROW_FIELDS, WEIGHTINGS, Plan, PlanConfig, make_plan, weighting
from fastdc.inference.job import Job
from fastdc.inference.options import Options
from fastdc.inference.results import OnProgress
from fastdc.inference.validation import ValidationRuns
from fastdc.support import Float32, Float64

EDGES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Ends of the bands that are tried: noise-to-signal ratios for images in [-1, 1]."""

_NARROWEST, _WIDEST = 4.0, 50.0  # high / low of the bands that are tried
_DEGREES = {"l2": 2, "l1": 1}


def bands(model: Model) -> list[tuple[float, float]]:
    """The bands to try for a model, inside its schedule, in units of x in its value range.

    Example:
        >>> from fastdc.inference import bands
        >>> len(bands(clf.model)), bands(clf.model)[0]
        (26, (0.05, 0.2))
    """
    scale = 1.0 if model.latent_shape is not None else model.noise_ratio(0.5)
    lowest, highest = model.schedule.levels([0.0, 1.0]).ratio.tolist()
    edges = [scale * edge for edge in EDGES if lowest * (1 - 1e-9) <= scale * edge <= highest * (1 + 1e-9)]
    return [(low, high) for low in edges for high in edges if _NARROWEST <= high / low * (1 + 1e-9) <= _WIDEST * 1.01]


def wide_band(model: Model, own: tuple[float, float] | None) -> tuple[float, float] | None:
    """The band that holds a model's own band and all bands to try; None: the whole schedule.

    Args:
        model: The model.
        own: Its own band; None: the whole schedule.

    Example:
        >>> from fastdc.inference import wide_band
        >>> wide_band(clf.model, (0.3, 3.0))
        (0.05, 50.0)
    """
    tried = bands(model)
    if own is None or not tried:
        return own
    return min(own[0], tried[0][0]), max(own[1], *(high for _, high in tried))


@dataclass(frozen=True, eq=False)
class WideErrors:
    """Errors of n images under C conditions at the J draws of a wide band, under several noise seeds.

    Attributes:
        ratio: float64 (J,), noise-to-signal ratio of each draw, in the order of the plan.
        tables: For each seed, float32 (n, C, J) by (loss, space).
        factors: What a table is multiplied by to be the errors under a weighting, by (weighting, loss): the table's
            name, and float32 (J,).
    """

    ratio: Float64
    tables: tuple[Mapping[tuple[str, str], Float32], ...]
    factors: Mapping[tuple[str, str], tuple[tuple[str, str], Float32]]

    def errors(self, seed: int, weighting: str, loss: str, draws: Sequence[int]) -> Float32:
        """The errors under a weighting and a loss at some of the draws, float32 (n, C, m)."""
        name, factor = self.factors[weighting, loss]
        wanted = list(draws)
        return np.asarray(self.tables[seed][name][:, :, wanted] * factor[wanted])

    def inside(self, levels: tuple[float, float] | None) -> list[int]:
        """The draws in a band, in the order of the plan; None: all."""
        low, high = levels or (0.0, np.inf)
        return np.flatnonzero((self.ratio >= low * (1 - 1e-9)) & (self.ratio <= high * (1 + 1e-9))).tolist()

    def nearest(self, ratio: float) -> int:
        """The draw whose level is nearest to a noise-to-signal ratio."""
        with np.errstate(divide="ignore"):
            return int(np.abs(np.log(self.ratio) - np.log(ratio)).argmin())


def wide_errors(
    runs: ValidationRuns,
    levels: tuple[float, float] | None,
    *,
    draws: int,
    seeds: int,
    weightings: Sequence[str] = WEIGHTINGS,
    losses: Sequence[str] = LOSSES,
    progress: OnProgress | None = None,
) -> WideErrors:
    """Evaluates images over a wide band.

    Args:
        runs: Full runs over the images under the plan that the model has now.
        levels: The band; None: the whole schedule.
        draws: J.
        seeds: Number of noise seeds.
        weightings: The weightings to come, that of the plan among them.
        losses: The losses to come, that of the plan among them.
        progress: Called after every step.

    Raises:
        InputError: The images are noisy, or the plan is of listed timesteps.

    Example:
        >>> from fastdc.inference import wide_errors
        >>> wide = wide_errors(clf.validation_runs(images[:2]), (0.1, 10.0), draws=8, seeds=1)
        >>> wide.errors(0, "velocity", "huber", wide.inside((0.2, 2.0))).shape[:2]
        (2, 10)
    """
    model, config = runs.job.model, runs.config
    band = "all" if levels is None else levels
    options = Options(rule="full", draws=draws, levels=band, weighting=config.weighting, loss=config.loss)
    job = Job.of(model, runs.job.networks, options, runs.job.encoder)
    own = job.plan
    plans = _plans(model, own.config, weightings, losses)
    names = list(plans)
    tables = []
    for seed in range(seeds):
        made = job.but(seed=seed).tables(runs.images.x, runs.images.streams, list(plans.values())[1:], progress)
        tables.append({name: table.errors for name, table in zip(names, made, strict=True)})
    factors = {(w, loss): _factor(model, own.config, plans, w, loss) for w in weightings for loss in losses}
    return WideErrors(own.levels.ratio, tuple(tables), factors)


def wide_of_tables(model: Model, config: PlanConfig, tables: Sequence[Float32]) -> WideErrors:
    """Errors over a wide band that were evaluated otherwise, under the weightings that they determine.

    Args:
        model: The model.
        config: The plan of the tables: its loss is the only one.
        tables: Errors (n, C, J) of a full run under each noise seed; infinite for what does not compete.

    Example:
        >>> from fastdc.inference import wide_of_tables
        >>> runs = clf.validation_runs(images[:2], levels=(0.1, 10.0), draws=8)
        >>> wide = wide_of_tables(clf.model, runs.config, [runs.table(0).errors])
        >>> wide.errors(0, "edm", "l2", wide.inside((0.2, 2.0))).shape[:2]
        (2, 10)
    """
    own = weighting(config.weighting).space
    plans = {(config.loss, own): _plan(model, config, config.weighting, config.loss)}
    names = [name for name in WEIGHTINGS if config.loss in _DEGREES or weighting(name).space == own]
    factors = {(name, config.loss): _factor(model, config, plans, name, config.loss) for name in names}
    ratio = make_plan(model.schedule, model.parameterization, config).levels.ratio
    return WideErrors(ratio, tuple({(config.loss, own): table} for table in tables), factors)


def _plans(
    model: Model, config: PlanConfig, weightings: Sequence[str], losses: Sequence[str]
) -> dict[tuple[str, str], Plan]:
    """The plans whose errors are made, by (loss, space), the configuration's own first."""
    own = weighting(config.weighting).space
    made = {(config.loss, own): _plan(model, config, config.weighting, config.loss)}
    for loss in losses:
        for name in (config.weighting, *weightings):
            key = (loss, own if loss in _DEGREES else weighting(name).space)
            if key not in made:
                made[key] = _plan(model, config, config.weighting if loss in _DEGREES else name, loss)
    return made


def _plan(model: Model, config: PlanConfig, name: str, loss: str) -> Plan:
    return make_plan(model.schedule, model.parameterization, replace(config, weighting=name, loss=loss))


def _factor(
    model: Model, config: PlanConfig, plans: Mapping[tuple[str, str], Plan], name: str, loss: str
) -> tuple[tuple[str, str], Float32]:
    """The name of a weighting's table, and its factor, float32 (J,)."""
    own = weighting(config.weighting).space
    key = (loss, own if loss in _DEGREES else weighting(name).space)
    degree = _DEGREES.get(loss, 0)  # within one space the residuals are the same

    def scale(plan: Plan) -> Float64:
        rows = plan.rows.astype(np.float64)
        weight, a = rows[:, ROW_FIELDS.index("weight")], rows[:, ROW_FIELDS.index("a")]
        return np.asarray(weight * np.abs(a) ** degree)

    return key, (scale(_plan(model, config, name, loss)) / scale(plans[key])).astype(np.float32)
