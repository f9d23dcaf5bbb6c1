"""Noisy copies of an image: x + sigma e_i, i = 0, 1, ..., from the counter-based streams.

A copy is a function of (seed, the image's stream, purpose, i) alone. It does not depend on the number of copies, their
order or other images. Selection and estimation have different purposes in the counter, so their copies are independent
of each other and of the noise that a diffusion classifier adds. That noise belongs to the stream of the copy, a hash of
stream, purpose and i, so that it is independent from copy to copy, too.
"""

import hashlib

import numpy as np

from fastdc.diffusion import kernels
from fastdc.support import Float32, Int64


def noisy_copies(
    x: Float32, start: int, count: int, *, std: float, seed: int, stream: int, purpose: int
) -> tuple[Float32, Int64]:
    """Makes copies start ... start + count - 1 of an image, and names the noise stream of each.

    Args:
        x: float32 (c, h, w), in any value range.
        start: Number of the first copy, from 0.
        count: Number of copies.
        std: Standard deviation of the noise, in the units of x.
        seed: Philox key.
        stream: The image's stream, in [0, 2^56).
        purpose: ``kernels.PURPOSE_SELECTION`` or ``kernels.PURPOSE_ESTIMATION``.

    Returns:
        float32 (count, c, h, w), not clipped, and int64 (count,).

    Example:
        >>> from fastdc.diffusion import kernels, noisy_copies
        >>> noisy_copies(np.zeros((1, 8, 8), np.float32), 0, 3, std=0.5, seed=0, stream=7, purpose=2)[0].shape
        (3, 1, 8, 8)
    """
    numbers = np.arange(start, start + count, dtype=np.int32)
    noise = kernels.philox_normal(np.full(count, stream, np.int64), numbers, x.size, seed=seed, purpose=purpose)
    noise *= np.float32(std)
    copies = noise.reshape(count, *x.shape)
    copies += x
    return copies, np.array([_stream(stream, purpose, number) for number in numbers.tolist()], np.int64)


def one_copy_each(x: Float32, streams: Int64, number: int, *, std: float, seed: int) -> tuple[Float32, Int64]:
    """Makes estimation copy `number` of each of several images, and names the copies' noise streams.

    Args:
        x: float32 (n, c, h, w), in any value range.
        streams: int64 (n,), the images' streams, in [0, 2^56).
        number: Number of the copy, from 0.
        std: Standard deviation of the noise, in the units of x.
        seed: Philox key.

    Returns:
        float32 (n, c, h, w), not clipped, and int64 (n,).

    Example:
        >>> from fastdc.diffusion import one_copy_each
        >>> one_copy_each(np.zeros((4, 1, 8, 8), np.float32), np.arange(4), 0, std=0.5, seed=0)[0].shape
        (4, 1, 8, 8)
    """
    made = [
        noisy_copies(image, number, 1, std=std, seed=seed, stream=stream, purpose=kernels.PURPOSE_ESTIMATION)
        for image, stream in zip(x, streams.tolist(), strict=True)
    ]
    return np.concatenate([one[0] for one in made]), np.concatenate([one[1] for one in made])


def _stream(stream: int, purpose: int, number: int) -> int:
    name = stream.to_bytes(8, "little") + purpose.to_bytes(1, "little") + number.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(name, digest_size=7, person=b"fastdc copy").digest(), "little")
