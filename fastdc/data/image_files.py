"""Image files read with Pillow: any size and mode becomes grey or RGB in the wanted shape.

Each of these conversions is counted in the notes: EXIF orientation is applied; transparency is laid over white (also
for grey images, as viewers do); palette, CMYK and YCbCr become RGB; the first frame stands for an animation or a
multi-page file; colour profiles other than sRGB are ignored. Values of more than 8 bits keep their precision
(:mod:`fastdc.data.deep_files`, :mod:`fastdc.data.levels`).

The size in the header is compared with the budget before pixels are decoded. Pictures are converted in bands of rows,
so that beside the decoded picture only the converted one is in memory. A JPEG of up to four times the largest picture
is decoded at half its size.

Only the formats of :data:`FORMATS` are opened; the file extension does not matter. Pillow knows further ones that start
other programs (EPS starts Ghostscript) or open an embedded picture without checking its format (IPTC).
"""

import functools
import io
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastdc.data.bad_files import NO_IMAGE, BadFiles
from fastdc.data.budget import Budget
from fastdc.data.convert import Pixels, fit, fit_picture, fit_planes, to_uint8
from fastdc.data.deep_files import DeepPicture, has_colour_of_16_bits, is_deep
from fastdc.data.dicom_files import SUFFIXES as DICOM_SUFFIXES
from fastdc.data.dicom_files import has_preamble, read_frames, starts_as_dicom
from fastdc.data.guards import SizedFile, pillow_limit
from fastdc.data.layouts import check_layout
from fastdc.data.levels import Levels
from fastdc.data.notes import Notes, WholeInputError, reading, show
from fastdc.data.splits import Split
from fastdc.support import FITS, Float32, InputError, checks

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
"""The formats that are read, by Pillow's names. JPEG includes MPO, which phones write."""

GREY_MODES = frozenset({"1", "L", "LA", "La"})

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 2**20  # pixels that are converted at a time
_SRGB_GAMMA = 0.45455
_ICON = "ICO"  # which Pillow decodes when it is opened

Target: TypeAlias = Callable[[tuple[int, int, int], str], tuple[int, int, int]]
"""From the (c, h, w) of an image, c being 1 for grey and 3 otherwise, and its name, to the wanted (c, h, w)."""

THUMBNAIL = (3, 32, 32)

Look: TypeAlias = Callable[[str, tuple[int, int], NDArray[np.uint8]], None]
"""Shown a name, the stored (height, width), and a thumbnail uint8 of shape :data:`THUMBNAIL`."""


class Reader:
    """What reading pictures shares: the notes, the budget and the levels of one input, the layout of its arrays, the
    files that cannot be used, and the wanted split.
    """

    def __init__(
        self,
        max_pixels: int | None = None,
        window: tuple[float, float] | None = None,
        look: Look | None = None,
        layout: str | None = None,
        *,
        fit: str | None = None,
        skip_bad: bool = False,
        split: Split | None = None,
    ) -> None:
        self.notes = Notes()
        self.bad = BadFiles(skip_bad)
        self.split = split or Split()
        self.budget = Budget(max_pixels)
        self.levels = Levels(window)
        self.look = look
        self.layout = check_layout(layout)
        self.how = checks.one_of("fit", "crop" if fit is None else fit, FITS)

    def show(self, name: str, size: tuple[int, int], images: Pixels) -> None:
        """Shows images (n, c, h, w), whose stored size was `size`, to whoever wants to look at them."""
        if self.look is not None:
            for thumbnail in fit(to_uint8(images), THUMBNAIL, name, Notes()):
                self._look(name, size, thumbnail)

    def _look(self, name: str, size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> None:
        try:
            if self.look is not None:
                self.look(name, size, thumbnail)
        except InputError as error:  # it judges what is in a picture, not whether the file can be used
            raise WholeInputError(str(error)) from error

    def tried(self, path: Path, target: Target, names: Sequence[str], *, dicom: bool) -> Iterator[Pixels | None]:
        """Yields the images of a file, one for each name; None for one that cannot be used, which is kept in `bad`."""
        with closing((self._frames if dicom else self._picture)(path, target)) as images:
            yield from self._tried(images, path, names)

    def _tried(self, images: Iterator[Pixels], path: Path, names: Sequence[str]) -> Iterator[Pixels | None]:
        why = ""
        for name in names:
            notes, found = self.notes, None
            self.notes = Notes()
            self.levels.begin()
            try:
                found = next(images)
                notes.merge(self.notes)
            except WholeInputError:
                raise
            except (InputError, StopIteration) as error:  # after a frame that cannot be read, no other one can
                why = why or str(error).removeprefix(f"{show(path)}: ")
                self.levels.forget()
                self.bad.add(name, why)
            finally:
                self.notes = notes
            yield found

    def _picture(self, path: Path, target: Target) -> Generator[Pixels, None, None]:
        yield self.read(path, target)

    def _frames(self, path: Path, target: Target) -> Generator[Pixels, None, None]:
        """The frames of a DICOM file."""
        name = show(path)
        for frame in read_frames(path, name, self.budget, self.levels, lambda: self.notes):
            _, channels, height, width = frame.shape
            shape = target((channels, height, width), name)
            if (height, width) != shape[1:]:
                self.show(name, (height, width), frame)
            yield fit(frame, shape, name, self.notes, self.how)

    def read(self, source: Path | bytes, target: Target, name: str | None = None) -> Pixels:
        """Decodes one image file and converts it.

        Args:
            source: An existing file, or its content.
            target: The wanted shape.
            name: Name of the picture in an error; None: the path.

        Returns:
            (1, c, h, w), uint8 levels, or float32 in [0, 1] if the file has more than 8 bits.

        Raises:
            InputError: The file is not an image, is truncated, corrupt or too large, or its values have no meaning.
        """
        name = show(source) if name is None else name
        if isinstance(source, bytes) and has_preamble(source[:132]):
            raise InputError(f"{name}: is a DICOM file, each of whose frames is an image: pass its path")
        if isinstance(source, Path) and not source.is_file():
            raise InputError(f"{name}: {'is not a file' if source.exists() else 'does not exist'}")
        with _decoding(name), self._opened(source, name) as image:
            return self._fitted(image, source, target, name)

    def picture(self, image: Image.Image, target: Target, name: str) -> Pixels:
        """Converts a Pillow image as :meth:`read` converts the file that it comes from; the image stays as it is.

        Args:
            image: The image, decoded or not. Of an animation its present frame counts.
            target: The wanted shape.
            name: Name of the picture in an error.

        Returns:
            (1, c, h, w), uint8 levels, or float32 in [0, 1] if the image has more than 8 bits.

        Raises:
            InputError: See :meth:`read`.
        """
        if 0 in image.size:
            raise InputError(f"{name}: is an image without pixels, {image.width}x{image.height}")
        if getattr(image, "tile", None) and getattr(image, "fp", None) is None:
            raise InputError(f"{name}: its file was closed too early: call image.load() before, or pass the path")
        with _decoding(name):
            deep, large = has_colour_of_16_bits(image), image.width * image.height > self.budget.max_pixels
            if (deep or large) and (content := _file_behind(image)) is not None:
                return self.read(content, target, name)
            if deep:
                raise InputError(f"{name}: 16-bit colour of a later frame is not read: save the frame as a file")
            self.budget.take(*image.size, name)
            fitted = self._fitted(image, None, target, name)
            self._note_colours(image)
        return fitted

    def _fitted(self, image: Image.Image, source: Path | bytes | None, target: Target, name: str) -> Pixels:
        """An opened picture, converted; source: where it can be opened once more."""
        if is_deep(image, self.levels, name, self.notes):
            return self._deep(image, source, target, name)
        image.load()
        picture = self._upright(image)
        shape = target((len(picture.getbands()), picture.height, picture.width), name)
        fitted = fit_picture(picture, shape, name, self.notes, self.how)
        if self.look is not None and picture.size != (shape[2], shape[1]):
            thumbnail = fit_picture(picture, THUMBNAIL, name, Notes())
            self._look(name, (picture.height, picture.width), thumbnail[0])
        return fitted

    @contextmanager
    def _opened(self, source: Path | bytes, name: str) -> Iterator[Image.Image]:
        """Opens a picture and counts its pixels; after it was used, notes what its header says."""
        try:
            with open_picture(source, self.budget.max_pixels) as image:
                self._check(image, name)
                yield image
                self._note_colours(image)
                if getattr(image, "is_animated", False):  # asked last: Pillow may move to the second frame
                    self.notes.add("read as its first frame")
        except UnidentifiedImageError:
            raise InputError(f"{name}: {NO_IMAGE} ({_names()})") from None

    def _deep(self, image: Image.Image, source: Path | bytes | None, target: Target, name: str) -> Float32:
        """A picture of more than 8 bits, converted."""

        def turned(part: Image.Image) -> Image.Image:  # a PNG may hold its EXIF data behind the pixels
            return _turned(part, _orientation(image))

        def reopened() -> AbstractContextManager[Image.Image]:
            assert source is not None  # colour of 16 bits is read from files alone
            return open_picture(source, self.budget.max_pixels)

        deep = DeepPicture(image, reopened, turned, self.levels, name)
        if deep.clear:
            self.notes.add("laid over white where transparent")
        if _orientation(image) in _UPRIGHT:
            self.notes.add("turned upright by the EXIF orientation")
        shape = target((deep.channels, *deep.size), name)
        fitted = fit_planes(deep.plane, deep.channels, shape, name, self.notes, self.how)
        if self.look is not None and deep.size != shape[1:]:
            with self.levels.counted():  # the picture counts once
                stored = np.stack([to_uint8(deep.plane(k)) for k in range(deep.channels)])  # as if it had 8 bits
            self.show(name, deep.size, stored[None])
        return fitted

    def _check(self, image: Image.Image, name: str) -> None:
        """Compares a picture with the budget; a JPEG that is too large is to be decoded at half its size."""
        width, height = image.size
        most = self.budget.max_pixels
        # A progressive JPEG is held as a whole while it is decoded, even if the result is small.
        if most < width * height <= 4 * most and hasattr(image, "draft") and "progressive" not in image.info:
            image.draft(None, (width // 2, height // 2))
            if image.size != (width, height):
                self.notes.add(f"of more than {most:,} pixels decoded at half the size")
        self.budget.take(*image.size, name)

    def _upright(self, image: Image.Image) -> Image.Image:
        """A picture of 8 bits in mode L or RGB, upright."""
        orientation = _orientation(image)
        picture = self._opaque(image)
        if orientation in _UPRIGHT:
            self.notes.add("turned upright by the EXIF orientation")
        return _turned(picture, orientation)

    def _opaque(self, image: Image.Image) -> Image.Image:
        """A picture of 8 bits in mode L or RGB, laid over white."""
        mode = "L" if image.mode in GREY_MODES else "RGB"
        clear = image.has_transparency_data
        if image.mode == mode and not clear:
            return image
        if not clear and image.mode not in ("1", "L", "RGB"):
            self.notes.add(f"converted from {'palette' if image.mode == 'P' else image.mode} to RGB")
        out = Image.new(mode, image.size)
        rows = max(1, _BAND // image.width)
        seen_through = False
        for top in range(0, image.height, rows):
            part = image.crop((0, top, image.width, min(top + rows, image.height)))
            if clear:
                part = part.convert("RGBA")
                seen_through = seen_through or part.getchannel("A").getextrema()[0] != 255
                part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
            out.paste(part.convert(mode), (0, top))
        if seen_through:
            self.notes.add("laid over white where transparent")
        return out

    def _note_colours(self, image: Image.Image) -> None:
        """Notes colour information that is ignored: profiles other than sRGB, and unusual gammas."""
        profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
        if isinstance(profile, bytes) and not any("sRGB".encode(code) in profile for code in ("ascii", "utf-16-be")):
            self.notes.add("read as sRGB, without their colour profile")
        elif isinstance(gamma, float) and abs(gamma - _SRGB_GAMMA) > 0.01 and "srgb" not in image.info:
            self.notes.add("read as sRGB, without their gamma of {}", f"{gamma:.3g}")


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(_ORIENTATION)
    return found if isinstance(found, int) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _file_behind(image: Image.Image) -> bytes | None:
    """The file of a Pillow image that is not decoded yet and stands at its first frame; None for others.

    It is decoded in place of the image where the image would have to be changed: for colour of 16 bits, of which Pillow
    would keep 8, and for a JPEG that is to be decoded at half its size.
    """
    file: Any = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell():
        return None
    place = file.tell()
    try:
        file.seek(0)  # where Pillow, too, begins
        content: bytes = file.read()
    finally:
        file.seek(place)
    return content


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Around Pillow's work on a picture: its exceptions become one error, and its warnings are not shown."""
    with reading(name, "an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example, about corrupt metadata beside good pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of an icon
        yield


@contextmanager
def open_picture(source: Path | bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens a picture without decoding it; only icons are decoded, of at most `max_pixels`."""
    names = _formats()
    with SizedFile(source) if isinstance(source, Path) else io.BytesIO(source) as file:
        try:
            image = _open(file, [name for name in names if name != _ICON], None)
        except UnidentifiedImageError:
            file.seek(0)
            image = _open(file, [name for name in names if name == _ICON], max_pixels)
        with image:
            yield image


def _open(file: IO[bytes], formats: list[str], limit: int | None) -> Image.Image:
    with pillow_limit(limit):
        return Image.open(file, formats=formats)


def list_images(folder: Path, notes: Notes) -> list[Path]:
    """Lists all image files below a folder, by suffix, in sorted order.

    Hidden files and folders are ignored; other files are skipped with a note. Links are followed; a folder that is
    reached again, as by a circular link, is read once, which is noted. A link that leads nowhere is listed as well.

    Raises:
        InputError: A folder cannot be listed.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{show(error.filename)}: cannot be listed: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            notes.add("skipped, read under another name ({})", show(root), noun="folder")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Links come last, so that a folder is read under its own name.
        folders[:] = sorted(filter(is_visible, folders), key=lambda name: _order(root, name))
        for name in filter(is_visible, names):
            path = Path(root, name)
            if is_picture(path) or leads_nowhere(path) or is_dicom(path):
                found.append(path)
            else:
                notes.add("skipped, not an image ({})", show(name), noun="file")
    return sorted(found, key=lambda path: path.as_posix())


def is_visible(name: str) -> bool:
    """Whether a file or folder counts: it is not hidden, and not what a Mac adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to something that does not exist, or to itself."""
    return path.is_symlink() and not path.exists()


def is_picture(path: Path) -> bool:
    """Whether a file has the suffix of an image, of those that Pillow reads or of DICOM."""
    return path.suffix.lower() in _picture_suffixes() or path.suffix.lower() in DICOM_SUFFIXES


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, if it has no other of an image, by its preamble."""
    suffix = path.suffix.lower()
    return suffix in DICOM_SUFFIXES or (suffix not in _picture_suffixes() and starts_as_dicom(path))


@functools.cache
def _picture_suffixes() -> frozenset[str]:
    formats = {*_formats(), "MPO"}  # which the JPEG reader opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _order(root: str, name: str) -> tuple[bool, str]:
    return Path(root, name).is_symlink(), name


def _formats() -> list[str]:
    Image.init()  # registers every plugin; later calls return at once
    return [name for name in FORMATS if name in Image.OPEN]  # an older Pillow lacks some


def _names() -> str:
    return ", ".join(name for name in FORMATS if name != "DIB")
