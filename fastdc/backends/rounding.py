"""How far two engines may differ by rounding alone, relative to the largest output.

An engine that sums K products in another order moves the sum by about sqrt(K) roundings of its size (2^-24 each in
float32), and the contributions of the layers add up. In half precision the order does not matter: each layer's weights
and output are rounded once, to p bits. These errors are independent, so L layers give a random walk:

    float32:                            8 * 2^-24 * sum over layers of sqrt(K)
    float16, bfloat16, int8, TF32:      8 * 2^-p * sqrt(L),  p = 11, 8, 8, 11

The factor of 8 covers the tails of the walk and layers with a gain above one.
"""

import math
from collections.abc import Sequence

BITS = {"float16": 11, "bfloat16": 8, "int8": 8, "tf32": 11}
"""p of each precision other than float32."""


def rounding_tolerance(fan_in: Sequence[int], precision: str) -> float:
    """Difference between two engines, relative to the largest output, that rounding explains.

    The formula is in the docstring of :mod:`fastdc.backends.rounding`.

    Args:
        fan_in: Number of products K that each layer sums per output, one entry per layer.
        precision: "float32", "float16", "bfloat16", "int8" or "tf32".

    Example:
        >>> from fastdc.backends import rounding_tolerance
        >>> rounding_tolerance([64] * 4, "float16") == 16 / 2**11
        True
    """
    if precision == "float32":
        return 8 * 2.0**-24 * sum(math.sqrt(k) for k in fan_in)
    return 8 * 2.0 ** -BITS[precision] * math.sqrt(len(fan_in))
