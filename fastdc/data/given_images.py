"""What people have in hand as images of one shape: pictures, paths, encoded bytes, arrays, tensors, and lists of them.

    a picture           a PIL image, the path of an image file, or the bytes of one; a folder: all of its pictures
    an array            NumPy or torch on any device, in any layout of :mod:`fastdc.data.layouts`; .npy and .npz files
    a list of these     mixed as one likes; or any iterable, such as a torch DataLoader or a Dataset. Its items may have
                        labels beside the images, which are ignored: (images, labels)

Pictures and files go through the one reader that the command line has (:mod:`fastdc.data.image_files`), so they become
the same numbers. Arrays in memory are brought into the order (n, c, h, w); whether they may be resized as well is the
caller's choice.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastdc.data.convert import Pixels, check_shape, fit, to_float
from fastdc.data.image_files import Reader
from fastdc.data.inputs import existing, part_of
from fastdc.data.layouts import given_layout
from fastdc.data.levels import Window
from fastdc.data.loaders import load_images
from fastdc.data.notes import show
from fastdc.data.splits import Split
from fastdc.support import InputError, as_array, as_pixels, checks, shown

_DEPTH = 3  # of lists in lists: batches of (images, labels)
_KINDS = "an array, a tensor, a PIL image, a path, the bytes of an image file, or a list or iterable of them"

_log = logging.getLogger("fastdc.data")


def prepare(
    images: Any,
    shape: tuple[int, int, int],
    *,
    window: Window | None = None,
    layout: str | None = None,
    fit: str | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    resize: bool = True,
    bounded: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> Pixels:
    """Images of any kind as one array of a model's shape, as ``fastdc classify`` prepares image files.

    A picture is turned upright, laid over white, converted to grey or RGB, resized until its shorter side fits, and
    cropped to the centre, or stretched; an array is converted and resized in the same way.

    Safe for the bytes of strangers: common formats only are opened, by content, and the size in the header is compared
    with `max_pixels` before a picture is decoded. A string is the path of a file on this machine.

    Args:
        images: A PIL image, the path of an image file, folder, .npy or .npz file, the bytes of an image file, an array
            or tensor (h, w), (c, h, w), (h, w, c), (n, h, w), (n, c, h, w) or (n, h, w, c), uint8 or float in [0, 1]; a
            list of these, or an iterable of them or of (images, labels).
        shape: The wanted (c, h, w), such as ``clf.model.image_shape``.
        window: Values that are black and white in images that are neither uint8 nor in [0, 1], such as (0, 4095).
        layout: Axes of arrays, also in files: "NCHW", "NHWC", "NHW", "CHW", "HWC" or "HW"; default: by their shape.
        fit: How pictures come to the shape: "crop" (resized to cover it, centre cropped), the default, or "stretch";
            ``clf.model.fit`` is that of a model.
        max_pixels: Most pixels of one picture, a 4096th of those of all; default: 2^26.
        skip_bad: Whether image files that cannot be used are left out, as in :func:`load_images`.
        split: Name of the split to take of folders and files that have several; default: "test".
        resize: Whether arrays of another size or other channels are converted; if not, they are refused.
        bounded: Whether floats outside [0, 1] are refused.
        on_note: Function that is called with a line for each kind of conversion; the log "fastdc.data" has them, too.

    Returns:
        (n, c, h, w), uint8, or float32 in [0, 1] if any image has floats or more than 8 bits; an array, if possible, as
        it is.

    Raises:
        InputError: An image, which is named, cannot be used or is ambiguous; or there are none, or they are too large.

    Example:
        >>> from PIL import Image
        >>> fastdc.data.prepare([Image.new("RGB", (640, 480)), images[0]], (1, 8, 8)).shape
        (2, 1, 8, 8)
    """
    how: dict[str, Any] = {"window": window, "layout": layout, "fit": fit, "max_pixels": max_pixels, "split": split}
    how |= {"skip_bad": skip_bad, "resize": resize, "bounded": bounded, "on_note": on_note}
    return prepare_named(images, shape, **how)[0]


def prepare_named(
    images: Any,
    shape: tuple[int, int, int],
    *,
    window: Window | None = None,
    layout: str | None = None,
    fit: str | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    resize: bool = True,
    bounded: bool = True,
    on_note: Callable[[str], None] | None = None,
) -> tuple[Pixels, tuple[str, ...] | None]:
    """The images of :func:`prepare`, whose arguments it shares, and their names.

    Returns:
        The images, and n names as in ``ImageSet.ids``, such as the path of each image file; None if any image was given
        in memory, where it has no name.

    Raises:
        InputError: As :func:`prepare`.

    Example:
        >>> from fastdc.data import prepare_named
        >>> np.save(folder / "two.npy", images[:2])
        >>> [name.split("two")[1] for name in prepare_named([folder / "two.npy"], (1, 8, 8))[1]]
        ['.npy[0]', '.npy[1]']
    """
    shape = check_shape(shape)
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OU":  # paths, or a column of them
        images = images.tolist()
    ids: tuple[str, ...] | None
    if _is_path(images) or (isinstance(images, list | tuple) and images and all(map(_is_path, images))):
        loaded = load_images(
            images, shape, window=window, fit=fit, max_pixels=max_pixels, layout=layout, skip_bad=skip_bad, split=split
        )
        found, ids, notes = loaded.images, loaded.ids, loaded.notes
    else:
        reader = Reader(max_pixels, window, None, layout, fit=fit, skip_bad=skip_bad, split=Split(split, "test"))
        given = _Given(shape, reader, resize=resize, bounded=bounded)
        found, notes = given.collected(images), given.report()
        ids = tuple(given.ids) if len(given.ids) == len(found) else None
    for line in notes:
        _log.info(line)
        if on_note is not None:
            on_note(line)
    return found, ids


class _Given:
    """Reads what a user gave, item by item.

    Attributes:
        ids: Names of the images that came from files; those in memory have none.
    """

    def __init__(self, shape: tuple[int, int, int], reader: Reader, *, resize: bool, bounded: bool) -> None:
        self._shape, self._reader = shape, reader
        self._resize, self._bounded = resize, bounded
        self.ids: list[str] = []

    def collected(self, images: Any) -> Pixels:
        """All images (n, c, h, w)."""
        parts: list[Pixels] = []
        count = 0
        for part in self._parts(images, "images", _DEPTH):
            parts.append(part)
            count += len(part)
            if len(parts) > 1:  # they are copied into one array in the end
                self._reader.budget.hold(count, self._shape, part.dtype.itemsize, in_memory=True)
        self._reader.bad.settle(len(self.ids) - len(self._reader.bad.found), self._reader.notes)
        if not parts:
            raise InputError("images is empty: expected at least one image")
        if len(parts) == 1:
            return parts[0]
        floats = [part.dtype != np.uint8 for part in parts]
        if any(floats) and not all(floats):
            levels = sum(len(part) for part, is_float in zip(parts, floats, strict=True) if not is_float)
            self._reader.notes.add("scaled from 0..255 to [0, 1]", count=levels)
            parts = [to_float(part) for part in parts]
        whole: Pixels = np.concatenate(parts)
        return whole

    def report(self) -> tuple[str, ...]:
        """The notes.

        Raises:
            InputError: Pictures of 16 bits are nearly black.
        """
        self._reader.levels.report(self._reader.notes)
        return self._reader.notes.lines()

    def _parts(self, images: Any, name: str, depth: int) -> Iterator[Pixels]:
        """Yields the images of one item, or of all items of a list or iterable."""
        array = as_array(images)
        if array is not None:
            yield self._array(array, name)
        elif isinstance(images, Image.Image):
            yield self._reader.picture(images, self._target, name)
        elif isinstance(images, bytes | bytearray | memoryview):
            yield self._reader.read(bytes(images), self._target, name)
        elif _is_path(images):
            part = part_of(existing(images), self._shape, self._reader)
            self.ids += part.ids
            yield from (found for found in part.read(self._reader, self._target) if found is not None)
        elif hasattr(images, "read"):
            raise InputError(f"{name} must be {_KINDS}, got an open file: pass its content, the bytes")
        else:
            for index, item in enumerate(_items(images, name) if depth else _refused(images, name)):
                where = f"{name}[{index}]"
                yield from self._parts(_without_labels(item, where), where, depth - 1)

    def _array(self, array: NDArray[Any], name: str) -> Pixels:
        """An array as images (k, c, h, w); a view where nothing needs to change."""
        way = given_layout(array.shape, self._shape, self._reader.layout, name, resize=self._resize)
        ordered = np.moveaxis(array, -1, -3) if way.layout.endswith("hwc") else array
        ordered = ordered.reshape(way.n, *way.shape)
        levels = self._reader.levels
        windowed = levels.window is not None and ordered.dtype.kind in "iuf" and ordered.dtype != np.uint8
        if windowed and levels.usual is not None and ordered.dtype.kind == "f" and ordered.size:
            windowed = self._bounded and not levels.usual.leaves(float(ordered.min()), float(ordered.max()))
        if windowed:
            pixels: Pixels = self._reader.levels.unit(ordered, 1.0, name, count=len(ordered))
        else:
            pixels = as_pixels(ordered, name, bounded=self._bounded)
        if way.shape == self._shape:
            return pixels
        return fit(pixels, self._shape, name, self._reader.notes, self._reader.how)

    def _target(self, _: tuple[int, int, int], __: str) -> tuple[int, int, int]:
        return self._shape


def _items(images: Any, name: str) -> Iterator[Any]:
    """The items of an iterable, or of a data set that has an index and a length only."""
    if isinstance(images, Mapping | Set):  # which have no order, or keys
        _refused(images, name)
    if not hasattr(images, "__iter__") and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return (images[index] for index in range(len(images)))
    return iter(images) if isinstance(images, Iterable) else _refused(images, name)


def _refused(images: Any, name: str) -> NoReturn:
    in_list = name != "images" and (checks.is_number(images) or isinstance(images, bool))
    hint = ": make nested lists an array, as with np.array(images, dtype='float32')" if in_list else ""
    raise InputError(f"{name} must be {_KINDS}, got {type(images).__name__} {shown(images, 40)}{hint}")


def _without_labels(item: Any, name: str) -> Any:
    """The images of an item of an iterable: the item, or the first of (images, labels).

    Raises:
        InputError: The item has images and something else in between.
    """
    if not isinstance(item, list | tuple) or len(item) < 2:
        return item[0] if isinstance(item, list | tuple) and item else item
    kinds = {_kind(other, item[0]) for other in item[1:]}
    if kinds == {"image"} and isinstance(item, list) and getattr(item[0], "ndim", 0) < 4:
        return item  # a batch; of two batches, the other may be masks, or other views of the same images
    if kinds != {"label"}:  # a tuple of images may be an image and its mask
        raise InputError(f"{name} must be images, or (images, labels), got {show(shown(item, 60))}")
    return item[0]


def _kind(value: Any, beside: Any, depth: int = _DEPTH) -> str:
    """What a value is that stands beside an image, or beside several: "image", "label" or "unclear"."""
    if isinstance(value, list | tuple):
        if not value or depth == 0:
            return "unclear"
        return _kind(value[0], beside, depth - 1)
    if isinstance(value, str):  # a path if the others are paths, otherwise the name of a class
        return "image" if _is_path(beside) else "label"
    if isinstance(value, Image.Image | bytes | os.PathLike):
        return "image"
    axes, others = getattr(value, "ndim", 0), getattr(beside, "ndim", 0)
    if not isinstance(axes, int) or axes < 2 or (axes, others) == (2, 4):  # a row of numbers for each image
        return "label"
    return "image" if axes == others else "unclear"


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)
