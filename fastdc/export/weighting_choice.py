"""Chooses the weighting of the noise levels by the accuracy on labelled validation images.

Full runs under one weighting give the errors under every other without a further evaluation. The residuals in two
spaces differ by a factor per level, and l2 and l1 are homogeneous, of degree p = 2 and 1, so that the error of a draw
is weight |a|^p times a number that is the same for all weightings; a is the row's coefficient of the network's output.

The model's own weighting stays unless another one is better beyond doubt: the mean over images of the difference in
accuracy, each averaged over the noise seeds, must be above 0 by a one-sided t-test at level 0.05, divided by the number
of other weightings (Bonferroni). Of several, the most accurate one is chosen.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fastdc.bundle import Model
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages
from fastdc.diffusion import ROW_FIELDS, WEIGHTINGS, PlanConfig, make_plan
from fastdc.inference import by_class, decide
from fastdc.support import Float32, Float64, InputError

AUTO = "auto"
"""In place of a weighting's name: the one that is chosen here."""

_LEVEL = 0.05
_DEGREES = {"l2": 2, "l1": 1}


@dataclass(frozen=True)
class WeightingChoice:
    """The outcome.

    Attributes:
        weighting: The chosen weighting.
        accuracy: Accuracy of every weighting on the images, in [0, 1], averaged over the noise seeds.
        images: Number of images.
    """

    weighting: str
    accuracy: dict[str, float]
    images: int

    def __str__(self) -> str:
        others = sorted(self.accuracy.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {100 * value:.1f} %" for name, value in others)
        return f"weighting {self.weighting}, chosen on {self.images} images ({shares})"


def check_loss(loss: str) -> None:
    """Refuses a loss whose errors under one weighting do not give those under another.

    Raises:
        InputError: The loss is not homogeneous.
    """
    if loss not in _DEGREES:
        raise InputError(f"weighting cannot be {AUTO} with the loss {loss}: expected {' or '.join(_DEGREES)}")


def choose_weighting(classifier: DiffusionClassifier, images: LabelledImages, seeds: int) -> WeightingChoice:
    """Chooses the weighting of a model by full runs at its default draws.

    Args:
        classifier: The model, with its own weighting.
        images: Labelled images of the model's classes, which no calibration uses.
        seeds: Number of noise seeds, each of which takes images x conditions x draws evaluations.

    Raises:
        InputError: The model's loss is not homogeneous.
    """
    model = classifier.model
    runs = classifier.validation_runs(images.images, layout="NCHW")
    own = runs.config.weighting
    factors = weighting_factors(model, runs.config)
    right = {name: np.zeros(len(images)) for name in factors}
    for table in runs.tables(seeds):
        for name, factor in factors.items():
            right[name] += (_labels(table.errors * factor, model) == images.labels) / seeds
    accuracy = {name: float(values.mean()) for name, values in right.items()}
    better = [name for name in right if name != own and _beyond_doubt(right[name] - right[own], len(right) - 1)]
    return WeightingChoice(max(better, key=lambda name: accuracy[name], default=own), accuracy, len(images))


def weighting_factors(model: Model, config: PlanConfig) -> dict[str, Float32]:
    """What the errors of a plan's draws are multiplied by to be those under each weighting, float32 (J,) by name.

    Raises:
        InputError: The plan's loss is not homogeneous.
    """
    check_loss(config.loss)
    weight, a = ROW_FIELDS.index("weight"), ROW_FIELDS.index("a")

    def scales(name: str) -> Float64:
        plan = make_plan(model.schedule, model.parameterization, replace(config, weighting=name, level_weights=None))
        rows = plan.rows.astype(np.float64)
        return np.asarray(rows[:, weight] * np.abs(rows[:, a]) ** _DEGREES[config.loss])

    own = scales(config.weighting)
    return {name: (scales(name) / own).astype(np.float32) for name in WEIGHTINGS}


def _labels(errors: Float32, model: Model) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    decided = decide(errors)
    return (by_class(decided, model.class_of, n_classes=model.num_classes) if model.class_of else decided).labels


def _beyond_doubt(difference: Float64, others: int) -> bool:
    """Whether a mean difference per image is above 0 by the t-test."""
    from scipy import special

    n, spread = len(difference), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:  # all images agree: a difference, if any, has one sign n times
        return bool(difference.mean() > 0 and 0.5**n <= _LEVEL / others)
    needed = float(special.stdtrit(n - 1, 1 - _LEVEL / others))
    return float(difference.mean()) * math.sqrt(n) / spread > needed
