"""Statistics of counts: what the copies of an image that were given a class say about the class's probability p.

A randomized-smoothing certificate (Cohen, Rosenfeld & Kolter, arXiv 1902.02918) holds if p > Phi(R / sigma). Copies are
independent and each is a success with probability p, so everything here is about one binomial proportion:

* A *fixed* number of copies: the bound of Clopper and Pearson, and what follows from it.
* *Any* number, chosen while counting: evidence against "p <= p0", a betting martingale as in Voracek (arXiv 2406.17830)
  and Waudby-Smith & Ramdas (arXiv 2010.09686). Who doubts it bets on a q > p0 and multiplies wealth by q / p0 at a
  success and by (1 - q) / (1 - p0) at a failure; spreading the stake over q with density pi makes of 1, after s
  successes and f failures,

      E = integral over q in (p0, 1] of q^s (1 - q)^f pi(q) dq / (p0^s (1 - p0)^f) .

  At true p a factor is p q / p0 + (1 - p)(1 - q) / (1 - p0) on average: 1 at p = p0, and it grows with p, so it is at
  most 1 for every p <= p0. E is then a supermartingale from 1, and by Ville's inequality it ever reaches 1 / alpha with
  probability at most alpha: one may look after every copy and stop at will.

The prior is pi ~ q^(a - 1) (1 - q)^(b - 1) on (p0, 1]. The sources bet with a = b = 1/2 on all of [0, 1]; here no stake
goes to q <= p0, and a = 1, b = 1/2, which costs the same copies as 1/2, 1/2 and has the property that
:func:`anytime_lower` rests on. At p0 = Phi(2) and alpha = 0.001, expected copies until the decision of
:class:`FixedRadius`, 10,000 at most, for b = 1, 1/2, 1/4, 1/8: 396, 351, 327, 314 if p = 1; 753, 730, 741, 772 if
p = 0.995; 1669, 1706, 1796, 1915 if p = 0.99.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError

IntArray = npt.NDArray[np.int64]

PRIOR = (1.0, 0.5)
"""Of p under the alternative p > p0: probable values are near 1, where few copies decide."""

OPPOSITE_PRIOR = (0.25, 1.0)
"""Of 1 - p under the alternative p < p0: values just beyond 1 - p0 count, for there refusing takes long."""

_TINY = 1e-200
"""A tail probability below which its logarithm comes from a series instead."""


def clopper_pearson(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Float64:
    """Lower confidence bound on p: below p with probability at least 1 - alpha, whatever p is.

    The p at which `successes` or more of n have probability alpha (Clopper & Pearson, Biometrika 26, 1934, one-sided).
    Valid if n was fixed before the copies were counted.

    Args:
        successes: Whole numbers in [0, n].
        n: Copies, at least 1; broadcast against successes.
        alpha: Probability of error, in (0, 1).

    Returns:
        float64 in [0, 1), of the broadcast shape; 0 for no success.

    Raises:
        InputError: Counts or alpha out of range.
    """
    from scipy import special

    s, total = _counts("successes", successes, n)
    _check_fraction("alpha", alpha)
    return np.asarray(np.where(s > 0, special.betaincinv(np.maximum(s, 1), total - s + 1, alpha), 0.0))


def clopper_pearson_upper(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Float64:
    """Upper confidence bound on p: above p with probability at least 1 - alpha. See :func:`clopper_pearson`.

    Returns:
        float64 in (0, 1]; 1 if all succeeded.

    Raises:
        InputError: Counts or alpha out of range.
    """
    s, total = _counts("successes", successes, n)
    return np.asarray(1.0 - clopper_pearson(total - s, total, alpha))


def selection_p_value(top: npt.ArrayLike, second: npt.ArrayLike) -> Float64:
    """How probable so uneven counts of two classes are if both are equally likely: two-sided binomial test at 1/2.

    Cohen's ``predict`` answers the class with the most copies if this is at most alpha. If the smoothed classifier has
    another answer, that happens with probability at most alpha (Hung & Fithian, Annals of Statistics 47, 2019).

    Args:
        top: Copies of the most frequent class.
        second: Copies of the next one, at most `top`.

    Returns:
        float64 in (0, 1].

    Raises:
        InputError: Counts that are negative, not whole or in the other order.
    """
    from scipy import special

    s, total = _counts("second", second, np.add(top, second), low=0)
    larger = total - s
    if np.any(larger < s):
        raise InputError(f"top must be at least second, got {_first(larger < s, larger)} and {_first(larger < s, s)}")
    tail = np.where(larger > s, special.betainc(np.maximum(larger, 1), s + 1, 0.5), 0.5)  # of `larger` or more
    return np.asarray(np.minimum(1.0, 2.0 * tail))


def certified_radius(p_lower: npt.ArrayLike, sigma: float) -> Float64:
    """The L2 radius that a bound on p certifies: sigma Phi^-1(p_lower) where p_lower > 1/2, else 0 (Cohen, theorem 1).

    Args:
        p_lower: Lower bounds in [0, 1).
        sigma: Standard deviation of the smoothing noise, positive; the radius has its unit.

    Raises:
        InputError: A bound or sigma out of range.
    """
    from scipy import special

    p = np.asarray(p_lower, dtype=np.float64)
    if not np.all((p >= 0) & (p < 1)):
        raise InputError(f"p_lower must be in [0, 1), got {_first(~((p >= 0) & (p < 1)), p)}")
    _check_positive("sigma", sigma)
    return np.asarray(sigma * np.maximum(special.ndtri(np.maximum(p, 0.5)), 0.0))


def radius_to_probability(radius: npt.ArrayLike, sigma: float) -> Float64:
    """Phi(R / sigma), which p must exceed, strictly, for a certificate of radius R.

    Args:
        radius: Not negative, in the unit of sigma.
        sigma: Positive.

    Raises:
        InputError: A radius or sigma out of range.
    """
    from scipy import special

    r = np.asarray(radius, dtype=np.float64)
    if not np.all((r >= 0) & np.isfinite(r)):
        raise InputError(f"radius must not be negative, got {_first(~((r >= 0) & np.isfinite(r)), r)}")
    _check_positive("sigma", sigma)
    return np.asarray(special.ndtr(r / sigma))


def most_failures(n: int, p0: float, alpha: float) -> int:
    """The largest number of failures among n copies whose Clopper-Pearson bound still exceeds p0; -1 if none does.

    With one failure more the outcome of a run of n copies is known, and it may stop: nothing is decided early that n
    copies would have decided otherwise.

    Raises:
        InputError: n below 1, or p0 or alpha out of (0, 1).
    """
    _check_fraction("p0", p0)
    low, high = -1, _whole("n", n, low=1) + 1  # `low` failures are few enough, `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        if middle <= n and float(clopper_pearson(n - middle, n, alpha)) > p0:
            low = middle
        else:
            high = middle
    return low


def log_evidence(
    successes: npt.ArrayLike, failures: npt.ArrayLike, p0: npt.ArrayLike, *, prior: tuple[float, float] = PRIOR
) -> Float64:
    """The logarithm of E, the evidence against p <= p0 after some copies; the file's head derives it.

    Guarantee: if p <= p0, it ever reaches log(1 / alpha), over all numbers of copies, with probability at most alpha.
    Accurate to about 1e-7 for ten million copies and 1e-10 for ten thousand. It grows with successes, and falls when a
    success becomes a failure.

    Args:
        successes: s, whole numbers from 0.
        failures: f, whole numbers from 0; all arguments are broadcast.
        p0: In (0, 1).
        prior: (a, b) of the prior, positive, fixed before the copies are seen.

    Returns:
        float64; 0 before the first copy.

    Raises:
        InputError: A count, p0 or the prior out of range.
    """
    f, n = _counts("failures", failures, np.add(successes, failures), low=0)
    null = np.asarray(p0, dtype=np.float64)
    if not np.all((null > 0) & (null < 1)):
        raise InputError(f"p0 must be in (0, 1), got {_first(~((null > 0) & (null < 1)), null)}")
    if not all(math.isfinite(each) and each > 0 for each in prior):
        raise InputError(f"prior must be two positive numbers, got {prior}")
    return _log_ratio(n - f, f, null, prior) - _log_ratio(np.zeros(()), np.zeros(()), null, prior)


def anytime_lower(
    successes: npt.ArrayLike, failures: npt.ArrayLike, alpha: float, *, beta_shape: float = PRIOR[1]
) -> Float64:
    """A lower confidence sequence: with probability at least 1 - alpha, below p after *every* number of copies.

    L is the supremum of the p0 that :func:`log_evidence` rejects, with the prior (1, b), b <= 1. p itself is rejected
    at some time with probability at most alpha; it remains that no p0 below L is kept. With n copies and h(p0) the
    density of the prior at p0, b / (1 - p0),

        d log E / d p0 = h (1 - 1 / E) - (s - n p0) / (p0 (1 - p0)) < 0    where p0 <= s / (n + b) ,

    as h p0 (1 - p0) = b p0 < s - n p0 + b p0 / E. So the p0 rejected below s / (n + b) are an interval from 0, and L is
    sought there only. Nothing is lost: from s / n on E <= 1, and in between E <= e, so with alpha < 1 / e no p0 is
    rejected there.

    One may report the largest bound so far, which is valid as well.

    Args:
        successes: s, whole numbers from 0.
        failures: f, whole numbers from 0.
        alpha: Probability of error, in (0, 1), over all times together.
        beta_shape: b, in (0, 1].

    Returns:
        float64 in [0, 1), of the broadcast shape.

    Raises:
        InputError: A count, alpha or b out of range.
    """
    f, n = _counts("failures", failures, np.add(successes, failures), low=0)
    _check_fraction("alpha", alpha)
    if not 0 < beta_shape <= 1:
        raise InputError(f"beta_shape must be in (0, 1], got {beta_shape}")
    s, threshold = n - f, -math.log(alpha)
    low, high = np.zeros(np.shape(s)), s / (n + beta_shape)
    for _ in range(60):  # of an interval inside [0, 1]: to the last bit
        middle = (low + high) / 2
        inside = (middle > 0) & (middle < 1)
        evidence = log_evidence(s, f, np.where(inside, middle, 0.5), prior=(1.0, beta_shape))
        rejected = inside & (evidence >= threshold)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return np.asarray(low)


@dataclass(frozen=True)
class FixedRadius:
    """Certifies one radius, or refuses it, with as few copies as possible: is p > p0 = Phi(R / sigma)?

    Guarantee: if p <= p0, "certify" is ever said with probability at most alpha, however many copies are counted
    between two decisions and whatever made one stop. Refusing claims nothing, so it needs no guarantee; if p > p0,
    evidence of the opposite makes it refuse with probability at most beta. alpha is spent once: a radius refused here
    is not tried again with the same copies, and neither is another.

    Attributes:
        p0: The probability to exceed, in (0, 1).
        alpha: Of a wrong certificate, in (0, 1).
        beta: Of giving up on a probability above p0 before `most` copies, in (0, 1).
        most: Copies at most, at least 1.
    """

    p0: float
    alpha: float = 0.001
    beta: float = 0.01
    most: int = 10_000

    def __post_init__(self) -> None:
        for name in ("p0", "alpha", "beta"):
            _check_fraction(name, getattr(self, name))
        _whole("most", self.most, low=1)

    @cached_property
    def boundary(self) -> tuple[IntArray, IntArray]:
        """The stopping table, so that a run evaluates no special function.

        Returns:
            int64 (most + 1,) twice, indexed by the number of copies. With at most as many failures as the first says,
            certify (-1: not yet possible); with at least as many as the second says, refuse.
        """
        copies = np.arange(self.most + 1)
        certified_at = self._certified_at()
        allowed = np.searchsorted(certified_at, copies, side="right") - 1
        # With more failures than these, successes alone would not bring it about.
        failures = np.arange(int(allowed[-1]) + 1)
        refused = np.searchsorted(self._refused_until(failures), copies, side="left")
        refused[-1] = len(failures)
        return allowed.astype(np.int64), refused.astype(np.int64)

    def decide(self, successes: int, failures: int) -> str | None:
        """Says "certify", "refuse", or None: count more copies.

        Raises:
            InputError: Negative counts, or more than `most` together.
        """
        copies = successes + failures
        if min(successes, failures) < 0 or copies > self.most:
            raise InputError(f"counts must be 0 to {self.most} together, got {successes} and {failures}")
        allowed, refused = self.boundary
        if failures <= allowed[copies]:
            return "certify"
        return "refuse" if failures >= refused[copies] else None

    def first(self, outcomes: npt.ArrayLike) -> tuple[str | None, int]:
        """The first decision along copies in a fixed order, whatever was evaluated beyond it.

        So that how many copies were in flight changes nothing.

        Args:
            outcomes: bool (m,), which copies were successes, in order; m up to `most`.

        Returns:
            The decision, None if there is none yet, and the number of copies that it rests on.

        Raises:
            InputError: More than `most` outcomes, or other than one dimension.
        """
        won = np.asarray(outcomes, dtype=np.bool_)
        if won.ndim != 1 or len(won) > self.most:
            raise InputError(f"outcomes must have shape (m,), m up to {self.most}, got {won.shape}")
        allowed, refused = self.boundary
        failures = np.concatenate([[0], np.cumsum(~won)])
        decided = (failures <= allowed[: len(failures)]) | (failures >= refused[: len(failures)])
        copies = int(np.argmax(decided)) if decided.any() else len(won)
        return self.decide(copies - int(failures[copies]), int(failures[copies])), copies

    def _certified_at(self) -> IntArray:
        """The number of copies, increasing and up to `most`, from which 0, 1, 2, ... failures certify.

        With f failures the evidence grows with the successes: bisection. With as many as (1 - p0) `most` it is none.
        """
        failures = np.arange(int((1 - self.p0) * self.most) + 2)
        low, high = np.full(len(failures), -1), np.full(len(failures), self.most + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            enough = log_evidence(np.maximum(middle, 0), failures, self.p0) >= -math.log(self.alpha)
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        copies = high + failures
        return copies[copies <= self.most]

    def _refused_until(self, failures: IntArray) -> IntArray:
        """The largest number of copies at which so many failures refuse by evidence of the opposite; -1: at none."""
        low, high = np.full(len(failures), -1), np.full(len(failures), self.most + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            against = log_evidence(failures, np.maximum(middle, 0), 1 - self.p0, prior=OPPOSITE_PRIOR)
            enough = against >= -math.log(self.beta)
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return np.where(low >= 0, low + failures, -1)


def copies_for(
    pilot_successes: int, pilot_n: int, *, sigma: float, alpha: float, largest: int, loss: float, smallest: int = 100
) -> int:
    """How many copies an image needs, from its pilot: the fewest that lose little radius (after ISS, arXiv 2112.12084).

    The smallest n of the grid largest, largest / sqrt 2, largest / 2, ... whose radius, expected at the pilot's
    estimate of p, (s + 1/2) / (n + 1), is within `loss` of that of `largest` copies.

    Guarantee: n depends on the pilot only. If the n copies are fresh, independent of it, their Clopper-Pearson bound
    holds at level alpha for each n, hence for the n chosen: alpha is not split. A poor guess costs copies or radius,
    never validity. The pilot's copies must not be counted again: then n would depend on what is bounded (as in the
    source's released code), and there is no option to do so.

    Args:
        pilot_successes: Copies of the pilot that were given the class.
        pilot_n: Copies of the pilot.
        sigma: Of the smoothing noise.
        alpha: Of the bound.
        largest: The number of copies not to exceed.
        loss: Expected radius that may be given up, in the unit of sigma, not negative.
        smallest: The number of copies not to fall below, unless `largest` is smaller.

    Raises:
        InputError: A number out of range.
    """
    from scipy import stats

    s, total = _counts("pilot_successes", pilot_successes, pilot_n)
    _whole("largest", largest, low=1)
    _whole("smallest", smallest, low=1)
    if not math.isfinite(loss) or loss < 0:
        raise InputError(f"loss must not be negative, got {loss}")
    p = (float(s) + 0.5) / (float(total) + 1)
    steps = max(0, math.floor(2 * math.log2(largest / smallest) + 1e-9))
    grid = np.round(largest * 2.0 ** (-np.arange(steps + 1) / 2)).astype(np.int64)
    quantiles = (np.arange(64) + 0.5) / 64  # a sum over all counts would be long for large n
    counts = stats.binom.ppf(quantiles, grid[:, None], p)
    radii = certified_radius(clopper_pearson(counts, grid[:, None], alpha), sigma).mean(axis=1)
    return int(grid[radii >= radii[0] - loss].min())


def _log_ratio(s: Float64, f: Float64, p0: Float64, prior: tuple[float, float]) -> Float64:
    """Logarithm of the integral from p0 to 1 of q^(s + a - 1) (1 - q)^(f + b - 1) dq over p0^s (1 - p0)^f.

    The integral is B(s + a, f + b) times the upper tail of a beta distribution. A tail too small for float64 is, with
    A = s + a, B = f + b, y = 1 - p0, the series p0^A y^B / B (1 + (A + B) / (B + 1) y + ...), and powers cancel.
    """
    from scipy import special

    a, b = prior
    big_a, big_b, null = np.broadcast_arrays(s + a, f + b, p0)
    tail = special.betaincc(big_a, big_b, null)
    with np.errstate(divide="ignore"):
        result = special.betaln(big_a, big_b) + np.log(tail) - special.xlogy(s, p0) - special.xlog1py(f, -p0)
    far = tail < _TINY
    if np.any(far):
        x, shape_a, shape_b = null[far], big_a[far], big_b[far]
        series = np.log(_series(shape_a, shape_b, 1 - x))
        result = np.array(result)
        result[far] = a * np.log(x) + b * np.log1p(-x) - np.log(shape_b) + series
    return np.asarray(result)


def _series(a: Float64, b: Float64, y: Float64) -> Float64:
    """1 + sum over i >= 0 of y^(i + 1) prod over j <= i of (a + b + j) / (b + 1 + j), for y far below b / (a + b)."""
    term, total, i = np.ones_like(y), np.ones_like(y), 0
    while np.any(term > 1e-17 * total):  # factors are below 1 from the first, and fall
        term = term * (y * (a + b + i) / (b + 1 + i))
        total, i = total + term, i + 1
    return total


def _counts(name: str, successes: npt.ArrayLike, n: npt.ArrayLike, *, low: int = 1) -> tuple[Float64, Float64]:
    """Both as float64 arrays of the broadcast shape, if they are counts in [0, n] and n is at least `low`."""
    s, total = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64))
    good = (s >= 0) & (s <= total) & (s == np.floor(s)) & (total == np.floor(total)) & np.isfinite(total)
    if not np.all(good):
        found = f"{_first(~good, s):g} of {_first(~good, total):g}"
        raise InputError(f"{name} must be whole numbers from 0 to the number of copies, got {found}")
    if np.any(total < low):
        raise InputError(f"there must be at least {low} copies, got {_first(total < low, total):g}")
    return s, total


def _first(where: npt.NDArray[np.bool_], values: Float64) -> float:
    return float(np.broadcast_to(values, where.shape)[where][0])


def _whole(name: str, value: Any, *, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise InputError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return int(value)


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, got {value}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be positive, got {value}")
