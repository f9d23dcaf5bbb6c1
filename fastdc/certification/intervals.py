"""Estimates over images with 95 % confidence intervals: how far the number on another set of as many images may be off.

With k of n images and z the 97.5 % quantile of the normal distribution:

    share              (k + z^2 / 2 +- z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2)       Wilson, JASA 22, 1927
    mean               m +- t s / sqrt(n), t the quantile of Student's distribution with n - 1 degrees of freedom
    paired difference  (b' - c' +- z sqrt(b' + c' - (b' - c')^2 / n')) / n',
                       b' = b + 1/2, c' = c + 1/2, n' = n + 2                             Agresti & Min, 2005

The standard error sqrt(k (n - k) / n) / n is no measure of doubt near 0 and n: at both ends it is 0, as if a hundred
images proved that no other image is wrong. Wilson's interval and Agresti and Min's (Statistics in Medicine 24) stay
open there, and reach their level on average. The intervals do not include that each certificate holds with probability
1 - alpha only.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastdc.certification.confidence import check_counts
from fastdc.support import Float64

LEVEL = 0.95
_TAIL = (1 + LEVEL) / 2


class Estimate(NamedTuple):
    """A number and its 95 % confidence interval [low, high], which is NaN if the images do not tell it."""

    value: float
    low: float
    high: float

    def percent(self, digits: int = 2) -> str:
        """The estimate in percent, with its interval if that is known: "97.00 % (95 % interval 91.55 to 98.97 %)"."""
        value = f"{100 * self.value:.{digits}f} %"
        if not math.isfinite(self.low):
            return value
        return f"{value} (95 % interval {100 * self.low:.{digits}f} to {100 * self.high:.{digits}f} %)"

    def to_dict(self) -> dict[str, float | None]:
        """The estimate as JSON values; an interval that is not known becomes null."""
        names = ("value", "ci95_low", "ci95_high")
        return {name: x if math.isfinite(x) else None for name, x in zip(names, self, strict=True)}


def wilson_interval(successes: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Wilson's 95 % confidence interval of a share.

    Args:
        successes: Numbers of successes, whole numbers in [0, n].
        n: Numbers of images, at least 1; broadcast against `successes`.

    Returns:
        Lower and upper ends, float64 in [0, 1], of the broadcast shape.

    Raises:
        InputError: Counts out of range.

    Example:
        >>> from fastdc.certification import wilson_interval
        >>> np.round(wilson_interval([0, 50, 100], 100), 3)
        array([[0.   , 0.404, 0.963],
               [0.037, 0.596, 1.   ]])
    """
    from scipy import special

    k, total = check_counts("successes", successes, n)
    z = float(special.ndtri(_TAIL))
    half = z * np.sqrt(k * (total - k) / total + z**2 / 4)
    low, high = ((k + z**2 / 2 + sign * half) / (total + z**2) for sign in (-1, 1))
    return np.where(k == 0, 0.0, low), np.where(k == total, 1.0, high)  # not a rounding error beside them


def share(successes: int, n: int) -> Estimate:
    """The share of successes among n images, with Wilson's 95 % confidence interval.

    Args:
        successes: Number of successes, in [0, n].
        n: Number of images, at least 1.

    Raises:
        InputError: Counts out of range.

    Example:
        >>> from fastdc.certification import share
        >>> "{:.3f}: {:.3f} to {:.3f}".format(*share(97, 100))
        '0.970: 0.915 to 0.990'
    """
    low, high = wilson_interval(successes, n)
    return Estimate(successes / n, float(low), float(high))


def mean(values: Float64, *, lowest: float = -math.inf) -> Estimate:
    """The mean of one value per image; without an interval if there is one image, or if all values are equal.

    Args:
        values: float64 (n,).
        lowest: Smallest possible value, at which the interval ends.

    Example:
        >>> from fastdc.certification import mean
        >>> "{:.2f}: {:.2f} to {:.2f}".format(*mean(np.array([1.0, 2.0, 4.0, 5.0])))
        '3.00: 0.09 to 5.91'
    """
    from scipy import special

    n, value = len(values), float(values.mean())
    if values.min() == values.max():  # from which no spread of other images follows; std() may be a rounding error
        return Estimate(float(values[0]), math.nan, math.nan)
    half = float(special.stdtrit(n - 1, _TAIL)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, max(lowest, value - half), value + half)


def paired_difference(b: int, c: int, n: int) -> Estimate:
    """The difference of two shares of the same n images, of which b succeed only here and c only there.

    Args:
        b: Number of images that succeed only here.
        c: Number of images that succeed only there.
        n: Number of images, at least b + c.

    Example:
        >>> from fastdc.certification import paired_difference
        >>> paired_difference(8, 1, 100).percent()
        '7.00 % (95 % interval 0.93 to 12.79 %)'
    """
    from scipy import special

    more, less, total = b + 0.5, c + 0.5, n + 2
    centre = (more - less) / total
    half = float(special.ndtri(_TAIL)) * math.sqrt(more + less - (more - less) ** 2 / total) / total
    return Estimate((b - c) / n, max(-1.0, centre - half), min(1.0, centre + half))
