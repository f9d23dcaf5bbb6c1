"""Estimation: from how often noisy copies were given the selected class to a certificate, and when to stop counting.

An estimation sees counts at *points*, numbers of copies fixed beforehand, and nothing in between: all copies up to a
point are classified before it looks. So what an image costs does not depend on the order in which its copies finish,
and a run that was killed and resumed is the uninterrupted one. Points grow by an eighth from one to the next: looking
seldom costs at most that share of the copies.

Each kind states its guarantee. All spend alpha once, on copies that selection has not seen.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastdc.certification import confidence
from fastdc.support import InputError

MAX_COPIES = 10_000_000

_FIRST_POINT = 32


@dataclass(frozen=True)
class Verdict:
    """How an estimation ended.

    Attributes:
        radius: Certified L2 radius in pixels in [0, 1]; None: abstain.
        p_lower: Lower confidence bound on the probability of the selected class; 0 where none is stated.
    """

    radius: float | None
    p_lower: float


class AbstractEstimation(ABC):
    """How one class's probability is bounded from below. Implementations are frozen dataclasses."""

    name: ClassVar[str]

    sigma: float
    """Standard deviation of the noise, in pixels in [0, 1]."""

    most: int
    """Copies that are counted at most."""

    @abstractmethod
    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """What follows from the counts at a point; None: count on. At `most` copies there is always a verdict."""

    def begin(self, counts: npt.NDArray[np.int64]) -> "AbstractEstimation | Verdict":
        """What estimates, or what follows already from the selection copies: how many chose each class, int64 (K,)."""
        return self

    def next_point(self, copies: int) -> int:
        """The point after this one."""
        return min(self.most, copies + max(_FIRST_POINT, copies // 8))

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"estimation": self.name, **values}


def check_estimation(sigma: float, alpha: float, most: int) -> None:
    """Refuses what no estimation can work with.

    Raises:
        InputError: sigma is not positive, alpha not in (0, 1) or `most` not a number of copies.
    """
    for name, value, high in (("sigma", sigma, float("inf")), ("alpha", alpha, 1.0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < high:
            raise InputError(f"{name} must be a number in (0, {high:g}), got {value!r:.80}")
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MAX_COPIES:
        raise InputError(f"n must be a whole number from 1 to {MAX_COPIES}, got {most!r:.80}")


@dataclass(frozen=True)
class Fixed(AbstractEstimation):
    """n copies and a Clopper-Pearson bound: CERTIFY of Cohen et al., arXiv 1902.02918, section 3.2.

    Guarantee: with probability at least 1 - alpha over the estimation copies, the smoothed classifier answers the
    selected class everywhere within the radius. An image stops early only where the outcome of all n copies is known:
    too many were lost for any radius, whatever the rest is. What is reported then is what n copies would have led to.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        most: n.
        alpha: Probability of a false certificate.
    """

    name = "fixed"

    sigma: float
    most: int
    alpha: float
    _failures: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_estimation(self.sigma, self.alpha, self.most)
        object.__setattr__(self, "_failures", confidence.most_failures(self.most, 0.5, self.alpha))

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """See :class:`AbstractEstimation`."""
        if copies - successes > self._failures:
            return Verdict(None, 0.0)
        if copies < self.most:
            return None
        p_lower = float(confidence.clopper_pearson(successes, copies, self.alpha))
        return Verdict(float(confidence.certified_radius(p_lower, self.sigma)), p_lower)


@dataclass(frozen=True)
class Target(AbstractEstimation):
    """Is this radius certified? As few copies as it takes: a sequential test of p <= Phi(radius / sigma).

    Guarantee: if the selected class's probability is at most Phi(radius / sigma), the test ever certifies with
    probability at most alpha, however long it goes on (:class:`fastdc.certification.confidence.FixedRadius`). Refusing
    needs no guarantee. The certificate is the radius that was asked about, not the largest possible one.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        radius: The L2 radius in question, in pixels in [0, 1]; positive.
        most: Copies after which it refuses.
        alpha: Probability of a false certificate.
    """

    name = "target"

    sigma: float
    radius: float
    most: int
    alpha: float
    _test: confidence.FixedRadius = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_estimation(self.sigma, self.alpha, self.most)
        if isinstance(self.radius, bool) or not isinstance(self.radius, (int, float)) or not 0 < self.radius < 1e6:
            raise InputError(f"radius must be a positive number, got {self.radius!r:.80}")
        p0 = float(confidence.radius_to_probability(self.radius, self.sigma))
        if p0 >= 1:
            raise InputError(f"radius must be below 8 sigma, got {self.radius:g} with sigma {self.sigma:g}")
        object.__setattr__(self, "_test", confidence.FixedRadius(p0=p0, alpha=self.alpha, most=self.most))

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """See :class:`AbstractEstimation`."""
        answer = self._test.decide(successes, copies - successes)
        if answer == "certify":
            return Verdict(self.radius, self._test.p0)
        if answer == "refuse" or copies == self.most:
            return Verdict(None, 0.0)
        return None


@lru_cache(maxsize=100_000)
def _anytime(successes: int, failures: int, alpha: float) -> float:
    """The bound, some milliseconds of bisection; images share their counts."""
    return float(confidence.anytime_lower(successes, failures, alpha))


@dataclass(frozen=True)
class Anytime(AbstractEstimation):
    """A confidence sequence: the bound holds at every number of copies at once, so counting may stop at any.

    Guarantee: with probability at least 1 - alpha the bound is below the selected class's probability at all points
    (:func:`fastdc.certification.confidence.anytime_lower`). It stops when all `most` copies, at the share of successes
    so far, would add no more than `gain` to the radius, or could not reach any.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        most: Copies at most.
        alpha: Probability of a false certificate.
        gain: Radius that is worth more copies, in pixels in [0, 1].
    """

    name = "anytime"

    sigma: float
    most: int
    alpha: float
    gain: float = 0.05

    def __post_init__(self) -> None:
        check_estimation(self.sigma, self.alpha, self.most)
        if isinstance(self.gain, bool) or not isinstance(self.gain, (int, float)) or not 0 < self.gain < 1e6:
            raise InputError(f"gain must be a positive number, got {self.gain!r:.80}")

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """See :class:`AbstractEstimation`."""
        p_lower = _anytime(successes, copies - successes, self.alpha)
        radius = float(confidence.certified_radius(p_lower, self.sigma))
        if copies < self.most:
            ahead = round(self.most * successes / copies)
            p_hoped = _anytime(ahead, self.most - ahead, self.alpha)
            hopeless = _anytime(self.most - copies + successes, copies - successes, self.alpha) <= 0.5
            if not hopeless and float(confidence.certified_radius(p_hoped, self.sigma)) > radius + self.gain:
                return None
        return Verdict(radius if p_lower > 0.5 else None, p_lower if p_lower > 0.5 else 0.0)


@dataclass(frozen=True)
class Pilot(AbstractEstimation):
    """As :class:`Fixed`, with as many copies as the selection copies say are worth it (after arXiv 2112.12084).

    Guarantee: that of :class:`Fixed`. The number of copies is a function of the selection copies, which are independent
    of the estimation copies and do not enter the bound, so alpha is not split.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        most: Copies at most, n.
        alpha: Probability of a false certificate.
        loss: Radius that may be lost against n copies, if the pilot's estimate is right; in pixels in [0, 1].
    """

    name = "pilot"

    sigma: float
    most: int
    alpha: float
    loss: float = 0.05

    def __post_init__(self) -> None:
        check_estimation(self.sigma, self.alpha, self.most)
        if isinstance(self.loss, bool) or not isinstance(self.loss, (int, float)) or not 0 < self.loss < 1e6:
            raise InputError(f"loss must be a positive number, got {self.loss!r:.80}")

    def begin(self, counts: npt.NDArray[np.int64]) -> AbstractEstimation:
        """See :class:`AbstractEstimation`."""
        top, n0 = int(counts.max()), int(counts.sum())
        copies = confidence.copies_for(top, n0, sigma=self.sigma, alpha=self.alpha, largest=self.most, loss=self.loss)
        return Fixed(self.sigma, copies, self.alpha)

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """See :class:`AbstractEstimation`."""
        raise AssertionError("the estimation that begin chose is asked")


@dataclass(frozen=True)
class Predict(AbstractEstimation):
    """No radius: PREDICT of Cohen et al., section 3.2.1, a two-sided binomial test of the two most frequent classes.

    Guarantee: an answer other than abstaining is not the smoothed classifier's with probability at most alpha.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        alpha: Probability of a wrong answer.
        most: Estimation copies: none.
    """

    name = "predict"

    sigma: float
    alpha: float
    most: int = 0

    def __post_init__(self) -> None:
        check_estimation(self.sigma, self.alpha, 1)

    def begin(self, counts: npt.NDArray[np.int64]) -> Verdict:
        """See :class:`AbstractEstimation`."""
        top = np.sort(np.append(counts, 0))[::-1]
        p = float(confidence.selection_p_value(int(top[0]), int(top[1])))
        return Verdict(0.0 if p <= self.alpha else None, 0.0)

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """See :class:`AbstractEstimation`."""
        raise AssertionError("the selection copies decide")
