"""The released grids and weights of the noised diffusion classifiers, as plan options: ``compat="ndc"``.

The code released with Chen et al., arXiv 2402.02316, differs from its paper, and its published numbers contain the
differences. With a grid s_0 = tau < s_1 < ... < s_{S-1} = 3, equally spaced, S = 126 or 1001, and dt_i = s_{i+1} - s_i:

* apndc: levels s_{i+1}, weighted with edm(s_{i+1}) p(s_i) dt_i, i = 0 ... S - 3.
* epndc: levels s_{i+1} with the weight of s_i, what(s_i) = edm(s_i) p(s_i) dt_i, on the difference of the posteriors'
  means times s_{i+1}^2 (s_{i+1}^2 - tau^2) / (4 dt_i^2 (s_i^2 - tau^2)). On D - m (``noised``) that is

      what(s_i) (s_{i+1} + s_i)^2 (s_{i+1}^2 - tau^2) / (4 s_{i+1}^2 (s_i^2 - tau^2)) ;

  i = 5 ... S - 3: the first five, at which it grows without bound, are left out.

p(s) = exp(-(ln s + 1.2)^2 1.2^2 / 2) / (1.2 s sqrt(2 pi)) multiplies by the variance where the log-normal density of
EDM's training levels (arXiv 2206.00364, table 1) divides by it, and edm is its weighting, with the model's own
sigma_data. The levels are all first
draws of the plan, in order, and the rest of the weight is a curve of level weights with a knot at each. The computation
is the same as for every other plan.
"""

import math

import numpy as np

from fastdc.bundle import Model
from fastdc.diffusion import LevelWeights
from fastdc.inference.options import PlanOptions
from fastdc.support import Float64, InputError, checks, shown

STEPS = 126
P_MEAN, P_STD = -1.2, 1.2

_END = 3.0
_SKIPPED = {"apndc": 0, "epndc": 5}


def released_plan(model: Model, method: str, sigma: float, *, steps: int = STEPS) -> PlanOptions:
    """Plan options that reproduce the released code for a method at a noise.

    Args:
        model: An EDM model, as the released code uses.
        method: "apndc" (APNDCEnsemble in the released code) or "epndc".
        sigma: Standard deviation of the noise, in pixels in [0, 1].
        steps: S, the size of the grid.

    Example:
        >>> from fastdc.inference import released_plan
        >>> released_plan(clf.model, "apndc", 0.25)["draws"]
        124

    Raises:
        InputError: Another method, a noise beyond the end of the grid, or too few steps.
    """
    if method not in _SKIPPED:
        raise InputError(f"compat ndc is for {' and '.join(_SKIPPED)}, got {shown(method)}")
    if not checks.is_number(sigma) or not 0 < model.noise_ratio(sigma) < _END:
        raise InputError(
            f"compat ndc needs a sigma whose noise-to-signal ratio is in (0, {_END:g}), got {shown(sigma)}"
        )
    checks.whole("steps", steps, low=_SKIPPED[method] + 3, high=10_000)
    tau = model.noise_ratio(sigma)
    grid = np.linspace(tau, _END, steps)
    i = np.arange(_SKIPPED[method], steps - 2)
    s, following, dt = grid[i], grid[i + 1], grid[i + 1] - grid[i]
    weight = _density(s) * dt
    if method == "epndc":
        data = model.parameterization.sigma_data or 0.5
        weight *= _edm(s, data) / _edm(following, data)
        weight *= (following + s) ** 2 * (following**2 - tau**2) / (4 * following**2 * (s**2 - tau**2))
    return {
        "method": method,
        "sigma": sigma,
        "draws": len(i),
        "levels": "all",
        "first": tuple(following.tolist()),
        "weighting": "edm",
        "level_weights": LevelWeights(tuple(following.tolist()), tuple(weight.tolist())),
    }


def _density(s: Float64) -> Float64:
    exponent = -((np.log(s) - P_MEAN) ** 2) / 2 * P_STD**2
    return np.asarray(np.exp(exponent) / (s * P_STD * math.sqrt(2 * math.pi)))


def _edm(s: Float64, sigma_data: float) -> Float64:
    return np.asarray((s**2 + sigma_data**2) / (s * sigma_data) ** 2)
