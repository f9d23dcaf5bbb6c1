"""The public loaders: :func:`load_images`, :func:`load_labelled` and :func:`digits_test`, and their results."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.data.classes import match_classes, model_labels, shortened
from fastdc.data.convert import Pixels, check_shape, to_uint8
from fastdc.data.image_files import Look, Reader, Target
from fastdc.data.inputs import (
    Part,
    array_part,
    class_folder_part,
    existing,
    existing_paths,
    part_of,
    read_parts,
    split_folder,
)
from fastdc.data.levels import Window
from fastdc.data.notes import Notes, WholeInputError, show
from fastdc.data.splits import Split
from fastdc.support import InputError, Int64, Mask, checks

DIGITS_TEST = Path(__file__).resolve().parent.parent / "models" / "digits-test.npz"
"""The file of :func:`digits_test`."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape, ready to classify.

    Attributes:
        images: (n, c, h, w), uint8 levels; float32 in [0, 1] if any source has floats or more than 8 bits.
        ids: n names: the path of each image file (below a folder: the given folder plus the rest), ``file.npy[3]`` for
            arrays, or the ``ids`` of an .npz file.
        labels: int64 (n,), or None unless every source has labels.
        notes: One line for each kind of conversion.
        class_names: Names of the labels: the model's, if its classes were given; otherwise None unless every source is
            an .npz file with the same names.
        columns: n values of each further column of a manifest, such as site or sex; empty without manifests.
        left_out: Path of each image that could not be used and was left out, and why.
    """

    images: Pixels
    ids: tuple[str, ...]
    labels: Int64 | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their classes.

    Attributes:
        images: uint8 (n, c, h, w).
        labels: int64 (n,), each in 0..len(class_names)-1.
        class_names: One name per class.
        ids: n names, as in :class:`ImageSet`.
        notes: One line for each kind of conversion.
        columns: n values of each further column of a manifest, as in :class:`ImageSet`.
        left_out: Path of each image that could not be used and was left out, and why.
    """

    images: NDArray[np.uint8]
    labels: Int64
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice) -> "LabelledImages":
        """Some of the images, such as every second one.

        Example:
            >>> from fastdc.data import digits_test
            >>> len(digits_test().part(slice(0, None, 2)))
            200
        """
        columns = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows], columns=columns)

    def take(self, rows: Int64) -> "LabelledImages":
        """These images, in this order.

        Args:
            rows: int64 (m,), numbers of images in [0, n).

        Example:
            >>> from fastdc.data import digits_test
            >>> len(digits_test().take(np.array([5, 3])))
            2
        """
        ids = tuple(self.ids[row] for row in rows)
        columns = {name: tuple(values[row] for row in rows) for name, values in self.columns.items()}
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=ids, columns=columns)

    def with_classes(self, classes: Sequence[str]) -> "LabelledImages":
        """The same images, labelled with the classes of a model, matched as :func:`match_classes` does.

        Args:
            classes: Names of the model's classes.

        Raises:
            InputError: A class of these images is not the model's.

        Example:
            >>> from fastdc.data import digits_test
            >>> digits_test().with_classes([f"{k}" for k in reversed(range(10))]).class_names[0]
            '9'
        """
        if self.class_names == tuple(classes):
            return self
        found = np.array(match_classes(self.class_names, classes, "the images"), np.int64)
        return replace(self, labels=found[self.labels], class_names=tuple(classes))


def load_images(
    sources: Sequence[str | os.PathLike[str]],
    shape: tuple[int, int, int],
    *,
    classes: Sequence[str] | None = None,
    strict: bool = True,
    window: Window | None = None,
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
        sources: Paths of image files, folders, .npy and .npz files; one path or a list. Folders are searched
            recursively, in sorted order; hidden files are ignored and other files are skipped with a note.
        shape: The wanted (c, h, w), normally the bundle's. Colour is converted first (grey <-> RGB), then the image is
            resized bicubically to cover h x w and its centre is cropped.
        classes: Names of the model's classes. The labels then are its classes, matched by name or number as
            :func:`match_classes` does, and the sub-folders of a folder are labels if all of them are its classes.
        strict: Whether labels that are not among `classes` are refused. Otherwise they are left out with a note.
        window: Black and white in images of more than 8 bits, such as (0, 4095); default: 0 and what the file states.
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
    reader = Reader(max_pixels, window, look, layout, skip_bad=skip_bad, split=Split(split, natural))
    parts = [part_of(path, shape, reader, classes, strict=strict) for path in existing_paths(sources)]
    ids = tuple(name for part in parts for name in part.ids)
    reader.budget.hold(len(ids), shape, 1)
    common = parts[0].class_names if len({part.class_names for part in parts}) == 1 else None
    labels = [part.labels if classes is None else _known(part, classes, strict, reader.notes) for part in parts]
    images, usable = read_parts(parts, reader, lambda have, name: shape)
    joined = _join_labels(labels, reader.notes)
    if classes is not None:
        common = None if joined is None else tuple(classes)
    reader.levels.report(reader.notes)
    result = ImageSet(
        images,
        tuple(compress(ids, usable)),
        None if joined is None else joined[usable],
        reader.notes.lines(),
        common,
        _join_columns(parts, usable),
        tuple(reader.bad.found),
    )
    if on_note is not None:
        for line in result.notes:
            on_note(line)
    return result


def load_labelled(
    source: str | os.PathLike[str],
    shape: tuple[int, int, int] | None = None,
    *,
    size: int | None = None,
    classes: Sequence[str] | None = None,
    window: Window | None = None,
    max_pixels: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
    natural: str | None = None,
) -> LabelledImages:
    """Loads a labelled set, for training or evaluation.

    Args:
        source: A folder with one sub-folder per class (classes in the sorted order of their names), or an .npz file
            with ``images`` and ``labels`` (integers from 0), optionally ``class_names``.
        shape: The (c, h, w) to convert all images to, as :func:`load_images` does.
        size: Side in pixels to resize and crop all images to. The channels are kept and must agree. If neither `shape`
            nor `size` is given, all images must have one shape.
        classes: Names of the model's classes, which the labels then are, as :func:`match_classes` finds them.
        window: Black and white of more than 8 bits, as in :func:`load_images`.
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
    path, reader = existing(source), Reader(max_pixels, window, skip_bad=skip_bad, split=Split(split, natural))
    part = _labelled_folder(path, reader) or array_part(path, shape, reader)
    labels, names = part.labels, part.class_names
    if labels is None:
        raise InputError(f"{show(path)}: has no array named 'labels'")
    if classes is not None:
        labels, names = model_labels(labels, names, classes, path, reader.notes), tuple(classes)
    elif names is None:
        names = tuple(str(k) for k in range(int(labels.max()) + 1))
    images, usable = read_parts([_in_8_bits(part)], reader, _Wanted(shape, size))
    if empty := [show(names[k]) for k in np.setdiff1d(labels, labels[usable])]:
        reader.notes.add(f"no image can be used of the class{'es' * (len(empty) > 1)} {shortened(empty)}", noun="")
    labels = labels[usable]
    reader.levels.report(reader.notes)
    return LabelledImages(
        to_uint8(images),
        labels,
        names,
        tuple(compress(part.ids, usable)),
        reader.notes.lines(),
        _join_columns([part], usable),
        tuple(reader.bad.found),
    )


def check_class_folders(
    source: str | os.PathLike[str], *, split: str | None = None, natural: str | None = None
) -> None:
    """Refuses what is neither a folder with one sub-folder per class nor an .npz file; no image is read.

    Args:
        source: As for :func:`load_labelled`.
        split: Name of the split to take.
        natural: The split to take if `split` is None.

    Raises:
        InputError: There is no such folder, file or split, no sub-folder, or one without images.

    Example:
        >>> from fastdc.data import check_class_folders
        >>> np.savez(folder / "test.npz", images=images, labels=labels)
        >>> check_class_folders(folder / "test.npz")
    """
    _labelled_folder(existing(source), Reader(split=Split(split, natural)))


def _labelled_folder(path: Path, reader: Reader) -> Part | None:
    """A folder with one sub-folder per class; None for an .npz file.

    Raises:
        InputError: The path is neither.
    """
    if path.is_dir():
        return class_folder_part(split_folder(path, reader), reader.notes)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{show(path)}: labelled images are a folder with one sub-folder per class, or an .npz file")
    return None


def load_with_labels(
    sources: Any,
    shape: tuple[int, int, int],
    *,
    classes: Sequence[str],
    window: Window | None = None,
    max_pixels: int | None = None,
    layout: str | None = None,
    skip_bad: bool = False,
    split: str | None = None,
) -> tuple[ImageSet, Int64]:
    """Images of :func:`load_images` with the labels that their files have, for a measurement of accuracy.

    Args:
        sources: Path of a folder with one sub-folder per class, or of an .npz file with ``labels``, or a list of these.
        shape: The wanted (c, h, w).
        classes: Names of the model's classes, which the labels then are, as :func:`match_classes` finds them.
        window: Black and white of more than 8 bits, as in :func:`load_images`.
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
    wanted = "labels must be given: only a folder with one sub-folder per class, or an .npz file, can have its own"
    several = isinstance(sources, list | tuple)
    if not all(isinstance(one, str | os.PathLike) for one in (sources if several else [sources])):
        raise InputError(wanted)
    paths, quiet = existing_paths(sources), Reader(split=Split(split, "test"))
    for path in paths:
        if path.is_dir():
            match_classes(class_folder_part(split_folder(path, quiet), quiet.notes).class_names or (), classes, path)
        elif path.suffix.lower() != ".npz":
            raise InputError(f"{show(path)}: {wanted}")
    log = logging.getLogger("fastdc.data").info
    loaded = load_images(
        paths,
        shape,
        classes=classes,
        window=window,
        max_pixels=max_pixels,
        layout=layout,
        skip_bad=skip_bad,
        split=split,
        on_note=log,
    )
    if loaded.labels is None:
        raise InputError(f"{show(paths[0])}: {wanted}")
    return loaded, loaded.labels


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
    data = load_labelled(DIGITS_TEST)
    return replace(data, ids=tuple(f"digits-test[{i}]" for i in range(len(data))))


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


def _join_columns(parts: Sequence[Part], usable: Mask) -> dict[str, tuple[str, ...]]:
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
