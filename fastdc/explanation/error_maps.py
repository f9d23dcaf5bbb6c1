"""Error maps: where in an image one class denoises better than another.

For image i, the class a that is explained and the class b against it,

    map_p = mean over draws of (err_b,p - err_a,p),      err_k,p = weight rho(r_p),     r as in docs/architecture.md

both under the same noise, with the levels, weights and loss of the plan. Positive pixels speak for a, negative ones for
b. The mean of a map over its pixels is the difference of the two mean errors that the classifier compares. Over
channels, the mean is taken. If the network works on wavelet coefficients y = f W x, W orthonormal (``HaarTransform``),
residuals are brought back first: r is W^T r_y there, whose sum of squares is that of r_y, so that the mean of a map is
the difference of errors for the loss l2 alone. The errors are those of Li et al., arXiv 2303.16203, eq. 6, before
their mean over pixels.

Draws are evaluated in parts and their statistics are updated: memory grows with images x pixels, not with draws.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from fastdc.diffusion import ROW_FIELDS, Plan, make_plan
from fastdc.engine import PixelMaps
from fastdc.explanation.paired_pixels import RunningPixels
from fastdc.inference import Images, Job, OnProgress, Progress
from fastdc.support import Float32, Float64, Floats, InputError, Int32, Int64, checks

BANDS = ("fine", "medium", "coarse")
"""Thirds of the draws by noise level, from the lowest: at low noise, only fine detail is lost."""

MOST_SMOOTH = 1000.0
"""Widest Gaussian in pixels: its kernel is held in memory."""

_WEIGHT = ROW_FIELDS.index("weight")
_ENCODED = 16  # most images whose samples are made at a time


@dataclass(frozen=True, eq=False)
class ErrorMaps:
    """Maps of n images, of pixels (c, h, w), or of latents if the network works on latents.

    Attributes:
        mean: float32 (n, h, w), the signed map; its mean over pixels is the difference of the two mean errors.
        standard_error: float32 (n, h, w), NaN with fewer than two independent draws.
        channels: float32 (n, c, h, w), the map of each channel, whose mean is `mean`.
        bands: float32 (n, B, h, w), the part that each of :data:`BANDS` has in the map; they sum to `mean`. B is less
            than three with fewer draws.
        edges: float64 (B + 1,), noise-to-signal ratios between which the draws of the bands lie.
        errors: float32 (n, 2, J), the errors of both classes at each draw.
        ratio: float64 (J,), noise-to-signal ratio of each draw.
        count: Number of independent observations, J, or J / 2 pairs of antithetic draws.
        evaluations: Network evaluations per image.
    """

    mean: Float32
    standard_error: Float32
    channels: Float32
    bands: Float32
    edges: Float64
    errors: Float32
    ratio: Float64
    count: int
    evaluations: int


def error_maps(
    job: Job,
    images: Images,
    conditions: Int32,
    *,
    draws: int | None = None,
    smooth: float = 0.0,
    progress: OnProgress | None = None,
) -> ErrorMaps:
    """Makes the map of each image.

    Args:
        job: Plan and networks, such as ``clf.settings(...).job``; its rule is not used.
        images: The images.
        conditions: int32 (n, 2), the condition that is explained and the one against it.
        draws: Number of draws, the first of the plan; if it has fewer, the plan goes on in its order. None: all.
        smooth: Standard deviation of a Gaussian that smooths each draw's differences, in pixels of the map, at most
            1000; 0: none. The map's mean stays, as borders are mirrored.
        progress: Called after every part.

    Example:
        >>> from fastdc.explanation import error_maps
        >>> from fastdc.inference import Images
        >>> error_maps(clf.settings().job, Images.of(images[:2], clf.model), [[7, 1], [2, 3]], draws=4).mean.shape
        (2, 8, 8)

    Raises:
        InputError: Options cannot be used, or the plan's method is for noisy images.
        BackendError: The network fails.
    """
    maker = _Maker(job, draws, smooth)
    pairs = np.asarray(conditions, np.int32)
    known = len(job.model.conditions)
    if pairs.shape != (len(images), 2) or not ((pairs >= 0) & (pairs < known)).all():
        raise InputError(f"conditions must be two numbers in [0, {known}) for each of {len(images)} images")
    return job.turn().call(lambda: maker.run(images, pairs, progress))


def map_plan(job: Job, draws: int | None, smooth: float = 0.0) -> tuple[Plan, int]:
    """The plan of maps and the number of its draws that they use; checks the options of :func:`error_maps`.

    Raises:
        InputError: An option cannot be used.
    """
    plan = job.plan
    most = None if plan.config.timesteps is None else plan.draws
    used = plan.draws if draws is None else checks.whole("map_draws", draws, high=most)
    checks.number("smooth", smooth, low=0, high=MOST_SMOOTH)
    if plan.config.method != "dc":
        raise InputError(f"maps are made of clean images: expected method dc, got {plan.config.method}")
    if plan.antithetic and used % 2:
        raise InputError(f"map_draws must be whole antithetic pairs, got {used}")
    if used > plan.draws:
        plan = make_plan(job.model.schedule, job.model.parameterization, replace(plan.config, draws=used))
    return plan, used


class _Maker:
    """Makes maps with the options of a call."""

    def __init__(self, job: Job, draws: int | None, smooth: float) -> None:
        self._plan, self._draws = map_plan(job, draws, smooth)
        self._job, self._smooth = job, float(smooth)
        transform = job.model.transform
        self._shape = job.model.sample_shape if transform is None else job.model.image_shape
        self._unit = 2 if self._plan.antithetic else 1
        self._ratio = self._plan.levels.ratio[: self._draws]
        self._bands = min(len(BANDS), self._draws)
        rank = np.empty(self._draws, np.int64)
        rank[np.argsort(self._ratio, kind="stable")] = np.arange(self._draws)
        self._band_of = rank * self._bands // self._draws

    def run(self, images: Images, pairs: Int32, progress: OnProgress | None) -> ErrorMaps:
        """The maps, when it is the networks' turn."""
        networks, n = self._networks(), len(images)
        cost = 2 * self._draws
        each = min(_ENCODED, max(1, networks[0].room // cost))
        made: list[_Image] = []
        with ThreadPoolExecutor(len(networks)) as threads:
            for start in range(0, n, each * len(networks)):
                rows = np.arange(start, min(n, start + each * len(networks)))
                x = self._job.encode(images.samples[rows], held=True)
                parts = [part for part in np.array_split(np.arange(len(rows)), len(networks)) if len(part)]
                made_of = partial(self._part, images, rows, x, pairs)
                run = map if len(parts) == 1 else threads.map  # Ctrl-C reaches what this thread does
                found = list(run(made_of, networks, parts))
                made += [image for some in found for image in some]
                if progress is not None:
                    progress(Progress(len(made), n, len(made) * cost, n * cost))
        return self._result(made)

    def _networks(self) -> list[PixelMaps]:
        job, config = self._job, self._plan.config
        rows, loss = self._plan.rows, config.loss
        if job.model.transform is not None:  # residuals, which are mapped back before their loss is taken
            rows, loss = rows.copy(), "residual"
            rows[:, _WEIGHT] = 1
        return [
            PixelMaps(
                network,
                job.model.sample_shape,
                rows,
                n_classes=len(job.model.conditions),
                seed=job.seed,
                loss=loss,
                delta=config.delta,
                antithetic=config.antithetic,
            )
            for network in job.networks
        ]

    def _part(
        self, images: Images, rows: Int64, x: Float32, pairs: Int32, maps: PixelMaps, part: Int64
    ) -> "list[_Image]":
        return self._some(maps, x[part], images.streams[rows[part]], pairs[rows[part]])

    def _some(self, maps: PixelMaps, x: Float32, streams: Int64, pairs: Int32) -> "list[_Image]":
        """The statistics of some images on one network."""
        done = [_Image(self._shape, self._bands, self._draws) for _ in x]
        which, draws = (index.ravel() for index in np.indices((len(x), self._draws)))
        most = max(self._unit, maps.room // 2 // self._unit * self._unit)
        for start in range(0, len(which), most):
            image, draw = which[start : start + most], draws[start : start + most]
            cell = np.repeat(image, 2)
            found = maps(x[cell], classes=pairs[image].ravel(), draws=np.repeat(draw, 2), streams=streams[cell])
            errors, pixels = self._errors(found, np.repeat(draw, 2))
            for one in np.unique(image):
                rows = np.flatnonzero(image == one)
                differences = pixels[2 * rows + 1] - pixels[2 * rows]
                done[one].errors[:, draw[rows]] = errors[2 * rows], errors[2 * rows + 1]
                done[one].add(differences, self._band_of[draw[rows]], self._observed(differences))
        return done

    def _errors(self, found: Float32, draws: Int64) -> tuple[Float64, Float32]:
        """The errors (m,) of cells and their maps (m, c, h, w), of what the networks' cells gave."""
        transform, config = self._job.model.transform, self._plan.config
        if transform is None:
            return found.mean(axis=(1, 2, 3), dtype=np.float64), found
        weights = self._plan.rows[draws, _WEIGHT]
        pixels = transform.inverse(found) * np.float32(transform.factor)
        return (
            weights * rho(found, config.loss, config.delta).mean(axis=(1, 2, 3), dtype=np.float64),
            weights[:, None, None, None] * rho(pixels, config.loss, config.delta),
        )

    def _observed(self, differences: Floats) -> Floats:
        """The observations (m, h, w) that the differences (m * unit, c, h, w) of draws make."""
        one = differences.mean(axis=1, dtype=np.float64)
        return smoothed(one.reshape(-1, self._unit, *one.shape[1:]).mean(axis=1), self._smooth)

    def _result(self, made: "Sequence[_Image]") -> ErrorMaps:
        c, h, w = self._shape
        n, ordered = len(made), np.sort(self._ratio)
        firsts = [int(np.searchsorted(np.sort(self._band_of), band)) for band in range(1, self._bands)]
        middle = [float(np.sqrt(ordered[first - 1] * ordered[first])) for first in firsts]

        def stacked(part: Callable[[_Image], Floats], shape: tuple[int, ...]) -> Float32:
            return np.stack([part(one) for one in made]).astype(np.float32) if n else np.zeros((0, *shape), np.float32)

        return ErrorMaps(
            mean=stacked(lambda one: one.pixels.mean, (h, w)),
            standard_error=stacked(lambda one: one.pixels.standard_error, (h, w)),
            channels=stacked(lambda one: smoothed(one.channels / self._draws, self._smooth), (c, h, w)),
            bands=stacked(lambda one: smoothed(one.bands / self._draws, self._smooth), (self._bands, h, w)),
            edges=np.array([ordered[0], *middle, ordered[-1]]),
            errors=stacked(lambda one: one.errors, (2, self._draws)),
            ratio=self._ratio.copy(),
            count=self._draws // self._unit,
            evaluations=2 * self._draws,
        )


class _Image:
    """Statistics of one image."""

    def __init__(self, shape: tuple[int, ...], bands: int, draws: int) -> None:
        self.pixels = RunningPixels(shape[1:])
        self.channels: Float64 = np.zeros(shape)
        self.bands: Float64 = np.zeros((bands, *shape[1:]))
        self.errors: Float64 = np.zeros((2, draws))

    def add(self, differences: Float32, bands: Int64, observations: Floats) -> None:
        """Adds the differences (m, c, h, w) of draws in the bands (m,), and the observations that they make."""
        self.pixels.add(observations)
        self.channels += differences.sum(axis=0, dtype=np.float64)
        np.add.at(self.bands, bands, differences.mean(axis=1, dtype=np.float64))


def rho(residuals: Float32, loss: str, delta: float) -> Float32:
    """The loss of residuals, as the kernels take it: ``csrc/residual.h``."""
    size = np.abs(residuals)
    if loss == "l2":
        return np.asarray(residuals**2)
    if loss == "l1":
        return size
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2)).astype(np.float32)


def smoothed(maps: Floats, sigma: float) -> Floats:
    """Maps (..., h, w) smoothed by a Gaussian; the mean of each stays."""
    if sigma == 0:
        return maps
    from scipy.ndimage import gaussian_filter  # a classifier that explains nothing should load quickly

    return cast("Floats", gaussian_filter(maps, sigma=(0.0,) * (maps.ndim - 2) + (sigma, sigma), mode="reflect"))
