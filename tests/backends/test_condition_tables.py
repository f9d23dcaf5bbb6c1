"""Rows of condition tables: one per condition, and one for the null class."""

from dataclasses import replace

import pytest

from fastdc.backends.condition_tables import condition_rows
from helpers.worlds import gaussian

MODEL = gaussian(3).model


@pytest.mark.parametrize(
    ("names", "prompts", "null", "rows"),
    [
        (("a", "b", "c"), (), None, 3),
        (("a", "b", "c"), (), 3, 4),
        (("a",), (), None, 1),
        (("a", "b"), ("p", "q", "r", "s", "t"), 5, 6),
        (("a", "b"), ("p", "q", "r", "s", "t"), None, 5),
    ],
)
def test_rows(names: tuple[str, ...], prompts: tuple[str, ...], null: int | None, rows: int) -> None:
    class_of = tuple(min(i, len(names) - 1) for i in range(len(prompts)))
    model = replace(MODEL, class_names=names, prompts=prompts, class_of=class_of, null_class=null)
    assert condition_rows(model) == rows
