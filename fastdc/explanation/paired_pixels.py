"""Paired differences of two classes' errors at every pixel, over draws: means, standard errors, significant pixels.

At draw j (a noise level and a noise that both classes see) and pixel p,

    d_jp = err_against,jp - err_class,jp,       mean_p = 1/J sum_j d_jp,       s_p^2 = 1/(J - 1) sum_j (d_jp - mean_p)^2

and the standard error is s_p / sqrt(J). Draws of the default order are spread evenly over the noise levels, so that the
d_jp are independent but not identically distributed. That errs on the safe side twice:

* The variance of mean_p is at most E s_p^2 / J, with equality if all levels have the same mean.
* At a pixel where no level favours a class, d_jp has mean 0 at every level, with a variance of its own. If it is
  Gaussian, or a scale mixture of Gaussians, P(|t_p| > q) for t_p = sqrt(J) mean_p / s_p is at most that of Student's t
  with J - 1 degrees of freedom, for every two-sided level up to 8.3 % (Bakirov & Szekely 2005; Ibragimov & Mueller
  2010). The p-values are then valid where they are used. d_jp is exactly Gaussian if both denoisers are affine with
  equal slopes (``testing.GaussianWorld``); otherwise the mean over draws has to make it so.

Pixels depend on each other in ways that nobody knows, through the network, so the corrections are those that hold under
any dependence. For the map of one image with m pixels and p-values as above:

* "fdr" (Benjamini & Yekutieli 2001, theorem 1.3): the expected share of pixels without evidence among the significant
  ones is at most alpha.
* "fwer" (Holm 1979): the probability that any pixel without evidence is significant is at most alpha.

Both promises are about two classes that the draws of the map did not choose. An answer chosen by the same draws and its
runner-up keep them, too, because the choice makes their difference smaller. A class that was chosen among many equal
ones beside one that was named beforehand does not.

Antithetic draws come in pairs of one level; the mean of a pair is one observation.
"""

import numpy as np

from fastdc.support import Float64, Floats, InputError, Mask, checks

CONTROLS = ("fdr", "fwer")
"""What is promised about the significant pixels of an image."""

MOST_ALPHA = 0.083
"""The largest two-sided level for which t-tests of observations with unequal variances keep their promise."""


class RunningPixels:
    """Mean and variance of observations that come in blocks (Chan, Golub & LeVeque 1979), in float64.

    Args:
        shape: Shape of one observation.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean: Float64 = np.zeros(shape)
        self._squares: Float64 = np.zeros(shape)

    def add(self, block: Floats) -> None:
        """Adds observations ``(m, *shape)``."""
        count, own = len(block), block.mean(axis=0, dtype=np.float64)
        squares = ((block - own) ** 2).sum(axis=0, dtype=np.float64)
        behind, total = own - self.mean, self.count + count
        self.mean += behind * (count / total)
        self._squares += squares + behind**2 * (self.count * count / total)
        self.count = total

    @property
    def standard_error(self) -> Float64:
        """Standard error of the mean; NaN with fewer than two observations."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.asarray(np.sqrt(self._squares / (self.count - 1) / self.count))


def p_values(mean: Floats, standard_error: Floats, count: int) -> Float64:
    """Two-sided p-values of means of paired differences, float64 of their shape; 1 where nothing is known.

    Args:
        mean: Means.
        standard_error: Their standard errors, or NaN.
        count: Number of observations.

    Example:
        >>> from fastdc.explanation import p_values
        >>> p_values(np.array([0.0, 2.0]), np.array([1.0, 1.0]), 64).round(3)
        array([1.  , 0.05])
    """
    from scipy.special import stdtr  # a classifier that explains nothing should load quickly

    mean, error = np.asarray(mean, np.float64), np.asarray(standard_error, np.float64)
    if count < 2:
        return np.ones_like(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0, 0.0, np.abs(mean) / error)
    return np.asarray(np.where(np.isnan(t), 1.0, 2 * stdtr(count - 1, -t)))


def half_width(count: int, level: float = 0.95) -> float:
    """Half width of the confidence interval of a mean, in standard errors, by Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, count - 1), (1 + level) / 2))


def significant_pixels(p: Float64, *, alpha: float = 0.05, control: str = "fdr") -> Mask:
    """Which pixels of one image are significant, bool of p's shape.

    Args:
        p: p-value of each pixel, in [0, 1].
        alpha: Level, in (0, 0.083].
        control: One of :data:`CONTROLS`.

    Example:
        >>> from fastdc.explanation import significant_pixels
        >>> significant_pixels(np.array([0.001, 0.004, 0.9]), alpha=0.05)
        array([ True,  True, False])

    Raises:
        InputError: alpha or control cannot be used.
    """
    check_test(alpha, control)
    flat = np.sort(p, axis=None)
    m = len(flat)
    ranks = np.arange(1, m + 1)
    if control == "fdr":
        kept = np.flatnonzero(flat <= alpha * ranks / (m * (1 / ranks).sum()))
        found = 0 if len(kept) == 0 else kept[-1] + 1
    else:
        lost = np.flatnonzero(flat > alpha / (m + 1 - ranks))
        found = m if len(lost) == 0 else lost[0]
    return np.asarray(p <= (flat[found - 1] if found else -1.0))


def check_test(alpha: float, control: str) -> None:
    """Refuses a test that promises nothing.

    Raises:
        InputError: See above.
    """
    checks.one_of("control", control, CONTROLS)
    if not checks.is_finite(alpha) or not 0 < alpha <= MOST_ALPHA:
        raise InputError(f"alpha must be in (0, {MOST_ALPHA}], got {alpha!r:.40}")
