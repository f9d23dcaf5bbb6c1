"""The budget of one input: how many pixels may be decoded, and how many bytes the images may take.

A few kB of a compressed file can declare terabytes, and a folder can hold many such files. One number, `max_pixels`,
bounds all of it, and sizes are compared with it before anything is decoded:

    one image          max_pixels pixels, and 4 max_pixels bytes as it is stored in an array
    all images         4096 max_pixels pixels together, as they are stored
    converted images   1024 max_pixels bytes; from 512 MiB on they are in a temporary file, not in memory
    their number       max_pixels / 16, since the name and the results of an image take memory, too
    images in memory   64 max_pixels bytes, where they cannot be put into a file

The default of 2^26 pixels (8192 x 8192) allows 275 billion pixels together, 22,000 photos of 12 million, and four
million images that take 64 GiB when they are converted: 350,000 RGB images of 256 x 256. Images are converted as they
are read, so that the originals are never held together.
"""

import math

from fastdc.data.notes import WholeInputError
from fastdc.support import InputError, checks

DEFAULT_MAX_PIXELS = 2**26

_ALL = 4096
_HELD = 64
_ON_DISK = 1024
_LEAST = 1024


class Budget:
    """Counts what an input takes, and refuses what exceeds `max_pixels`; see this module's docstring."""

    def __init__(self, max_pixels: int | None = None) -> None:
        self.max_pixels = DEFAULT_MAX_PIXELS if max_pixels is None else checks.whole("max_pixels", max_pixels)
        self._pixels = 0

    def take(self, width: int, height: int, name: str, count: int = 1) -> None:
        """Counts images before they are decoded.

        Raises:
            InputError: One image, or all images up to here, have too many pixels.
        """
        if width * height > self.max_pixels:
            size = f"{width}x{height} = {width * height:,} pixels"
            raise InputError(f"{name}: has {size}, the limit of one image is {self.max_pixels:,}{_WAY_OUT}")
        self._pixels += count * width * height
        if self._pixels > _ALL * self.max_pixels:
            limit = f"{_ALL} x {self.max_pixels:,}"
            raise WholeInputError(
                f"{name}: the images up to here have {self._pixels:,} pixels, the limit is {limit}{_WAY_OUT}"
            )

    def stored(self, shape: tuple[int, ...], itemsize: int, name: str, factor: int = 4) -> None:
        """Refuses an array in a file that takes more than `factor` x `max_pixels` bytes when it is read at once."""
        self._check(math.prod(shape) * itemsize, factor, f"{name}: {'x'.join(map(str, shape))} values")

    def hold(self, count: int, shape: tuple[int, int, int], itemsize: int, *, in_memory: bool = False) -> None:
        """Refuses `count` images of `shape` that would take too much room, or that are too many."""
        what = f"{count} images of {'x'.join(map(str, shape))}"
        self._check(count * math.prod(shape) * itemsize, _HELD if in_memory else _ON_DISK, what)
        self._check(count * _LEAST, _HELD, what)

    def _check(self, size: int, factor: int, what: str) -> None:
        limit = factor * self.max_pixels
        if size > limit:
            raise InputError(f"{what} would take {_bytes(size)}, the limit is {_bytes(limit)}{_WAY_OUT}")


_WAY_OUT = ": raise --max-pixels (max_pixels)"


def _bytes(size: int) -> str:
    if size >= 2**20 * 1000:
        return f"{size / 2**30:.4g} GiB"
    return f"{size / 2**20:.4g} MiB"
