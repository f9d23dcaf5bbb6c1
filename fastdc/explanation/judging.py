"""How well maps point at what is known to matter: measures of n maps (n, h, w) against masks of what they should show.

    pointing game      is the map's largest value on the mask? (Zhang et al., arXiv 1608.00507)
    IoU                |chosen and mask| / |chosen or mask|, for the pixels with the largest values
    energy inside      sum of positive values on the mask / sum of all positive values (Wang et al., arXiv 1910.01279)
    average precision  area under the precision-recall curve of the pixels, ranked by the map

Each returns one number per image, so that methods are compared on the same images: ``bootstrap_mean(a - b)`` is the
mean difference of two methods with an interval. Pixels of equal value are treated alike: a constant map gets what
chance gives, and no order of pixels favours a map.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64, InputError, Mask, as_array, checks, require

SHARES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
"""Shares of pixels that :func:`best_share` tries."""

_AT_ONCE = 2**22  # drawn indices in memory


@dataclass(frozen=True)
class Interval:
    """A mean over images, and where it may lie.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end.
        images: Number of images.
    """

    mean: float
    low: float
    high: float
    images: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap_mean(values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean over images with a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: A number per image, (n,), or per image and noise seed, (n, s). Seeds of an image are averaged, and
            images are drawn with replacement, because images are what differs next time.
        level: Confidence level, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the samples.

    Raises:
        InputError: There are no values, or one is not finite.

    Example:
        >>> from fastdc.explanation import bootstrap_mean
        >>> print(bootstrap_mean([1, 1, 0, 1, 1, 0, 1, 1]))
        0.750 (0.500 to 1.000)
    """
    array = numbers_of(values, "values")
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(f"values must have shape (n,) or (n, seeds), got {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("values must be finite, got NaN or infinity")
    level, resamples = checks.fraction("level", level), checks.whole("resamples", resamples)
    per_image = array if array.ndim == 1 else array.mean(axis=1)
    count, rng = len(per_image), np.random.default_rng(checks.seed(seed))
    step = max(1, _AT_ONCE // count)
    parts = [
        per_image[rng.integers(count, size=(min(step, resamples - at), count))].mean(axis=1)
        for at in range(0, resamples, step)
    ]
    low, high = np.quantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(per_image.mean()), float(low), float(high), count)


def pointing_game(maps: npt.ArrayLike, masks: npt.ArrayLike, *, tolerance: float = 0.0) -> Float64:
    """Whether the largest value of a map lies on the mask, float64 (n,): 1 or 0, or the share of several equal ones.

    Args:
        maps: Evidence at each pixel, (n, h, w); larger is more.
        masks: The pixels to point at, bool (n, h, w), some in each image.
        tolerance: Distance to the mask, in pixels, that still counts as a hit. The original allows 15 at 224 pixels and
            more.

    Raises:
        InputError: Shapes differ, a map is not finite, or a mask is empty.

    Example:
        >>> from fastdc.explanation import pointing_game
        >>> mask = np.eye(4, dtype=bool)[None]
        >>> pointing_game(1.0 * mask, mask), pointing_game(np.ones((1, 4, 4)), mask)
        (array([1.]), array([0.25]))
    """
    values, truth = _checked(maps, masks)
    tolerance = checks.number("tolerance", tolerance, low=0.0)
    if tolerance:
        truth = np.stack([_grown(mask, tolerance) for mask in truth])
    largest = values == values.max(axis=(1, 2), keepdims=True)
    return np.asarray((largest & truth).sum(axis=(1, 2)) / largest.sum(axis=(1, 2)))


def iou(maps: npt.ArrayLike, masks: npt.ArrayLike, *, share: float | None = None) -> Float64:
    """Intersection over union of the mask and the pixels with the largest values, float64 (n,).

    Args:
        maps: Evidence at each pixel, (n, h, w); larger is more.
        masks: The pixels to find, bool (n, h, w), some in each image.
        share: Share of an image's pixels to take, in (0, 1), for example the one that :func:`best_share` found on other
            images. None: as many pixels as the mask has, which asks for the place and not for the size. Pixels that
            equal the last one taken are taken, too.

    Raises:
        InputError: As in :func:`pointing_game`, or the share is out of range.

    Example:
        >>> from fastdc.explanation import iou
        >>> mask = np.eye(4, dtype=bool)[None]
        >>> iou(1.0 * mask, mask), iou(np.ones((1, 4, 4)), mask)
        (array([1.]), array([0.25]))
    """
    values, truth = _checked(maps, masks)
    pixels = values[0].size
    if share is None:
        wanted = truth.sum(axis=(1, 2))
    else:
        wanted = np.full(len(values), max(1, round(checks.fraction("share", share) * pixels)))
    ordered = -np.sort(-values.reshape(len(values), pixels), axis=1)
    chosen = values >= ordered[np.arange(len(values)), wanted - 1][:, None, None]
    return np.asarray((chosen & truth).sum(axis=(1, 2)) / (chosen | truth).sum(axis=(1, 2)))


def best_share(maps: npt.ArrayLike, masks: npt.ArrayLike, shares: npt.ArrayLike = SHARES) -> float:
    """The share of pixels with the largest mean :func:`iou`. Choose it on validation images and use it on others.

    Args:
        maps: Evidence at each pixel, (n, h, w).
        masks: The pixels to find, bool (n, h, w).
        shares: Shares to try, each in (0, 1).

    Raises:
        InputError: As in :func:`iou`, or there are no shares.

    Example:
        >>> from fastdc.explanation import best_share
        >>> mask = np.eye(10, dtype=bool)[None]
        >>> best_share(1.0 * mask + np.random.default_rng(0).uniform(0, 0.1, (1, 10, 10)), mask, [0.05, 0.1, 0.2])
        0.1
    """
    tried: list[float] = np.atleast_1d(numbers_of(shares, "shares")).tolist()
    if not tried:
        raise InputError("shares must be one or more, got none")
    means = [iou(maps, masks, share=share).mean() for share in tried]
    return tried[int(np.argmax(means))]


def energy_inside(maps: npt.ArrayLike, masks: npt.ArrayLike) -> Float64:
    """The share of a map's positive values that lies on the mask, float64 (n,); 0 if no value is positive.

    A map that is the same everywhere gets the mask's share of the image.

    Args:
        maps: Evidence at each pixel, (n, h, w); negative values speak against and are left out.
        masks: The pixels to find, bool (n, h, w), some in each image.

    Raises:
        InputError: As in :func:`pointing_game`.

    Example:
        >>> from fastdc.explanation import energy_inside
        >>> energy_inside([[[3.0, 1.0], [-5.0, 0.0]]], [[[True, False], [False, False]]])
        array([0.75])
    """
    values, truth = _checked(maps, masks)
    positive = np.maximum(values, 0)
    total = positive.sum(axis=(1, 2))
    return np.asarray((positive * truth).sum(axis=(1, 2)) / np.where(total > 0, total, 1))


def average_precision(maps: npt.ArrayLike, masks: npt.ArrayLike) -> Float64:
    """The area under the precision-recall curve of the pixels, float64 (n,); the mask's share for a constant map.

    scikit-learn computes it, as the mean precision over thresholds, weighted by the gain in recall.

    Args:
        maps: Evidence at each pixel, (n, h, w); larger is more.
        masks: The pixels to find, bool (n, h, w), some in each image.

    Raises:
        InputError: As in :func:`pointing_game`.
        MissingDependencyError: scikit-learn is not installed.

    Example:
        >>> from fastdc.explanation import average_precision
        >>> average_precision([[[3.0, 1.0], [2.0, 0.0]]], [[[True, True], [False, False]]]).round(3)
        array([0.833])
    """
    values, truth = _checked(maps, masks)
    score = require("sklearn.metrics", extra="sklearn").average_precision_score
    return np.array([score(mask.ravel(), one.ravel()) for one, mask in zip(values, truth, strict=True)])


def numbers_of(values: npt.ArrayLike, name: str) -> Float64:
    """Numbers, or those of a torch tensor, as float64.

    Raises:
        InputError: They are something else.
    """
    known = as_array(values)
    try:
        return np.asarray(values if known is None else known, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers, got {type(values).__name__}") from None


def checked_maps(maps: npt.ArrayLike, name: str = "maps") -> Float64:
    """Maps as float64 (n, h, w).

    Raises:
        InputError: They have another shape, there are none, or one is not finite.
    """
    values = numbers_of(maps, name)
    if values.ndim != 3 or values.size == 0:
        raise InputError(f"{name} must have shape (n, height, width), got {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{name} must be finite, got NaN or infinity")
    return values


def _checked(maps: npt.ArrayLike, masks: npt.ArrayLike) -> tuple[Float64, Mask]:
    values, truth = checked_maps(maps), np.asarray(masks)
    if truth.shape != values.shape:
        raise InputError(f"masks must have the shape of the maps, {values.shape}, got {truth.shape}")
    if truth.dtype != np.bool_:
        raise InputError(f"masks must be bool, got {truth.dtype}: compare with a level, as in masks > 0")
    if not (filled := truth.any(axis=(1, 2))).all():
        raise InputError(f"masks must have pixels in each image, got an empty one for image {int(filled.argmin())}")
    return values, truth


def _grown(mask: Mask, distance: float) -> Mask:
    """The pixels within a distance of the mask."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~mask) <= distance)
