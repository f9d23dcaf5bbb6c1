"""Evidence from images that are compared in pairs: which of two choices is better, and which is as good."""

import math

from fastdc.support import Float64

_LEVEL = 0.05


def beyond_doubt(difference: Float64, comparisons: int) -> bool:
    """Whether a mean difference per image is above 0, by a one-sided t-test at level 0.05 / comparisons (Bonferroni).

    Args:
        difference: float64 (n,), one difference per image, averaged over the noise seeds.
        comparisons: Number of differences that are looked at, from 1.

    Example:
        >>> from fastdc.calibration import beyond_doubt
        >>> beyond_doubt(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), comparisons=1)
        True
    """
    from scipy import special

    n, level = len(difference), _LEVEL / comparisons
    spread = float(difference.std(ddof=1)) if n > 1 else 0.0
    if spread == 0:  # all images agree: a difference, if any, has one sign n times
        return bool(n and difference.mean() > 0 and 0.5**n <= level)
    needed = float(special.stdtrit(n - 1, 1 - level))
    return float(difference.mean()) * math.sqrt(n) / spread > needed


def within_noise(difference: Float64) -> bool:
    """Whether a mean difference per image is at most its standard error (Breiman et al.'s one-standard-error rule).

    Args:
        difference: float64 (n,), by how much the best choice is better on each image.

    Example:
        >>> from fastdc.calibration import within_noise
        >>> within_noise(np.array([1.0, 0.0, 0.0, -1.0])), within_noise(np.ones(4))
        (True, False)
    """
    n = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return bool(difference.mean() <= error)
