"""Checks of values that users give: each returns the value as Python's own type, or raises one line.

Every message has the same form, "NAME must be WHAT WAS EXPECTED, got WHAT CAME". NumPy's numbers are as good as
Python's; True and False are no numbers. Returned values are Python's, so that they print and store as plain values.
"""

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

from fastdc.support.exceptions import InputError

MAX_SEED = 2**64 - 1
"""The largest seed: Philox has a key of 64 bits."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, Python's or NumPy's, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, Python's or NumPy's, and not a bool; infinities and NaN count."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a real number (:func:`is_number`) and finite."""
    return is_number(value) and math.isfinite(value)


def whole(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """A whole number of at least `low` and at most `high`.

    Example:
        >>> whole("draws", 16)
        16

    Raises:
        InputError: The value is something else.
    """
    if not is_whole(value) or value < low or (high is not None and value > high):
        raise InputError(f"{name} must be {_wholes(low, high)}, got {value!r:.80}")
    return int(value)


def whole_or(name: str, value: Any, default: int, *, low: int = 1) -> int:
    """A whole number of at least `low`, or `default` for None.

    Raises:
        InputError: The value is neither.
    """
    if value is None:
        return default
    if not is_whole(value) or value < low:
        raise InputError(f"{name} must be {_wholes(low, None)} or None, got {value!r:.80}")
    return int(value)


def seed(value: Any, name: str = "seed") -> int:
    """A seed, in [0, 2^64).

    Raises:
        InputError: The value is something else.
    """
    if not is_whole(value) or not 0 <= value <= MAX_SEED:
        raise InputError(f"{name} must be a whole number in [0, 2^64), got {value!r:.80}")
    return int(value)


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Whole numbers of at least 1, one or more.

    Raises:
        InputError: The values are something else.
    """
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, dict)):
        raise InputError(f"{name} must be a list of whole numbers, got {values!r:.80}")
    result = tuple(whole(f"each of {name}", value) for value in values)
    if not result:
        raise InputError(f"{name} must have one number or more, got none")
    return result


def number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high].

    Raises:
        InputError: The value is something else.
    """
    if not is_finite(value) or not low <= value <= high:
        raise InputError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r:.80}")
    return float(value)


def positive(name: str, value: Any, *, zero: bool = False, below: float = math.inf) -> float:
    """A finite number above 0, or from 0 on if `zero`, and less than `below`.

    Raises:
        InputError: The value is something else.
    """
    if not is_finite(value) or not 0 <= value < below or (value == 0 and not zero):
        size = "finite" if below == math.inf else f"less than {below:g}"
        raise InputError(f"{name} must be {'0 or ' if zero else ''}positive and {size}, got {value!r:.80}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """A probability strictly between 0 and 1.

    Raises:
        InputError: The value is something else.
    """
    if not is_number(value) or not 0 < value < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, got {value!r:.80}")
    return float(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of several names.

    Raises:
        InputError: The value is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r:.80}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        InputError: The value is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r:.80}")
    return value


def _wholes(low: int, high: int | None) -> str:
    if high is not None:
        return f"a whole number from {low} to {high}"
    return f"a whole number of at least {low}"
