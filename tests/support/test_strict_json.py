"""Strict JSON: what Python's reader accepts beyond the standard is refused."""

import math
from pathlib import Path

import pytest

from fastdc import BundleError
from fastdc.support.strict_json import strict_json
from helpers.worlds import fails_with

PATH = Path("some/file.json")


def test_plain_values() -> None:
    assert strict_json(b'{"a": [1, -2.5, null, true], "b": 9223372036854775808}', PATH) == {
        "a": [1, -2.5, None, True],
        "b": 2**63,
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"NaN", "NaN is not a JSON number"),
        (b"[Infinity]", "Infinity is not a JSON number"),
        (b"-Infinity", "-Infinity is not a JSON number"),
        (b"9223372036854775809", "too large"),
        (b"-9223372036854775809", "too large"),
        (b"1" + b"0" * 5000, "the number 10000000000000000000... is too large"),
        (b"{", "line 1"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_anything_else_is_one_line_that_names_the_file(content: bytes, says: str) -> None:
    fails_with(lambda: strict_json(content, PATH), "some/file.json is not valid JSON", says, kind=BundleError)


def test_infinities_may_be_allowed() -> None:
    assert strict_json(b"[Infinity, -Infinity]", PATH, infinities=True) == [math.inf, -math.inf]
    fails_with(lambda: strict_json(b"NaN", PATH, infinities=True), "NaN", kind=BundleError)
