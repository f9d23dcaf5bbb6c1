"""Checks of values that users give. Each returns the value as Python's own type, or raises a one-line error.

Every message has the form "NAME must be EXPECTATION, got VALUE". NumPy's numbers are accepted like Python's; True and
False are not numbers. Returned values are Python's, so that they print and are stored as plain values. The kernels
check their arguments here on every call, hence the quick tests for Python's own types.
"""

import math
import sys
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from fastdc.support.exceptions import InputError
from fastdc.support.shown import shown
from fastdc.support.suggestions import did_you_mean

MAX_SEED = 2**64 - 1
"""The largest seed. Philox has a key of 64 bits."""


def is_whole(value: Any) -> TypeGuard[int]:
    """Says whether a value is a whole number, Python's or NumPy's, and not a bool.

    Example:
        >>> is_whole(3), is_whole(True)
        (True, False)
    """
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: Any) -> TypeGuard[float]:
    """Says whether a value is a real number, Python's or NumPy's, and not a bool. Infinities and NaN count.

    Example:
        >>> is_number(0.5), is_number("0.5")
        (True, False)
    """
    return type(value) in (int, float) or (isinstance(value, Real) and not isinstance(value, bool))


def is_finite(value: Any) -> TypeGuard[float]:
    """Says whether a value is a real number (:func:`is_number`) and finite.

    Example:
        >>> is_finite(0.5), is_finite(float("nan"))
        (True, False)
    """
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def whole(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """Returns a whole number of at least `low` and, unless `high` is None, at most `high`.

    Raises:
        InputError: The value is something else.

    Example:
        >>> whole("draws", 16)
        16
    """
    if not is_whole(value) or value < low or (high is not None and value > high):
        raise InputError(f"{name} must be {_wholes(low, high)}, got {shown(value)}")
    return int(value)


def whole_or(name: str, value: Any, default: int, *, low: int = 1) -> int:
    """Returns a whole number of at least `low`, or `default` if the value is None.

    Raises:
        InputError: The value is something else.

    Example:
        >>> whole_or("draws", None, 16)
        16
    """
    if value is None:
        return default
    if not is_whole(value) or value < low:
        raise InputError(f"{name} must be {_wholes(low, None)} or None, got {shown(value)}")
    return int(value)


def seed(value: Any, name: str = "seed") -> int:
    """Returns a seed, a whole number in [0, 2^64).

    Raises:
        InputError: The value is something else.

    Example:
        >>> seed(7)
        7
    """
    if not is_whole(value) or not 0 <= value <= MAX_SEED:
        raise InputError(f"{name} must be a whole number in [0, 2^64), got {shown(value)}")
    return int(value)


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Returns one or more whole numbers of at least 1 as a tuple.

    Raises:
        InputError: The values are something else.

    Example:
        >>> wholes("to_keep", [5, 1])
        (5, 1)
    """
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, dict)):
        raise InputError(f"{name} must be a list of whole numbers, got {shown(values)}")
    result = tuple(whole(f"each of {name}", value) for value in values)
    if not result:
        raise InputError(f"{name} must have one number or more, got none")
    return result


def number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number of at least `low` and at most `high`.

    Raises:
        InputError: The value is something else.

    Example:
        >>> number("gain", 1, low=0)
        1.0
    """
    if not is_finite(value) or not low <= value <= high:
        kind = "a finite number" if low == -math.inf and high == math.inf else f"a number in [{low:g}, {high:g}]"
        raise InputError(f"{name} must be {kind}, got {shown(value)}")
    return float(value)


def positive(name: str, value: Any, *, zero: bool = False, below: float = math.inf) -> float:
    """Returns a finite number above 0 and less than `below`. If `zero` is True, 0 is accepted, too.

    Raises:
        InputError: The value is something else.

    Example:
        >>> positive("sigma", 0.25)
        0.25
    """
    if not is_finite(value) or not 0 <= value < below or (value == 0 and not zero):
        size = "finite" if below == math.inf else f"less than {below:g}"
        raise InputError(f"{name} must be {'0 or ' if zero else ''}positive and {size}, got {shown(value)}")
    return float(value)


def fraction(name: str, value: Any) -> float:
    """Returns a probability strictly between 0 and 1.

    Raises:
        InputError: The value is something else.

    Example:
        >>> fraction("alpha", 0.01)
        0.01
    """
    if not is_number(value) or not 0 < value < 1:
        raise InputError(f"{name} must lie strictly between 0 and 1, got {shown(value)}")
    return float(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Returns a name that is one of several choices.

    Raises:
        InputError: The value is something else.

    Example:
        >>> one_of("loss", "l1", ("l2", "l1"))
        'l1'
    """
    if not isinstance(value, str) or value not in choices:
        meant = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}{meant}")
    return value


def flag(name: str, value: Any) -> bool:
    """Returns True or False, of Python's or of NumPy's.

    Raises:
        InputError: The value is something else.

    Example:
        >>> flag("antithetic", True)
        True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def device_text(value: Any) -> Any:
    """The name of a torch.device, such as "cuda:0"; anything else as it is, to be checked where it is used.

    torch is not imported: whoever passes a torch.device has imported it.

    Example:
        >>> device_text("cpu")
        'cpu'
    """
    torch = sys.modules.get("torch")
    return str(value) if torch is not None and isinstance(value, torch.device) else value


def _wholes(low: int, high: int | None) -> str:
    if high is not None:
        return f"a whole number from {low} to {high}"
    return f"a whole number of at least {low}"
