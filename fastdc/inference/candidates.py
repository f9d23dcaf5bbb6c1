"""Candidate classes: the classes that a user or a prefilter lets an image compete for."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastdc.bundle import Model
from fastdc.support import Float32, InputError, Int32, shown

Candidates: TypeAlias = Callable[[Float32], Any]
"""Given images (n, c, h, w) in [0, 1], the candidate classes of each: a mask (n, K), or n lists of class indices."""


def check_candidates(candidates: Any, unit_images: Float32, model: Model) -> list[Int32]:
    """The candidate conditions of each image: classes, or their prompts, int32 in increasing order.

    Args:
        candidates: A mask (n, K), n lists of class indices, or a callable that returns either for images in [0, 1].
        unit_images: float32 (n, c, h, w) in [0, 1].
        model: The model, with K classes.

    Example:
        >>> from fastdc.inference import check_candidates
        >>> check_candidates([[3, 8]], images[:1] / 255, clf.model)
        [array([3, 8], dtype=int32)]

    Raises:
        InputError: Wrong shape, type or class, or an image without a candidate.
    """
    given = candidates(unit_images) if callable(candidates) else candidates
    n, n_classes = len(unit_images), model.num_classes
    if isinstance(given, np.ndarray) and given.dtype == np.bool_:
        if given.shape != (n, n_classes):
            raise InputError(f"a mask of candidates must have shape ({n}, {n_classes}), got {given.shape}")
        lists: list[Any] = [np.flatnonzero(row) for row in given]
    else:
        try:
            lists = list(given)
        except TypeError:
            raise InputError(f"candidates must be a mask or a list of classes per image, got {shown(given)}") from None
        if len(lists) != n:
            raise InputError(f"candidates must be a list of classes for each of {n} images, got {len(lists)}")
    return [_conditions(i, classes, model) for i, classes in enumerate(lists)]


def _conditions(index: int, classes: Any, model: Model) -> Int32:
    """The conditions of the candidate classes of one image."""
    try:
        array = np.asarray(classes)
    except ValueError:  # lists of different lengths
        array = np.empty(0)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        got = " ".join(repr(classes).split())
        raise InputError(f"candidates of image {index} must be one class index or more, got {got:.80}")
    if array.min() < 0 or array.max() >= model.num_classes:
        raise InputError(
            f"candidates of image {index} must be in [0, {model.num_classes}), got {array.min()} to {array.max()}"
        )
    chosen = np.flatnonzero(np.isin(model.class_of, array)) if model.class_of else np.unique(array)
    return chosen.astype(np.int32)
