"""Values in messages: like repr where repr is short, and quick where repr takes ages or fails."""

import time
from typing import Any

import numpy as np
import pytest

from fastdc.support import checks, shown
from fastdc.support.exceptions import InputError


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -7,
        0.1,
        float("nan"),
        "it's",
        b"raw",
        (),
        (1,),
        (1, "a"),
        [],
        [[1], (2,)],
        {},
        {"a": [1, {"b": None}], 2: "c"},
        {1},
        np.float32(0.5),
        np.arange(3),
        "x" * 1000,
        ["y" * 50] * 50,
        list(range(1000)),
        "two\nlines",
    ],
)
def test_a_value_is_shown_as_by_repr(value: Any) -> None:
    for limit in (80, 7):
        assert shown(value, limit) == repr(value)[:limit]


def _doubled(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value, value)
    return value


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


class _Failing:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def test_hostile_values_are_shown_at_once() -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    start = time.perf_counter()
    for value in (_doubled(60), {"key": _doubled(60)}, _deep(100_000), cyclic, 10**20_000, -(10**20_000), b"0" * 10**8):
        text = shown(value)
        assert 0 < len(text) <= 80
        with pytest.raises(InputError, match="draws must be a whole number"):
            checks.whole("draws", value, high=1)
    assert time.perf_counter() - start < 2  # repr would take 2^60 steps
    assert shown(_Failing()) == "<_Failing>"
    assert "\n" not in shown(np.zeros((3, 3)))
