"""Chooses the plan of a model by its accuracy on labelled validation images: band, weighting, loss, first draw, draws.

All candidates are replayed from one table (``inference.wide_errors``), one step after another:

1. the band of noise levels, under the plan's own weighting and loss;
2. weighting and loss, in that band;
3. a first draw at the most informative level, if the race then takes fewer evaluations;
4. the number of draws: the smallest power of two, from 8, that is as accurate as the most accurate number, where the
   table has more draws than these.

Candidates of steps 1 and 2 are compared at equal numbers of draws, the accuracy of each image averaged over noise seeds
and disjoint draws. Those are as good as the most accurate one whose deficit is at most one standard error of the paired
difference, and at most half a point. Among them the plan that the model has stays, unless the race of another one
takes a tenth less, and takes less in each of 100 resamples of the images. If the model's plan is not among them, the
cheapest race decides, and the wider band where races are within a tenth. A cheap race never makes up for a loss of
accuracy.

**The promise of the race.** Choose on some of the images and calibrate on the others. Given the choosing images, the
chosen plan is fixed, and so is the loss of an image as a function of the limit. If all images and a new one are
exchangeable, then the calibrating images and the new one are exchangeable given the choosing ones. Conformal risk
control (``calibration.race``) then promises at most delta on the new image given the choosing images, and hence on
average over them, however the plan was chosen. Accuracies on the choosing images are too good to be true by as much as
the choice fits their noise; those on the calibrating images are not.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fastdc.bundle import Model
from fastdc.calibration import (
    beyond_doubt,
    controlled_limit,
    informative_levels,
    most_informative,
    needed_limits,
    race_evaluations,
    supported_delta,
    within_noise,
)
from fastdc.diffusion import LOSSES, WEIGHTINGS, PlanConfig
from fastdc.inference.choosing_images import WIDE_DRAWS, WIDE_SEEDS
from fastdc.inference.decide import by_class, decide
from fastdc.inference.plan_choice import CHOICES, FEW, PlanChoice, Trial
from fastdc.inference.results import OnProgress
from fastdc.inference.validation import CALIBRATION_DRAWS, ValidationRuns
from fastdc.inference.wide_errors import WideErrors, bands, wide_band, wide_errors
from fastdc.support import Float32, Float64, InputError, Int64, shown

_BLOCKS = 8  # disjoint blocks of draws per seed that an accuracy is averaged over, at most
_LEAST = 32  # draws inside a band that is tried, if the table has enough
_SAME_COST = 1.1
_HALF_A_POINT = 0.005  # of accuracy
_NEVER = 1e30  # an error that names no class
_RESAMPLES = 100  # of the images, to tell whether a race is cheaper


def choose_plan(
    runs: ValidationRuns,
    labels: Int64 | None,
    *,
    searched: Collection[str] = CHOICES,
    draws: int = WIDE_DRAWS,
    seeds: int = WIDE_SEEDS,
    delta: float | None = None,
    progress: OnProgress | None = None,
) -> PlanChoice:
    """Chooses a plan on images that no calibration uses.

    Args:
        runs: Full runs over the images under the plan that the model has now, whose options that are not searched stay.
        labels: int64 (n,), classes of the images; None: only the first draw is chosen, by agreement with the full run.
        searched: What to choose, of :data:`CHOICES`.
        draws: Draws of the table over a wide band; at most 128 count if no band is searched.
        seeds: Number of noise seeds of it; images x conditions x draws x seeds is the number of evaluations.
        delta: Level of the race at which candidates are compared; None: the default of a calibration.
        progress: Called after every step.

    Example:
        >>> from fastdc.inference import choose_plan
        >>> choice = choose_plan(clf.validation_runs(images), labels, draws=64, seeds=1)
        >>> choice.chosen.levels, choice.images
        ((0.2, 2.0), 20)

    Raises:
        InputError: The images are noisy, or fewer than 2.
    """
    if len(runs.images) < 2:
        raise InputError(f"a choice takes 2 images or more, got {len(runs.images)}")
    config = runs.config
    check_choosable(config)
    wanted = [name for name in CHOICES if name in searched and (labels is not None or name == "first")]
    banded = "levels" in wanted
    wide = wide_errors(
        runs,
        wide_band(runs.job.model, config.levels) if banded else config.levels,
        draws=draws if banded else min(draws, CALIBRATION_DRAWS),
        seeds=seeds,
        weightings=WEIGHTINGS if "weighting" in wanted else (config.weighting,),
        losses=LOSSES if "loss" in wanted else (config.loss,),
        progress=progress,
    )
    tried = bands(runs.job.model) if banded else ()
    return _Search(runs.job.model, config, len(runs.images), labels, wide, delta, tried).run(wanted)


def check_choosable(config: PlanConfig, decision: str = "mean") -> None:
    """Refuses a plan, before any work, that no replay of errors can choose.

    Args:
        config: The plan that a model has.
        decision: What decides between classes.

    Example:
        >>> from fastdc.inference import check_choosable
        >>> check_choosable(clf.settings().job.plan.config)

    Raises:
        InputError: Images are noisy, or votes decide.
    """
    if config.noise or config.method != "dc":
        raise InputError("a plan is chosen on clean images: expected no sigma and method dc")
    if decision != "mean":
        raise InputError(f"a plan is chosen by mean errors: expected decision mean, got {shown(decision)}")


def choose_plan_of(
    wide: WideErrors,
    labels: Int64 | None,
    *,
    model: Model,
    config: PlanConfig,
    searched: Collection[str] = ("levels", "weighting", "first"),
    delta: float | None = None,
) -> PlanChoice:
    """Chooses a plan from errors that are there, such as those of images with candidates of their own.

    Args:
        wide: Errors of n images over a wide band; infinite for what does not compete.
        labels: int64 (n,), the right column of each image; None: only the first draw is chosen, by agreement with the
            full run.
        model: The model.
        config: The plan that it has now, whose options that are not searched stay.
        searched: What to choose, of :data:`CHOICES` without the loss; the weightings that `wide` knows are tried.
        delta: Level of the race at which candidates are compared; None: the default of a calibration.

    Example:
        >>> from fastdc.inference import choose_plan_of, wide_of_tables
        >>> runs = clf.validation_runs(images, levels=(0.05, 10.0), draws=128)
        >>> wide = wide_of_tables(clf.model, runs.config, [runs.table(0).errors])
        >>> choose_plan_of(wide, labels, model=clf.model, config=clf.settings().job.plan.config).images
        20

    Raises:
        InputError: The images are fewer than 2 or noisy, or loss is searched.
    """
    check_choosable(config)
    n = len(next(iter(wide.tables[0].values())))
    if n < 2:
        raise InputError(f"a choice takes 2 images or more, got {n}")
    if "loss" in searched:
        raise InputError("a loss is chosen from errors under several: expected no loss to search")
    wanted = [name for name in CHOICES if name in searched and (labels is not None or name == "first")]
    columns = replace(model, prompts=(), class_of=())  # here every column counts as a class
    return _Search(columns, config, n, labels, wide, delta, bands(model) if "levels" in wanted else ()).run(wanted)


class _Search:
    """The steps of a choice, replayed from one table."""

    def __init__(
        self,
        model: Model,
        config: PlanConfig,
        images: int,
        labels: Int64 | None,
        wide: WideErrors,
        delta: float | None,
        tried: Sequence[tuple[float, float]],
    ) -> None:
        self._model, self._config, self._wide = model, config, wide
        self._images, self._labelled = images, labels is not None
        self._seeds = range(len(wide.tables))
        self._delta = max(_level(self._images) if delta is None else delta, 1 / (self._images + 1))
        own = self._config.levels
        least = min(_LEAST, len(wide.ratio) // 8)
        tried = [band for band in tried if band != own and len(wide.inside(band)) >= least]
        self._bands: list[tuple[float, float] | None] = [own]
        self._bands += tried
        # A band with fewer draws, which only the own one may be, is judged by those that it has.
        self._draws = min(CALIBRATION_DRAWS, *(len(wide.inside(band)) for band in self._bands[1:] or self._bands))
        self._labels = self._answers() if labels is None else labels
        self.trials: list[Trial] = []

    def run(self, wanted: Sequence[str]) -> PlanChoice:
        """All steps."""
        config = self._config
        own = chosen = self._tried(config.levels, config.weighting, config.loss, config.first)
        if "levels" in wanted:
            # First draws belong to a band, unless they were given; those of the own band come back if it stays.
            first = () if "first" in wanted else config.first
            own_band = own if first == own.first else self._tried(own.levels, own.weighting, own.loss, first)
            chosen = self._better(own_band, [self._tried(b, own.weighting, own.loss, first) for b in self._bands[1:]])
            chosen = own if chosen is own_band else chosen
        known = {name for name, loss in self._wide.factors if loss == config.loss}
        weightings = [w for w in WEIGHTINGS if w in known] if "weighting" in wanted else [config.weighting]
        losses = LOSSES if "loss" in wanted else (config.loss,)
        others = [
            self._tried(chosen.levels, name, loss, chosen.first)
            for loss in sorted(losses, key=lambda loss: loss != config.loss)
            for name in sorted(weightings, key=lambda name: name != config.weighting)
            if (name, loss) != (chosen.weighting, chosen.loss)
        ]
        chosen = self._better(chosen, others)
        if "first" in wanted:
            chosen = self._with_first(chosen)
        number = self._fewest(chosen) if "draws" in wanted else config.draws
        return PlanChoice(
            chosen, own, number, tuple(wanted), tuple(self.trials), self._draws, self._images, self._delta,
            self._labelled,
        )  # fmt: skip

    def _tried(self, levels: tuple[float, float] | None, weighting: str, loss: str, first: tuple[float, ...]) -> Trial:
        """A candidate, replayed."""
        order = self._order(levels, first)
        right = self._right(weighting, loss, order, self._draws)
        few = float(self._right(weighting, loss, order, min(FEW, self._draws)).mean())
        runs = self._runs(weighting, loss, order)
        trial = Trial(levels, weighting, loss, first, right, few, _spent(runs, self._delta))
        self.trials.append(trial)
        return trial

    def _runs(self, weighting: str, loss: str, order: tuple[list[int], list[int]]) -> list[Float32]:
        """The errors (n, C, m) that a race may see under each seed."""
        draws = self._head(order, self._draws)
        return [self._wide.errors(seed, weighting, loss, draws) for seed in self._seeds]

    def _order(self, levels: tuple[float, float] | None, first: tuple[float, ...]) -> tuple[list[int], list[int]]:
        """The first draws of a plan, and the others."""
        heads = [self._wide.nearest(ratio) for ratio in first]
        return heads, [draw for draw in self._wide.inside(levels) if draw not in heads]

    def _head(self, order: tuple[list[int], list[int]], count: int) -> list[int]:
        """The first `count` draws of a plan."""
        return [*order[0], *order[1]][:count]

    def _right(self, weighting: str, loss: str, order: tuple[list[int], list[int]], count: int) -> Float64:
        """The share of the replays with `count` draws in which each image gets its class, float64 (n,)."""
        heads, rest = order[0][:count], order[1]
        step = max(1, count - len(heads))
        blocks = [[*heads, *rest[start : start + step]] for start in range(0, len(rest) - step + 1, step)][:_BLOCKS]
        found = [
            self._of_classes(self._wide.errors(seed, weighting, loss, block)) == self._labels
            for seed in self._seeds
            for block in blocks or [self._head(order, count)]
        ]
        return np.asarray(np.mean(found, axis=0), dtype=np.float64)

    def _of_classes(self, errors: Float32) -> Int64:
        """The class that errors (n, C, m) name, int64 (n,)."""
        decided, model = decide(errors), self._model
        return (by_class(decided, model.class_of, n_classes=model.num_classes) if model.class_of else decided).labels

    def _answers(self) -> Int64:
        """The answers of the model's own plan with all draws that the table has."""
        config = self._config
        own = self._wide.inside(config.levels)
        errors = [self._wide.errors(seed, config.weighting, config.loss, own) for seed in self._seeds]
        return self._of_classes(np.concatenate(errors, axis=2))

    def _better(self, own: Trial, others: Sequence[Trial]) -> Trial:
        """The candidate with the cheapest race among the most accurate ones; see this module's docstring."""
        best = max((own, *others), key=lambda trial: (trial.accuracy, -trial.evaluations))
        equal = [trial for trial in (own, *others) if _as_good(trial.right, best.right)]
        least = min(trial.evaluations for trial in equal)
        found = max((trial for trial in equal if trial.evaluations <= _SAME_COST * least), key=lambda trial: trial.span)
        if own not in equal:
            return found
        saves = _SAME_COST * found.evaluations < own.evaluations
        return found if saves and self._is_cheaper(found, own, _RESAMPLES) else own

    def _with_first(self, chosen: Trial) -> Trial:
        """The candidate with a first draw at the most informative level, if the race is cheaper then, beyond doubt."""
        ratio = self._most_informative(chosen)
        if ratio is None:
            return chosen
        trial = self._tried(chosen.levels, chosen.weighting, chosen.loss, (ratio,))
        worse = beyond_doubt(chosen.right - trial.right, 1)
        return trial if not worse and self._is_cheaper(trial, chosen, 0.95 * _RESAMPLES) else chosen

    def _is_cheaper(self, trial: Trial, other: Trial, needed: float) -> bool:
        """Whether a race is cheaper in as many of 100 resamples of the images as are needed.

        The limit depends on the few hardest images, and so do the evaluations of all others: a test of the images'
        evaluations at a given limit would not see that.
        """
        pair = [self._runs(t.weighting, t.loss, self._order(t.levels, t.first)) for t in (trial, other)]
        rng, cheaper = np.random.default_rng(0), 0
        for _ in range(_RESAMPLES):
            rows = rng.integers(0, self._images, self._images)
            spent = [_spent([errors[rows] for errors in runs], self._delta).mean() for runs in pair]
            cheaper += bool(spent[0] < spent[1])
        return cheaper >= needed

    def _most_informative(self, chosen: Trial) -> float | None:
        """The level whose single draws name the class most often; None if no level says anything."""
        every = list(range(len(self._wide.ratio)))
        finite = [draw for draw in every if np.isfinite(self._wide.ratio[draw])]
        errors = [self._wide.errors(seed, chosen.weighting, chosen.loss, finite) for seed in self._seeds]
        table = np.concatenate(errors)
        table = np.where(np.isfinite(table), table, np.float32(_NEVER))
        # Where prompts describe classes, the prompt that all draws together name stands for the image's class.
        winners = errors[0].mean(axis=2).argmin(axis=1) if self._model.class_of else self._labels
        try:
            levels = informative_levels(table, self._wide.ratio[finite], np.tile(winners, len(errors)))
        except InputError:
            return None
        lowest, highest = self._model.schedule.levels([0.0, 1.0]).ratio.tolist()
        return float(np.clip(float(f"{most_informative(levels):.2g}"), lowest, highest))

    def _fewest(self, chosen: Trial) -> int:
        """The smallest power of two of draws that is as accurate as the most accurate one.

        If that is the largest that the table can replay, nothing says that more are of no use: then the plan keeps the
        draws that it has, if these are more. A race hardly takes them.
        """
        order = self._order(chosen.levels, chosen.first)
        most = min(CALIBRATION_DRAWS, sum(map(len, order)))
        numbers = [count for count in (8, 16, 32, 64, 128) if count <= most] or [most]
        right = {count: self._right(chosen.weighting, chosen.loss, order, count) for count in numbers}
        best = max(right.values(), key=lambda shares: float(shares.mean()))
        found = min(count for count, shares in right.items() if _as_good(shares, best))
        return found if found < numbers[-1] else max(found, self._config.draws)


def _as_good(right: Float64, best: Float64) -> bool:
    """Whether a candidate is as accurate as the best one, up to noise and at most half a point."""
    return within_noise(best - right) and float((best - right).mean()) <= _HALF_A_POINT


def _spent(runs: Sequence[Float32], delta: float) -> Float64:
    """The evaluations of each image by the race at a level, the mean over the seeds, float64 (n,)."""
    try:
        limit = controlled_limit(np.stack([needed_limits(errors) for errors in runs], axis=1), delta)
    except InputError:  # a class without any error
        limit = np.inf
    return np.asarray(np.mean([race_evaluations(errors, limit) for errors in runs], axis=0), dtype=np.float64)


def _level(images: int) -> float:
    """The level of a default calibration on as many images, or the least they support."""
    try:
        return supported_delta(images)
    except InputError:
        return 1 / (images + 1)
