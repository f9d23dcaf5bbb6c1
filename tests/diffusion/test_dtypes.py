"""16-bit floats: every pattern is read exactly, and float32 is rounded as by NumPy and ml_dtypes.

Values enter as network output (a = 1, l1: the error is |F|) and leave as network input (gx = 1, ge = 0: u is x).
"""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastdc.diffusion import kernels
from helpers.oracle import DTYPES

ISAS = kernels.build_config()["cpu_isas"].split(", ")
HALVES = ("float16", "bfloat16")
PATTERNS = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(params=itertools.product(HALVES, ISAS), ids="-".join)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    name, isa = request.param
    kernels.set_cpu_isa(isa)
    return DTYPES[name]


def widened(patterns: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """16-bit floats as float32, of which the patterns that are signalling NaNs are warned of on some machines."""
    with np.errstate(invalid="ignore"):
        return patterns.astype(np.float32)


def loaded(patterns: npt.NDArray[np.uint16], dtype: np.dtype[Any], images: npt.NDArray[np.float32]) -> Any:
    """|F + x| of every pattern, pixel by pixel; images (1, D)."""
    rows = np.array([[0, 0, 1, 1, 0, 0, 1, 0]], np.float32)
    maps = np.zeros((1, 1, len(patterns)), np.float32)
    output = patterns.view(dtype)[None]
    kernels.error_map(output, images, np.zeros((1, 3), np.int32), rows, np.zeros(1, np.int64), maps, seed=0, loss="l1")
    return maps[0, 0]


def stored(values: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> Any:
    """The values as the network would receive them, all in one image."""
    rows = np.array([[1, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    out = np.empty((1, len(values)), dtype)
    kernels.add_noise(values[None], np.zeros((1, 3), np.int32), rows, np.zeros(1, np.int64), seed=0, out=out)
    return out[0]


def assert_same_values(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """The same bits, except for the sign of zeros (0 e is added) and the payload of NaNs."""
    nan = np.isnan(widened(expected))
    zero = widened(expected) == 0
    assert np.isnan(widened(actual[nan])).all()
    assert (widened(actual[zero]) == 0).all()
    rest = ~(nan | zero)
    assert actual[rest].tobytes() == expected[rest].tobytes()


def test_every_pattern_is_read_exactly(dtype: np.dtype[Any]) -> None:
    values = widened(PATTERNS.view(dtype))
    magnitude = np.abs(values)
    np.testing.assert_array_equal(loaded(PATTERNS, dtype, np.zeros((1, 1 << 16), np.float32)), magnitude)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = np.abs(values + magnitude)  # 2 |F| or 0: the sign
    np.testing.assert_array_equal(loaded(PATTERNS, dtype, magnitude[None]), expected)


def test_every_pattern_is_read_exactly_by_the_scalar_tail(dtype: np.dtype[Any]) -> None:
    """One pixel per cell, which never fills a vector."""
    cells = np.zeros((1 << 16, 3), np.int32)
    rows = np.array([[0, 0, 1, 0, 0, 0, 1, 0]], np.float32)
    errors = kernels.denoising_error(
        PATTERNS.view(dtype)[:, None], np.zeros((1, 1), np.float32), cells, rows, np.zeros(1, np.int64),
        seed=0, loss="l1",
    )  # fmt: skip
    np.testing.assert_array_equal(errors, np.abs(widened(PATTERNS.view(dtype))))


def test_every_pattern_round_trips(dtype: np.dtype[Any]) -> None:
    values = PATTERNS.view(dtype)
    assert_same_values(stored(widened(values), dtype), values)


def test_ties_go_to_even_and_their_neighbours_to_the_nearest(dtype: np.dtype[Any]) -> None:
    magnitudes = PATTERNS[:0x7C00] if dtype == np.float16 else PATTERNS[:0x7F80]
    values = magnitudes.view(dtype).astype(np.float64)
    ties = ((values[1:] + values[:-1]) / 2).astype(np.float32)  # exact: one bit more than the 16-bit format has
    assert (ties.astype(np.float64) == (values[1:] + values[:-1]) / 2).all()
    odd = magnitudes[:-1] % 2
    assert_same_values(stored(ties, dtype), (magnitudes[:-1] + odd).view(dtype))
    assert_same_values(stored(-ties, dtype), (magnitudes[:-1] + odd | np.uint16(0x8000)).view(dtype))
    infinity = np.float32(np.inf)
    assert_same_values(stored(np.nextafter(ties, -infinity), dtype), magnitudes[:-1].view(dtype))
    assert_same_values(stored(np.nextafter(ties, infinity), dtype), magnitudes[1:].view(dtype))


def test_any_float32_is_rounded_as_numpy_rounds_it(dtype: np.dtype[Any]) -> None:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 1 << 32, size=1 << 20, dtype=np.uint32)
    exponents = rng.uniform(-28, 18, size=1 << 18)  # where float16 changes from zero to infinity
    values = np.concatenate([bits.view(np.float32), (rng.choice([-1, 1], 1 << 18) * 2**exponents).astype(np.float32)])
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_values(stored(values, dtype), values.astype(dtype))


def test_the_largest_and_smallest() -> None:
    values = np.array(
        [65504, 65519.99, 65520, 1e30, np.inf, -65520, -np.inf, np.nan, 2**-24, 2**-25, 2**-25 * 1.0001, 1.5 * 2**-24,
         2**-14, 2**-14 - 2**-24, 2**-14 - 2**-25], np.float32,
    )  # fmt: skip
    expected = [65504, 65504, np.inf, np.inf, np.inf, -np.inf, -np.inf, np.nan, 2**-24, 0, 2**-24, 2**-23, 2**-14,
                2**-14 - 2**-24, 2**-14]  # fmt: skip
    np.testing.assert_array_equal(stored(values, DTYPES["float16"]).astype(np.float64), expected)
    large = np.array([3.3895314e38, 3.3961775e38, 3.4028235e38, -3.4028235e38], np.float32)
    np.testing.assert_array_equal(
        stored(large, DTYPES["bfloat16"]).astype(np.float32), np.array([large[0], np.inf, np.inf, -np.inf], np.float32)
    )


def test_bfloat16_nan_stays_a_nan() -> None:
    """A NaN whose set bits are all below the sixteen that are stored."""
    values = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(stored(values, DTYPES["bfloat16"]).astype(np.float32)).all()
    assert np.isnan(stored(values, DTYPES["float16"]).astype(np.float32)).all()


def test_short_images_take_the_same_rounding(dtype: np.dtype[Any]) -> None:
    """One pixel per image: stores outside the vector loop."""
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    cells = np.zeros((5000, 3), np.int32)
    cells[:, 0] = np.arange(5000)
    out = np.empty((5000, 1), dtype)
    rows = np.array([[1, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    kernels.add_noise(values[:, None], cells, rows, np.zeros(5000, np.int64), seed=0, out=out)
    assert_same_values(out[:, 0], values.astype(dtype))
