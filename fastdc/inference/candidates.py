"""Candidate classes: the classes that a user or a prefilter lets an image compete for."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import Model
from fastdc.inference.class_names import class_indices
from fastdc.inference.images import Images
from fastdc.support import Float32, InputError, Int32, as_array, checks, shown

Prefilter: TypeAlias = Callable[[Float32], Any]
"""Given images (n, c, h, w) in [0, 1], the candidate classes of each: a mask (n, K), or n lists of classes; arrays
may be tensors."""

Candidates: TypeAlias = Prefilter | NDArray[Any] | Sequence[int | str] | Sequence[Sequence[int | str] | NDArray[Any]]
"""A prefilter, a mask (n, K), one list of class indices or names for all images, or a list for each image."""


def check_candidates(candidates: Candidates, images: Float32 | Images, model: Model) -> list[Int32]:
    """The candidate conditions of each image: classes, or their prompts, int32 in increasing order.

    Args:
        candidates: A mask (n, K), a list of class indices or names for all images, n such lists, or a callable that
            returns one of these for images in [0, 1]. Arrays may be tensors.
        images: float32 (n, c, h, w) in [0, 1], or checked images, of which floats are made for a callable only.
        model: The model, with K classes.

    Example:
        >>> from fastdc.inference import check_candidates
        >>> check_candidates(["8", 3], images[:1] / 255, clf.model)
        [array([3, 8], dtype=int32)]

    Raises:
        InputError: Wrong shape, type or class, or an image without a candidate.
    """
    given: Any = candidates
    if callable(candidates):
        given = candidates(images.unit if isinstance(images, Images) else images)
    array = as_array(given)  # a prefilter in torch gives tensors
    given = given if array is None else array
    n, n_classes = len(images), model.num_classes
    if isinstance(given, np.ndarray) and given.dtype == np.bool_:
        if given.shape != (n, n_classes):
            raise InputError(f"a mask of candidates must have shape ({n}, {n_classes}), got {given.shape}")
        lists: list[Any] = [np.flatnonzero(row) for row in given]
    else:
        lists = _lists(given)
        if lists and all(isinstance(one, str) or checks.is_whole(one) for one in lists):
            return [_conditions("candidates", lists, model, np.array(model.class_of))] * n
        if len(lists) != n:
            raise InputError(f"candidates must be a list of classes for each of {n} images, got {len(lists)}")
    class_of = np.array(model.class_of)  # once: it may have thousands of prompts
    if np.array_equal(class_of, np.arange(n_classes)):
        class_of = class_of[:0]
    return [_conditions(f"candidates of image {i}", classes, model, class_of) for i, classes in enumerate(lists)]


def _lists(given: Any) -> list[Any]:
    if isinstance(given, str | bytes | dict) or not hasattr(given, "__iter__"):
        raise InputError(f"candidates must be a mask or a list of classes, got {shown(given)}")
    return list(given)


def _conditions(what: str, classes: Any, model: Model, class_of: NDArray[Any]) -> Int32:
    """The conditions of the candidate classes of one image; `class_of` is empty if conditions are classes."""
    if isinstance(classes, str) or not hasattr(classes, "__len__") or len(classes) == 0:
        raise InputError(f"{what} must be one class or more, got {shown(classes)}")
    array = class_indices(classes, model, what)
    chosen = np.flatnonzero(np.isin(class_of, array)) if class_of.size else np.unique(array)
    return chosen.astype(np.int32)
