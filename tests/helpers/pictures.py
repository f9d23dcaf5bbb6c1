"""Picture files that Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_png(path: Path, values: NDArray[np.uint16], kind: int, clear: NDArray[np.uint16] | None = None) -> Path:
    """A PNG of 16 bits from (h, w, c), which Pillow cannot write.

    kind 0: grey, 2: RGB, 4: grey and alpha, 6: RGBA; clear: the transparent colour (c,).
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    key = b"" if clear is None else chunk(b"tRNS", clear.astype(">u2").tobytes())
    body = chunk(b"IHDR", head) + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path
