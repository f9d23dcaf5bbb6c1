"""Radii of Lipschitz certificates: from the margins of expected errors at an image to a distance without a new winner.

The classifier is the diffusion classifier of infinitely many noises at each of a plan's J levels (Chen et al., arXiv
2402.02316, section 3, made rigorous). Class y's error at an image x is

    G_y(x) = mean_j E_e min(cap_j, weight_j ||h_y(x + s_j e) - x||^2 / D) ,

with D pixels in [0, 1] and noise s_j in that unit; the smallest error wins. Either the outputs h are clipped to [0, 1]
and the cap is weight_j (the theorem's assumption, which no trained network meets), or errors are cut off at a cap
chosen beforehand, which assumes nothing about the network. At a distance r, the margin G_k - G_A of a rival has lost at
most r L,

    L = mean_j [ 2 cap_j / (sqrt(2 pi) s_j) + 4 sqrt(weight_j cap_j / D) ]      (clipped: 2 in place of 4) ,

so the plain radius is margin / L. The per-level radius uses that errors far from half their cap change more slowly.
With delta = r / s, eta = r sqrt(weight / (cap D)), q = Phi(Phi^-1(p) - delta) and q' = Phi(Phi^-1(p) + delta), a class
whose error over its cap is p loses at most p - max(0, sqrt(q) - eta)^2 and gains at most (sqrt(q') + eta)^2 - p.

docs/lipschitz.md derives all this and states where it departs from the source.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from fastdc.support import Float64, InputError, Int64, checks

Bounds = tuple[Float64, Float64]


@dataclass(frozen=True, eq=False)
class BoundedErrors:
    """Bounds of the errors of J draws, and how the errors depend on pixels.

    Attributes:
        sigma: float64 (J,), s_j, standard deviation of the noise in pixels in [0, 1]; positive, may be infinite.
        weights: float64 (J,), error over mean squared difference of pixels in [0, 1]; not negative.
        caps: float64 (J,), the largest error. Part of the classifier: chosen on other images, before the image is seen.
        pixels: D, the number of values in an image.
        clipped: Whether the network's outputs are clipped to [0, 1]; the caps are then the weights.

    Raises:
        InputError: Arrays that do not fit each other, or a value out of range.
    """

    sigma: Float64 = field(repr=False)
    weights: Float64 = field(repr=False)
    caps: Float64 = field(repr=False)
    pixels: int
    clipped: bool = False

    def __post_init__(self) -> None:
        if self.sigma.ndim != 1 or not len(self.sigma) == len(self.weights) == len(self.caps) > 0:
            shapes = f"{self.sigma.shape}, {self.weights.shape} and {self.caps.shape}"
            raise InputError(f"sigma, weights and caps must have shape (J,), J > 0, got {shapes}")
        for name in ("sigma", "weights", "caps"):
            values = getattr(self, name)
            good = values >= 0 if name == "weights" else values > 0
            if name != "sigma":  # a schedule may end in pure noise
                good = good & np.isfinite(values)
            if not np.all(good):
                kind = "finite and not negative" if name == "weights" else "positive"
                raise InputError(f"{name} must be {kind}, found {values[~good][0]}")
        checks.whole("pixels", self.pixels)
        if not np.any(np.isfinite(self.sigma)):
            raise InputError("sigma must be finite somewhere: pure noise says nothing about an image")
        if self.clipped and not np.array_equal(self.caps, self.weights):
            raise InputError("errors of clipped outputs are at most their weights: expected caps equal to weights")

    @property
    def draws(self) -> int:
        """Number of draws, J."""
        return len(self.sigma)

    def slopes(self) -> Float64:
        """Largest loss of a pair's margin at each draw per unit of distance, float64 (J,); the mean is L."""
        target = (2 if self.clipped else 4) * np.sqrt(self.weights * self.caps / self.pixels)
        return np.asarray(2 * self.caps / (math.sqrt(2 * math.pi) * self.sigma) + target)

    def groups(self, count: int) -> Int64:
        """Group of each draw, int64 (J,) in [0, count): neighbours in sigma; sizes differ by at most one draw."""
        group = np.empty(self.draws, np.int64)
        group[np.argsort(self.sigma, kind="stable")] = np.arange(self.draws) * count // self.draws
        return group


def plain_radius(margins: Float64, bounded: BoundedErrors) -> Float64:
    """Radius of the plain form, margin / L; 0 for a margin that is not positive.

    Args:
        margins: float64 of any shape, lower bounds on the margins.
        bounded: Bounds of the errors.

    Returns:
        float64 of the shape of `margins`, in pixels in [0, 1].
    """
    return np.asarray(np.maximum(margins, 0.0) / bounded.slopes().mean())


def levels_radius(margins: Float64, winner: Bounds, rival: Bounds, bounded: BoundedErrors, group: Int64) -> Float64:
    """Radius of the per-level form.

    Args:
        margins: float64 (...), lower bounds on the margins, finite.
        winner: Lower and upper bounds, float64 (..., B) each in [0, 1], on the winner's average error over its cap in
            each group.
        rival: The same bounds for the rival.
        bounded: Bounds of the errors.
        group: int64 (J,), group of each draw.

    Returns:
        float64 (...), in pixels in [0, 1], rounded down; at least :func:`plain_radius`.
    """
    from scipy import special

    first, second = ((special.ndtri(lower), special.ndtri(upper)) for lower, upper in (winner, rival))
    low = plain_radius(margins, bounded)
    high = np.maximum(2 * low, 1e-6)
    for _ in range(60):  # until `high` is too far; if no distance is, the last one does no harm
        high = np.where(_loss(high, first, second, bounded, group) < margins, 2 * high, high)
    for _ in range(50):
        middle = (low + high) / 2
        safe = _loss(middle, first, second, bounded, group) <= margins
        low, high = np.where(safe, middle, low), np.where(safe, high, middle)
    return np.asarray(np.where(margins > 0, low, 0.0))


def published_radius(margins: Float64, bounded: BoundedErrors) -> Float64:
    """Theorem 3.1 of arXiv 2402.02316: R = sqrt(2) (p_A - p_B) / ((2 / sqrt(D) + sqrt(2 / pi)) mean_j weight_j / s_j).

    p are softmax probabilities of minus the mean errors; here their bounds come from those of the margins. The theorem
    rests on assumptions of the source that the other forms do not use: outputs clipped to [0, 1]; s_j at most 1,
    without which the target's term may not be divided by s_j; and 1 / (2 sqrt 2), the norm of one probability's
    gradient with respect to all logits, in place of the constant that separate bounds on two logits give. Do not use it
    for certificates that must hold.

    Args:
        margins: float64 (n, K), lower bounds, infinite for the label itself.
        bounded: Bounds of clipped errors.

    Returns:
        float64 (n,), 0 if p_A does not exceed p_B.

    Raises:
        InputError: The errors are not clipped, or a level is above 1.
    """
    from scipy import special

    if not bounded.clipped or bounded.sigma.max() > 1:
        found = f"clipped={bounded.clipped} and levels up to {bounded.sigma.max():.3g}"
        raise InputError(f"the published constant needs clipped outputs and levels up to 1 in pixels, got {found}")
    own = np.isinf(margins)
    first = 1 / np.where(own, 1.0, np.exp(-margins)).sum(axis=1)
    others = np.where(own, 0.0, special.expit(-margins))  # a rival against the label alone
    second = np.minimum(others.max(axis=1), 1 - first)
    constant = (2 / math.sqrt(bounded.pixels) + math.sqrt(2 / math.pi)) * np.mean(bounded.weights / bounded.sigma)
    return np.asarray(math.sqrt(2) * np.maximum(first - second, 0.0) / constant)


def _loss(radius: Float64, winner: Bounds, rival: Bounds, bounded: BoundedErrors, group: Int64) -> Float64:
    """Largest loss of a pair's margin at a distance; docs/lipschitz.md derives it.

    Args:
        radius: float64 (...), distances in pixels in [0, 1].
        winner: Phi^-1 of the lower and upper bounds of the winner, float64 (..., B) each.
        rival: The same for the rival.
        bounded: Bounds of the errors.
        group: int64 (J,), group of each draw.

    Returns:
        float64 (...), in the unit of the mean error.
    """
    from scipy import special

    phi = special.ndtr
    total = np.zeros_like(radius)
    slopes = bounded.slopes()
    for b in range(winner[0].shape[-1]):
        inside = group == b
        caps, weights = bounded.caps[inside], bounded.weights[inside]
        delta = radius / bounded.sigma[inside].min()
        eta = radius * math.sqrt(float(np.max(weights / caps)) / bounded.pixels)
        top = np.clip(delta / 2, rival[0][..., b], rival[1][..., b])
        bottom = np.clip(-delta / 2, winner[0][..., b], winner[1][..., b])
        moved = phi(top) - phi(top - delta) + phi(bottom + delta) - phi(bottom)
        q, risen = phi(rival[1][..., b] - delta), phi(winner[1][..., b] + delta)
        fallen = np.where(np.sqrt(q) < eta, q, 2 * eta * np.sqrt(q) - eta**2)
        target = fallen + 2 * eta * np.sqrt(risen) + eta**2
        if bounded.clipped:
            target = np.minimum(target, 2 * eta)
        total += np.minimum(caps.sum() * (moved + target), radius * slopes[inside].sum())
    return np.asarray(total / bounded.draws)
