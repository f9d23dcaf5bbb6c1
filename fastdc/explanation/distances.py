"""How far apart images, or maps, are: for counterfactuals, and for sanity checks of maps.

    L1    mean over pixels of |a - b|, in units of [0, 1]-pixels
    SSIM  mean over positions of
          (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)),    c1 = 0.01^2, c2 = 0.03^2,
          with means m, variances s^2 and covariance s_ab in a Gaussian window of deviation 1.5 pixels
          (Wang et al., IEEE Trans. Image Process. 13, 2004), over the positions at which the window, cut at 3.5
          deviations, lies within the image

Sanity check (Adebayo et al., arXiv 1810.03292): a map that explains a network must change when the network's weights
are random. :func:`map_similarity` compares maps of the network with maps of one whose weights have been shuffled
(:func:`fastdc.explanation.shuffled_bundle`, :func:`fastdc.explanation.shuffled_module`). Maps that stay similar show
the image and not what the network knows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.explanation.judging import checked_maps
from fastdc.explanation.perturbing import unit_images
from fastdc.support import Float32, Float64, InputError, checks

SIGMA = 1.5  # pixels: deviation of the window of SSIM
_CUT = 3.5  # deviations at which it ends


@dataclass(frozen=True, eq=False)
class MapSimilarity:
    """How similar two maps of each image are; 1 is the same.

    Attributes:
        rank: Spearman's correlation of the pixels, float64 (n,), in [-1, 1]; 0 if a map is constant.
        rank_absolute: The same of absolute values.
        ssim: SSIM of the maps, each scaled to [0, 1], float64 (n,).
    """

    rank: Float64
    rank_absolute: Float64
    ssim: Float64


def flipped(
    counterfactuals: npt.ArrayLike, targets: npt.ArrayLike, predict: Callable[[Float32], npt.ArrayLike]
) -> Float64:
    """Whether a classifier names the class that each counterfactual was made for, float64 (n,): 1 or 0.

    The mean is the flip rate. A classifier that took no part in making them says whether they are more than an
    adversarial change.

    Args:
        counterfactuals: uint8 levels or floats in [0, 1], (n, c, h, w).
        targets: The class of each, (n,).
        predict: Function from float32 images in [0, 1] to their classes (n,).

    Raises:
        InputError: Shapes do not fit, or one side has names and the other numbers.

    Example:
        >>> from fastdc.explanation import flipped
        >>> flipped(images, labels, lambda x: clf.classify(x).labels).mean()
        np.float64(1.0)
    """
    x, wanted = unit_images(counterfactuals, "counterfactuals"), np.asarray(targets)
    if wanted.shape != (len(x),):
        raise InputError(f"targets must be {len(x)} classes, one for each image, got shape {wanted.shape}")
    found = np.asarray(predict(x))
    if found.shape != wanted.shape:
        raise InputError(f"predict must return {len(x)} classes, one for each image, got shape {found.shape}")
    if (found.dtype.kind in "iubf") != (wanted.dtype.kind in "iubf"):  # a name equals no number
        got = f"{wanted[0].item()!r} and {found[0].item()!r}"
        raise InputError(f"targets and predicted classes must both be numbers or both names, got {got}")
    return np.asarray(found == wanted, dtype=np.float64)


def l1_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> Float64:
    """The mean absolute difference of pixels in [0, 1], float64 (n,).

    Args:
        first: uint8 levels or floats in [0, 1], (n, c, h, w).
        second: As `first`.

    Raises:
        InputError: Shapes differ or values are out of range.

    Example:
        >>> from fastdc.explanation import l1_distance
        >>> l1_distance(np.zeros((1, 1, 2, 2)), np.full((1, 1, 2, 2), 0.25))
        array([0.25])
    """
    a, b = _pair(first, second)
    return np.asarray(np.abs(a - b).mean(axis=(1, 2, 3)))


def ssim(first: npt.ArrayLike, second: npt.ArrayLike, *, sigma: float = SIGMA) -> Float64:
    """The structural similarity of images, float64 (n,), at most 1, which is the same image; a mean over channels.

    Args:
        first: uint8 levels or floats in [0, 1], (n, c, h, w).
        second: As `first`.
        sigma: Deviation of the Gaussian window in pixels; images of less than 11 pixels need one below 1.5.

    Raises:
        InputError: Shapes differ, values are out of range, or the window is larger than the images.

    Example:
        >>> from fastdc.explanation import ssim
        >>> ssim(images[:2], images[:2], sigma=0.8)
        array([1., 1.])
    """
    a, b = _pair(first, second)
    return _ssim(a, b, checks.positive("sigma", sigma))


def map_similarity(first: npt.ArrayLike, second: npt.ArrayLike) -> MapSimilarity:
    """How similar the maps of two networks are, image by image.

    Args:
        first: Maps (n, h, w), such as those of a network.
        second: Maps of the same images, such as those of the same network with shuffled weights.

    Raises:
        InputError: Shapes differ, or a map is not finite.

    Example:
        >>> from fastdc.explanation import map_similarity
        >>> map_similarity(images[:1, 0], images[:1, 0] * 2.0).rank.round(6)
        array([1.])
    """
    a, b = checked_maps(first, "first"), checked_maps(second, "second")
    if a.shape != b.shape:
        raise InputError(f"second must have the shape of first, {a.shape}, got {b.shape}")
    sigma = min(SIGMA, (min(a.shape[1:]) - 1) // 2 / _CUT)  # the largest window that fits
    likeness = _ssim(_scaled(a)[:, None], _scaled(b)[:, None], sigma)
    return MapSimilarity(_spearman(a, b), _spearman(np.abs(a), np.abs(b)), likeness)


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Float64, Float64]:
    a, b = unit_images(first, "first").astype(np.float64), unit_images(second, "second").astype(np.float64)
    if a.shape != b.shape:
        raise InputError(f"second must have the shape of first, {a.shape}, got {b.shape}")
    return a, b


def _ssim(a: Float64, b: Float64, sigma: float) -> Float64:
    from scipy import ndimage

    radius = int(_CUT * sigma + 0.5)
    if min(a.shape[2:]) < 2 * radius + 1:
        wanted = f"SSIM with sigma {sigma:g} needs images of {2 * radius + 1} pixels a side"
        raise InputError(f"{wanted}, got {min(a.shape[2:])}: give a smaller sigma")

    def mean(x: Float64) -> Float64:
        smooth = ndimage.gaussian_filter(x, (0, 0, sigma, sigma), truncate=_CUT)
        return np.asarray(smooth[:, :, radius : -radius or None, radius : -radius or None])

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    return np.asarray(value.mean(axis=(1, 2, 3)))


def _scaled(maps: Float64) -> Float64:
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return np.asarray((maps - low) / np.where(high > low, high - low, 1))


def _spearman(a: Float64, b: Float64) -> Float64:
    """Pearson's correlation of the ranks; 0 where one map is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (a, b)]
    u, v = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    scale = np.sqrt((u**2).sum(axis=1) * (v**2).sum(axis=1))
    return np.asarray((u * v).sum(axis=1) / np.where(scale > 0, scale, 1))
