"""The classes that an explanation is about: those that a user names, and runners-up."""

from typing import Any

import numpy as np

from fastdc.bundle import Model
from fastdc.inference import Classification, class_indices
from fastdc.support import InputError, Int64, checks, shown


def is_one(given: Any) -> bool:
    """Whether one class is named for all images."""
    return isinstance(given, str) or checks.is_whole(given)


def named_classes(given: Any, model: Model, n: int, what: str) -> Int64 | None:
    """The classes (n,) that a user names; None: nobody did.

    Raises:
        InputError: There is no such class, or there is not one per image.
    """
    if given is None:
        return None
    if is_one(given):
        return np.full(n, class_indices([given], model, what)[0])
    found = class_indices(given, model, what)
    if len(found) != n:
        raise InputError(f"{what} must be a class, or one for each of {n} images, got {len(found)}: {shown(given, 60)}")
    return found


def runner_up(answers: Classification, own: Int64) -> Int64:
    """The most probable class of each image besides its own, int64 (m,); classes that were never evaluated come last.

    Args:
        answers: Answers to m images.
        own: int64 (m,), class of each.

    Raises:
        InputError: There is one class only.

    Example:
        >>> from fastdc.explanation import runner_up
        >>> made = clf.classify(images[:3])
        >>> bool((runner_up(made, made.labels) != made.labels).all())
        True
    """
    if len(answers.class_names) < 2:
        raise InputError("an explanation needs a second class: the model has one")
    probabilities = np.where(np.isnan(answers.errors), -1, answers.probabilities)
    probabilities[np.arange(len(own)), own] = -2
    return np.lexsort((answers.errors, -probabilities), axis=1)[:, 0].astype(np.int64)
