"""Classes of a data set and classes of a model: one rule that says which is which, for every command.

1. By name, if every class of the data set is a class of the model, spelled the same. Order and missing classes do not
   matter.
2. By number, if the data set has no names, or all its names are whole numbers below the model's number of classes: the
   class "3" is the model's class 3.
3. Otherwise the data set is refused.
"""

from collections.abc import Sequence

import numpy as np

from fastdc.data.notes import Notes, show
from fastdc.support import InputError, Int64, did_you_mean

_SHOWN = 5


def match_classes(names: Sequence[str], known: Sequence[str], source: object = "the data set") -> tuple[int, ...]:
    """The class of a model that each class of a data set is, by this module's rule.

    Args:
        names: Names of the data set's classes.
        known: Names of the model's classes.
        source: The data set, for errors.

    Raises:
        InputError: Some classes are not the model's, a name belongs to several of its classes, or two are the same.

    Example:
        >>> from fastdc.data import match_classes
        >>> match_classes(["dog", "cat"], ["cat", "cow", "dog"])
        (2, 0)
        >>> match_classes(["0", "2"], ["cat", "cow", "dog"])
        (0, 2)
    """
    if tuple(names) == tuple(known):
        return tuple(range(len(known)))
    places: dict[str, list[int]] = {}
    for k, name in enumerate(known):
        places.setdefault(name, []).append(k)
    if all(name in places for name in names):
        shared = [name for name in names if len(places[name]) > 1]
        if shared:
            both = " and ".join(map(str, places[shared[0]][:2]))
            raise InputError(
                f"{show(source)}: {shared[0]!r:.60} is the name of the model's classes {both}: use numbers"
            )
        found = [places[name][0] for name in names]
    elif _numbers(names, len(known)):
        found = [int(name) for name in names]
    else:
        strange = next(name for name in names if name not in places)
        raise InputError(
            f"{show(source)}: has a class {show(strange)!r:.60} that the model does not have: expected names or "
            f"numbers of {shortened(known)}; got {shortened(names)}{did_you_mean(strange, known)}"
        )
    if len(set(found)) != len(found):
        raise InputError(f"{show(source)}: two of its classes are the same class of the model: {shortened(names)}")
    return tuple(found)


def model_labels(
    labels: Int64, names: Sequence[str] | None, known: Sequence[str], source: object, notes: Notes
) -> Int64:
    """Labels of a data set as classes of a model.

    Args:
        labels: int64 (n,), not negative; below the number of names, if there are names.
        names: Names of the data set's classes; None: it has numbers only.
        known: Names of the model's classes.
        source: The data set, for errors.
        notes: Told if named classes are matched by number.

    Raises:
        InputError: See :func:`match_classes`, or a label is not below the model's number of classes.
    """
    if names is None:
        if labels.max() >= len(known):
            raise InputError(
                f"{show(source)}: has label {labels.max()}, but the model has classes 0 to {len(known) - 1}: "
                f"{shortened(known)}"
            )
        return labels
    found = match_classes(names, known, source)
    if any(known[k] != name for k, name in zip(found, names, strict=True)):
        pairs = [f"{name} is {known[k]!r:.40}" for k, name in zip(found[:3], names, strict=False)]
        notes.add(f"of {show(source)} read as numbers of classes: {', '.join(pairs)}", noun="name", count=len(names))
    return np.array(found, np.int64)[labels]


def shortened(names: Sequence[str]) -> str:
    """A list of names for a message: all of at most five, otherwise the first ones and the number of all.

    Example:
        >>> from fastdc.data import shortened
        >>> shortened("abcdef")
        "'a', 'b', 'c', 'd', 'e', ... (6 in all)"
    """
    shown = ", ".join(f"{show(name)!r:.60}" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)} in all)"


def _numbers(names: Sequence[str], count: int) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) <= 9 and int(name) < count for name in names)
