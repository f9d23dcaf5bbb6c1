"""The tolerance against what rounding really does: products summed in another order and in half precision."""

import numpy as np
import pytest

from fastdc.backends.rounding import BITS, rounding_tolerance


def test_the_formula_by_hand() -> None:
    assert rounding_tolerance((9, 16), "float32") == 8 * 7 / 2**24
    assert rounding_tolerance((9, 16, 25, 36), "float16") == 8 * 2 / 2**11
    assert rounding_tolerance((4,), "bfloat16") == 1 / 32
    assert rounding_tolerance((), "float32") == 0


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_chain_of_layers_stays_within_it_and_not_far_below(precision: str) -> None:
    """Layers of orthonormal weights in float64 and in the precision, summed in its own order."""
    rng = np.random.default_rng(0)
    kind = np.dtype(precision)
    widths = [256] * 6
    exact = rng.standard_normal((64, 256))
    rounded = exact.astype(kind)
    for width in widths:
        weight = np.linalg.qr(rng.standard_normal((width, width)))[0]
        exact = exact @ weight
        factors = rounded[:, :, None].astype(np.float32), weight.astype(kind)[None].astype(np.float32)
        rounded = np.cumsum(factors[0] * factors[1], axis=1)[:, -1].astype(kind)
    off = float(np.abs(rounded - exact).max() / np.abs(exact).max())
    allowed = rounding_tolerance(widths, precision)
    assert off < allowed
    assert off > allowed / 500


def test_fewer_bits_allow_more() -> None:
    order = sorted(BITS, key=lambda precision: rounding_tolerance((64, 64), precision))
    assert [BITS[precision] for precision in order] == sorted(BITS.values(), reverse=True)
