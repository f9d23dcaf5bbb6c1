"""A rule on errors to which every class adds a constant of its own: how a prior enters a race.

Bayes' rule with priors p_k chooses the class with the largest p_k exp(-e_k / T), which is the one with the smallest

    e_k + s_k ,    s_k = -T log p_k + constant .

A rule that did not know the shifts s would drop a class whose prior lets it win. With s_k added to every error of class
k, it compares what the decision compares, and its promise is about the class that is best after the shift:

* ``full`` and ``staged`` order classes by their shifted means, ``sift`` by shifted sums.
* ``ttest`` and ``paired``: the shift moves the mean of the paired differences and nothing else.
* ``betting``: differences may fall below -bound by the largest difference of two shifts, by which the bound grows.
* ``calibrated``: its limit is a measured number. One that was found without the shift promises nothing with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastdc.rules.protocol import AbstractRule, Classes, Look
from fastdc.support import InputError, Mask


@dataclass(frozen=True)
class Shifted(AbstractRule):
    """A rule that sees the errors of each class plus a constant.

    Attributes:
        inner: The rule.
        shifts: The constant of each class, in units of the errors; infinite for a class that does not compete.

    Raises:
        InputError: A shift is not a number, or no class competes.
    """

    name = "shifted"

    inner: AbstractRule
    shifts: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        known = self._finite
        if not known.any() or not (np.array(self.shifts)[~known] == np.inf).all():
            raise InputError("rule shifted needs shifts that are numbers, or infinite for some of the classes")
        finite = np.array(self.shifts)[known]
        object.__setattr__(self, "inner", self.inner.for_shifts(float(np.ptp(finite))))
        for name in ("name", "expands", "assumes_independence"):
            object.__setattr__(self, name, getattr(self.inner, name))

    @property
    def _finite(self) -> Mask:
        return np.isfinite(self.shifts)

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks as the inner rule."""
        return self.inner.looks(draws)

    def keep(self, look: Look) -> Mask:
        """Keeps what the inner rule keeps of the shifted errors."""
        return self.inner.keep(self._shifted(look))

    def begin(self, candidates: Classes) -> Classes:
        """Begins as the inner rule does with the candidates that compete."""
        return self.inner.begin(candidates[self._finite[candidates]])

    def expand(self, look: Look, keep: Mask) -> Sequence[Classes] | None:
        """Adds what the inner rule adds for the shifted errors."""
        return self.inner.expand(self._shifted(look), keep)

    def _shifted(self, look: Look) -> Look:
        shifts = np.array(self.shifts)[look.classes]  # where there is no class, the error is NaN
        return replace(look, errors=look.errors.astype(np.float64) + shifts[:, :, None])
