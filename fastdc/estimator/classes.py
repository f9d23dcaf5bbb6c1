"""The labels of a data set as classes of a model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.data import match_classes, shortened
from fastdc.support import Float64, InputError, Int64, shown


def name_of(label: Any) -> str:
    """The name of a label: 3, 3.0 and "3" are the class "3"."""
    value = label.item() if isinstance(label, np.generic) else label
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def training_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Names for the classes of a model that is trained: the labels, or their positions if these make no names."""
    names = tuple(name_of(label) for label in labels)
    usable = len(set(names)) == len(names) and all(name.isprintable() and name for name in names)
    return names if usable else tuple(map(str, range(len(names))))


def model_classes(labels: Sequence[Any], given: Any, known: Sequence[str]) -> Int64:
    """The class of a model that each label is, int64 (K,): by name or number, as ``data.match_classes`` finds it.

    Args:
        labels: The K different labels.
        given: Name or number of the model's class for each label, a mapping; None: the label itself.
        known: Names of the model's classes.

    Raises:
        InputError: A label is no class of the model, two are the same, or the mapping lacks one.
    """
    if given is None:
        found = match_classes([name_of(label) for label in labels], known, "y")
        return np.array(found, np.int64)
    if not isinstance(given, Mapping):
        raise InputError(f"classes must be a mapping from labels to the model's classes, got {shown(given)}")
    missing = [label for label in labels if label not in given]
    if missing:
        raise InputError(f"classes must name a class of the model for every label, it lacks {shortened(missing)}")
    return np.array(match_classes([name_of(given[label]) for label in labels], known, "classes"), np.int64)


def warn_if_renumbered(errors: Float64, positions: Int64, labels: npt.NDArray[Any]) -> None:
    """Warns if the model tells the labels apart, but takes most of them for others: they are numbered in another order.

    Some of scikit-learn's tools hand an estimator the positions of the labels in sorted order instead of the labels.

    Args:
        errors: float64 (n, K), mean errors of the classes of the labels.
        positions: int64 (n,), label of each image, in [0, K).
        labels: The K labels.
    """
    chosen = errors.argmin(axis=1)
    mostly = [int(np.bincount(chosen[positions == k]).argmax()) for k in range(len(labels))]
    wrong = [k for k, most in enumerate(mostly) if most != k]
    if len(set(mostly)) == len(mostly) and 2 * len(wrong) > len(mostly):
        k = wrong[0]
        warnings.warn(
            f"the model takes most images of label {name_of(labels[k])} for {name_of(labels[mostly[k]])}, and so with "
            f"{len(wrong)} of {len(labels)} labels: if y numbers them in another order than the model, give classes",
            UserWarning,
            stacklevel=4,  # the call of fit,
        )
