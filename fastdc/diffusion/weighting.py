"""Weightings: how much the error at each noise level counts. A weighting is a space and one weight per level.

==========  =====  ================================================  ==============================================
name        space  weight                                            source
==========  =====  ================================================  ==============================================
uniform     eps    1                                                 Li et al., arXiv 2303.16203, section 3
edm         x0     (sigma^2 + sigma_data^2) / (sigma sigma_data)^2   Karras et al., arXiv 2206.00364, table 1
vlb         x0     -dSNR/du / 2, the variational lower bound         Kingma et al., arXiv 2107.00630, eq. 17
exp         x0     exp(-7 u), u in [0, 1] the position               Clark & Jaini, arXiv 2303.15233, section 3
min_snr     eps    min(SNR, gamma) / SNR, gamma = 5                  Hang et al., arXiv 2303.09556, eq. 9
velocity    v      1                                                 Lipman et al., arXiv 2210.02747, eq. 14
==========  =====  ================================================  ==============================================

velocity: the squared error of the velocity, e - x on straight paths. For every kind of network it is 1 / sigma^2 times
the squared error in x0 and 1 / alpha^2 times that in eps. On variance-preserving paths the velocity is
v = alpha e - sigma x (Salimans & Ho, arXiv 2202.00512), the derivative by the angle; at alpha = 1 it is
e = dx_t / d sigma, so that the weighting equals "uniform".

Weights are relative: a common factor changes no decision, only the scale of errors and of the posterior's temperature.
A curve fitted to labelled images (``level_weights``) may multiply any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastdc.diffusion.levels import Levels
from fastdc.support import Float64, checks

EXP_RATE = 7.0
MIN_SNR_GAMMA = 5.0
DEFAULT_SIGMA_DATA = 0.5  # Karras et al.; for parameterisations without a sigma_data of their own


@dataclass(frozen=True)
class Weighting:
    """A weighting.

    Attributes:
        name: One of :data:`WEIGHTINGS`.
        space: Space of the residual whose error is weighted, one of ``parameterization.SPACES``.
    """

    name: str
    space: str
    _weight: Callable[[Levels, float], Float64]

    def weight(self, levels: Levels, sigma_data: float | None = None) -> Float64:
        """Computes the weights of J levels.

        Args:
            levels: Noise levels.
            sigma_data: The parameterisation's sigma_data, for "edm"; None: 0.5.

        Returns:
            float64 (J,), not negative.
        """
        return self._weight(levels, DEFAULT_SIGMA_DATA if sigma_data is None else sigma_data)


def _uniform(levels: Levels, _: float) -> Float64:
    return np.ones_like(levels.sigma)


def _edm(levels: Levels, sigma_data: float) -> Float64:
    sigma = levels.sigma / np.maximum(levels.alpha, 1e-12)  # on the VE scale, for which EDM's formula is written
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def _vlb(levels: Levels, _: float) -> Float64:
    return levels.snr_slope / 2


def _exp(levels: Levels, _: float) -> Float64:
    return np.exp(-EXP_RATE * levels.position)


def _min_snr(levels: Levels, _: float) -> Float64:
    return np.minimum(levels.snr, MIN_SNR_GAMMA) / levels.snr


_ALL = {
    weighting.name: weighting
    for weighting in (
        Weighting("uniform", "eps", _uniform),
        Weighting("edm", "x0", _edm),
        Weighting("vlb", "x0", _vlb),
        Weighting("exp", "x0", _exp),
        Weighting("min_snr", "eps", _min_snr),
        Weighting("velocity", "v", _uniform),
    )
}
WEIGHTINGS = tuple(_ALL)


def weighting(name: str) -> Weighting:
    """Returns the weighting of a name.

    Args:
        name: One of :data:`WEIGHTINGS`.

    Raises:
        InputError: The name is unknown.

    Example:
        >>> from fastdc.diffusion import weighting
        >>> weighting("min_snr").space
        'eps'
    """
    return _ALL[checks.one_of("weighting", name, WEIGHTINGS)]
