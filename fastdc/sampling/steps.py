"""Samplers: each is a formula that takes x_t from one noise level to another, given the estimate x0 = D(x_t).

With e = (x_t - alpha x0) / sigma, the noise in x_t by that estimate, and a dash for the level to reach:

"ddpm"    x' = alpha' x0 + sqrt(sigma'^2 - v) e + sqrt(v) n,  v = sigma'^2 (1 - r'^2 / r^2),  r = sigma / alpha
"ddim"    the same with v = 0
"heun"    z = x / c;  z' = z + a (x0 + x0') / 2 + b (e + e') / 2,  where a, b are the growths of alpha / c and sigma / c

and n standard normal, x0' and e' at the point that "ddim" reaches. "ddpm" is ancestral sampling (Ho et al., arXiv
2006.11239, algorithm 2, with the posterior variance; for any pair of levels Kingma et al., arXiv 2107.00630, equation
33). "ddim" is Song et al., arXiv 2010.02502, equation 12 with eta = 0. Both are one formula, with eta^2 before v.

"ddim" is also Euler's method for the probability flow ODE. For a flow model, alpha = 1 - t and sigma = t, it is the
usual step x' = x + (t' - t) (e - x0); divided by alpha, it is Euler's step in sigma of Karras et al. (arXiv
2206.00364). "euler" is another name of it.

"heun" is Karras et al., algorithm 1 with no churn: c = alpha, in which every schedule looks like theirs (alpha = 1,
time sigma / alpha). For flow models c = alpha + sigma = 1, which is Heun's method in t. The step to the clean image is
Euler's, as there is no level to ask at.

The deterministic ones, walked backwards, invert an image to the noise that they make it from, up to their error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np

from fastdc.diffusion import PURPOSE_SAMPLING, kernels
from fastdc.sampling.trajectory import Point, Span
from fastdc.support import Float64, Int64, checks

Denoise: TypeAlias = Callable[[Float64, int], Float64]
"""(x_t, number of its level) -> x0, both float64 (m, c, h, w)."""

Normals: TypeAlias = Callable[[], Float64]
"""Makes the normals of a step, float64 (m, c, h, w)."""


class AbstractSampler(Protocol):
    """A formula for one step."""

    @property
    def order(self) -> int | None:
        """Order of its global error in the size of the steps; None for a sampler that adds noise."""

    def step(self, x: Float64, span: Span, denoise: Denoise, normals: Normals) -> Float64:
        """Takes x_t, float64 (m, c, h, w), over one step."""

    def evaluations(self, spans: Iterable[Span]) -> int:
        """Number of calls of `denoise` that steps take."""


@dataclass(frozen=True)
class Implicit:
    """DDPM and DDIM, one formula.

    Attributes:
        eta: Share of the ancestral noise that is added, in [0, 1]: 1 is "ddpm", 0 is "ddim".
    """

    eta: float = 0.0

    @property
    def order(self) -> int | None:
        """Implements :class:`AbstractSampler`."""
        return None if self.eta else 1

    def step(self, x: Float64, span: Span, denoise: Denoise, normals: Normals) -> Float64:
        """Implements :class:`AbstractSampler`."""
        start, end = span.start, span.end
        x0 = denoise(x, _number(start))
        variance = (self.eta * end.sigma) ** 2 * max(0.0, 1 - (end.ratio / start.ratio) ** 2)
        kept = np.sqrt(end.sigma**2 - variance)
        reached: Float64 = end.alpha * x0 + kept * noise_in(x, x0, start)
        return reached if span.mean or not variance else reached + np.sqrt(variance) * normals()

    def evaluations(self, spans: Iterable[Span]) -> int:
        """Implements :class:`AbstractSampler`."""
        return sum(1 for _ in spans)


@dataclass(frozen=True)
class Heun:
    """Heun's method for the probability flow ODE.

    Attributes:
        straight: Whether steps are taken along c = alpha + sigma, in which a flow's paths are straight, not c = alpha.
    """

    straight: bool = False

    @property
    def order(self) -> int | None:
        """Implements :class:`AbstractSampler`."""
        return 2

    def step(self, x: Float64, span: Span, denoise: Denoise, normals: Normals) -> Float64:
        """Implements :class:`AbstractSampler`."""
        start, end = span.start, span.end
        x0 = denoise(x, _number(start))
        e = noise_in(x, x0, start)
        reached = end.alpha * x0 + end.sigma * e
        if end.number is None:
            return reached
        x0_there = denoise(reached, end.number)
        e_there = noise_in(reached, x0_there, end)
        return moved(x, span, (x0 + x0_there) / 2, (e + e_there) / 2, straight=self.straight)

    def evaluations(self, spans: Iterable[Span]) -> int:
        """Implements :class:`AbstractSampler`."""
        return sum(1 if span.end.number is None else 2 for span in spans)


SAMPLERS = ("ddpm", "ddim", "euler", "heun")


def sampler_of(name: str, *, straight: bool = False) -> AbstractSampler:
    """The sampler of a name.

    Args:
        name: One of :data:`SAMPLERS`.
        straight: Whether the model is a flow, whose paths are straight.

    Example:
        >>> from fastdc.sampling import sampler_of
        >>> sampler_of("heun").order
        2

    Raises:
        InputError: The name is unknown.
    """
    checks.one_of("sampler", name, SAMPLERS)
    return Heun(straight) if name == "heun" else Implicit(1.0 if name == "ddpm" else 0.0)


def walk(
    x: Float64, spans: Iterable[Span], sampler: AbstractSampler, denoise: Denoise, streams: Int64, *, seed: int
) -> Float64:
    """Takes images over the steps of a trajectory.

    Args:
        x: float64 (m, c, h, w), x_t at the first step's level.
        spans: The steps.
        sampler: The formula of a step.
        denoise: The network's estimates.
        streams: int64 (m,), noise stream of each image; step i adds noise number i + 1 of it.
        seed: Philox key.

    Returns:
        float64 (m, c, h, w), images at the last step's level.

    Example:
        >>> from fastdc.sampling import Trajectory, sampler_of, walk
        >>> steps, x = Trajectory.of(clf.model.schedule, 4), np.zeros((2, 1, 8, 8))
        >>> walk(x, steps, sampler_of("ddim"), lambda x_t, number: 0 * x_t, np.arange(2), seed=0).shape
        (2, 1, 8, 8)
    """
    for number, span in enumerate(spans):
        x = sampler.step(x, span, denoise, partial(noise_of, streams, number + 1, x.shape[1:], seed=seed))
    return x


def noise_in(x: Float64, x0: Float64, at: Point) -> Float64:
    """E = (x_t - alpha x0) / sigma."""
    e: Float64 = (x - at.alpha * x0) / at.sigma
    return e


def moved(x: Float64, span: Span, x0: Float64, e: Float64, *, straight: bool) -> Float64:
    """X after a step along constant x0 and e, in the coordinates z = x / c."""
    start, end = span.start, span.end
    c, c_end = (start.alpha, end.alpha) if not straight else (start.alpha + start.sigma, end.alpha + end.sigma)
    grown = (end.alpha / c_end - start.alpha / c) * x0 + (end.sigma / c_end - start.sigma / c) * e
    return c_end * (x / c + grown)


def noise_of(streams: Int64, number: int, shape: tuple[int, ...], *, seed: int) -> Float64:
    """Normals of a purpose of their own: a function of (seed, stream, number), as all noise is (``csrc/philox.h``).

    Args:
        streams: int64 (m,), noise stream of each image.
        number: Number of the noise: 0 is what an image is noised with; step i of a sampler has number i + 1.
        shape: Shape of an image.
        seed: Philox key.

    Returns:
        float64 ``(m, *shape)``.

    Example:
        >>> from fastdc.sampling import noise_of
        >>> noise_of(np.array([7, 7]), 0, (1, 8, 8), seed=1).shape
        (2, 1, 8, 8)
    """
    size = int(np.prod(shape))
    draws = np.full(len(streams), number, np.int32)
    drawn = kernels.philox_normal(streams, draws, size, seed=seed, purpose=PURPOSE_SAMPLING)
    return np.asarray(drawn, np.float64).reshape(len(streams), *shape)


def _number(point: Point) -> int:
    assert point.number is not None  # a step starts at a level that the network can be asked at
    return point.number
