"""Estimation: from how often noisy copies were given the selected class to a certificate, and when to stop counting.

An estimation decides at *points*: numbers of copies that were fixed beforehand. It sees the counts at a point after all
copies up to it are classified, and nothing in between. So the cost of an image does not depend on the order in which
its copies finish, and a certification that was killed and resumed gives the records of an uninterrupted one. Each point
exceeds the one before by an eighth, or by 32 copies at first, so deciding seldom costs at most that many copies.

Each estimation states its guarantee. All of them spend alpha once, on copies that selection has not seen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from fastdc.certification import confidence, sequential
from fastdc.support import InputError, Int64, checks

MAX_COPIES = 10_000_000

ALPHA = 0.001
"""Default probability of a false certificate."""

COPIES, TARGET_COPIES = 1000, 10_000
"""Default of n, and of n where one radius is asked about."""

TOLERANCE = 0.05
"""Default radius that :class:`Pilot` and :class:`Anytime` may lose, in pixels in [0, 1]."""

_FIRST_POINT = 32


@dataclass(frozen=True)
class Verdict:
    """Result of an estimation.

    Attributes:
        radius: Certified L2 radius in pixels in [0, 1]; None: abstain.
        p_lower: Lower confidence bound on the probability of the selected class; 0 if none is stated.
    """

    radius: float | None
    p_lower: float


_ABSTAIN = Verdict(None, 0.0)


class AbstractEstimation(ABC):
    """A way to bound one class's probability from below. Implementations are frozen dataclasses."""

    name: ClassVar[str]

    sigma: float
    """Standard deviation of the noise, in pixels in [0, 1]."""

    @abstractmethod
    def begin(self, counts: Int64) -> "AbstractCounting | Verdict":
        """Chooses what follows selection.

        Args:
            counts: int64 (K,), number of selection copies that chose each class.

        Returns:
            The estimation that counts fresh copies, or the verdict if the selection copies already decide.
        """

    def check_selection(self, n0: int) -> None:  # noqa: B027 - most estimations take any number
        """Refuses a number of selection copies with which the estimation never decides.

        Raises:
            InputError: There are too few copies.
        """

    def describe(self) -> dict[str, Any]:
        """Name and options of the estimation, as plain values."""
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"estimation": self.name, **options}


class AbstractCounting(AbstractEstimation):
    """An estimation that counts copies up to one point after another."""

    n: int
    """Largest number of copies that are counted."""

    @abstractmethod
    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """Decides from the counts at a point; None: count on. At `n` copies there is always a verdict."""

    def begin(self, counts: Int64) -> "AbstractCounting | Verdict":
        """Returns the estimation itself: nothing but the selected class comes from the selection copies."""
        return self

    def next_point(self, copies: int) -> int:
        """The point after the one at `copies`."""
        return min(self.n, copies + max(_FIRST_POINT, copies // 8))


def _store(estimation: AbstractEstimation, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(estimation, name, value)


def _store_common(estimation: "Fixed | Target | Anytime | Pilot") -> None:
    """Checks the options that every estimation with copies has, and stores them as Python's own numbers."""
    _store(
        estimation,
        sigma=checks.positive("sigma", estimation.sigma),
        alpha=checks.fraction("alpha", estimation.alpha),
        n=checks.whole("n", estimation.n, high=MAX_COPIES),
    )


def _check_reach(estimation: "Fixed | Target | Anytime | Pilot", aim: str, certifies: Callable[[int], bool]) -> None:
    """Refuses a number of copies that certifies nothing, even if the class wins all of them.

    Args:
        estimation: The estimation, whose `n` copies are too few or not.
        aim: What it would certify, for the message.
        certifies: Whether a number of copies, all won, suffices; then every larger number does.

    Raises:
        InputError: There are too few copies.
    """
    low, high = estimation.n, MAX_COPIES
    if certifies(low):
        return
    if not certifies(high):
        raise InputError(f"no n up to {MAX_COPIES} certifies {aim} with alpha {estimation.alpha:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certifies(middle) else (middle, high)
    raise InputError(
        f"n must be at least {high} to certify {aim} with alpha {estimation.alpha:g}, got {estimation.n}: even if "
        f"the class wins every copy"
    )


def _check_reach_of_bound(estimation: "Fixed | Pilot") -> None:
    """As :func:`_check_reach`, for the Clopper-Pearson bound: alpha^(1/n) after n successes."""
    _check_reach(estimation, "any radius", lambda n: float(confidence.clopper_pearson(n, n, estimation.alpha)) > 0.5)


@dataclass(frozen=True)
class Fixed(AbstractCounting):
    """n copies and a Clopper-Pearson bound: CERTIFY of Cohen et al., arXiv 1902.02918, section 3.2.

    Guarantee: with probability at least 1 - alpha over the estimation copies, the smoothed classifier answers the
    selected class everywhere within the radius. An image stops early only if the outcome of all n copies is known: too
    many were lost for any radius. The verdict is then the one that n copies would have led to.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        n: Number of copies.
        alpha: Probability of a false certificate.
    """

    name = "fixed"

    sigma: float
    n: int = COPIES
    alpha: float = ALPHA
    _failures: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _store_common(self)
        _check_reach_of_bound(self)
        _store(self, _failures=confidence.most_failures(self.n, 0.5, self.alpha))

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """Bounds p at n copies; abstains before, if n copies cannot reach a bound above 1/2."""
        if copies - successes > self._failures:
            return _ABSTAIN
        if copies < self.n:
            return None
        p_lower = float(confidence.clopper_pearson(successes, copies, self.alpha))
        return Verdict(float(confidence.certified_radius(p_lower, self.sigma)), p_lower)


@dataclass(frozen=True)
class Target(AbstractCounting):
    """One radius, certified or refused with as few copies as possible: a sequential test of p <= Phi(radius / sigma).

    Guarantee: if the selected class's probability is at most Phi(radius / sigma), the test ever certifies with
    probability at most alpha, however long it goes on (``sequential.FixedRadius`` has the theorem). Refusing needs no
    guarantee. The certificate states the radius that was asked about, not the largest possible one.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        radius: L2 radius to certify, in pixels in [0, 1]; positive.
        n: Number of copies after which the test refuses.
        alpha: Probability of a false certificate.
    """

    name = "target"

    sigma: float
    radius: float
    n: int = TARGET_COPIES
    alpha: float = ALPHA
    _test: sequential.FixedRadius = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _store_common(self)
        _store(self, radius=checks.positive("radius", self.radius, below=1e6))
        p0 = float(confidence.radius_to_probability(self.radius, self.sigma))
        if p0 >= 1:
            raise InputError(f"radius must be below 8 sigma, got {self.radius:g} with sigma {self.sigma:g}")
        threshold = -math.log(self.alpha)
        aim = f"radius {self.radius:g} at sigma {self.sigma:g}"
        _check_reach(self, aim, lambda n: float(sequential.log_evidence(n, 0, p0)) >= threshold)
        _store(self, _test=sequential.FixedRadius(p0=p0, alpha=self.alpha, n=self.n))

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """Answers as the sequential test does, and refuses at `n` copies."""
        answer = self._test.decide(successes, copies - successes)
        if answer == "certify":
            return Verdict(self.radius, self._test.p0)
        if answer == "refuse" or copies == self.n:
            return _ABSTAIN
        return None


@lru_cache(maxsize=100_000)
def _anytime(successes: int, failures: int, alpha: float) -> float:
    """The bound of the confidence sequence. The bisection takes some milliseconds, and images share their counts."""
    return float(sequential.anytime_lower(successes, failures, alpha))


@dataclass(frozen=True)
class Anytime(AbstractCounting):
    """A confidence sequence: the bound holds at every number of copies at once, so counting may stop at any.

    Guarantee: with probability at least 1 - alpha, the bound is at most the selected class's probability at all points
    (``sequential.anytime_lower`` has the theorem).

    Counting stops when all `n` copies, at the share of successes so far, would add no more than `gain` to the
    radius, or when they could not reach any radius.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        n: Largest number of copies.
        alpha: Probability of a false certificate.
        gain: Gain in radius that is worth more copies, in pixels in [0, 1].
    """

    name = "anytime"

    sigma: float
    n: int = COPIES
    alpha: float = ALPHA
    gain: float = TOLERANCE

    def __post_init__(self) -> None:
        _store_common(self)
        _store(self, gain=checks.positive("gain", self.gain, below=1e6))
        _check_reach(self, "any radius", lambda n: _anytime(n, 0, self.alpha) > 0.5)

    def verdict(self, successes: int, copies: int) -> Verdict | None:
        """Returns the bound at this point if more copies would gain too little, or no radius can be reached."""
        p_lower = _anytime(successes, copies - successes, self.alpha)
        radius = float(confidence.certified_radius(p_lower, self.sigma))
        if copies < self.n:
            ahead = round(self.n * successes / copies)
            p_hoped = _anytime(ahead, self.n - ahead, self.alpha)
            hopeless = _anytime(self.n - copies + successes, copies - successes, self.alpha) <= 0.5
            if not hopeless and float(confidence.certified_radius(p_hoped, self.sigma)) > radius + self.gain:
                return None
        return Verdict(radius, p_lower) if p_lower > 0.5 else _ABSTAIN


@dataclass(frozen=True)
class Pilot(AbstractEstimation):
    """As :class:`Fixed`, with the number of copies that the selection copies suggest (after arXiv 2112.12084).

    Guarantee: that of :class:`Fixed`. The number of copies is a function of the selection copies, which are independent
    of the estimation copies and do not enter the bound, so alpha is not split.

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        n: Largest number of copies.
        alpha: Probability of a false certificate.
        loss: Radius that may be lost against n copies if the pilot's estimate of p is right; in pixels in [0, 1].
    """

    name = "pilot"

    sigma: float
    n: int = COPIES
    alpha: float = ALPHA
    loss: float = TOLERANCE

    def __post_init__(self) -> None:
        _store_common(self)
        _store(self, loss=checks.positive("loss", self.loss, below=1e6))
        _check_reach_of_bound(self)

    def begin(self, counts: Int64) -> Fixed:
        """Returns :class:`Fixed` with as many copies as the selection copies, as a pilot, suggest."""
        top, n0 = int(counts.max()), int(counts.sum())
        copies = sequential.copies_for(top, n0, sigma=self.sigma, alpha=self.alpha, n=self.n, loss=self.loss)
        least = math.floor(-math.log2(self.alpha)) + 1  # fewer than these certify nothing
        return Fixed(self.sigma, max(copies, least), self.alpha)


@dataclass(frozen=True)
class Predict(AbstractEstimation):
    """No radius: PREDICT of Cohen et al., section 3.2.1, a two-sided binomial test of the two most frequent classes.

    Guarantee: the answer is a class other than the smoothed classifier's with probability at most alpha (Hung &
    Fithian, Annals of Statistics 47, 2019).

    Attributes:
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        alpha: Probability of a wrong answer.
    """

    name = "predict"

    sigma: float
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        _store(self, sigma=checks.positive("sigma", self.sigma), alpha=checks.fraction("alpha", self.alpha))

    def check_selection(self, n0: int) -> None:
        """Refuses so few copies that a class which wins all of them is not yet sure."""
        least = next(n for n in range(1, MAX_COPIES) if 2.0 ** (1 - n) <= self.alpha)  # p-value of n to 0
        if n0 < least:
            raise InputError(f"n0 must be at least {least} to predict with alpha {self.alpha:g}, got {n0}")

    def begin(self, counts: Int64) -> Verdict:
        """Answers the most frequent class unless two equally probable classes would often be as uneven."""
        from scipy import stats

        second, top = sorted([0, *counts.tolist()])[-2:]
        p_value = stats.binomtest(top, top + second, 0.5).pvalue
        return Verdict(0.0, 0.0) if p_value <= self.alpha else _ABSTAIN
