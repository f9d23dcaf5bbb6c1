"""Class priors at the decision: how often each class occurs where the model is used.

    p(k | x)  is proportional to  prior_k exp(-mean error_k / T) ,

so a prior is a constant -T log prior_k beside each mean error: nothing is evaluated anew, and a saved table of errors
can be decided under any prior. The constant has the unit of the errors, hence a prior needs a temperature T that was
fitted. The rules see the same constants (:class:`fastdc.rules.Shifted`), or a race would drop classes that the decision
prefers. A class of prior 0 is no candidate: it is not evaluated and cannot win.

The prior replaces the one that the errors imply, which is uniform: the network is trained under each class by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Defaults, Model
from fastdc.diffusion import PlanConfig
from fastdc.engine import Finished
from fastdc.inference.class_names import class_indices
from fastdc.inference.decide import prior_shifts
from fastdc.inference.options import Options
from fastdc.rules import AbstractRule, Shifted
from fastdc.support import Float64, Floats, InputError, Int32, as_array, checks, shown

_EXAMPLE = 200  # most characters of a complete example in a message

GivenPrior: TypeAlias = str | Mapping[str, float] | Sequence[float] | npt.NDArray[Any]
"""A prior as users give it: "uniform", "data", a weight for each class name, or K weights in class order."""


@dataclass(frozen=True, eq=False)
class Prior:
    """A prior that is not uniform.

    Attributes:
        weights: float64 (K,), those that were given, whatever they sum to.
        shifts: float64 (C,), what each condition's errors are shifted by; infinite for those of prior 0.
    """

    weights: Float64
    shifts: Float64

    @classmethod
    def of(cls, options: Options, model: Model, config: PlanConfig) -> "Prior | None":
        """The prior that a user asks for; None if it is uniform.

        Args:
            options: Options of the run.
            model: The model.
            config: Plan of the run.

        Raises:
            InputError: It is no prior of these classes, the model has no class counts for "data", no temperature was
                fitted to such errors, or the decision is by votes.
        """
        weights = None if options.prior is None else _weights(options.prior, model)
        if weights is None or (weights == weights[0]).all():
            return None
        if options.decision != "mean":
            raise InputError(
                f"prior is a weight of probabilities, and votes are none: expected decision mean, "
                f"got {shown(options.decision)}"
            )
        given = options.temperature
        shifts = prior_shifts(weights, _fitted_temperature(model, config) if given is None else given)
        if shifts is None:
            return None
        return cls(weights, shifts[list(model.class_of)] if model.class_of else shifts)

    @property
    def allowed(self) -> Int32 | None:
        """The conditions of positive prior, int32 in increasing order; None: all."""
        known = np.isfinite(self.shifts)
        return None if known.all() else np.flatnonzero(known).astype(np.int32)

    def candidates(self, given: Sequence[Int32] | None, count: int) -> Sequence[Int32] | None:
        """The candidates of `count` images without those of prior 0; None: all conditions.

        Raises:
            InputError: An image has no other candidate.
        """
        allowed = self.allowed
        if allowed is None:
            return given
        if given is None:
            return [allowed] * count
        left = [one[np.isfinite(self.shifts[one])] for one in given]
        for i, classes in enumerate(left):
            if not len(classes):
                raise InputError(f"prior is 0 for all candidates of image {i}")
        return left

    def rule(self, rule: AbstractRule) -> AbstractRule:
        """The rule that knows the prior."""
        return Shifted(rule, tuple(self.shifts.tolist()))

    def shifted(self, errors: Floats) -> Float64:
        """Errors (n, C, J) plus the shifts; NaN where the prior is 0."""
        known = np.isfinite(self.shifts)
        return np.where(known[:, None], errors + np.where(known, self.shifts, 0)[:, None], np.nan)

    def best(self, finished: Finished) -> int:
        """The condition that wins a request: of those with the most draws, the one with the smallest shifted mean."""
        counts = finished.counts
        most = counts == counts.max()
        starts = np.cumsum(counts) - counts
        means = [
            float(np.mean(finished.values[start : start + count], dtype=np.float64)) + shift if wins else np.inf
            for start, count, shift, wins in zip(starts.tolist(), counts.tolist(), self.shifts, most, strict=True)
        ]
        return int(np.argmin(means))

    def describe(self) -> list[float]:
        """The prior of each class; they sum to 1."""
        return [float(weight) for weight in self.weights / self.weights.sum()]


def _fitted_temperature(model: Model, config: PlanConfig) -> float:
    """The model's temperature, if one was fitted to errors like those of a plan: another scale is another prior."""
    defaults = model.defaults
    if defaults.temperature == Defaults().temperature:
        raise InputError(
            f"prior needs a fitted temperature, which model {model.name} has not: fastdc export --calibrate fits one "
            "to labelled images"
        )
    theirs = {"method": "dc", "noise": 0.0, "level_weights": None}
    theirs |= {name: getattr(defaults, name) for name in ("weighting", "loss", "levels")}
    other = next((name for name, value in theirs.items() if getattr(config, name) != value), None)
    if other is not None:
        raise InputError(
            f"prior needs a temperature for such errors: the model's was fitted with {other} {theirs[other]}, the run "
            f"has {getattr(config, other)!s:.80} (in Python, the option temperature sets one)"
        )
    return defaults.temperature


def _weights(given: GivenPrior, model: Model) -> Float64 | None:
    """The weights (K,) of a prior; None: uniform."""
    if isinstance(given, str):
        checks.one_of("prior", given, ("uniform", "data"))
        if given == "uniform":
            return None
        if model.class_counts is None:
            raise InputError(f"prior needs the class counts of the training data, which {model.name} has not")
        return np.array(model.class_counts, dtype=np.float64)
    if isinstance(given, Mapping):
        rows = class_indices(list(given), model, "classes of prior")
        missing = sorted(set(range(model.num_classes)) - set(rows.tolist()))
        if missing:
            name, rest = shown(model.class_names[missing[0]]), len(missing) - 1
            more = f" and {rest} more are missing" if rest else " is missing"
            raise InputError(f"prior must name every class, {name}{more}{_example(given, model.class_names)}")
        if len(rows) > model.num_classes:
            raise InputError("prior names a class twice")
        given = [given[name] for name in given]
        order = np.argsort(rows)
    else:
        order = np.arange(model.num_classes)
    return _checked(given, model.num_classes)[order]


def _example(given: Mapping[str, float], names: Sequence[str]) -> str:
    """The weights that were given with 1 for the other classes, for a message; nothing if they are too many.

    No weight is assumed: of somebody who gave probabilities, a class that was forgotten would be the most probable.
    """
    weights = {str(name): weight for name, weight in given.items() if checks.is_number(weight)}
    text = ",".join(f"{name}={weights.get(name, 1):g}" for name in names)
    return f": for example {text}" if len(text) <= _EXAMPLE and text.isprintable() else ""


def _checked(given: Any, n_classes: int) -> Float64:
    array = as_array(given)
    values = list(given if array is None else array.tolist()) if hasattr(given, "__iter__") else [given]
    wrong = [value for value in values if not (checks.is_finite(value) and value >= 0)]
    if wrong or len(values) != n_classes:
        came = shown(wrong[0]) if wrong else f"{len(values)} weight{'s'[: len(values) != 1]}"
        raise InputError(
            f"prior must be {n_classes} weights from 0, one for each class, or uniform or data, got {came}"
        )
    if not max(values) > 0:
        raise InputError("prior must have a positive weight, got none")
    return np.array(values, dtype=np.float64)
