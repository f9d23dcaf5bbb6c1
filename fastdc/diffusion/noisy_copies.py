"""Noisy copies of an image: x + sigma e_i, i = 0, 1, ..., from the counter-based streams.

A copy is a function of (seed, the image's stream, purpose, i) and of nothing else: neither of how many copies are asked
for, nor of their order, nor of other images. Selection and estimation have purposes of their own in the counter, so
their copies are independent, and independent of the noise that a diffusion classifier adds. That noise belongs to the
stream of the copy, a hash of the same four, so that it too is independent from copy to copy.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from fastdc.diffusion import kernels

Images = npt.NDArray[np.float32]


def noisy_copies(
    x: Images, start: int, count: int, *, std: float, seed: int, stream: int, purpose: int
) -> tuple[Images, npt.NDArray[np.int64]]:
    """Copies start ... start + count - 1 of an image, and the noise stream of each.

    Args:
        x: float32 (c, h, w), in the model's value range or any other.
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


def one_copy_each(
    x: Images, streams: npt.NDArray[np.int64], number: int, *, std: float, seed: int
) -> tuple[Images, npt.NDArray[np.int64]]:
    """Estimation copy `number` of each image, float32 (n, c, h, w), and the noise streams, int64 (n,).

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
