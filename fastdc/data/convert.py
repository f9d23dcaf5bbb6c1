"""Conversion of decoded images to one shape (c, h, w), and the notes that tell the user about it.

Size: the image is resized (bicubic, antialiased when it shrinks) until it just covers h x w, keeping its aspect ratio,
and the centre is cropped. For a square target this is "resize the shorter side, then centre crop", the convention of
Li et al. (arXiv 2303.16203) and of most diffusion training code, including the rounding of the longer side and of the
crop's offset. For an image much longer than wide, only the part that the crop keeps is computed, so a 1 x 10^8 strip
costs little more than a square.

With fit "stretch", the whole image is resized to h x w instead, whatever its aspect ratio, and bilinearly (antialiased
when it shrinks): torchvision's ``Resize((h, w))`` of a picture, as medical classifiers are often trained.

Colour: grey -> RGB repeats the channel; RGB -> grey is the luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
Colour is converted before the size.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdc.data.notes import Notes, show
from fastdc.support import Float32, InputError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = NDArray[np.uint8 | np.float32]
"""Images: uint8 levels 0..255, or float32 in [0, 1]; shape (n, c, h, w) unless stated otherwise."""

LUMA = (19595, 38470, 7471)
"""BT.601 luma in 16-bit fixed point. The weights sum to 65536, so that grey stays exactly grey."""

MUCH_SMALLER = 4
"""The factor per side beyond which shrinking an image has a note of its own."""

# An image is resized as a whole and then cropped if it holds at most this many crops: a 16:1 panorama, square crop.
_WHOLE_CROPS = 16


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


def fit(images: Pixels, shape: tuple[int, int, int], name: str, notes: Notes, how: str = "crop") -> Pixels:
    """Converts images to `shape`, colour first, then size.

    Args:
        images: (n, c0, h0, w0), uint8 or float32 in [0, 1]; not changed.
        shape: The wanted (c, h, w).
        name: Name of the images in an error.
        notes: Receives one count per image and kind of conversion.
        how: One of ``support.FITS``.

    Returns:
        (n, c, h, w) of the same dtype, contiguous.

    Raises:
        InputError: The channel counts cannot be converted into each other.
    """
    images = _to_channels(images, shape[0], name, notes)
    crop = _cropped(images.shape[2:], shape[1:], len(images), notes, how)
    if crop is None:
        return np.ascontiguousarray(images)
    out = np.empty((*images.shape[:2], *crop.window), dtype=images.dtype)
    for i, image in enumerate(images):
        for j, channel in enumerate(image):
            out[i, j] = crop.apply(channel)
    if out.dtype != np.uint8:
        np.clip(out, 0, 1, out=out)  # bicubic overshoots at edges; Pillow clips uint8 itself
    return out


def fit_picture(
    picture: "Image.Image", shape: tuple[int, int, int], name: str, notes: Notes, how: str = "crop"
) -> NDArray[np.uint8]:
    """Converts a Pillow image of mode L or RGB to `shape`, uint8 (1, c, h, w), like :func:`fit` and to the same levels.

    Only the result is held beside the image.

    Raises:
        InputError: The channel counts cannot be converted into each other.
    """
    have, c = len(picture.getbands()), shape[0]
    _check_channels(have, c, name, 1, notes)
    if have > c:
        picture = picture.convert("L")  # the same luma
    crop = _cropped((picture.height, picture.width), shape[1:], 1, notes, how)
    levels = np.asarray(picture) if crop is None else crop.resized(picture)
    planes = levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    return np.ascontiguousarray(np.broadcast_to(planes, shape))[None]


def fit_planes(
    plane: Callable[[int], Float32],
    have: int,
    shape: tuple[int, int, int],
    name: str,
    notes: Notes,
    how: str = "crop",
) -> Float32:
    """Converts a picture that is made channel by channel to `shape`, float32 (1, c, h, w), like :func:`fit`.

    Args:
        plane: The k-th of the picture's channels, float32 (h0, w0) in [0, 1].
        have: Number of its channels.
        shape: The wanted (c, h, w).
        name: Name of the picture in an error.
        notes: Receives the conversions.
        how: One of ``support.FITS``.

    Raises:
        InputError: The channel counts cannot be converted into each other.
    """
    c, h, w = shape
    _check_channels(have, c, name, 1, notes)
    if have == c:
        parts = [fit(plane(0)[None, None], (1, h, w), name, notes, how)]
        parts += [fit(plane(k)[None, None], (1, h, w), name, Notes(), how) for k in range(1, c)]
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)
    grey = plane(0)
    if have == 3:
        grey *= np.float32(LUMA[0] / 65536)
        for k in (1, 2):
            grey += plane(k) * np.float32(LUMA[k] / 65536)
        np.clip(grey, 0, 1, out=grey)
    fitted = fit(grey[None, None], (1, h, w), name, notes, how)
    return np.repeat(fitted, c, axis=1).astype(np.float32, copy=False)


def _check_channels(have: int, c: int, name: str, n: int, notes: Notes) -> None:
    """Notes a conversion of channels, or refuses it."""
    if have == c:
        return
    if (have, c) not in ((1, 3), (3, 1)):
        raise InputError(
            f"{show(name)}: has {have} channels and {c} are wanted; only grey (1) and RGB (3) can be converted"
        )
    notes.add("repeated from grey to RGB" if have == 1 else "converted from RGB to grey", count=n)


def _to_channels(images: Pixels, c: int, name: str, notes: Notes) -> Pixels:
    n, have = images.shape[:2]
    _check_channels(have, c, name, n, notes)
    if have == c:
        return images
    return np.repeat(images, 3, axis=1) if have == 1 else _luma(images)


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


@dataclass(frozen=True)
class _Crop:
    """Resizing of an image of (height, width) to `size` and cropping of the `window` at `offset`, each (rows, columns).

    Pillow rounds levels between its two passes, and from version 13 on the sizes decide which pass comes first. So
    only resizing the whole image gives the levels of the usual "resize, then crop". Resizing just the window may differ
    from it by several levels at sharp edges; this is done only for images so long that resizing all would be wasteful.
    """

    image: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    window: tuple[int, int]
    stretched: bool = False

    def apply(self, channel: NDArray[np.generic]) -> NDArray[np.generic]:
        """One channel (height, width), uint8 or float32, as the window."""
        (top, left), (h, w) = self.offset, self.window
        if self.size == self.image:
            return channel[top : top + h, left : left + w]
        from PIL import Image

        return self.resized(Image.fromarray(np.ascontiguousarray(channel)))

    def resized(self, source: "Image.Image") -> NDArray[np.uint8]:
        """A Pillow image as the window: (h, w), or (h, w, 3). Channels are independent."""
        from PIL import Image

        (height, width), (rows, columns), (top, left), (h, w) = self.image, self.size, self.offset, self.window
        if self.stretched:
            return np.asarray(source.resize((columns, rows), Image.Resampling.BILINEAR))
        if self.size == self.image:
            return np.asarray(source.crop((left, top, left + w, top + h)))
        if rows * columns <= _WHOLE_CROPS * h * w:
            resized = source.resize((columns, rows), Image.Resampling.BICUBIC)
            return np.asarray(resized)[top : top + h, left : left + w]
        dy, dx = height / rows, width / columns  # source pixels per resized pixel
        # The window in source coordinates. min(): Pillow refuses a box that rounding moved past the edge.
        box = (left * dx, top * dy, min((left + w) * dx, width), min((top + h) * dy, height))
        return np.asarray(source.resize((w, h), Image.Resampling.BICUBIC, box=box))


def _cropped(image: tuple[int, ...], window: tuple[int, ...], n: int, notes: Notes, how: str) -> _Crop | None:
    """The conversion of n images of one size (height, width) to another, noted; None if the sizes agree."""
    (height, width), (h, w) = image, window
    if (height, width) == (h, w):
        return None
    stretched = how == "stretch"
    size, offset = ((h, w), (0, 0)) if stretched else _cover(height, width, h, w)
    verbs = ["resized"] * (size != (height, width)) + ["centre-cropped"] * (size != (h, w))
    if stretched and w * height != h * width:
        verbs = ["stretched"]
    notes.add(f"{' and '.join(verbs)} to {w}x{h} from {{}}", f"{width}x{height}", count=n)
    if max(height / size[0], width / size[1]) > MUCH_SMALLER:
        notes.add(f"shrunk by more than a factor of {MUCH_SMALLER} per side: small details are lost", count=n)
    return _Crop((height, width), size, offset, (h, w), stretched)
