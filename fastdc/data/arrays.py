"""Images in .npy and .npz files. Headers are checked before any data is read, and nothing is ever unpickled.

A .npy file holds images. An .npz file holds them under ``images``, optionally with ``labels`` (integers from 0),
``ids`` (strings) and ``class_names`` (strings); other members are ignored. Images are uint8 levels or floats in [0, 1];
other integers and floats need a window (:mod:`fastdc.data.levels`). They are read some at a time, so that the whole
array is never in memory unless it is in Fortran order. An .npz file of the MedMNIST layout has splits: train_images,
train_labels, and the same for val and test; labels may have the shape (n, 1).

Their axes are read as :mod:`fastdc.data.layouts` describes.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.data.convert import Pixels
from fastdc.data.image_files import Reader
from fastdc.data.layouts import LAYOUTS, choose_layout
from fastdc.data.levels import way_out
from fastdc.data.notes import reading, show
from fastdc.support import InputError, Int64

MAX_CLASSES = 100_000  # ImageNet-21k has 21,843; a larger label is a mistake, and names for it would fill the memory
_SPLITS = ("train", "val", "test")
_MAX_HEADER = 10_000  # bytes; NumPy's own limit, which it applies after reading
_CHUNK = 2**24  # bytes that are read at a time
_MAX_TEXT = 4 * 1024  # bytes of an id or a class name, 4 per character
_HELD_AT_ONCE = 64  # times max_pixels bytes that an array takes if it must be read at once


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """One .npy or .npz file, checked except for the values of the images.

    Attributes:
        path: The file.
        count: Number n of images.
        shape: Their (c, h, w) in the file.
        labels: int64 (n,), not negative; None if the file has none.
        ids: n names of the images; None if the file has none.
        class_names: One name per class; None if the file has none.
    """

    path: Path
    count: int
    shape: tuple[int, int, int]
    labels: Int64 | None
    ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None
    layout: str
    header: "_Header"
    key: str = "images"

    def images(self, reader: Reader) -> Iterator[Pixels]:
        """Yields the images (k, c, h, w), some at a time: uint8 levels, or float32 in [0, 1].

        Raises:
            InputError: The data are damaged, too large, or outside the range; raised after the last image, which
                shows the whole range.
        """
        name = show(self.path) if self.path.suffix.lower() == ".npy" else f"{show(self.path)}: {self.key}"
        usual = reader.levels.usual
        leaves = self.header.dtype.kind == "f" and usual is not None and usual.leaves(*self._range(reader, name))
        values = _Values(self.header.dtype, reader, name, windowed=reader.levels.window is not None and not leaves)
        for part in self._parts(reader, name):
            array = np.moveaxis(part, -1, -3) if self.layout.endswith("hwc") else part
            unit = values.unit(array.reshape(-1, *self.shape))
            if unit is not None:
                yield unit
        values.check()

    def _parts(self, reader: Reader, name: str) -> Iterator[NDArray[Any]]:
        with _member(self.path, self.key) as (file, _):
            _read_header(file, name)
            yield from _parts(file, self.header, self.layout, reader, name)

    def _range(self, reader: Reader, name: str) -> tuple[float, float]:
        """The smallest and the largest value, which decide about all of them; NaN if there is one."""
        ends = [(part.min(), part.max()) for part in self._parts(reader, name)]
        return float(np.min(ends)), float(np.max(ends))


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


def read_arrays(path: Path, shape: tuple[int, int, int] | None, reader: Reader) -> ArrayFile:
    """Reads all of a .npy or .npz file but the values of its images.

    Args:
        path: Path of an existing file. The suffix decides which kind of file it is.
        shape: The (c, h, w) that the images will be converted to, if known; it only helps to choose a layout.
        reader: States the layout, or receives the reading of an ambiguous one, and counts the images.

    Raises:
        InputError: The file cannot be used; the message names it.
    """
    name = show(path)
    packed = path.suffix.lower() != ".npy"
    split = _wanted_split(path, reader)
    images, numbered = f"{split}images", f"{split}labels"
    what = f"{name}: {images}" if packed else name
    others = (numbered, "class_names", *(["ids"] if not split else []))  # which split's names they are is not said
    held = {key: _member_header(path, key, name) for key in others} if packed else {}
    header = _member_header(path, images, name)
    if header is None:
        with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
            keys = ", ".join(sorted(show(key)[:80].removesuffix(".npy") for key in archive.namelist()[:1000])[:5])
        raise InputError(f"{name}: has no array named 'images'; it holds {keys or 'nothing'}")
    _check_images(header, what)
    labels = held.get(numbered)
    count = None if labels is None else _check_labels_header(labels, f"{name}: {numbered}")
    chosen = choose_layout(header.shape, shape, count, what, reader.notes, reader.layout)
    _, height, width = chosen.shape
    reader.budget.take(width, height, what, chosen.n)
    reader.budget.stored(chosen.shape, header.dtype.itemsize, f"{what}: an image of")
    if header.fortran:
        reader.budget.stored(header.shape, header.dtype.itemsize, what, _HELD_AT_ONCE)
    reader.budget.hold(chosen.n, (1, 1, 1), 1)  # so that labels and ids of as many images are no surprise
    for key, wanted in (("ids", chosen.n), ("class_names", None)):
        if (texts := held.get(key)) is not None:
            _check_names_header(texts, wanted, f"{name}: {key}")
            reader.budget.stored(texts.shape, texts.dtype.itemsize, f"{name}: {key}")

    def load(key: str) -> NDArray[Any]:
        with _member(path, key) as (file, _):
            array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
            file.read(1)  # reaching the end makes zipfile verify the CRC
            return array

    names = tuple(load("class_names").tolist()) if held.get("class_names") else None
    numbers = None if labels is None else _as_labels(load(numbered).reshape(-1), names, name)
    if names is not None and (len(set(names)) != len(names) or "" in names):
        raise InputError(f"{name}: class_names must be different and not empty")
    return ArrayFile(
        path,
        chosen.n,
        chosen.shape,
        numbers,
        tuple(load("ids").tolist()) if held.get("ids") else None,
        names,
        chosen.layout,
        header,
        images,
    )


def _wanted_split(path: Path, reader: Reader) -> str:
    """What the names of a file's arrays begin with: "val_" for the validation images; "" if there are no splits."""
    if splits := array_splits(path):
        return f"{reader.split.choose(splits, path, reader.notes)}_"
    reader.split.missing(path)
    return ""


def array_splits(path: Path) -> tuple[str, ...]:
    """The splits of an .npz file of the MedMNIST layout; empty for other files.

    Raises:
        InputError: The file is damaged.
    """
    if path.suffix.lower() != ".npz":
        return ()
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    return () if "images.npy" in names else tuple(split for split in _SPLITS if f"{split}_images.npy" in names)


@contextmanager
def _member(path: Path, key: str) -> Iterator[tuple[IO[bytes], int]]:
    """Opens a .npy file, or a member of an .npz file, with the number of its bytes.

    Raises:
        InputError: The file is damaged, or KeyError has its name; the member is compressed by an unusual method.
    """
    with ExitStack() as stack:
        if path.suffix.lower() == ".npy":
            stack.enter_context(reading(path, "a .npy file"))
            yield stack.enter_context(path.open("rb")), path.stat().st_size
            return
        stack.enter_context(reading(path, "an .npz file"))
        archive = stack.enter_context(zipfile.ZipFile(path))
        member = archive.getinfo(f"{key}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others declare far more per byte
            raise InputError(f"{show(path)}: {key} must be stored or deflated, as numpy.savez_compressed does")
        yield stack.enter_context(archive.open(member)), member.file_size


def _member_header(path: Path, key: str, name: str) -> _Header | None:
    """The header of a .npy file, or of an .npz file's member; None if there is no such member."""
    packed = path.suffix.lower() != ".npy"
    if packed:
        with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
            if f"{key}.npy" not in archive.namelist():
                return None
    what = f"{name}: {key}" if packed else name
    with _member(path, key) as (file, size):
        header = _read_header(file, what)
        needed, there = math.prod(header.shape) * header.dtype.itemsize, size - file.tell()
    if there < needed:
        raise InputError(f"{what}: is truncated: {needed} bytes of data are declared and {there} are there")
    return header


def _parts(file: IO[bytes], header: _Header, layout: str, reader: Reader, name: str) -> Iterator[NDArray[Any]]:
    """Yields an array in parts along its first axis, if that counts images; otherwise as a whole."""
    shape, dtype, fortran = header
    size = math.prod(shape[1:]) * dtype.itemsize
    if layout[0] != "n" or fortran:
        array = _values_of(file, math.prod(shape) * dtype.itemsize, dtype)
        whole = array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)
        step = max(1, _CHUNK // max(size, 1)) if layout[0] == "n" else len(whole)
        yield from (whole[start : start + step] for start in range(0, len(whole), step))
    else:
        step = max(1, _CHUNK // size)
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            yield _values_of(file, count * size, dtype).reshape(count, *shape[1:])
    file.read(1)  # reaching the end makes zipfile verify the CRC


def _values_of(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{size} bytes were expected and {len(content)} are there")
    return np.frombuffer(content, dtype)


class _Values:
    """Checks and maps the values of an array, part by part."""

    def __init__(self, dtype: np.dtype[Any], reader: Reader, name: str, *, windowed: bool) -> None:
        self._dtype, self._levels, self._name, self._windowed = dtype, reader.levels, name, windowed
        self._low, self._high = math.inf, -math.inf

    def unit(self, part: NDArray[Any]) -> Pixels | None:
        """A part (k, c, h, w) as uint8 or as float32 in [0, 1]; None if :meth:`check` will refuse the array."""
        if self._dtype == np.uint8:
            return part.astype(np.uint8, copy=False)
        if self._windowed:
            return self._levels.unit(part, 1.0, self._name, count=len(part))
        low, high = float(part.min()), float(part.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # min and max propagate NaN
            raise InputError(f"{self._name}: values must be in [0, 1], found NaN or infinity")
        self._low, self._high = min(self._low, low), max(self._high, high)
        return part.astype(np.float32, copy=False) if self._right() else None

    def _right(self) -> bool:
        return self._dtype.kind == "f" and self._low >= 0 and self._high <= 1

    def check(self) -> None:
        """Refuses values that need a window, with the range of the whole array."""
        if self._low > self._high or self._right():
            return
        found = f"found {self._low:g} to {self._high:g}{way_out(self._low, self._high)}"
        if self._dtype.kind == "f":
            raise InputError(f"{self._name}: values must be in [0, 1], {found}")
        raise InputError(f"{self._name}: must be uint8, or float in [0, 1]; got {self._dtype}, {found}")


def _read_header(file: IO[bytes], what: str) -> _Header:
    """Reads the shape and dtype that a .npy stream declares, and leaves the stream at the first byte of data.

    Raises:
        InputError: A long header, an object or structured array, or a side that is negative or absurd.
    """
    start = file.read(10)
    version = np.lib.format.read_magic(io.BytesIO(start))
    if version == (1, 0):
        length, read = int.from_bytes(start[8:10], "little"), np.lib.format.read_array_header_1_0
    elif version == (2, 0):
        start += file.read(2)
        length, read = int.from_bytes(start[8:12], "little"), np.lib.format.read_array_header_2_0
    else:  # 3.0 exists only for field names outside latin-1, and structured arrays hold no images
        raise InputError(f"{what}: format {version[0]}.{version[1]} is not supported, save a plain array")
    if length > _MAX_HEADER:
        raise InputError(f"{what}: has a header of {length} bytes, the limit is {_MAX_HEADER}")
    shape, fortran, dtype = read(io.BytesIO(start[8:] + file.read(length)), max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise InputError(f"{what}: holds Python objects, which fastdc never unpickles; save plain numbers")
    if (
        dtype.fields
        or dtype.subdtype
        or dtype.itemsize == 0
        or min(shape, default=0) < 0
        or max(shape, default=0) > 2**48
    ):
        raise InputError(f"{what}: must be a plain array, got shape {show(shape)[:80]} of {show(dtype)[:80]}")
    return _Header(shape, dtype, fortran)


def _check_images(header: _Header, what: str) -> None:
    """Checks the dtype and the axes of images from the header alone, and that there are images."""
    shape, dtype, _ = header
    if dtype.kind not in "fiu":
        raise InputError(f"{what}: must be uint8, or float in [0, 1], got {show(dtype)[:80]}")
    if len(shape) not in LAYOUTS:
        raise InputError(f"{what}: must be (n, c, h, w), (n, h, w, c), (n, h, w) or one image, got shape {shape}")
    if 0 in shape:
        raise InputError(f"{what}: holds no images, its shape is {shape}")


def _check_labels_header(header: _Header, name: str) -> int:
    shape, dtype, _ = header
    if dtype.kind in "iub" and len(shape) == 2 and shape[1] > 1:
        raise InputError(f"{name} has {shape[1]} labels per image, shape {shape}: expected one class per image")
    if dtype.kind not in "iu" or shape not in (shape[:1], (*shape[:1], 1)) or not shape:
        raise InputError(f"{name} must be integers of shape (n,) or (n, 1), got shape {shape} of {show(dtype)}")
    return shape[0]


def _check_names_header(header: _Header, n: int | None, what: str) -> None:
    shape, dtype, _ = header
    if dtype.itemsize > _MAX_TEXT:
        raise InputError(f"{what}: must have at most {_MAX_TEXT // 4} characters each, got {show(dtype)}")
    if dtype.kind != "U" or len(shape) != 1 or shape[0] not in ((n,) if n is not None else range(1, MAX_CLASSES + 1)):
        wanted = n if n is not None else f"1..{MAX_CLASSES}"
        raise InputError(f"{what}: must be strings of shape ({wanted},), got shape {shape} of {show(dtype)}")


def _as_labels(labels: NDArray[Any], names: tuple[str, ...] | None, name: str) -> Int64:
    low, high = int(labels.min()), int(labels.max())
    limit = len(names) if names is not None else MAX_CLASSES
    if low < 0 or high >= limit:
        raise InputError(f"{name}: labels must be in 0..{limit - 1}, found {low} to {high}")
    return labels.astype(np.int64)
