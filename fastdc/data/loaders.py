"""The loader of images of any kind, :func:`load_images`, and that of one file in its own size, :func:`read_picture`."""

import os
from collections.abc import Callable, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdc.data.classes import model_labels
from fastdc.data.convert import check_shape, to_uint8
from fastdc.data.image_files import Look, Reader
from fastdc.data.inputs import existing, existing_paths, is_usable, part_of
from fastdc.data.levels import Window
from fastdc.data.notes import Notes
from fastdc.data.parts import Part
from fastdc.data.sets import ImageSet
from fastdc.data.splits import Split
from fastdc.data.stack import read_parts
from fastdc.support import InputError, Int64, Mask

Source: TypeAlias = str | os.PathLike[str]


def load_images(
    sources: Source | Sequence[Source],
    shape: tuple[int, int, int],
    *,
    classes: Sequence[str] | None = None,
    strict: bool = True,
    window: Window | None = None,
    fit: str | None = None,
    max_pixels: int | None = None,
    layout: str | None = None,
    on_note: Callable[[str], None] | None = None,
    look: Look | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    natural: str | None = "test",
) -> ImageSet:
    """Loads images from files, folders and arrays, and converts all of them to one shape.

    Args:
        sources: Paths of image files, folders, manifests, .npy and .npz files; one path or a list. Folders are searched
            recursively, in sorted order; hidden files are ignored and other files are skipped with a note.
        shape: The wanted (c, h, w), normally the bundle's. Colour is converted first (grey <-> RGB), then the image is
            fitted to h x w.
        classes: Names of the model's classes. The labels then are its classes, matched by name or number as
            :func:`match_classes` does, and the sub-folders of a folder are labels if all of them are its classes.
        strict: Whether labels that are not among `classes` are refused. Otherwise they are left out with a note.
        window: Black and white in images of more than 8 bits, such as (0, 4095); default: 0 and what the file states.
        fit: "crop" (resized bicubically to cover h x w, and its centre cropped), the default; or "stretch" (resized
            bilinearly to h x w, whatever its aspect ratio).
        max_pixels: Most pixels of one image, a 4096th of those of all images; default: 2^26.
        layout: Axes of arrays, see :func:`prepare`; default: by their shape and labels.
        on_note: Function that is called with each line of ``notes`` after everything has been read.
        look: Function that is shown each image that is to be resized, see :data:`Look`, and may raise.
        skip_bad: Whether image files that cannot be used are left out, each with a note; if not, one error names them.
        split: Name of the split to take, such as "val", which every source must have.
        natural: The split to take of sources that have splits if `split` is None; None: such sources are refused.

    Returns:
        The images, in the order of `sources`.

    Raises:
        InputError: There are no images or too many, 16-bit ones are nearly black, files cannot be used, or there is no
            such split.

    Example:
        >>> from fastdc.data import load_images
        >>> np.save(folder / "three.npy", images[:3])
        >>> load_images([folder / "three.npy"], (1, 8, 8)).images.shape
        (3, 1, 8, 8)
    """
    shape = check_shape(shape)
    reader = Reader(max_pixels, window, look, layout, fit=fit, skip_bad=skip_bad, split=Split(split, natural))
    result = _loaded(existing_paths(sources), shape, reader, classes, strict)
    if on_note is not None:
        for line in result.notes:
            on_note(line)
    return result


def read_picture(path: Source, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """One image file as it is stored: upright, over white, RGB, in its own size; for models that resize by themselves.

    Args:
        path: Path of an image file.
        max_pixels: Most pixels, as in :func:`load_images`.

    Returns:
        uint8 (3, h, w).

    Raises:
        InputError: There is no such file, or it cannot be used.

    Example:
        >>> from fastdc.data import read_picture
        >>> from PIL import Image
        >>> Image.new("L", (40, 30)).save(folder / "grey.png")
        >>> read_picture(folder / "grey.png").shape
        (3, 30, 40)
    """
    reader = Reader(max_pixels)
    picture = reader.read(existing(path), lambda shape, _: (3, *shape[1:]))
    reader.levels.report(reader.notes)
    levels: NDArray[np.uint8] = to_uint8(picture)[0]
    return levels


def _loaded(
    paths: Sequence[Path], shape: tuple[int, int, int], reader: Reader, classes: Sequence[str] | None, strict: bool
) -> ImageSet:
    if reader.bad.skip and len(paths) > 1:
        paths = [path for path in paths if is_usable(path, shape, reader)]
        if not paths:
            reader.bad.settle(0, reader.notes)
    parts = [part_of(path, shape, reader, classes, strict=strict) for path in paths]
    ids = tuple(name for part in parts for name in part.ids)
    reader.budget.hold(len(ids), shape, 1)
    common = parts[0].class_names if len({part.class_names for part in parts}) == 1 else None
    labels = [part.labels if classes is None else _known(part, classes, strict, reader.notes) for part in parts]
    images, usable = read_parts(parts, reader, lambda have, name: shape)
    joined = _join_labels(labels, reader.notes)
    if classes is not None:
        common = None if joined is None else tuple(classes)
    reader.levels.report(reader.notes)
    return ImageSet(
        images,
        tuple(compress(ids, usable)),
        None if joined is None else joined[usable],
        reader.notes.lines(),
        common,
        join_columns(parts, usable),
        tuple(reader.bad.found),
    )


def join_columns(parts: Sequence[Part], usable: Mask) -> dict[str, tuple[str, ...]]:
    """The further columns of all parts, with empty values where a part has no such column."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    joined = {name: [part.columns.get(name, ("",) * len(part.ids)) for part in parts] for name in names}
    return {name: tuple(compress(chain.from_iterable(values), usable)) for name, values in joined.items()}


def _known(part: Part, classes: Sequence[str], strict: bool, notes: Notes) -> Int64 | None:
    """The labels of a part as classes of the model."""
    if part.labels is None:
        return None
    try:
        return model_labels(part.labels, part.class_names, classes, part.source, notes)
    except InputError as error:
        if strict:
            raise
        notes.add(f"not used: {error}", noun="label", count=len(part.labels))
        return None


def _join_labels(labels: Sequence[Int64 | None], notes: Notes) -> Int64 | None:
    known = [part for part in labels if part is not None]
    if len(known) == len(labels):
        return np.concatenate(known)
    if known:
        notes.add("ignored because other images have none", noun="label", count=sum(len(part) for part in known))
    return None
