"""Conversion of decoded images to one shape (c, h, w), and the notes that tell the user about it.

Size: the image is resized (bicubic, antialiased when it shrinks) until it just covers h x w, keeping its aspect ratio,
and the centre is cropped. For a square target this is "resize the shorter side, then centre crop", the convention of
Li et al. (arXiv 2303.16203) and of most diffusion training code, including the rounding of the longer side and of the
crop's offset. For an image much longer than wide, only the part that the crop keeps is computed, so a 1 x 10^8 strip
costs little more than a square.

Colour: grey -> RGB repeats the channel; RGB -> grey is the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
Colour is converted before the size.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdc.support import FastdcError, Float32, InputError, one_line

Pixels: TypeAlias = NDArray[np.uint8 | np.float32]
"""Images: uint8 levels 0..255, or float32 in [0, 1]; shape (n, c, h, w) unless stated otherwise."""

MAX_BYTES = 4 * 2**30
"""Most memory for images: a few kB of archive can declare terabytes. 4 GiB hold 87,000 RGB images of 128 x 128."""

LUMA = (19595, 38470, 7471)
"""BT.601 luma in 16-bit fixed point. The weights sum to 65536, so that grey stays exactly grey."""

# An image is resized as a whole and then cropped if it holds at most this many crops: a 16:1 panorama, square crop.
_WHOLE_CROPS = 16

_DETAILS_SHOWN = 3


def show(text: object) -> str:
    """Makes a path or name fit for a one-line message: control and undecodable characters become '?'."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turns any exception that a decoder raises on a bad file into one :class:`InputError` that names the file.

    Decoders of arbitrary bytes raise many kinds (OSError, SyntaxError, struct.error, zlib.error, IndexError), so this
    is one of the few places where catching Exception is right. The block decodes and does nothing else.
    """
    try:
        yield
    except FastdcError:
        raise
    except Exception as error:
        reason = show(one_line(error))
        raise InputError(f"{show(path)}: cannot be read as {what}: {reason}") from error


class Notes:
    """Counts conversions by kind and writes one line for each kind, in the order of first appearance."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._details: dict[tuple[str, str], dict[str, None]] = {}  # a dict keeps first-seen order

    def add(self, text: str, detail: str = "", *, noun: str = "image", count: int = 1) -> None:
        """Counts a conversion.

        Args:
            text: What happened, such as "resized to 8x8 from {}"; "{}" stands for the different details.
            detail: One of the details, such as "640x640".
            noun: Singular of the things that were converted.
            count: Number of things that were converted.
        """
        key = (noun, text)
        self._counts[key] = self._counts.get(key, 0) + count
        details = self._details.setdefault(key, {})
        if detail:
            details[detail] = None

    def lines(self) -> tuple[str, ...]:
        """Returns one line for each kind, such as ``"3 images resized to 8x8 from 640x640, 16x16"``."""
        lines = []
        for (noun, text), count in self._counts.items():
            shown = list(self._details[noun, text])
            listing = ", ".join(shown[:_DETAILS_SHOWN])
            if len(shown) > _DETAILS_SHOWN:
                listing += f" and {len(shown) - _DETAILS_SHOWN} more"
            lines.append(f"{count} {noun}{'s'[: count != 1]} {text.replace('{}', listing)}")
        return tuple(lines)


def check_shape(shape: object) -> tuple[int, int, int]:
    """Returns `shape` as three positive ints (c, h, w).

    Raises:
        InputError: `shape` is something else.
    """
    try:
        c, h, w = (operator.index(side) for side in shape)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(f"shape must be (channels, height, width), got {show(shape)[:80]}") from None
    if min(c, h, w) < 1:
        raise InputError(f"shape must have positive sides, got {(c, h, w)}")
    return c, h, w


def check_bytes(count: int, shape: tuple[int, ...], itemsize: int, what: str) -> None:
    """Refuses `count` images of `shape` that would take more than :data:`MAX_BYTES`.

    Raises:
        InputError: They would take more; the message begins with `what`.
    """
    size = itemsize * count
    for side in shape:
        size *= side
    if size > MAX_BYTES:
        raise InputError(f"{what} would take {size / 2**30:.1f} GiB, the limit is {MAX_BYTES / 2**30:g} GiB")


def to_float(images: Pixels) -> Float32:
    """Converts uint8 levels to float32 in [0, 1]. Float images are returned unchanged."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)


def to_uint8(images: Pixels) -> NDArray[np.uint8]:
    """Converts float images in [0, 1] to the nearest uint8 level. uint8 images are returned unchanged."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    levels: NDArray[np.uint8] = np.rint(images * np.float32(255)).astype(np.uint8)
    return levels


def fit(images: Pixels, shape: tuple[int, int, int], name: str, notes: Notes) -> Pixels:
    """Converts images to `shape`, colour first, then size.

    Args:
        images: (n, c0, h0, w0), uint8 or float32 in [0, 1]; not changed.
        shape: The wanted (c, h, w).
        name: Name of the images in an error.
        notes: Receives one count per image and kind of conversion.

    Returns:
        (n, c, h, w) of the same dtype, contiguous.

    Raises:
        InputError: The channel counts cannot be converted into each other.
    """
    c, h, w = shape
    images = _to_channels(images, c, name, notes)
    n, _, height, width = images.shape
    if (height, width) == (h, w):
        return np.ascontiguousarray(images)
    size, (top, left) = _cover(height, width, h, w)
    verbs = ["resized"] * (size != (height, width)) + ["centre-cropped"] * (size != (h, w))
    notes.add(f"{' and '.join(verbs)} to {w}x{h} from {{}}", f"{width}x{height}", count=n)
    if size == (height, width):
        return np.ascontiguousarray(images[:, :, top : top + h, left : left + w])
    return _resample(images, size, (top, left), (h, w))


def _to_channels(images: Pixels, c: int, name: str, notes: Notes) -> Pixels:
    n, have = images.shape[:2]
    if have == c:
        return images
    if (have, c) == (1, 3):
        notes.add("repeated from grey to RGB", count=n)
        return np.repeat(images, 3, axis=1)
    if (have, c) == (3, 1):
        notes.add("converted from RGB to grey", count=n)
        return _luma(images)
    raise InputError(
        f"{show(name)}: has {have} channels and {c} are wanted; only grey (1) and RGB (3) can be converted"
    )


def _luma(images: Pixels) -> Pixels:
    """Converts RGB (n, 3, h, w) to grey (n, 1, h, w) of the same dtype."""
    n, _, h, w = images.shape
    if images.dtype == np.uint8:
        levels = np.full((n, 1, h, w), 1 << 15, dtype=np.uint32)  # a half in 16-bit fixed point: rounds to the nearest
        for channel, weight in enumerate(LUMA):
            levels[:, 0] += images[:, channel].astype(np.uint32) * np.uint32(weight)
        return (levels >> np.uint32(16)).astype(np.uint8)
    grey = np.zeros((n, 1, h, w), dtype=np.float32)
    for channel, weight in enumerate(LUMA):
        grey[:, 0] += images[:, channel] * np.float32(weight / 65536)
    return np.clip(grey, 0, 1, out=grey)  # three roundings may leave [0, 1] by one ulp


def _cover(height: int, width: int, h: int, w: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the size (rows, columns) that just covers h x w at the image's aspect ratio, and the crop's offset."""
    # If the image is relatively taller than the target, its width decides, and some rows are cropped.
    size = (w * height // width, w) if w * height >= h * width else (h, h * width // height)
    return size, (round((size[0] - h) / 2), round((size[1] - w) / 2))


def _resample(images: Pixels, size: tuple[int, int], offset: tuple[int, int], crop: tuple[int, int]) -> Pixels:
    """Resizes images to `size` bicubically and returns the window `crop` at `offset`. Channels are independent.

    Pillow rounds levels between its two passes, and from version 13 on the sizes decide which pass comes first. So
    only resizing the whole image gives the levels of the usual "resize, then crop". Resizing just the window may differ
    from it by several levels at sharp edges; this is done only for images so long that resizing all would be wasteful.
    """
    from PIL import Image

    (height, width), (rows, columns), (top, left), (h, w) = images.shape[2:], size, offset, crop
    whole = rows * columns <= _WHOLE_CROPS * h * w
    dy, dx = height / rows, width / columns  # source pixels per resized pixel
    # The window in source coordinates. min(): Pillow refuses a box that rounding moved past the edge.
    box = (left * dx, top * dy, min((left + w) * dx, width), min((top + h) * dy, height))
    out = np.empty((*images.shape[:2], h, w), dtype=images.dtype)
    for i, image in enumerate(images):
        for j, channel in enumerate(image):
            source = Image.fromarray(np.ascontiguousarray(channel))
            if whole:
                resized = np.asarray(source.resize((columns, rows), Image.Resampling.BICUBIC))
                out[i, j] = resized[top : top + h, left : left + w]
            else:
                out[i, j] = np.asarray(source.resize((w, h), Image.Resampling.BICUBIC, box=box))
    if out.dtype != np.uint8:
        np.clip(out, 0, 1, out=out)  # bicubic overshoots at edges; Pillow clips uint8 itself
    return out
