"""The outcome of a choice of a plan: what was tried, what each candidate is worth, and what was chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastdc.bundle import Defaults
from fastdc.inference.options import PlanOptions
from fastdc.support import Float64

CHOICES = ("levels", "weighting", "loss", "first", "draws")
"""What can be chosen."""

FEW = 8
"""The smallest number of draws that is chosen."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate and what it is worth on the choosing images.

    Attributes:
        levels: Band; None: the whole schedule.
        weighting: Weighting.
        loss: Loss.
        first: Noise-to-signal ratios of the first draws.
        right: float64 (n,), share of the replays of each image whose answer is its class.
        few: Accuracy with :data:`FEW` draws, in [0, 1].
        spent: float64 (n,), evaluations of the race at the promise of all candidates.
    """

    levels: tuple[float, float] | None
    weighting: str
    loss: str
    first: tuple[float, ...]
    right: Float64 = field(repr=False)
    few: float
    spent: Float64 = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Accuracy of all draws, in [0, 1]."""
        return float(self.right.mean())

    @property
    def evaluations(self) -> float:
        """Evaluations of the race, the mean over images."""
        return float(self.spent.mean())

    @property
    def span(self) -> float:
        """Width of the band, as high / low."""
        return np.inf if self.levels is None else self.levels[1] / self.levels[0]


@dataclass(frozen=True, eq=False)
class PlanChoice:
    """The outcome.

    Attributes:
        chosen: The chosen candidate.
        own: The plan that the model had.
        draws: The chosen number of draws.
        searched: What was searched, of :data:`CHOICES`.
        trials: All candidates, in the order in which they were tried.
        compared: Number of draws at which candidates were compared; the own band may have fewer.
        images: Number of images.
        delta: Level of the race at which candidates were compared.
        labelled: Whether the images had labels; without, agreement with the full run stands for accuracy.
    """

    chosen: Trial
    own: Trial
    draws: int
    searched: tuple[str, ...]
    trials: tuple[Trial, ...]
    compared: int
    images: int
    delta: float
    labelled: bool = True

    @property
    def defaults(self) -> dict[str, Any]:
        """The chosen values of what was searched, as the manifest's field ``defaults`` holds them."""
        levels = None if self.chosen.levels is None else list(self.chosen.levels)
        values: dict[str, Any] = {"levels": levels, "first": list(self.chosen.first), "draws": self.draws}
        values |= {"weighting": self.chosen.weighting, "loss": self.chosen.loss}
        return {name: values[name] for name in CHOICES if name in self.searched}

    def applied(self, defaults: Defaults) -> Defaults:
        """A model's defaults with the chosen values in their place."""
        levels = self.chosen.levels
        return replace(defaults, **{**self.defaults, "first": self.chosen.first, "levels": levels})

    @property
    def options(self) -> PlanOptions:
        """The chosen plan as options of a run, without its number of draws."""
        chosen = self.chosen
        levels = "all" if chosen.levels is None else chosen.levels
        return {"levels": levels, "weighting": chosen.weighting, "loss": chosen.loss, "first": chosen.first}

    def __str__(self) -> str:
        chosen, own = self.chosen, self.own
        words = f"{_words(chosen)}, {self.draws} draws, chosen on {self.images} images"
        if not self.labelled:
            return words
        told = f"{words}: {100 * chosen.accuracy:.1f} % there"
        if chosen is own:
            return f"{told}, as before"
        return f"{told} instead of {100 * own.accuracy:.1f} % with {_words(own)}"

    def table(self, most: int = 12) -> list[str]:
        """The candidates as lines of text: the plan that the model had, the best ones by accuracy and cost, and a key.

        Args:
            most: Largest number of candidates.
        """
        others = sorted(self.trials, key=lambda trial: (-trial.accuracy, trial.evaluations))
        shown = [self.own, *(trial for trial in others if trial is not self.own)][:most]
        if self.chosen not in shown:
            shown[-1] = self.chosen
        few = min(FEW, self.compared)
        head = f"{'levels':<12} {'weighting':<9} {'loss':<5} {'first':<6} {self.compared:>3} draws  {few} draws  race"
        rows = [
            f"{band_words(t.levels):<12} {t.weighting:<9} {t.loss:<5} {_first_words(t.first):<6} "
            f"{100 * t.accuracy:7.1f} %  {100 * t.few:5.1f} %  {t.evaluations:6.1f}"
            f"{'  chosen' if t is self.chosen else ''}{'  before' if t is self.own else ''}"
            for t in shown
        ]
        left = len(others) - len(shown)
        what = "accuracy" if self.labelled else "agreement with the full run"
        key = (
            f"(levels, first: sigma / alpha; {self.compared} and {few} draws: {what} at so many draws of every class; "
            "race: evaluations per image)"
        )
        return [head, *rows, *([f"and {left} more, no more accurate on these images"] if left > 0 else []), key]


def band_words(levels: tuple[float, float] | None) -> str:
    """A band in words, such as "0.5 to 5".

    Example:
        >>> from fastdc.inference import band_words
        >>> band_words((0.5, 5.0)), band_words(None)
        ('0.5 to 5', 'all')
    """
    return "all" if levels is None else "{:g} to {:g}".format(*levels)


def _first_words(first: Sequence[float]) -> str:
    return ",".join(f"{ratio:g}" for ratio in first) or "none"


def _words(trial: Trial) -> str:
    first = f", first {_first_words(trial.first)}" if trial.first else ""
    return f"levels {band_words(trial.levels)}, weighting {trial.weighting}, loss {trial.loss}{first}"
