"""Options of stopping rules: NumPy's numbers become Python's, and what is no option is refused in one line."""

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.support.checks import fraction, positive, whole, wholes
from helpers.worlds import fails_with

NO_NUMBERS: list[Any] = [None, "3", True, np.True_, 1j, float("nan"), [1], np.arange(2)]
CHECKS: dict[str, Any] = {"whole": whole, "fraction": fraction, "positive": positive}


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("check", CHECKS)
def test_what_is_no_number_is_refused(check: str, value: Any) -> None:
    fails_with(lambda: CHECKS[check]("race", "speed", value), "rule race: speed must", repr(value), kind=InputError)


def test_whole_numbers() -> None:
    result = whole("race", "speed", np.int16(7))
    assert result == 7
    assert type(result) is int
    assert whole("race", "speed", 0, low=0) == 0
    for value, low in [(0, 1), (1, 2), (-3, 0), (2.0, 1), (np.float64(2), 1)]:
        fails_with(partial(whole, "race", "speed", value, low=low), f"at least {low}", repr(value), kind=InputError)


def test_lists_of_whole_numbers() -> None:
    for given in [(1, 5), [1, 5], np.array([1, 5]), (n for n in (1, 5))]:
        result = wholes("race", "speeds", given)
        assert result == (1, 5)
        assert all(type(n) is int for n in result)
    for bad, says in [((), "none"), (5, "5"), ("15", "'15'"), ({1: 2}, "{1: 2}"), ((1, 0), "got 0"), ([1.5], "1.5")]:
        fails_with(partial(wholes, "race", "speeds", bad), "rule race: ", "speeds", says, kind=InputError)


def test_fractions() -> None:
    assert fraction("race", "alpha", np.float32(0.5)) == 0.5
    assert type(fraction("race", "alpha", Fraction(1, 4))) is float
    for value in (0, 1, 0.0, 1.0, -0.1, 1.5, float("inf")):
        fails_with(partial(fraction, "race", "alpha", value), "between 0 and 1", repr(value), kind=InputError)


def test_positive_numbers() -> None:
    assert positive("race", "bound", 3) == 3.0
    assert type(positive("race", "bound", np.int64(3))) is float
    assert positive("race", "bound", 0, zero=True) == 0.0
    for value in (0, 0.0, -1, float("inf"), -float("inf")):
        fails_with(partial(positive, "race", "bound", value), "positive and finite", repr(value), kind=InputError)
    fails_with(lambda: positive("race", "bound", -1e-9, zero=True), "0 or positive", "-1e-09", kind=InputError)
