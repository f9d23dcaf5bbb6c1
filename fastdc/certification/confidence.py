"""Confidence from a fixed number of copies: bounds on a class's probability p, and the radius that follows from them.

A certificate of radius R by randomized smoothing (Cohen, Rosenfeld & Kolter, arXiv 1902.02918) holds if p is above
Phi(R / sigma). The copies of an image are independent, and each is a success (the base classifier answers the class)
with probability p. So everything here is about one binomial proportion, with a number of copies n that was fixed before
they were counted. :mod:`fastdc.certification.sequential` has the procedures that choose n while they count.

SciPy's special functions are called directly: scipy.stats.beta.ppf returns the same bits in twenty times the time.
"""

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError, Mask, checks


def clopper_pearson(successes: npt.ArrayLike, n: npt.ArrayLike, alpha: float) -> Float64:
    """Lower confidence bound on p from a fixed number of copies (Clopper & Pearson, Biometrika 26, 1934, one-sided).

    The bound is the p at which at least `successes` of n copies succeed with probability alpha.

    Guarantee: for every p, the bound is at most p with probability at least 1 - alpha, if n was fixed before the copies
    were counted.

    Args:
        successes: Numbers of successes, whole numbers in [0, n].
        n: Numbers of copies, at least 1; broadcast against `successes`.
        alpha: Probability of error, in (0, 1).

    Returns:
        float64 in [0, 1), of the broadcast shape; 0 if there is no success.

    Raises:
        InputError: Counts or alpha out of range.

    Example:
        >>> from fastdc.certification import clopper_pearson
        >>> clopper_pearson([95, 100], 100, alpha=0.001).round(3)
        array([0.845, 0.933])
    """
    from scipy import special

    s, total = check_counts("successes", successes, n)
    alpha = checks.fraction("alpha", alpha)
    return np.asarray(np.where(s > 0, special.betaincinv(np.maximum(s, 1), total - s + 1, alpha), 0.0))


def certified_radius(p_lower: npt.ArrayLike, sigma: float) -> Float64:
    """L2 radius that a lower bound on p certifies: sigma Phi^-1(p_lower) if p_lower > 1/2, else 0 (Cohen, theorem 1).

    Args:
        p_lower: Lower confidence bounds on p, in [0, 1).
        sigma: Standard deviation of the smoothing noise, positive; the radius has its unit.

    Returns:
        float64, not negative, of the shape of `p_lower`.

    Raises:
        InputError: A bound or sigma out of range.

    Example:
        >>> from fastdc.certification import certified_radius
        >>> certified_radius([0.4, 0.845, 0.933], sigma=0.25).round(2)
        array([0.  , 0.25, 0.37])
    """
    from scipy import special

    p = np.asarray(p_lower, dtype=np.float64)
    good = (p >= 0) & (p < 1)
    if not np.all(good):
        raise InputError(f"p_lower must be in [0, 1), got {first_where(~good, p)}")
    sigma = checks.positive("sigma", sigma)
    return np.asarray(sigma * np.maximum(special.ndtri(np.maximum(p, 0.5)), 0.0))


def radius_to_probability(radius: npt.ArrayLike, sigma: float) -> Float64:
    """Phi(R / sigma): a certificate of radius R needs a p strictly above it.

    Args:
        radius: L2 radii, not negative, in the unit of sigma.
        sigma: Standard deviation of the smoothing noise, positive.

    Returns:
        float64 in [1/2, 1], of the shape of `radius`.

    Raises:
        InputError: A radius or sigma out of range.
    """
    from scipy import special

    r = np.asarray(radius, dtype=np.float64)
    good = (r >= 0) & np.isfinite(r)
    if not np.all(good):
        raise InputError(f"radius must not be negative, got {first_where(~good, r)}")
    return np.asarray(special.ndtr(r / checks.positive("sigma", sigma)))


def most_failures(n: int, p0: float, alpha: float) -> int:
    """Largest number of failures among n copies at which the Clopper-Pearson bound exceeds p0; -1 if there is none.

    With one failure more the outcome of all n copies is known, so counting may stop. Stopping then decides nothing that
    n copies would have decided otherwise.

    Args:
        n: Number of copies, at least 1.
        p0: Probability that the bound must exceed, in (0, 1).
        alpha: Probability of error of the bound, in (0, 1).

    Raises:
        InputError: An argument out of range.
    """
    p0 = checks.fraction("p0", p0)
    low, high = -1, checks.whole("n", n) + 1  # `low` failures are few enough, `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        if middle <= n and float(clopper_pearson(n - middle, n, alpha)) > p0:
            low = middle
        else:
            high = middle
    return low


def check_counts(name: str, counts: npt.ArrayLike, n: npt.ArrayLike, *, low: int = 1) -> tuple[Float64, Float64]:
    """Returns counts and numbers of copies as float64 arrays of the broadcast shape.

    Args:
        name: Name of the counts in messages.
        counts: Numbers of copies with some outcome, whole numbers in [0, n].
        n: Numbers of copies.
        low: Smallest allowed n.

    Raises:
        InputError: A count is not a whole number in [0, n], or an n is below `low`.
    """
    s, total = np.broadcast_arrays(np.asarray(counts, dtype=np.float64), np.asarray(n, dtype=np.float64))
    good = (s >= 0) & (s <= total) & (s == np.floor(s)) & (total == np.floor(total)) & np.isfinite(total)
    if not np.all(good):
        found = f"{first_where(~good, s):g} of {first_where(~good, total):g}"
        raise InputError(f"{name} must be whole numbers from 0 to the number of copies, got {found}")
    if np.any(total < low):
        raise InputError(f"the number of copies must be at least {low}, got {first_where(total < low, total):g}")
    return s, total


def first_where(condition: Mask, values: Float64) -> float:
    """The first value at which a condition holds, for a message; `values` are broadcast to the condition's shape."""
    return float(np.broadcast_to(values, condition.shape)[condition][0])
