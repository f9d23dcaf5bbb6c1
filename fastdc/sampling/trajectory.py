"""Trajectories: the noise levels that a sampler visits on its way from noise to an image.

A trajectory of N steps starts at a position u of the schedule (or at the level of a noise-to-signal ratio) and passes

    "uniform"   u_i = u (1 - i / N)                                    equal steps in the schedule's own time
    "karras"    r_i = (r^(1/7) + i / (N - 1) (r_0^(1/7) - r^(1/7)))^7  in ratios r = sigma / alpha, r_0 the smallest

for i = 0 ... N - 1 (Karras et al., arXiv 2206.00364, equation 5, with rho = 7). The last step ends at the clean image,
alpha = 1 and sigma = 0. A trajectory of an inversion has no such step: it ends at the schedule's lowest level, from
which it can be walked backwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fastdc.diffusion import AbstractSchedule, EDMSchedule, Levels
from fastdc.support import Float64, InputError, checks, shown

SPACINGS = ("uniform", "karras")
MAX_STEPS = 10_000

_RHO = 7


@dataclass(frozen=True)
class Point:
    """A noise level on a trajectory, x_t = alpha x0 + sigma e.

    Attributes:
        alpha: Factor of the image, positive.
        sigma: Standard deviation of the noise, in units of the network's input; 0 for the clean image.
        number: Number of the level among those at which the network is evaluated; None for the clean image.
    """

    alpha: float
    sigma: float
    number: int | None

    @property
    def ratio(self) -> float:
        """Noise-to-signal ratio sigma / alpha."""
        return self.sigma / self.alpha


@dataclass(frozen=True)
class Span:
    """One step of a sampler, from the level `start` to the level `end`.

    Attributes:
        start: Level of x_t; it has a number.
        end: Level to reach.
        mean: Whether the step ends at its mean, whatever noise the sampler would add.
    """

    start: Point
    end: Point
    mean: bool = False


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Noise levels from high to low, and the steps between them.

    Attributes:
        levels: The levels at which the network may be evaluated, by falling noise.
        points: All levels, the clean image included if the trajectory ends there.
        repeat_last: Whether the last step is taken a second time, without noise, from the image that it gave.
    """

    levels: Levels = field(repr=False)
    points: tuple[Point, ...]
    repeat_last: bool = False

    @classmethod
    def of(
        cls,
        schedule: AbstractSchedule,
        steps: int,
        *,
        from_t: float | None = None,
        ratio: float | None = None,
        spacing: str | None = None,
        invertible: bool = False,
        compat: str | None = None,
    ) -> "Trajectory":
        """The trajectory of a sampler.

        Args:
            schedule: The model's schedule.
            steps: Number of steps N, from 1 to 10 000.
            from_t: Position on the schedule at which it starts, in (0, 1]; None: the whole schedule, unless `ratio` is
                given.
            ratio: Noise-to-signal ratio sigma / alpha at which it starts, in place of `from_t`; at most the schedule's
                highest.
            spacing: One of :data:`SPACINGS`; None: "karras" for schedules that are linear in ln sigma, "uniform"
                for all others.
            invertible: Whether it ends at the schedule's lowest level, not at the clean image.
            compat: "favero" ends as the program of Favero et al. (arXiv 2502.03687): at position 0, with the last step
                taken twice, the second time without noise.

        Raises:
            InputError: An option cannot be used, or the schedule has fewer levels than steps.
        """
        steps = checks.whole("steps", steps, high=MAX_STEPS)
        start = _start(schedule, from_t, ratio)
        if spacing is None:
            spacing = "karras" if isinstance(schedule, EDMSchedule) else "uniform"
        checks.one_of("spacing", spacing, SPACINGS)
        if compat is not None:
            checks.one_of("compat", compat, ("favero",))
        clean = not invertible and compat is None
        if spacing == "karras":
            u = _karras(schedule, start, steps if clean else steps + 1)
        else:
            u = start * (1 - np.arange(steps if clean else steps + 1) / steps)
        levels = schedule.levels(u)
        if not np.all(np.diff(levels.ratio) < 0):
            raise InputError(f"{steps} steps do not fit: the schedule has fewer levels below its position {start:.3g}")
        if not np.isfinite(levels.ratio[0]):
            raise InputError(f"a sampler needs an image in x_t: the schedule has none at its position {start:.3g}")
        pairs = zip(levels.alpha.tolist(), levels.sigma.tolist(), strict=True)
        points = tuple(Point(alpha, sigma, number) for number, (alpha, sigma) in enumerate(pairs))
        return cls(levels, (*points, Point(1.0, 0.0, None)) if clean else points, repeat_last=compat is not None)

    def __len__(self) -> int:
        """The number of steps, a repeated one included."""
        return len(self.points) - 1 + self.repeat_last

    def __iter__(self) -> Iterator[Span]:
        """The steps from noise to the image."""
        last = len(self.points) - 2
        for i, (start, end) in enumerate(pairwise(self.points)):
            yield Span(start, end, mean=i == last and not self.repeat_last)
        if self.repeat_last:
            yield Span(self.points[-2], self.points[-1], mean=True)

    def backwards(self) -> tuple[Span, ...]:
        """The steps from the image to noise, for a trajectory that can be inverted."""
        return tuple(Span(start, end) for start, end in pairwise(self.points[::-1]))


def _start(schedule: AbstractSchedule, from_t: float | None, ratio: float | None) -> float:
    """The position at which a trajectory starts."""
    if from_t is not None and ratio is not None:
        raise InputError("a trajectory starts at from_t or at a ratio: expected one of them, got both")
    if ratio is not None:
        highest = float(schedule.levels([1.0]).ratio[0])
        if checks.positive("ratio", ratio) > highest * (1 + 1e-9):  # position_of would take the highest
            raise InputError(f"ratio must be at most {highest:.6g}, the schedule's highest, got {shown(ratio)}")
        return schedule.position_of(ratio)
    if from_t is None:
        return 1.0
    if not checks.is_finite(from_t) or not 0 < from_t <= 1:
        raise InputError(f"from_t must be in (0, 1], got {from_t!r:.60}")
    return float(from_t)


def _karras(schedule: AbstractSchedule, start: float, count: int) -> Float64:
    """Positions whose noise-to-signal ratios Karras et al. choose, from `start` down to 0."""
    high, low = schedule.levels([start, 0.0]).ratio
    roots = np.linspace(high ** (1 / _RHO), low ** (1 / _RHO), count) if count > 1 else np.array([high ** (1 / _RHO)])
    return np.array([start, *(schedule.position_of(float(root**_RHO)) for root in roots[1:])])
