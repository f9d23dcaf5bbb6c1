"""Images of one shape, collected in one array as they are read: in memory, or if they are large in a temporary file.

The file is mapped into memory, so that all code sees an array, and the system keeps in memory what is in use.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from itertools import chain

import numpy as np

from fastdc.data.convert import Pixels, to_float
from fastdc.data.image_files import Reader, Target
from fastdc.data.notes import show
from fastdc.data.parts import Part
from fastdc.support import InputError, Mask

IN_MEMORY = 2**29  # bytes of images that are kept in memory


def read_parts(parts: Sequence[Part], reader: Reader, target: Target) -> tuple[Pixels, Mask]:
    """Reads all images of some parts.

    Args:
        parts: The parts, with n images.
        reader: Reads them; its `bad` says whether images that cannot be used are left out.
        target: The wanted shape.

    Returns:
        The m images that can be used (m, c, h, w), and which of the n they are, bool (n,).

    Raises:
        InputError: Images cannot be used and are not to be left out, or none can be used; or all are too large.
    """
    count, at = sum(len(part.ids) for part in parts), 0
    stack, usable = Stack(count, reader), np.ones(count, np.bool_)
    for images in chain.from_iterable(part.read(reader, target) for part in parts):
        if images is None:
            usable[at] = False
        elif reader.bad.skip or not reader.bad.found:  # otherwise the input will be refused
            stack.add(images)
        at += 1 if images is None else len(images)
    reader.bad.settle(int(usable.sum()), reader.notes)
    if at != count:
        raise AssertionError(f"{at} of {count} images were read")
    return stack.whole(), usable


class Stack:
    """Images of one shape, collected in one array whose memory is taken as it is filled."""

    def __init__(self, count: int, reader: Reader) -> None:
        self._count, self._reader, self._filled = count, reader, 0
        self._array: Pixels | None = None
        self._scaled = 0  # images of levels among floats

    def add(self, images: Pixels) -> None:
        """Appends images (k, c, h, w). Levels become float32 if there are floats as well."""
        shape, levels = images.shape[1:], images.dtype == np.uint8
        if self._array is None:
            self._array = self._made(shape, images.dtype)
        if self._array.dtype == np.uint8 and not levels:
            before, self._array = self._array, self._made(shape, images.dtype)
            for start in range(0, self._filled, 1024):
                stop = min(start + 1024, self._filled)
                self._array[start:stop] = to_float(before[start:stop])
            self._scaled = self._filled
        elif levels and self._array.dtype != np.uint8:
            images, self._scaled = to_float(images), self._scaled + len(images)
        self._array[self._filled : self._filled + len(images)] = images
        self._filled += len(images)

    def whole(self) -> Pixels:
        """All images that were added."""
        if self._array is None:
            raise AssertionError("no images were read")
        if self._scaled:
            self._reader.notes.add("scaled from 0..255 to [0, 1]", count=self._scaled)
        return self._array[: self._filled]

    def _made(self, shape: tuple[int, ...], dtype: np.dtype[np.uint8 | np.float32]) -> Pixels:
        c, h, w = shape
        self._reader.budget.hold(self._count, (c, h, w), dtype.itemsize)
        size = self._count * c * h * w * dtype.itemsize
        if size <= IN_MEMORY:
            return np.empty((self._count, c, h, w), dtype)
        where = show(tempfile.gettempdir())
        self._reader.notes.add(f"converted images kept in a temporary file, {size / 2**30:.2g} GiB in {where}", noun="")
        return np.frombuffer(_temporary(size), dtype).reshape(self._count, c, h, w)


def _temporary(size: int) -> mmap.mmap:
    """A file without a name, of `size` bytes that the disk has set aside, as memory; it goes when nobody uses it.

    Raises:
        InputError: The disk has no room for it.
    """
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(prefix="fastdc-") as file:
            if hasattr(os, "posix_fallocate"):  # without it, a full disk would end the process while it writes
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise InputError(
            f"{show(folder)}: the converted images take {size / 2**30:.4g} GiB, and no temporary file of this size can "
            f"be made ({error.strerror}, {free / 2**30:.4g} GiB are free): set TMPDIR to a folder with more room"
        ) from error
