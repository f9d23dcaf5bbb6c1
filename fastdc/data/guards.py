"""Guards against files that announce more than there is, for decoders that believe them."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

_OPENING = threading.Lock()


class SizedFile(io.BufferedReader):
    """A file of which nobody reads more than there is: a few bytes can announce gigabytes, and Python makes room."""

    def __init__(self, path: Path) -> None:
        raw = io.FileIO(path)
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Reads at most `size` bytes."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


@contextmanager
def pillow_limit(limit: int | None) -> Iterator[None]:
    """Lets Pillow refuse pictures of twice `limit` pixels, or none, which it takes from a global variable."""
    with _OPENING:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
