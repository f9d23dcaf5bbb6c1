"""Values that users give: NumPy's numbers become Python's, and anything else is a one-line error."""

from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastdc import InputError
from fastdc.support.checks import (
    flag,
    fraction,
    is_finite,
    is_number,
    is_whole,
    number,
    one_of,
    positive,
    seed,
    whole,
    whole_or,
    wholes,
)
from helpers.worlds import fails_with

NO_NUMBERS: list[Any] = [None, "3", True, np.True_, 1j, float("nan"), [1], np.arange(2)]
CHECKS: dict[str, Any] = {"whole": whole, "fraction": fraction, "positive": positive}


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("check", CHECKS)
def test_other_values_are_refused_as_numbers(check: str, value: Any) -> None:
    fails_with(lambda: CHECKS[check]("speed", value), "speed must", repr(value), kind=InputError)


def test_kinds_of_numbers() -> None:
    values = (3, np.int16(3), 2.5, np.float32(2.5), float("inf"), float("nan"), True, np.True_, "3", None)
    assert [is_whole(value) for value in values] == [True] * 2 + [False] * 8
    assert [is_number(value) for value in values] == [True] * 6 + [False] * 4
    assert [is_finite(value) for value in values] == [True] * 4 + [False] * 6


def test_whole_numbers() -> None:
    result = whole("speed", np.int16(7))
    assert result == 7
    assert type(result) is int
    assert whole("speed", 0, low=0) == 0
    for value, low in [(0, 1), (1, 2), (-3, 0), (2.0, 1), (np.float64(2), 1)]:
        fails_with(partial(whole, "speed", value, low=low), f"at least {low}", repr(value), kind=InputError)


def test_lists_of_whole_numbers() -> None:
    for given in [(1, 5), [1, 5], np.array([1, 5]), (n for n in (1, 5))]:
        result = wholes("speeds", given)
        assert result == (1, 5)
        assert all(type(n) is int for n in result)
    for bad, says in [((), "none"), (5, "5"), ("15", "'15'"), ({1: 2}, "{1: 2}"), ((1, 0), "got 0"), ([1.5], "1.5")]:
        fails_with(partial(wholes, "speeds", bad), "speeds", says, kind=InputError)


def test_fractions() -> None:
    assert fraction("alpha", np.float32(0.5)) == 0.5
    assert type(fraction("alpha", Fraction(1, 4))) is float
    for value in (0, 1, 0.0, 1.0, -0.1, 1.5, float("inf")):
        fails_with(partial(fraction, "alpha", value), "between 0 and 1", repr(value), kind=InputError)


def test_positive_numbers() -> None:
    assert positive("bound", 3) == 3.0
    assert type(positive("bound", np.int64(3))) is float
    assert positive("bound", 0, zero=True) == 0.0
    for value in (0, 0.0, -1, float("inf"), -float("inf")):
        fails_with(partial(positive, "bound", value), "positive and finite", repr(value), kind=InputError)
    fails_with(lambda: positive("bound", 10**400), "positive and finite", kind=InputError)
    fails_with(lambda: positive("bound", -1e-9, zero=True), "0 or positive", "-1e-09", kind=InputError)


def test_numbers_that_may_be_left_out() -> None:
    assert whole_or("steps", None, 7) == 7
    assert whole_or("steps", np.uint8(3), 7) == 3
    fails_with(
        lambda: whole_or("steps", 0, 7), "steps must be a whole number of at least 1 or None, got 0", kind=InputError
    )


def test_seeds() -> None:
    assert seed(2**64 - 1) == 2**64 - 1
    assert type(seed(np.uint64(5))) is int
    for value in (-1, 2**64, 1.0, True, None, "1"):
        fails_with(
            partial(seed, value, "copies_seed"),
            "copies_seed must be a whole number in [0, 2^64)",
            repr(value),
            kind=InputError,
        )


def test_bounded_numbers() -> None:
    assert number("gain", np.float32(0.5), low=0, high=1) == 0.5
    assert positive("radius", 3, below=4) == 3.0
    fails_with(lambda: number("gain", 1.5, low=0, high=1), "gain must be a number in [0, 1], got 1.5", kind=InputError)
    fails_with(lambda: number("gain", float("nan")), "gain must be a finite number, got nan", kind=InputError)
    fails_with(
        lambda: positive("radius", 4, below=4), "radius must be positive and less than 4, got 4", kind=InputError
    )
    fails_with(lambda: whole("draws", 9, high=8), "draws must be a whole number from 1 to 8, got 9", kind=InputError)


def test_names_and_flags() -> None:
    assert one_of("loss", "l1", ("l2", "l1")) == "l1"
    assert flag("antithetic", True) is True
    for value in ("l3", None, 1, ["l1"]):
        fails_with(
            partial(one_of, "loss", value, ("l2", "l1")),
            "loss must be one of l2, l1, got ",
            repr(value),
            kind=InputError,
        )
    assert flag("antithetic", np.False_) is False
    for other in (1, 0, None, "yes"):
        fails_with(
            partial(flag, "antithetic", other), "antithetic must be True or False, got ", repr(other), kind=InputError
        )
