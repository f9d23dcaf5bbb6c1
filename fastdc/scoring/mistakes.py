"""Examples of each kind of mistake: what to look at first on the page of a score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.inference import class_keys, named_indices
from fastdc.support import Float64, InputError


@dataclass(frozen=True, eq=False, repr=False)
class Mistake:
    """Images of one class that were taken for one other class.

    Attributes:
        truth: Name of their class.
        answer: Name of the class they were taken for.
        count: Number of them in the data set.
        images: uint8, or float in [0, 1], (m, c, h, w): examples, the surest mistakes first.
        probabilities: float64 (m,), probability of each answer.
        ids: m names.
    """

    truth: str
    answer: str
    count: int
    images: npt.NDArray[Any]
    probabilities: Float64
    ids: tuple[str, ...]


def mistakes_of(
    images: npt.NDArray[Any],
    labels: Any,
    predicted: Any,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    kinds: int = 8,
    each: int = 4,
) -> tuple[Mistake, ...]:
    """The most frequent kinds of mistakes, with examples.

    Args:
        images: (n, c, h, w), uint8 or float in [0, 1].
        labels: True classes, n indices or names.
        predicted: Answers, n indices or names.
        probabilities: (n, K).
        class_names: K names.
        ids: Name of each image; None: their numbers.
        kinds: Most kinds.
        each: Most examples of a kind.

    Example:
        >>> from fastdc.scoring import mistakes_of
        >>> found = clf.classify(images)
        >>> mistakes_of(images, labels, found.labels, found.probabilities, clf.class_names)
        ()

    Raises:
        InputError: There is no such class, or the numbers of images differ.
    """
    truth, answers = named_indices(labels, class_names, "labels"), named_indices(predicted, class_names, "predicted")
    p = np.asarray(probabilities, np.float64)
    if not len(images) == len(truth) == len(answers) == len(p):
        lengths = ", ".join(str(len(of)) for of in (images, truth, answers, p))
        raise InputError(f"images, labels, predicted and probabilities must be as many, got {lengths}")
    names, of_image = class_keys(tuple(class_names)), p[np.arange(len(p)), answers] if len(p) else p
    wrong = np.flatnonzero(truth != answers)
    pairs, which, counts = np.unique(
        np.stack([truth[wrong], answers[wrong]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    found = []
    for kind in np.argsort(-counts, kind="stable")[:kinds]:
        rows = wrong[which.ravel() == kind]
        rows = rows[np.argsort(-of_image[rows], kind="stable")][:each]
        named = tuple(f"image {row}" if ids is None else ids[row] for row in rows)
        own, other = pairs[kind]
        found.append(Mistake(names[own], names[other], int(counts[kind]), images[rows], of_image[rows], named))
    return tuple(found)
