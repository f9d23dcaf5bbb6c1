"""The protocol of stopping rules: pure functions of paired errors that decide which classes to evaluate further.

A request (one image) is evaluated in *looks*. At every look, all classes still alive have been evaluated at the same
first m draws of the plan. The rule sees those errors and keeps or drops classes. The scheduler evaluates the kept
classes up to the next look, until one class is left or the draws are used up. A dropped class never returns, and no
decision compares errors of different draws.

Rules see many requests at once, all at the same look, and hold no state: the decision about a request depends only on
that request's errors. So batch size, admission order and other requests cannot change a result.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, Floats, InputError, Int32, Int64, Mask

Classes: TypeAlias = Int32
"""Class indices."""

Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True, eq=False)
class Look:
    """The input of a rule: r requests at the same look.

    Attributes:
        index: Number of the look, from 0.
        draws: Number m of draws at which every class here has been evaluated: draws 0 ... m - 1 of the plan.
        last: Whether no draws are left after this look.
        classes: int32 (r, A), the classes alive in each request in increasing order; -1 fills short rows.
        errors: float32 (r, A, m), their errors (float64 if they were shifted); NaN where `classes` is -1.
        candidates: bool (r, K), the candidate classes of each request, for rules that expand; None: all classes.
        began: int32 (r,), number of classes that each request began with; None: not known.
    """

    index: int
    draws: int
    last: bool
    classes: Classes
    errors: Floats = field(repr=False)
    candidates: Mask | None = field(default=None, repr=False)
    began: Int32 | None = field(default=None, repr=False)

    @cached_property
    def alive(self) -> Mask:
        """Whether each entry is a class, bool (r, A); read-only."""
        return _read_only(self.classes >= 0)

    @cached_property
    def means(self) -> Float64:
        """Mean error over the draws so far, float64 (r, A), read-only; infinite where there is no class."""
        sums = np.add.reduce(self.errors, axis=2, dtype=np.float64)  # with less overhead than mean()
        return _read_only(np.where(self.alive, sums / self.errors.shape[2], np.inf))

    def leaders(self, means: Float64) -> npt.NDArray[np.intp]:
        """Finds the column of each request's smallest mean, intp (r,). Ties go to the smaller class index."""
        return np.asarray(means.argmin(axis=1))

    def paired(self, leaders: npt.NDArray[np.intp]) -> Float64:
        """Subtracts the leader's error at the same draw, float64 (r, A, m); NaN where there is no class."""
        errors = self.errors.astype(np.float64)
        return errors - np.take_along_axis(errors, leaders[:, None, None], axis=1)


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


class AbstractRule(ABC):
    """A rule that drops classes. Implementations are frozen dataclasses whose fields are the rule's options.

    A rule must keep at least one class of every request, and may keep only classes that are alive.
    """

    name: ClassVar[str]
    """Name for users: ``rule="race"``."""

    expands: ClassVar[bool] = False
    """Whether :meth:`expand` may add classes. Only such rules are also asked after the last look."""

    assumes_independence: ClassVar[bool] = False
    """Whether the rule's guarantee needs draws with independent noise. The noise of antithetic pairs is dependent."""

    draws: int | None = None
    """Default number of draws of a run under this rule; None: the model's default."""

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """The plan's timesteps in order, if the rule defines them; None for most rules."""
        return None

    @property
    def n_classes(self) -> int | None:
        """Number of classes K of the models that the rule is made for; None: any."""
        return None

    @property
    def decision(self) -> str | None:
        """The decision that the rule is made for; None: any."""
        return None

    @property
    def called(self) -> str:
        """The rule in a message about its decision: its name, and the option that asks for the decision."""
        return f"rule {self.name}"

    def votes_of(self, errors: Floats) -> Int64 | None:
        """Votes of the classes, int64 (n, K), if the rule counts them in its own way; None: as the decision does.

        Args:
            errors: (n, K, J), NaN where not evaluated.
        """
        return None

    def for_shifts(self, spread: float) -> "AbstractRule":
        """The rule for errors to which classes add constants that differ by at most `spread`; by default this one."""
        return self

    @abstractmethod
    def looks(self, draws: int) -> tuple[int, ...]:
        """Returns the numbers of draws after which the rule looks, increasing, ending with `draws`.

        Raises:
            InputError: The rule's options do not fit that number of draws.
        """

    @abstractmethod
    def keep(self, look: Look) -> Mask:
        """Decides which classes stay alive, bool (r, A)."""

    def begin(self, candidates: Classes) -> Classes:
        """Returns the classes with which a request begins, a subset of its candidates; by default all of them."""
        return candidates

    def expand(self, look: Look, keep: Mask) -> Sequence[Classes] | None:
        """Adds classes to requests, for rules that begin with a part of the classes, such as a tree's representatives.

        New classes are evaluated at the draws so far, and the same look is taken again with them.

        Args:
            look: The look.
            keep: bool (r, A), the decision of :meth:`keep`.

        Returns:
            The new classes of each request (often none), int32 in increasing order; None if no request gets any.
        """
        return None


def geometric_looks(draws: int) -> tuple[int, ...]:
    """Returns looks at 1, 2, 3, 4, 8, 16, 32, ... and `draws`: first at every draw, then each doubles the draws.

    Few looks keep two numbers logarithmic in the draws: the tests whose errors add up, and the steps that must wait for
    one another.

    Args:
        draws: Number of draws of the run, at least 1.

    Returns:
        Numbers of draws, increasing.

    Example:
        >>> from fastdc.rules import geometric_looks
        >>> geometric_looks(20)
        (1, 2, 3, 4, 8, 16, 20)
    """
    looks = [look for look in (1, 2, 3) if look < draws]
    step = 4
    while step < draws:
        looks.append(step)
        step *= 2
    return (*looks, draws)


def check_draws(name: str, draws: int) -> None:
    """Refuses a run without draws.

    Raises:
        InputError: `draws` is below 1.
    """
    if draws < 1:
        raise InputError(f"rule {name} needs at least one draw, got {draws}")
