"""The protocol of stopping rules: pure functions of paired errors that say which classes are still worth evaluating.

A request (one image) is evaluated in *looks*: at every look, all classes still alive have been evaluated at the same
first m draws of the plan. The rule is shown those errors and keeps or drops classes. The scheduler evaluates the kept
ones up to the next look, until one class is left or the draws are used up. A class that was dropped never returns, and
no decision compares errors of different draws.

Rules see many requests at once, all at the same look, and hold no state: what they decide depends on nothing but the
errors of that request. That is why batch size, admission order and other requests cannot change a result.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fastdc.support import InputError

Mask = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.int32]
Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True, eq=False)
class Look:
    """What a rule sees: r requests at the same look.

    Attributes:
        index: Which look, from 0.
        draws: m, the draws that every class here has been evaluated at: those 0 ... m - 1 of the plan.
        last: Whether no draws are left after this look.
        classes: int32 (r, A), the classes alive in each request in increasing order; -1 fills short rows.
        errors: float32 (r, A, m), their errors; NaN where `classes` is -1.
        candidates: bool (r, K), the candidate classes of each request, shown to rules that expand; None: all classes.
    """

    index: int
    draws: int
    last: bool
    classes: Classes
    errors: npt.NDArray[np.float32] = field(repr=False)
    candidates: Mask | None = field(default=None, repr=False)

    @cached_property
    def alive(self) -> Mask:
        """Which entries are classes at all, bool (r, A); read-only."""
        return _read_only(self.classes >= 0)

    @cached_property
    def means(self) -> npt.NDArray[np.float64]:
        """The mean error over the draws so far, float64 (r, A), read-only; infinite where there is no class."""
        sums = np.add.reduce(self.errors, axis=2, dtype=np.float64)  # of which mean() makes much ado
        return _read_only(np.where(self.alive, sums / self.errors.shape[2], np.inf))

    def leaders(self, means: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """The column of each request's smallest mean, intp (r,); ties go to the smaller class index."""
        return np.asarray(means.argmin(axis=1))

    def paired(self, leaders: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """Errors minus the leader's at the same draw, float64 (r, A, m); NaN where there is no class."""
        errors = self.errors.astype(np.float64)
        return errors - np.take_along_axis(errors, leaders[:, None, None], axis=1)


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


class AbstractRule(ABC):
    """When to drop a class. Implementations are frozen dataclasses whose fields are the rule's options.

    A rule must keep at least one class of every request, and may keep only classes that are alive.
    """

    name: ClassVar[str]
    """What users call it: ``rule="race"``."""

    expands: ClassVar[bool] = False
    """Whether :meth:`expand` may add classes. Only then is the rule asked after the last look too."""

    assumes_independence: ClassVar[bool] = False
    """Whether its promise needs draws whose noise is independent, which that of antithetic pairs is not."""

    draws: int | None = None
    """Draws that a run under this rule has unless the user says otherwise; None: the model's default."""

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """The plan's timesteps in order, for rules that bring their own; None for all others."""
        return None

    @property
    def n_classes(self) -> int | None:
        """K, for rules that are made for models of so many classes; None for all others."""
        return None

    @abstractmethod
    def looks(self, draws: int) -> tuple[int, ...]:
        """The draws after which the rule looks, increasing, ending with `draws`.

        Raises:
            InputError: The rule's options do not fit that number of draws.
        """

    @abstractmethod
    def keep(self, look: Look) -> Mask:
        """The classes that stay alive, bool (r, A)."""

    def begin(self, candidates: Classes) -> Classes:
        """The classes to begin with, a subset of the candidates of a request; all of them unless overridden."""
        return candidates

    def expand(self, look: Look, keep: Mask) -> Sequence[Classes] | None:
        """New classes, int32 in increasing order, that join each request (often none), or None for none at all.

        They are evaluated at the draws so far, and the same look is taken again with them in it. For rules that begin
        with a part of the classes, such as a tree's representatives.
        """
        return None


def geometric_looks(draws: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 8, 16, 32, ... and `draws`: every draw while looking is cheap, then each look doubles the draws.

    Few looks keep two things logarithmic in the draws: the tests whose errors add up, and the chain of steps that wait
    for one another.
    """
    looks = [look for look in (1, 2, 3) if look < draws]
    step = 4
    while step < draws:
        looks.append(step)
        step *= 2
    return (*looks, draws)


def check_draws(name: str, draws: int) -> None:
    """Refuses a number of draws that is not one.

    Raises:
        InputError: `draws` is below 1.
    """
    if draws < 1:
        raise InputError(f"rule {name} needs at least one draw, got {draws}")
