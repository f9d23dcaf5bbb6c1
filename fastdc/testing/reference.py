"""The oracle: what the kernels compute, in plain NumPy float64, one cell at a time and without regard to speed.

Written from the formulas of ``csrc/philox.h`` and ``csrc/kernels.h``, sharing no code with them, so that the tests
compare two independent programs. The words of Philox and the float32 uniforms are exact; everything after is float64.
"""

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox_words(
    counter: npt.NDArray[np.uint64], key: tuple[int, int], rounds: int = 10
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Philox4x32 (Salmon et al., SC'11, section 3.2). counter: uint64 (4, m) of 32-bit words; returns four (m,)."""
    c = [counter[i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(rounds):
        p0 = c[0] * np.uint64(_MULTIPLIERS[0])
        p1 = c[2] * np.uint64(_MULTIPLIERS[1])
        high0, low0 = p0 >> np.uint64(32), p0 & np.uint64(_MASK)
        high1, low1 = p1 >> np.uint64(32), p1 & np.uint64(_MASK)
        c = [high1 ^ c[1] ^ np.uint64(k0), low1, high0 ^ c[3] ^ np.uint64(k1), low0]
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return tuple(c)


def normal(seed: int, stream: int, draw: int, size: int, purpose: int = 0) -> Float64:
    """Normals of one (seed, stream, draw, purpose), float64 (size,)."""
    blocks = np.arange((size + 3) // 4, dtype=np.uint64)
    counter = np.stack(
        [
            blocks,
            np.full_like(blocks, draw),
            np.full_like(blocks, stream & _MASK),
            np.full_like(blocks, purpose | (stream >> 32) << 8),
        ]
    )
    words = philox_words(counter, (seed & _MASK, seed >> 32))
    columns: list[Float64] = []
    for radius_word, angle_word in ((words[0], words[1]), (words[2], words[3])):
        uniform = ((radius_word >> np.uint64(1)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
        radius = np.sqrt(-2.0 * np.log(uniform.astype(np.float64)))
        quadrant = (angle_word >> np.uint64(30)).astype(np.float64)
        fraction = ((angle_word << np.uint64(2)) & np.uint64(_MASK)).astype(np.uint32).view(np.int32).astype(np.float64)
        angle = quadrant * (np.pi / 2) + fraction * (np.pi / 4 * 2.0**-31)
        columns += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(columns, axis=1).reshape(-1)[:size]


def rho(residual: Float64, loss: str, delta: float = 1.0) -> Float64:
    """The loss of each residual: "l2" square, "l1" absolute value, "huber" with threshold delta, "residual" itself."""
    magnitude = np.abs(residual)
    if loss == "l2":
        return magnitude**2
    if loss == "l1":
        return magnitude
    if loss == "residual":
        return residual
    return np.where(magnitude <= delta, 0.5 * magnitude**2, delta * (magnitude - 0.5 * delta))


def noisy_image(x: Float64, row: Float64, noise: Float64) -> Float64:
    """The network's input u = gx x + ge e of one cell, all (D,); row: float (8,) as ``kernels.ROW_FIELDS``."""
    return np.asarray(row[0] * x + row[1] * noise)


def residual(
    network_output: Float64, x: Float64, row: Float64, noise: Float64, target: Float64 | None = None
) -> Float64:
    """The residual r = a F + b x + c e + d z of one cell, all (D,)."""
    r = np.asarray(row[2] * network_output + row[3] * x + row[4] * noise)
    return r if target is None else np.asarray(r + row[5] * target)
