"""Images in .npy and .npz files. Headers are checked before any data is read, and nothing is ever unpickled.

A .npy file holds images. An .npz file holds them under ``images``, optionally with ``labels`` (integers from 0),
``ids`` (strings) and ``class_names`` (strings); other members are ignored. Images are uint8 levels or floats in [0, 1].

Layouts are (n, c, h, w), (n, h, w, c), (n, h, w), or one image as (c, h, w), (h, w, c), (h, w); c is 1, 3 or the
channels of the target shape. A shape can fit several layouts: (3, 8, 8) is three grey images or one RGB image. Three
criteria decide, in this order: the number of labels, the exact target shape, and that no side is below 5 pixels. The
decision is noted. A shape that stays ambiguous is an error.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.data.convert import Notes, Pixels, check_bytes, reading, show
from fastdc.support import InputError, Int64

MAX_CLASSES = 100_000  # ImageNet-21k has 21,843; a larger label is a mistake, and names for it would fill the memory
_MIN_SIDE = 5
_LAYOUTS = {2: ("hw",), 3: ("nhw", "chw", "hwc"), 4: ("nchw", "nhwc")}


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """The checked content of one .npy or .npz file.

    Attributes:
        images: (n, c, h, w) in the file's own size; uint8 levels or float32 in [0, 1].
        labels: int64 (n,), not negative; None if the file has none.
        ids: n names of the images; None if the file has none.
        class_names: One name per class; None if the file has none.
    """

    images: Pixels
    labels: Int64 | None
    ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Reading(NamedTuple):
    layout: str
    n: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        c, h, w = self.shape
        kind = {1: "grey ", 3: "RGB "}.get(c, f"{c}-channel ")
        return f"{self.n} {kind}image{'s'[: self.n != 1]} {w}x{h}"


def read_arrays(path: Path, shape: tuple[int, int, int] | None, notes: Notes) -> ArrayFile:
    """Reads a .npy or .npz file.

    Args:
        path: Path of an existing file. The suffix decides which kind of file it is.
        shape: The (c, h, w) that the images will be converted to, if known; it only helps to choose a layout.
        notes: Receives the reading of an ambiguous layout.

    Raises:
        InputError: The file cannot be used; the message names it.
    """
    if path.suffix.lower() == ".npy":
        with reading(path, "a .npy file"), path.open("rb") as file:
            header = _read_header(file, show(path))
            _check_images(header, show(path))
            chosen = _choose_layout(header.shape, shape, None, show(path), notes)
            _check_size(header, path.stat().st_size - file.tell(), show(path))
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
        return ArrayFile(_as_images(array, chosen, show(path)), None, None, None)
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        return _read_npz(archive, shape, show(path), notes)


def _read_npz(archive: zipfile.ZipFile, shape: tuple[int, int, int] | None, name: str, notes: Notes) -> ArrayFile:
    headers: dict[str, _Header] = {}
    for key in ("images", "labels", "ids", "class_names"):
        if f"{key}.npy" in archive.namelist():
            what = f"{name}: {key}"
            with archive.open(f"{key}.npy") as file:
                headers[key] = _read_header(file, what)
                _check_size(headers[key], archive.getinfo(f"{key}.npy").file_size - file.tell(), what)
    if "images" not in headers:
        keys = ", ".join(sorted(show(key).removesuffix(".npy") for key in archive.namelist())[:5]) or "nothing"
        raise InputError(f"{name}: has no array named 'images'; it holds {keys}")
    _check_images(headers["images"], f"{name}: images")
    count = _check_labels_header(headers["labels"], name) if "labels" in headers else None
    chosen = _choose_layout(headers["images"].shape, shape, count, f"{name}: images", notes)
    _check_names_header(headers.get("ids"), chosen.n, f"{name}: ids")
    _check_names_header(headers.get("class_names"), None, f"{name}: class_names")

    def load(key: str) -> NDArray[Any]:
        with archive.open(f"{key}.npy") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # reaching the end makes zipfile verify the CRC
            return array

    names = tuple(str(item) for item in load("class_names")) if "class_names" in headers else None
    labels = _as_labels(load("labels"), names, name) if "labels" in headers else None
    ids = tuple(str(item) for item in load("ids")) if "ids" in headers else None
    if names is not None and (len(set(names)) != len(names) or "" in names):
        raise InputError(f"{name}: class_names must be different and not empty")
    return ArrayFile(_as_images(load("images"), chosen, f"{name}: images"), labels, ids, names)


def _read_header(file: IO[bytes], what: str) -> _Header:
    """Reads the shape and dtype that a .npy stream declares, and leaves the stream at the first byte of data.

    Raises:
        InputError: Object or structured arrays, a negative side, or more than :data:`MAX_BYTES`.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 exists only for field names outside latin-1, and structured arrays hold no images
        raise InputError(f"{what}: format {version[0]}.{version[1]} is not supported, save a plain array")
    if dtype.hasobject:
        raise InputError(f"{what}: holds Python objects, which fastdc never unpickles; save plain numbers")
    if dtype.fields or dtype.subdtype or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise InputError(f"{what}: must be a plain array, got shape {shape} of {show(dtype)}")
    check_bytes(1, shape, dtype.itemsize, f"{what}: it")
    return _Header(shape, dtype)


def _check_size(header: _Header, available: int, what: str) -> None:
    needed = math.prod(header.shape) * header.dtype.itemsize
    if available < needed:
        raise InputError(f"{what}: is truncated: {needed} bytes of data are declared and {available} are there")


def _check_images(header: _Header, what: str) -> None:
    """Checks the dtype and the axes of images from the header alone, and that there are images."""
    shape, dtype = header
    if dtype.kind != "f" and dtype != np.uint8:
        hint = "; convert levels 0..255 with .astype('uint8')" if dtype.kind in "iu" else ""
        raise InputError(f"{what}: must be uint8, or float in [0, 1], got {show(dtype)}{hint}")
    if len(shape) not in _LAYOUTS:
        raise InputError(f"{what}: must be (n, c, h, w), (n, h, w, c), (n, h, w) or one image, got shape {shape}")
    if 0 in shape:
        raise InputError(f"{what}: holds no images, its shape is {shape}")


def _check_labels_header(header: _Header, name: str) -> int:
    shape, dtype = header
    if dtype.kind not in "iu" or len(shape) != 1:
        raise InputError(f"{name}: labels must be integers of shape (n,), got shape {shape} of {show(dtype)}")
    return shape[0]


def _check_names_header(header: _Header | None, n: int | None, what: str) -> None:
    if header is None:
        return
    shape, dtype = header
    if dtype.kind != "U" or len(shape) != 1 or shape[0] not in ((n,) if n is not None else range(1, MAX_CLASSES + 1)):
        wanted = n if n is not None else f"1..{MAX_CLASSES}"
        raise InputError(f"{what}: must be strings of shape ({wanted},), got shape {shape} of {show(dtype)}")


def _as_labels(labels: NDArray[Any], names: tuple[str, ...] | None, name: str) -> Int64:
    low, high = int(labels.min()), int(labels.max())
    limit = len(names) if names is not None else MAX_CLASSES
    if low < 0 or high >= limit:
        raise InputError(f"{name}: labels must be in 0..{limit - 1}, found {low} to {high}")
    return labels.astype(np.int64)


def _readings(dims: tuple[int, ...], channels: set[int]) -> list[_Reading]:
    """Lists the ways to read an array of `dims`. Ways that give the same images appear once."""
    found: dict[tuple[object, ...], _Reading] = {}
    for layout in _LAYOUTS[len(dims)]:
        size = {"n": 1, "c": 1} | dict(zip(layout, dims, strict=True))
        if size["c"] in channels:
            order = tuple(axis for axis in layout if size[axis] > 1)  # axes of length 1 change no pixel's place
            option = _Reading(layout, size["n"], (size["c"], size["h"], size["w"]))
            found.setdefault((option.n, option.shape, order), option)
    return list(found.values())


def _choose_layout(
    dims: tuple[int, ...], target: tuple[int, int, int] | None, labels: int | None, what: str, notes: Notes
) -> _Reading:
    """Chooses the way to read an array of `dims`, by the rules in this module's docstring."""
    channels = {1, 3} | ({target[0]} if target else set())
    options = _readings(dims, channels)
    if not options:
        raise InputError(f"{what}: no axis of shape {dims} can be the channels, which must be {sorted(channels)}")
    if len(dims) == 2 and target is not None and dims[1] == math.prod(target) and dims != target[1:]:
        ways = f"{(dims[0], *target)} if it is flattened images, to {(1, *dims)} if it is one image"
        raise InputError(f"{what}: shape {dims} is ambiguous: reshape it to {ways}")
    if labels is not None:
        matching = [option for option in options if option.n == labels]
        if not matching:
            counts = " or ".join(str(option.n) for option in options)
            raise InputError(f"{what}: shape {dims} means {counts} images, but there are {labels} labels")
        options = matching
    exact = [option for option in options if option.shape == target]
    large = [option for option in options if min(option.shape[1:]) >= _MIN_SIDE]
    for narrowed in (exact, large):
        if len(options) > 1 and len(narrowed) == 1:
            notes.add(f"read as {narrowed[0]} ({{}})", what, noun="array")
            options = narrowed
    if len(options) > 1:
        both = " or ".join(str(option) for option in options)
        raise InputError(f"{what}: shape {dims} is ambiguous, it may be {both}: save it as (n, c, h, w)")
    return options[0]


def _as_images(array: NDArray[Any], chosen: _Reading, what: str) -> Pixels:
    """Applies the layout, checks the values of float images and converts them to float32.

    Raises:
        InputError: NaN, infinity, or a value outside [0, 1].
    """
    layout = chosen.layout
    if layout.endswith("hwc"):
        array = np.moveaxis(array, -1, -3)
    images = array.reshape(chosen.n, *chosen.shape)
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False)
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # min and max propagate NaN
        raise InputError(f"{what}: values must be in [0, 1], found NaN or infinity")
    if low < 0 or high > 1:
        hint = "; divide levels 0..255 by 255" if low >= 0 else "; map [-1, 1] by (x + 1) / 2" if high <= 1 else ""
        raise InputError(f"{what}: values must be in [0, 1], found {low:g} to {high:g}{hint}")
    return images.astype(np.float32, copy=False)
