"""Pictures of more than 8 bits: grey and RGB of 16 bits in PNG and TIFF, grey of 10 to 32 bits, floats.

Pillow holds grey of 16 bits and more as it is, and reduces 16-bit RGB to 8 bits: of the two bytes of a value it keeps
the higher one, which its raw modes RGB;16B and RGB;16L (big and little endian) select. Decoding with the other mode
gives the lower byte, and both together the value. Grey with 16-bit alpha is four bytes per pixel, read as RGBA. One
channel is made at a time, so that a picture takes about 16 bytes per pixel.

Some kinds cannot be read exactly, and are refused: 16-bit SGI and CMYK, and TIFF with a plane per colour. 16-bit
colour in PPM arrives in 8 bits, which is noted.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdc.data.levels import WHITE, Levels
from fastdc.data.notes import Notes
from fastdc.support import Float32, InputError

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_UNSIGNED, _SIGNED = 1, 2  # values of _SAMPLE_FORMAT
_NATIVE = "L" if sys.byteorder == "little" else "B"


def is_deep(image: Image.Image, levels: Levels, name: str, notes: Notes) -> bool:
    """Whether a picture that is not decoded yet has more than 8 bits per channel, or signed values.

    Raises:
        InputError: It has more, but Pillow would lose them.
    """
    if image.mode.startswith("I") or image.mode == "F" or _is_signed_byte(image):
        return True
    if has_colour_of_16_bits(image):
        modes = _raw_modes(image)
        if modes[0].startswith("RGB") or modes == ["LA;16B"]:
            return True
        raise InputError(f"{name}: {modes[0]} is not read: save it as a 16-bit PNG, grey or RGB")
    tile = _tiles(image)[0] if _tiles(image) else None
    if image.format == "SGI" and tile is not None and (tile.codec_name == "SGI16" or tile.args[-1] == 2):
        raise InputError(f"{name}: SGI of 16 bits is not read: save it as a 16-bit PNG")
    if image.format == "PPM" and tile is not None and tile.codec_name.startswith("ppm") and tile.args[-1] > 255:
        if levels.window is not None and levels.usual is None:
            raise InputError(f"{name}: no window can be given for colour in PPM: save it as a 16-bit PNG")
        notes.add("reduced to 8 bits")
    return False


def has_colour_of_16_bits(image: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has 16 bits per channel of colour or alpha, of which Pillow keeps 8."""
    return any(mode[:-1].endswith(";16") for mode in _raw_modes(image)) and image.mode[0] not in "IF"


class DeepPicture:
    """A picture whose channels are made one by one, float32 in [0, 1], upright.

    Attributes:
        channels: 1 for grey, 3 for RGB.
        size: (height, width).
    """

    def __init__(
        self,
        image: Image.Image,
        reopen: Callable[[], AbstractContextManager[Image.Image]],
        turn: Callable[[Image.Image], Image.Image],
        levels: Levels,
        name: str,
    ) -> None:
        """Decodes the picture.

        Args:
            image: The picture, not decoded.
            reopen: Opens it once more.
            turn: Turns an image upright.
            levels: Maps its values to [0, 1].
            name: Its name.
        """
        self._levels, self._name = levels, name
        self._white, self._judge, self._inverted = WHITE, True, False
        modes = _raw_modes(image)
        self._bytes: tuple[tuple[Image.Image, int], ...] = ()  # of the higher bytes and of the lower ones
        self._stride, alpha = 1, None
        self._opacity: Float32 | None = None  # (h, w) in [0, 1]
        if modes == ["LA;16B"]:
            _set_raw_modes(image, lambda _: "RGBA")
            image.load()
            turned = turn(image)
            self._bytes, self.channels, self._stride, alpha = ((turned, 0), (turned, 1)), 1, 2, 2
        elif modes and modes[0].startswith("RGB"):
            image.load()
            with reopen() as lower:
                _set_raw_modes(lower, _other_byte)
                lower.load()
                self._bytes, self.channels = ((turn(image), 0), (turn(lower.copy()), 0)), 3
            alpha = 3 if image.mode == "RGBA" else None
            self._opacity = self._colour_key(image.info.get("transparency"))
        else:
            self._grey, self.channels = self._grey_values(turn, image), 1
        height, width = self._grey.shape if not self._bytes else self._bytes[0][0].size[::-1]
        self.size = (height, width)
        if alpha is not None:
            opacity = self._values(alpha)
            if opacity.min() != WHITE:
                self._opacity = opacity.astype(np.float32) / np.float32(WHITE)

    @property
    def clear(self) -> bool:
        """Whether the picture is transparent anywhere."""
        return self._opacity is not None

    def plane(self, k: int) -> Float32:
        """The k-th channel, float32 (h, w) in [0, 1], laid over white.

        Raises:
            InputError: Its values have no meaning without a window.
        """
        values = self._values(k * self._stride) if self._bytes else self._grey
        floats = values.dtype.kind == "f" and self._white == 1
        unit = self._levels.unit(values, self._white, self._name, count=int(k == 0), judge=self._judge, floats=floats)
        if self._inverted:
            np.subtract(1, unit, out=unit)
        if self._opacity is not None:
            unit *= self._opacity
            unit += 1 - self._opacity
            np.clip(unit, 0, 1, out=unit)
        return unit

    def _values(self, band: int) -> NDArray[np.uint16]:
        higher, lower = self._bytes
        values = np.array(higher[0].getchannel(band + higher[1]), dtype=np.uint16)
        values <<= 8
        values |= np.asarray(lower[0].getchannel(band + lower[1]))
        return values

    def _colour_key(self, clear: object) -> Float32 | None:
        """Opacity of a picture in which one colour of three 16-bit values is transparent; None if nothing is."""
        if not (isinstance(clear, tuple) and len(clear) == 3):
            return None
        seen = np.zeros(self._bytes[0][0].size[::-1], bool)
        for band, value in enumerate(clear):
            seen |= self._values(band) != value
        return None if seen.all() else seen.astype(np.float32)

    def _grey_values(self, turn: Callable[[Image.Image], Image.Image], image: Image.Image) -> NDArray[Any]:
        """The values of a grey picture, and what its header says about them."""
        tags = getattr(image, "tag_v2", {})
        bits, form = _first(tags.get(_BITS)), _first(tags.get(_SAMPLE_FORMAT))
        stated = _raw_maximum(image)
        clear = image.info.get("transparency")
        image.load()
        values: NDArray[Any] = np.asarray(turn(image))
        if image.mode == "F":
            self._white = 1.0
        elif image.mode == "L":
            values, self._white = values.view(np.int8), 127.0
        elif form == _SIGNED and bits == 16:
            self._white = 32767.0
        elif form in (_UNSIGNED, None) and bits == 32:
            values = values.view(np.uint32)
        elif bits == 12:
            self._white, self._judge = 4095.0, False
        elif stated is not None:  # a PGM file states its white, and Pillow scales it to 65535
            values = np.rint(np.multiply(values, stated / WHITE, dtype=np.float32))
            self._white, self._judge = float(stated), False
        self._inverted = _first(tags.get(_PHOTOMETRIC)) == 0 and image.mode != "L"  # white is 0, as in many X-rays
        if isinstance(clear, int) and (values == clear).any():
            self._opacity = (values != clear).astype(np.float32)
        return values


def _tiles(image: Image.Image) -> Any:
    """The parts of a file that is not decoded yet."""
    return getattr(image, "tile", ())


def _raw_modes(image: Image.Image) -> list[str]:
    """The raw modes of the parts of a file, which tell how bytes become pixels; each one once."""
    args = (tile.args for tile in _tiles(image))
    return sorted({str(arg[0] if isinstance(arg, tuple) and arg else arg) for arg in args})


def _set_raw_modes(image: Any, change: Callable[[str], str]) -> None:
    image.tile = [
        tile._replace(
            args=(change(tile.args[0]), *tile.args[1:]) if isinstance(tile.args, tuple) else change(tile.args)
        )
        for tile in image.tile
    ]


def _other_byte(mode: str) -> str:
    """The raw mode that selects the lower byte of each value, of one that selects the higher one."""
    order = mode[-1] if mode[-1] != "N" else _NATIVE
    return mode[:-1] + ("B" if order == "L" else "L")


def _is_signed_byte(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return image.mode == "L" and _first(tags.get(_SAMPLE_FORMAT)) == _SIGNED


def _raw_maximum(image: Image.Image) -> int | None:
    """The white that a PGM file states, if Pillow scales it."""
    tile = _tiles(image)[0] if _tiles(image) else None
    if image.format == "PPM" and tile is not None and tile.codec_name.startswith("ppm") and image.mode == "I":
        return int(tile.args[-1])
    return None


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value
