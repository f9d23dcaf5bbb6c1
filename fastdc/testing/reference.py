"""The oracle of the kernels in plain NumPy float64: one cell at a time, without regard to speed.

It follows the formulas of ``csrc/philox.h`` and ``csrc/kernels.h`` but shares no code with them, so that tests compare
two independent programs. The words of Philox and the float32 uniforms are exact; all later steps are float64.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.support import Float64

Words: TypeAlias = npt.NDArray[np.uint64]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox_words(counter: Words, key: tuple[int, int], rounds: int = 10) -> tuple[Words, ...]:
    """Philox4x32 (Salmon et al., SC'11, section 3.2).

    Args:
        counter: Counters of 32-bit words, uint64 (4, m).
        key: The two 32-bit words of the key.
        rounds: Number of rounds.

    Returns:
        Four arrays of 32-bit words, each uint64 (m,).
    """
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
    """Standard normals of one (seed, stream, draw, purpose), float64 (size,), in the layout of ``csrc/philox.h``."""
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
    """Loss of each residual: "l2" its square, "l1" its magnitude, "huber" with threshold delta, "residual" itself."""
    magnitude = np.abs(residual)
    if loss == "l2":
        return magnitude**2
    if loss == "l1":
        return magnitude
    if loss == "residual":
        return residual
    return np.where(magnitude <= delta, 0.5 * magnitude**2, delta * (magnitude - 0.5 * delta))


def noisy_image(x: Float64, row: Float64, noise: Float64) -> Float64:
    """The network's input u = gx x + ge e of one cell; images and noise (D,), row (8,) as ``kernels.ROW_FIELDS``."""
    return np.asarray(row[0] * x + row[1] * noise)


def residual(
    network_output: Float64, x: Float64, row: Float64, noise: Float64, target: Float64 | None = None
) -> Float64:
    """The residual r = a F + b x + c e + d z of one cell; all arrays (D,), row (8,) as ``kernels.ROW_FIELDS``."""
    r = np.asarray(row[2] * network_output + row[3] * x + row[4] * noise)
    return r if target is None else np.asarray(r + row[5] * target)
