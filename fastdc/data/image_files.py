"""Image files read with Pillow: any size and mode becomes uint8 grey (1, h, w) or RGB (3, h, w).

Each of these conversions is counted in the notes: EXIF orientation is applied; transparency is laid over white (also
for grey images, as viewers do); 16-bit grey keeps its range (65535 -> 255); palette, CMYK and YCbCr become RGB; the
first frame stands for an animation or a multi-page file. Pillow's limit on pixels (decompression bombs) applies, and
its warning is an error here.

Only the formats of :data:`FORMATS` are opened, whatever the extension. Pillow knows further ones that start
other programs (EPS starts Ghostscript) or open an embedded picture without checking its format (IPTC).
"""

import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastdc.data.convert import Notes, reading, show
from fastdc.support import InputError

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
"""The formats that are read, by Pillow's names. JPEG includes MPO, which phones write."""

_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright


def read_image(path: Path, notes: Notes) -> NDArray[np.uint8]:
    """Decodes one image file.

    Args:
        path: An existing file.
        notes: Receives the conversions.

    Returns:
        uint8 (1, h, w) for grey images, (3, h, w) for all others.

    Raises:
        InputError: The file is not an image, is truncated, corrupt or too large, or its values have no 8-bit meaning.
    """
    with reading(path, "an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example, about corrupt metadata beside good pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=_formats())
        except UnidentifiedImageError:
            raise InputError(f"{show(path)}: is not an image in a format that fastdc reads ({_names()})") from None
        with image:
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            upright = ImageOps.exif_transpose(image)
            animated = getattr(image, "is_animated", False)  # read last: Pillow may move to the second frame
        pixels = _to_uint8(upright, path, notes)
    if animated:
        notes.add("read as its first frame")
    if orientation in range(2, 9):
        notes.add("turned upright by the EXIF orientation")
    return np.ascontiguousarray(pixels)


def list_images(folder: Path, notes: Notes) -> list[Path]:
    """Lists all image files below a folder, by suffix, in sorted order.

    Hidden files and folders are ignored; other files are skipped with a note. Links to files are followed. Links to
    folders are not, because they may be circular.

    Raises:
        InputError: A folder cannot be listed.
    """
    formats = {*_formats(), "MPO"}  # which the JPEG reader opens
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise InputError(f"{show(error.filename)}: cannot be listed: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in suffixes:
                found.append(Path(root, name))
            else:
                notes.add("skipped, not an image ({})", show(name), noun="file")
    return sorted(found, key=lambda path: path.as_posix())


def _formats() -> list[str]:
    Image.init()  # registers every plugin; later calls return at once
    return [name for name in FORMATS if name in Image.OPEN]  # an older Pillow lacks some


def _names() -> str:
    return ", ".join(name for name in FORMATS if name != "DIB")


def _to_uint8(image: Image.Image, path: Path, notes: Notes) -> NDArray[np.uint8]:
    """Converts an image of any Pillow mode to (1, h, w) or (3, h, w)."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _wide_grey(np.asarray(image), mode, path, notes)[None]
    channels = "L" if mode in _GREY_MODES else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] != 255:
            notes.add("laid over white where transparent")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif channels == "RGB" and mode != "RGB":
        notes.add(f"converted from {'palette' if mode == 'P' else mode} to RGB")
    pixels = np.asarray(image.convert(channels))
    return pixels[None] if channels == "L" else pixels.transpose(2, 0, 1)


def _wide_grey(values: NDArray[np.generic], mode: str, path: Path, notes: Notes) -> NDArray[np.uint8]:
    """Reduces grey (h, w) of more than 8 bits: 16-bit levels are scaled by 255/65535, floats in [0, 1] by 255."""
    levels = values.astype(np.float64)
    top = 1.0 if mode == "F" else 65535.0
    if not (levels.min() >= 0 and levels.max() <= top):  # NaN fails both
        found = f"{levels.min():g} to {levels.max():g}"
        raise InputError(f"{show(path)}: mode {mode} values must be in [0, {top:g}], found {found}")
    notes.add("reduced from float to 8 bits" if mode == "F" else "reduced from 16 to 8 bits")
    return np.rint(levels * (255.0 / top)).astype(np.uint8)
