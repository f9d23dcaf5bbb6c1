"""The full run: every class at every draw, at one look."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.rules.full import Full
from helpers.rule_runs import Request, batches, check_alone, kept, pack, run
from helpers.worlds import fails_with


@given(batches(), st.integers(0, 3))
def test_nobody_is_dropped(requests: list[Request], padding: int) -> None:
    assert kept(Full(), pack(requests, padding=padding)) == [classes.tolist() for classes, _ in requests]
    check_alone(Full(), requests, 0, padding)


def test_everything_is_evaluated_at_one_look() -> None:
    assert Full().looks(1) == (1,)
    assert Full().looks(1000) == (1000,)
    result = run(Full(), np.random.default_rng(0).random((3, 4, 5)))
    assert result.alive.all()
    assert result.evaluations.tolist() == [20] * 3
    fails_with(lambda: Full().looks(0), "rule full needs at least one draw, got 0", kind=InputError)
