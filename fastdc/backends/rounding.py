"""How far two engines may differ by rounding alone, relative to the largest output.

An engine that sums K products in another order moves a sum by about sqrt(K) roundings of its size (2^-24 each in
float32), and the layers' shares add up. In half precision what counts is not the order but that every layer's weights
and output are rounded once, to p bits; such errors are independent, so that L layers give a random walk:

    float32:                            8 * 2^-24 * sum over layers of sqrt(K)
    float16, bfloat16, int8, TF32:      8 * 2^-p * sqrt(L),  p = 11, 8, 8, 11

The factor of 8 covers the tails of that walk and the gain of a layer above one.
"""

import math
from collections.abc import Sequence

BITS = {"float16": 11, "bfloat16": 8, "int8": 8, "tf32": 11}
"""p of each precision that is not float32."""


def rounding_tolerance(fan_in: Sequence[int], precision: str) -> float:
    """The formula of the module docstring.

    Args:
        fan_in: K of each layer.
        precision: "float32" or a key of :data:`BITS`.
    """
    if precision == "float32":
        return 8 * 2.0**-24 * sum(math.sqrt(k) for k in fan_in)
    return 8 * 2.0 ** -BITS[precision] * math.sqrt(len(fan_in))
