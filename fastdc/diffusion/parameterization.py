"""Parameterisations as coefficient rows: a network's prediction reduced to a few numbers per draw.

Every kind of network becomes a row (gx, ge, a, b, c, d), so that one pair of kernels serves them all. The network's
input is u = gx x + ge e and the residual is r = a F + b x + c e + d z, with F the raw output (``csrc/residual.h``).
With x_t = alpha x + sigma e:

=============  =====================  ==========  =================  ======================  ============
kind           F predicts             gx, ge      a, b, c            residual                space
=============  =====================  ==========  =================  ======================  ============
epsilon        e                      alpha, sig  1, 0, -1           F - e                   "eps"
v_prediction   alpha e - sigma x      alpha, sig  a, as, -a^2        alpha F + sigma x_t - e  "eps"
sample         x                      alpha, sig  1, -1, 0           F - x                   "x0"
edm            (x - c_skip x_t)/c_out  c_in, c_in s  c_out, c_skip-1, c_skip s   D - x       "x0"
flow           e - x                  1-t, t      1, 1, -1           F - (e - x)             "v"
score          -e                     alpha, sig  -1, 0, -1          -F - e                  "eps"
=============  =====================  ==========  =================  ======================  ============

(v_prediction: Salimans & Ho, arXiv 2202.00512, appendix D, and alpha^2 + sigma^2 = 1; edm: Karras et al., arXiv
2206.00364, eq. 7 and table 1; flow: Lipman et al., arXiv 2210.02747; score: F / sigma is the score of x_t given x, Song
et al., arXiv 2011.13456, eq. 7.) At fixed x_t, a factor converts a residual to
another space: r_eps = -(alpha / sigma) r_x0 and r_v = -r_x0 / sigma. So a weighting that is defined in one space serves
every kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.diffusion.kernels import ROW_FIELDS
from fastdc.diffusion.levels import Levels
from fastdc.support import Float32, Float64, InputError, checks, shown

KINDS = ("epsilon", "v_prediction", "sample", "edm", "flow", "score")
SPACES = ("eps", "x0", "v")

# For each kind, the condition that its formulas need of the levels, and by how much levels violate it.
_NEEDS: dict[str, tuple[str, Callable[[Levels], Float64]]] = {
    "v_prediction": ("alpha^2 + sigma^2 = 1", lambda levels: levels.alpha**2 + levels.sigma**2 - 1),
    "edm": ("alpha = 1", lambda levels: levels.alpha - 1),
    "flow": ("alpha + sigma = 1", lambda levels: levels.alpha + levels.sigma - 1),
}

# r_space = factor * r_x0 at fixed x_t.
_FROM_X0: dict[str, Callable[[Levels], Float64]] = {
    "x0": lambda levels: np.ones_like(levels.alpha),
    "eps": lambda levels: -levels.alpha / levels.sigma,
    "v": lambda levels: -1 / levels.sigma,
}


@dataclass(frozen=True)
class Parameterization:
    """The kind of a network's prediction.

    Attributes:
        kind: One of :data:`KINDS`.
        sigma_data: Standard deviation of the training data in units of x, positive; for "edm" only, which needs it.
    """

    kind: str
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        checks.one_of("parameterization kind", self.kind, KINDS)
        if self.kind == "edm":
            if not checks.is_finite(self.sigma_data) or not self.sigma_data > 0:
                raise InputError(f"parameterization edm needs a positive sigma_data, got {shown(self.sigma_data)}")
            object.__setattr__(self, "sigma_data", float(self.sigma_data))
        elif self.sigma_data is not None:
            raise InputError(f"parameterization {self.kind} takes no sigma_data, got {shown(self.sigma_data)}")

    @property
    def space(self) -> str:
        """Space in which the residual needs no conversion, one of :data:`SPACES`."""
        return {"sample": "x0", "edm": "x0", "flow": "v"}.get(self.kind, "eps")

    def rows(
        self,
        levels: Levels,
        weight: npt.ArrayLike,
        space: str | None = None,
        *,
        added: Float64 | None = None,
        target: tuple[Float64, Float64, Float64] | None = None,
    ) -> Float32:
        """Makes the coefficient rows of J draws.

        Args:
            levels: Noise levels of the draws.
            weight: Weight of each draw's error, shape (J,) or one number, finite and not negative.
            space: Space in which the residual is measured, one of :data:`SPACES`; default :attr:`space`.
            added: float64 (J,), standard deviation of the noise that is added to x, over the signal; needed with
                `target`. It is less than sigma / alpha if x is itself noisy (``noisy_methods``).
            target: float64 (J,) coefficients of x, e and z in the image with which the estimated clean image is
                compared; default: x itself.

        Returns:
            float32 (J, 8), columns as ``kernels.ROW_FIELDS``.

        Raises:
            InputError: The kind does not work with the levels' schedule, or a weight or coefficient is not finite (for
                example, an x0 residual at alpha = 0).
        """
        space = checks.one_of("space", self.space if space is None else space, SPACES)
        self._check(levels)
        if target is None or added is None:
            gx, ge, a, b, c = self._native(levels)
            d = np.zeros_like(gx)
            factor_of = _FROM_X0[self.space]
        else:
            gx, ge, a, b, c, d = self._towards(levels, added, target)
            factor_of = _FROM_X0["x0"]
        if space != self.space or target is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = _FROM_X0[space](levels) / factor_of(levels)
                a, b, c, d = factor * a, factor * b, factor * c, factor * d
        weights = np.asarray(weight, dtype=np.float64)
        if weights.shape not in ((), gx.shape):
            raise InputError(f"weight must have shape {gx.shape}, got {weights.shape}")
        weights = np.broadcast_to(weights, gx.shape)
        table = _table(gx, ge, a, b, c, d, weights, levels)
        if np.any(weights < 0):
            raise InputError(f"weights must not be negative, got {weights.min():.3g}")
        return table

    def _check(self, levels: Levels) -> None:
        condition, violation = _NEEDS.get(self.kind, ("", lambda levels: levels.alpha * 0))
        if np.any(np.abs(violation(levels)) > 1e-6):
            raise InputError(f"parameterization {self.kind} needs a schedule with {condition}")

    def _towards(
        self, levels: Levels, added: Float64, target: tuple[Float64, Float64, Float64]
    ) -> tuple[Float64, Float64, Float64, Float64, Float64, Float64]:
        """Returns (gx, ge, a, b, c, d) with x_t = alpha (x + added e) and the residual D - target, in x0 space."""
        scale, p, q = self.denoiser(levels)
        signal = q * levels.alpha
        x, e, z = target
        return scale * levels.alpha, scale * levels.alpha * added, p, signal - x, signal * added - e, -z

    def denoiser(self, levels: Levels) -> tuple[Float64, Float64, Float64]:
        """Returns the coefficients of the denoiser D = p F + q x_t, an estimate of the clean image.

        Args:
            levels: Noise levels of J draws.

        Returns:
            (scale, p, q), each float64 (J,). The network's input is scale x_t. The numbers are not finite where x_t
            holds no image (alpha = 0).

        Raises:
            InputError: The kind does not work with the levels' schedule.
        """
        self._check(levels)
        _, ge, a, _, c = self._native(levels)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = 1 / _FROM_X0[self.space](levels)
            return ge / levels.sigma, factor * a, factor * c / levels.sigma

    def denoising_rows(self, levels: Levels) -> Float32:
        """Makes the rows that denoise x_t: the image of a cell is x_t, no noise is added, and r is D(x_t).

        Args:
            levels: Noise levels of J draws.

        Returns:
            float32 (J, 8), columns as ``kernels.ROW_FIELDS``; b of an "edm" network is c_skip, for example.

        Raises:
            InputError: The kind does not work with the levels' schedule, or x_t holds no image (alpha = 0).

        Example:
            >>> clf.model.parameterization.denoising_rows(clf.model.schedule.levels([0.2, 0.8])).shape
            (2, 8)
        """
        scale, p, q = self.denoiser(levels)
        zero = np.zeros_like(scale)
        return _table(scale, zero, p, q, zero, zero, np.ones_like(scale), levels)

    def target(self, levels: Levels) -> tuple[Float64, Float64, Float64, Float64]:
        """Returns what the network should say of its input: F = x_factor x + e_factor e at the input gx x + ge e.

        Args:
            levels: Noise levels of J draws.

        Returns:
            (gx, ge, x_factor, e_factor), each float64 (J,).

        Raises:
            InputError: The kind does not work with the levels' schedule.
        """
        self._check(levels)
        gx, ge, a, b, c = self._native(levels)
        return gx, ge, -b / a, -c / a

    def _native(self, levels: Levels) -> tuple[Float64, Float64, Float64, Float64, Float64]:
        """Returns (gx, ge, a, b, c) with the residual in :attr:`space`."""
        alpha, sigma = levels.alpha, levels.sigma
        one, zero = np.ones_like(alpha), np.zeros_like(alpha)
        if self.kind == "epsilon":
            return alpha, sigma, one, zero, -one
        if self.kind == "score":
            return alpha, sigma, -one, zero, -one
        if self.kind == "v_prediction":
            return alpha, sigma, alpha, alpha * sigma, -(alpha**2)
        if self.kind == "sample":
            return alpha, sigma, one, -one, zero
        if self.kind == "flow":
            return alpha, sigma, one, one, -one
        assert self.sigma_data is not None
        total = sigma**2 + self.sigma_data**2
        c_in, c_out, c_skip = total**-0.5, sigma * self.sigma_data * total**-0.5, self.sigma_data**2 / total
        return c_in, c_in * sigma, c_out, c_skip - 1, c_skip * sigma

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of a bundle's manifest."""
        entry: dict[str, Any] = {"kind": self.kind}
        if self.sigma_data is not None:
            entry["sigma_data"] = self.sigma_data
        return entry


def _table(
    gx: Float64, ge: Float64, a: Float64, b: Float64, c: Float64, d: Float64, weight: Float64, levels: Levels
) -> Float32:
    """The rows of these columns.

    Raises:
        InputError: A coefficient is not finite.
    """
    table = np.stack([gx, ge, a, b, c, d, weight, levels.timestep], axis=1)
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused below
        rows = table.astype(np.float32)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        draw, column = bad[0]
        raise InputError(f"{ROW_FIELDS[column]} of draw {draw} is not finite at sigma = {levels.sigma[draw]:.3g}")
    return rows


def parameterization_from_dict(entry: dict[str, Any]) -> Parameterization:
    """Makes the parameterisation of a manifest entry.

    Args:
        entry: Entry such as {"kind": "edm", "sigma_data": 0.5}.

    Returns:
        The parameterisation.

    Raises:
        InputError: The kind or an option is unknown.

    Example:
        >>> from fastdc.diffusion import parameterization_from_dict
        >>> parameterization_from_dict({"kind": "epsilon"}).space
        'eps'
    """
    unknown = set(entry) - {"kind", "sigma_data"}
    if unknown or not isinstance(entry.get("kind"), str):
        raise InputError(f"parameterization must be {{kind, sigma_data}}, got {shown(entry)}")
    return Parameterization(kind=entry["kind"], sigma_data=entry.get("sigma_data"))
