"""Curves of weights over noise levels: interpolation between knots, storage, refusals."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.diffusion.level_weights import LevelWeights

curves = st.lists(
    st.tuples(st.floats(1e-6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=9, unique_by=lambda k: k[0]
).map(lambda knots: LevelWeights(*map(tuple, zip(*sorted([*knots, (2e6, 1.0)]), strict=True))))


@given(curves, st.floats(1e-9, 1e9))
def test_weights_are_linear_between_the_knots_around_a_ratio(curve: LevelWeights, ratio: float) -> None:
    """By searching the knots one by one."""
    below = [knot for knot in zip(curve.ratio, curve.weight, strict=True) if knot[0] <= ratio]
    above = [knot for knot in zip(curve.ratio, curve.weight, strict=True) if knot[0] > ratio]
    if below and above:
        (r0, w0), (r1, w1) = below[-1], above[0]
        share = math.log(ratio / r0) / math.log(r1 / r0)
        expected = (1 - share) * w0 + share * w1
    else:
        expected = below[-1][1] if below else above[0][1]
    assert float(curve.at(ratio)) == pytest.approx(expected, rel=1e-6, abs=1e-6 * max(curve.weight))


def test_weights_of_many_levels_at_once() -> None:
    curve = LevelWeights((0.1, 1.0, 10.0), (0.0, 2.0, 1.0))
    ratios = np.array([[1e-300, 0.1, math.sqrt(0.1)], [1.0, math.sqrt(10), math.inf]])
    expected = np.array([[0.0, 0.0, 1.0], [2.0, 1.5, 1.0]])
    np.testing.assert_allclose(curve.at(ratios), expected, rtol=1e-12, atol=1e-12)
    assert (LevelWeights((0.3,), (1.0,)).at(ratios) == 1).all()


@given(curves)
def test_a_curve_is_plain_values(curve: LevelWeights) -> None:
    read = LevelWeights.from_dict(json.loads(json.dumps(curve.to_dict())))
    assert read == curve
    assert hash(read) == hash(curve)


def test_numpy_values_become_plain_ones() -> None:
    curve = LevelWeights([np.float32(0.5), 1], [np.int64(2), np.float64(0.25)])  # type: ignore[arg-type]
    assert curve == LevelWeights((0.5, 1.0), (2.0, 0.25))
    assert {type(value) for value in (*curve.ratio, *curve.weight)} == {float}


@pytest.mark.parametrize(
    ("ratio", "weight", "message"),
    [
        ((), (), "ratio of level weights must be 1 to 10000 numbers"),
        (0.5, (1.0,), "ratio of level weights must be 1 to 10000 numbers"),
        ((1.0,), None, "weight of level weights must be 1 to 10000 numbers"),
        ((1.0,), ("1",), "weight of level weights must be numbers"),
        ((True,), (1.0,), "ratio of level weights must be numbers"),
        ((1.0,), (math.nan,), "weight of level weights must be finite and not negative"),
        ((1.0,), (math.inf,), "weight of level weights must be finite and not negative"),
        ((1.0,), (-1.0,), "weight of level weights must be finite and not negative"),
        ((math.inf,), (1.0,), "ratio of level weights must be finite"),
        ((0.0, 1.0), (1.0, 1.0), "ratio of level weights must be positive and increasing"),
        ((1.0, 1.0), (1.0, 1.0), "ratio of level weights must be positive and increasing"),
        ((2.0, 1.0), (1.0, 1.0), "ratio of level weights must be positive and increasing"),
        ((1.0, 2.0), (1.0,), "level weights need one weight per knot, got 2 and 1"),
        ((1.0, 2.0), (0.0, 0.0), "weight of level weights must not be zero everywhere"),
    ],
)
def test_other_values_are_refused_as_curves(ratio: Any, weight: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        LevelWeights(ratio, weight)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [5, [], {}, {"ratio": [1.0]}, {"ratio": [1.0], "weight": [1.0], "colour": 1}])
def test_other_entries_are_refused(entry: Any) -> None:
    with pytest.raises(InputError, match=r"^level weights must be \{ratio, weight\}, got "):
        LevelWeights.from_dict(entry)
