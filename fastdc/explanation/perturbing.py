"""Deletion and insertion: how a score changes as the pixels of an image, most important first, go or come back.

Deletion starts from the image and replaces the pixels with the largest values of the map by those of a baseline image;
if they matter, the score falls soon and the area under the curve is small. Insertion starts from the baseline and puts
the pixels of the image back; its area should be large. (Petsiuk, Das & Saenko, arXiv 1806.07421, section 4.3.) Both ask
the classifier, not a mask, so they judge whether a map is faithful to it.

The baseline decides much: pixels of another brightness can be evidence themselves. A blurred image keeps the brightness
around; where the image without the evidence is known, as for phantoms, it is the best baseline.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.explanation.judging import checked_maps, numbers_of
from fastdc.support import Float32, Float64, InputError, checks

Predict: TypeAlias = Callable[[Float32], npt.ArrayLike]
"""The score of a class, a number per image (m,), of float32 images (m, c, h, w) in [0, 1]."""

BASELINES = ("blur", "mean", "black")


@dataclass(frozen=True, eq=False)
class Curves:
    """Scores of n images while their pixels are replaced.

    Attributes:
        shares: Share of the pixels that have been moved, float64 (s + 1,), from 0 to 1.
        scores: Score at each share, float64 (n, s + 1).
    """

    shares: Float64 = field(repr=False)
    scores: Float64 = field(repr=False)

    @property
    def areas(self) -> Float64:
        """Area under each curve by the trapezoid rule, float64 (n,): a mean score."""
        return np.asarray(np.trapezoid(self.scores, self.shares, axis=1))


def deletion(
    images: npt.ArrayLike,
    maps: npt.ArrayLike,
    predict: Predict,
    *,
    steps: int = 32,
    baseline: str | npt.ArrayLike = "blur",
) -> Curves:
    """Scores while the most important pixels are taken away first. Smaller areas are better.

    Args:
        images: uint8 levels or floats in [0, 1], (n, c, h, w).
        maps: Importance of each pixel, (n, h, w); pixels of equal value are taken in the order of rows.
        predict: Function from images to scores.
        steps: Number of steps, at most h w.
        baseline: What takes the place of pixels: "blur" (Gaussian, of an eighth of the smaller side), "mean" (each
            channel's mean in the image), "black", or images as `images`.

    Raises:
        InputError: Shapes do not fit, a value is out of range, or `predict` returns anything but finite numbers (m,).

    Example:
        >>> from fastdc.explanation import deletion
        >>> deletion(images[:2], images[:2, 0], lambda x: x.mean((1, 2, 3)), baseline="black").areas.shape
        (2,)
    """
    x, ranks, other, steps = _prepared(images, maps, baseline, steps)
    return _curves(other, x, ranks, predict, steps)


def insertion(
    images: npt.ArrayLike,
    maps: npt.ArrayLike,
    predict: Predict,
    *,
    steps: int = 32,
    baseline: str | npt.ArrayLike = "blur",
) -> Curves:
    """Scores while the most important pixels are put back first. Larger areas are better.

    Args:
        images: uint8 levels or floats in [0, 1], (n, c, h, w).
        maps: Importance of each pixel, (n, h, w).
        predict: Function from images to scores.
        steps: Number of steps.
        baseline: Where it starts, as in :func:`deletion`.

    Raises:
        InputError: As in :func:`deletion`.

    Example:
        >>> from fastdc.explanation import insertion
        >>> insertion(images[:2], images[:2, 0], lambda x: x.mean((1, 2, 3)), baseline="black").areas.shape
        (2,)
    """
    x, ranks, other, steps = _prepared(images, maps, baseline, steps)
    return _curves(x, other, ranks, predict, steps)


def unit_images(images: npt.ArrayLike, name: str = "images") -> Float32:
    """Images (n, c, h, w) as float32 in [0, 1].

    Raises:
        InputError: They have another shape or type, there are none, or values are out of range.
    """
    try:
        array = np.asarray(images)
    except ValueError:  # lists of different lengths
        raise InputError(f"{name} must be an array, got {type(images).__name__}") from None
    if array.ndim != 4 or array.size == 0:
        raise InputError(f"{name} must have shape (n, channels, height, width), got {array.shape}")
    if array.dtype == np.uint8:
        return np.asarray(array / np.float32(255), dtype=np.float32)
    if array.dtype.kind != "f":
        raise InputError(f"{name} must be uint8 or floats in [0, 1], got {array.dtype}")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError(f"{name} as floats must be in [0, 1], got {array.min():.6g} to {array.max():.6g}")
    return np.asarray(array, dtype=np.float32)


def baseline_images(x: Float32, baseline: str | npt.ArrayLike) -> Float32:
    """The images that take the place of pixels, float32 as `x`.

    Raises:
        InputError: There is no baseline of this name, or its images do not fit.
    """
    if not isinstance(baseline, str):
        found = unit_images(baseline, "baseline")
        if found.shape != x.shape:
            raise InputError(f"baseline must have the shape of the images, {x.shape}, got {found.shape}")
        return found
    if checks.one_of("baseline", baseline, BASELINES) == "black":
        return np.zeros_like(x)
    if baseline == "mean":
        return np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    from scipy import ndimage

    width = min(x.shape[2:]) / 8
    return np.asarray(ndimage.gaussian_filter(x, (0, 0, width, width)), dtype=np.float32)


def _prepared(
    images: npt.ArrayLike, maps: npt.ArrayLike, baseline: str | npt.ArrayLike, steps: int
) -> tuple[Float32, npt.NDArray[np.intp], Float32, int]:
    """Images, the rank of each pixel (0: most important), the baseline, and the number of steps."""
    x, values = unit_images(images), checked_maps(maps)
    if values.shape != (len(x), *x.shape[2:]):
        raise InputError(f"maps must have shape {(len(x), *x.shape[2:])} for these images, got {values.shape}")
    steps = checks.whole("steps", steps, low=1, high=values[0].size)
    order = np.argsort(-values.reshape(len(x), -1), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable").reshape(values.shape)
    return x, ranks, baseline_images(x, baseline), steps


def _curves(new: Float32, old: Float32, ranks: npt.NDArray[np.intp], predict: Predict, steps: int) -> Curves:
    """Scores as the pixels of `new` take the place of those of `old`, in the order of their ranks."""
    pixels = ranks[0].size
    moved = np.rint(np.linspace(0, pixels, steps + 1)).astype(int)
    scores = [_scores(predict, np.where((ranks < count)[:, None], new, old)) for count in moved]
    return Curves(moved / pixels, np.stack(scores, axis=1))


def _scores(predict: Predict, x: Float32) -> Float64:
    scores = numbers_of(predict(x), "what predict returns")
    if scores.shape != (len(x),) or not np.isfinite(scores).all():
        raise InputError(f"predict must return {len(x)} finite numbers, one for each image, got shape {scores.shape}")
    return scores
