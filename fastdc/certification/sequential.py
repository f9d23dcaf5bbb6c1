"""Confidence while counting: tests and bounds on a class's probability p that hold at every number of copies at once.

Copies are independent, and each is a success with probability p. Evidence against "p <= p0" is a betting martingale, as
in Voracek (arXiv 2406.17830) and Waudby-Smith & Ramdas (arXiv 2010.09686). A gambler who doubts it bets on a q > p0: a
success multiplies the wealth by q / p0, a failure by (1 - q) / (1 - p0). A stake of 1 that is spread over q with the
density pi becomes, after s successes and f failures,

    E = integral over q in (p0, 1] of q^s (1 - q)^f pi(q) dq / (p0^s (1 - p0)^f) .

For a true p, one factor has the mean p q / p0 + (1 - p)(1 - q) / (1 - p0). This is 1 at p = p0 and grows with p, so it
is at most 1 for every p <= p0. E is then a supermartingale that starts at 1. By Ville's inequality it ever reaches
1 / alpha with probability at most alpha: one may look after every copy and stop at will.

The prior is pi ~ q^(a - 1) (1 - q)^(b - 1) on (p0, 1]. The sources bet with a = b = 1/2 on all of [0, 1]. Here no stake
goes to q <= p0, and a = 1, b = 1/2; this costs the same copies as 1/2, 1/2 and has the property that
:func:`anytime_lower` rests on. At p0 = Phi(2) and alpha = 0.001, the expected numbers of copies until
:class:`FixedRadius` decides, 10,000 at most, are for b = 1, 1/2, 1/4, 1/8: 396, 351, 327, 314 if p = 1; 753, 730, 741,
772 if p = 0.995; 1669, 1706, 1796, 1915 if p = 0.99.

SciPy has no such test; scipy.stats.beta.logsf cannot give the integral either: it is -inf where the tail underflows.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fastdc.certification.confidence import certified_radius, check_counts, clopper_pearson, first_where
from fastdc.support import Float64, InputError, Int64, checks

PRIOR = (1.0, 0.5)
"""Prior of p under the alternative p > p0. It favours values near 1, where few copies decide."""

OPPOSITE_PRIOR = (0.25, 1.0)
"""Prior of 1 - p under the alternative p < p0. It favours values just above 1 - p0, where refusing takes long."""

_TINY = 1e-200  # below this tail probability, its logarithm comes from a series
_FEWEST = 100  # the smallest number of copies that a pilot chooses


def log_evidence(
    successes: npt.ArrayLike, failures: npt.ArrayLike, p0: npt.ArrayLike, *, prior: tuple[float, float] = PRIOR
) -> Float64:
    """Logarithm of E, the evidence against p <= p0 after some copies; the head of the file derives it.

    Guarantee: if p <= p0, the evidence ever reaches log(1 / alpha), over all numbers of copies, with probability at
    most alpha.

    The result is accurate to about 1e-7 for ten million copies and to 1e-10 for ten thousand. It grows with the number
    of successes, and falls if a success becomes a failure.

    Args:
        successes: Numbers of successes s, whole numbers from 0.
        failures: Numbers of failures f, whole numbers from 0.
        p0: Probabilities to test, in (0, 1). All three arguments are broadcast.
        prior: Parameters (a, b) of the prior, positive, fixed before the copies are seen.

    Returns:
        float64 of the broadcast shape; 0 before the first copy.

    Raises:
        InputError: A count, p0 or the prior out of range.
    """
    f, n = check_counts("failures", failures, np.add(successes, failures), low=0)
    null = np.asarray(p0, dtype=np.float64)
    good = (null > 0) & (null < 1)
    if not np.all(good):
        raise InputError(f"p0 must be in (0, 1), got {first_where(~good, null)}")
    if not all(math.isfinite(each) and each > 0 for each in prior):
        raise InputError(f"prior must be two positive numbers, got {prior}")
    return _log_ratio(n - f, f, null, prior) - _log_ratio(np.zeros(()), np.zeros(()), null, prior)


def anytime_lower(successes: npt.ArrayLike, failures: npt.ArrayLike, alpha: float) -> Float64:
    """Lower confidence sequence of p.

    Guarantee: with probability at least 1 - alpha, the bound is at most p after *every* number of copies. The largest
    bound so far is then valid as well.

    The bound L is the supremum of the p0 that :func:`log_evidence` rejects with the prior (1, b), b = 1/2. At some time
    p itself is rejected with probability at most alpha. It remains to show that every p0 below L is rejected. With n
    copies, and with h(p0) = b / (1 - p0), the density of the prior at p0,

        d log E / d p0 = h (1 - 1 / E) - (s - n p0) / (p0 (1 - p0)) < 0    if p0 <= s / (n + b) ,

    because h p0 (1 - p0) = b p0 < s - n p0 + b p0 / E. So the p0 that are rejected below s / (n + b) form an interval
    from 0, and L is sought there only. Nothing is lost: from s / n on E <= 1, and in between E <= e, so no p0 is
    rejected there if alpha < 1 / e.

    Args:
        successes: Numbers of successes s, whole numbers from 0.
        failures: Numbers of failures, whole numbers from 0; broadcast against `successes`.
        alpha: Probability of error over all times together, in (0, 1).

    Returns:
        float64 in [0, 1), of the broadcast shape.

    Raises:
        InputError: A count or alpha out of range.
    """
    f, n = check_counts("failures", failures, np.add(successes, failures), low=0)
    s, threshold = n - f, -math.log(checks.fraction("alpha", alpha))
    low, high = np.zeros(np.shape(s)), s / (n + PRIOR[1])
    for _ in range(60):  # an interval inside [0, 1], halved down to its last bit
        middle = (low + high) / 2
        inside = (middle > 0) & (middle < 1)
        rejected = inside & (log_evidence(s, f, np.where(inside, middle, 0.5)) >= threshold)
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return np.asarray(low)


@dataclass(frozen=True)
class FixedRadius:
    """Test that certifies one radius or refuses it, with as few copies as possible: is p > p0 = Phi(R / sigma)?

    Guarantee: if p <= p0, the test ever certifies with probability at most alpha, however many copies are counted
    between two decisions and at any stopping time. Refusing claims nothing, so it needs no guarantee; evidence
    of the opposite refuses with probability at most beta if p > p0. alpha is spent once: neither a radius that was
    refused nor another one may be tried again with the same copies.

    Attributes:
        p0: Probability that p must exceed, in (0, 1).
        alpha: Probability of a wrong certificate, in (0, 1).
        beta: Probability of giving up, before `n` copies, on a p above p0; in (0, 1).
        n: Largest number of copies, at least 1.
    """

    p0: float
    alpha: float = 0.001
    beta: float = 0.01
    n: int = 10_000

    def __post_init__(self) -> None:
        for name in ("p0", "alpha", "beta"):
            object.__setattr__(self, name, checks.fraction(name, getattr(self, name)))
        object.__setattr__(self, "n", checks.whole("n", self.n))

    @cached_property
    def boundary(self) -> tuple[Int64, Int64]:
        """Stopping table, so that no special function is evaluated while copies are counted.

        Returns:
            Two int64 arrays (n + 1,), indexed by the number of copies. The test certifies if there are at most as
            many failures as the first says (-1: not yet possible), and refuses if there are at least as many as the
            second says.
        """
        copies = np.arange(self.n + 1)
        certified_at = self._certified_at()
        allowed = np.searchsorted(certified_at, copies, side="right") - 1
        # With more failures than these, not even successes alone would certify.
        failures = np.arange(int(allowed[-1]) + 1)
        refused = np.searchsorted(self._refused_until(failures), copies, side="left")
        refused[-1] = len(failures)
        return allowed.astype(np.int64), refused.astype(np.int64)

    def decide(self, successes: int, failures: int) -> str | None:
        """Returns "certify", "refuse", or None: count more copies.

        Raises:
            InputError: A count is negative, or there are more than `n` copies.
        """
        copies = successes + failures
        if min(successes, failures) < 0 or copies > self.n:
            raise InputError(f"counts must be 0 to {self.n} together, got {successes} and {failures}")
        allowed, refused = self.boundary
        if failures <= allowed[copies]:
            return "certify"
        return "refuse" if failures >= refused[copies] else None

    def _certified_at(self) -> Int64:
        """Numbers of copies, increasing and up to `n`, from which 0, 1, 2, ... failures certify.

        With f failures the evidence grows with the number of successes, so bisection finds it. With (1 - p0) `n`
        failures there is no evidence left.
        """
        failures = np.arange(int((1 - self.p0) * self.n) + 2)
        low, high = np.full(len(failures), -1), np.full(len(failures), self.n + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            enough = log_evidence(np.maximum(middle, 0), failures, self.p0) >= -math.log(self.alpha)
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        copies = high + failures
        return copies[copies <= self.n]

    def _refused_until(self, failures: Int64) -> Int64:
        """Largest number of copies at which each number of failures refuses, by evidence of the opposite; -1: never."""
        low, high = np.full(len(failures), -1), np.full(len(failures), self.n + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            against = log_evidence(failures, np.maximum(middle, 0), 1 - self.p0, prior=OPPOSITE_PRIOR)
            enough = against >= -math.log(self.beta)
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        return np.where(low >= 0, low + failures, -1)


def copies_for(pilot_successes: int, pilot_n: int, *, sigma: float, alpha: float, n: int, loss: float) -> int:
    """Number of copies that an image needs, from its pilot: the fewest that lose little radius (arXiv 2112.12084).

    This is the smallest number m of the grid n, n / sqrt 2, n / 2, ... down to 100 whose expected radius is within
    `loss` of that of n copies. The expectation is at the pilot's estimate of p, (s + 1/2) / (pilot_n + 1).

    Guarantee: m depends on the pilot only. If the m copies are fresh and independent of the pilot, their
    Clopper-Pearson bound holds at level alpha for each m, hence for the m that was chosen, and alpha is not split. A
    poor guess costs copies or radius, never validity. The pilot's copies must not be counted again: m would then depend
    on the counts that are bounded, as in the source's released code. There is no option to do so.

    Args:
        pilot_successes: Number of pilot copies that were given the class.
        pilot_n: Number of pilot copies.
        sigma: Standard deviation of the smoothing noise.
        alpha: Probability of error of the bound.
        n: Largest number of copies.
        loss: Expected radius that may be given up, in the unit of sigma, not negative.

    Raises:
        InputError: A number out of range.
    """
    from scipy import stats

    s, total = check_counts("pilot_successes", pilot_successes, pilot_n)
    n, loss = checks.whole("n", n), checks.positive("loss", loss, zero=True)
    p = (float(s) + 0.5) / (float(total) + 1)
    steps = max(0, math.floor(2 * math.log2(n / _FEWEST) + 1e-9))
    grid = np.round(n * 2.0 ** (-np.arange(steps + 1) / 2)).astype(np.int64)
    quantiles = (np.arange(64) + 0.5) / 64  # a sum over all counts would be long for large numbers
    counts = stats.binom.ppf(quantiles, grid[:, None], p)
    radii = certified_radius(clopper_pearson(counts, grid[:, None], alpha), sigma).mean(axis=1)
    return int(grid[radii >= radii[0] - loss].min())


def _log_ratio(s: Float64, f: Float64, p0: Float64, prior: tuple[float, float]) -> Float64:
    """Logarithm of the integral from p0 to 1 of q^(s + a - 1) (1 - q)^(f + b - 1) dq over p0^s (1 - p0)^f.

    The integral is B(s + a, f + b) times the upper tail of a beta distribution. If the tail is too small for float64,
    it is, with A = s + a, B = f + b and y = 1 - p0, the series p0^A y^B / B (1 + (A + B) / (B + 1) y + ...), and the
    powers cancel.
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
    while np.any(term > 1e-17 * total):  # the factors are below 1 from the first on, and fall
        term = term * (y * (a + b + i) / (b + 1 + i))
        total, i = total + term, i + 1
    return total
