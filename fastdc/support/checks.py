"""Checks of the options that users give to stopping rules: each is right, or one line says what was expected.

NumPy's numbers are as good as Python's, and become Python's, so that a rule prints and stores as plain values.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from fastdc.support.exceptions import InputError


def whole(rule: str, option: str, value: Any, *, low: int = 1) -> int:
    """A whole number of at least `low`.

    Raises:
        InputError: It is not one.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise InputError(f"rule {rule}: {option} must be a whole number of at least {low}, got {value!r}")
    return int(value)


def wholes(rule: str, option: str, values: Any) -> tuple[int, ...]:
    """Whole numbers of at least 1, one or more.

    Raises:
        InputError: They are not.
    """
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, dict)):
        raise InputError(f"rule {rule}: {option} must be a list of whole numbers, got {values!r}")
    result = tuple(whole(rule, f"each of {option}", value) for value in values)
    if not result:
        raise InputError(f"rule {rule}: {option} must have one number or more, got none")
    return result


def fraction(rule: str, option: str, value: Any) -> float:
    """A probability strictly between 0 and 1.

    Raises:
        InputError: It is not one.
    """
    if not _is_real(value) or not 0 < value < 1:
        raise InputError(f"rule {rule}: {option} must lie strictly between 0 and 1, got {value!r}")
    return float(value)


def positive(rule: str, option: str, value: Any, *, zero: bool = False) -> float:
    """A finite number above 0, or from 0 on if `zero`.

    Raises:
        InputError: It is not one.
    """
    if not _is_real(value) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise InputError(f"rule {rule}: {option} must be {'0 or ' if zero else ''}positive and finite, got {value!r}")
    return float(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
