"""Classes as a user gives them: by index, or by name. Numbers are indices and strings are names, so "3" is the class of
that name and 3 is the fourth class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdc.bundle import Model
from fastdc.support import InputError, Int64, as_array, checks, did_you_mean, shown

_SHOWN = 5


def class_indices(given: Any, model: Model, what: str) -> Int64:
    """The classes of a model that a user names: :func:`named_indices` with the model's names.

    Example:
        >>> from fastdc.inference import class_indices
        >>> class_indices(["7", 3], clf.model, "labels")
        array([7, 3])

    Raises:
        InputError: There is no such class, or something else was given.
    """
    return named_indices(given, model.class_names, what)


def named_indices(given: Any, names: Sequence[str], what: str) -> Int64:
    """The classes that a user names.

    Args:
        given: A list, array or tensor (m,) of class indices, of class names, or of both.
        names: Names of the K classes.
        what: What they are, in the plural, for messages.

    Returns:
        int64 (m,), each in [0, K).

    Example:
        >>> from fastdc.inference import named_indices
        >>> named_indices(["dog", 0], ("cat", "dog"), "labels")
        array([1, 0])

    Raises:
        InputError: There is no such class, or something else was given.
    """
    array = as_array(given)
    if array is None and (isinstance(given, str | bytes | dict) or not hasattr(given, "__iter__")):
        raise InputError(f"{what} must be class indices or class names, got {shown(given)}")
    if array is not None and (array.ndim != 1 or array.dtype.kind not in "iuUO"):
        raise InputError(f"{what} must be class indices or class names, got {array.dtype} of shape {array.shape}")
    known = len(names)
    if array is not None and array.dtype.kind in "iu":
        if array.size and (array.min() < 0 or int(array.max()) >= known):
            raise InputError(f"{what} must be in [0, {known}), got {array.min()} to {array.max()}")
        return array.astype(np.int64)
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index)
    return np.array([_index(one, places, known, what) for one in given], np.int64)


def _index(one: Any, places: dict[str, list[int]], known: int, what: str) -> int:
    """The index of a class that is given as an index or a name."""
    one = one.item() if getattr(one, "ndim", None) == 0 else one  # a number of a tensor or an array
    if isinstance(one, str):
        found = places.get(one, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{what}: {one!r:.60} is the name of classes {found[0]} and {found[1]}: use indices")
        raise InputError(f"{what} must be classes of the model, got {shown(one, 60)}{_near(one, tuple(places))}")
    if not checks.is_whole(one):
        raise InputError(f"{what} must be class indices or class names, got {shown(one)}")
    if not 0 <= one < known:
        raise InputError(f"{what} must be in [0, {known}), got {one}")
    return int(one)


def _near(name: str, known: Sequence[str]) -> str:
    """The name that resembles a wrong one; the first names if none does."""
    some = ", ".join(shown(other, 60) for other in known[:_SHOWN])
    more = f" ({len(known)} in all)" if len(known) > _SHOWN else ""
    return did_you_mean(name, known) or f": expected names such as {some}{more}"
