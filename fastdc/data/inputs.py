"""The parts of an input: folders, image files and arrays. All are listed before any image is read."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from fastdc.data.arrays import read_arrays
from fastdc.data.classes import match_classes
from fastdc.data.convert import Pixels, fit, to_float
from fastdc.data.image_files import Reader, Target, image_suffixes, list_images
from fastdc.data.notes import Notes, reading, show
from fastdc.data.splits import is_split
from fastdc.support import InputError, Int64, Mask

ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class Part:
    """One source, listed but not read.

    Attributes:
        source: Its path.
        ids: n names of its images.
        read: Yields its images (k, c, h, w), converted to the shape that the target wants, in the order of the names;
            None for one that cannot be used.
        labels: int64 (n,), not negative; None if it has none.
        class_names: Names of the labels; None if they have no names.
        columns: n values of each further column of a manifest.
    """

    source: Path
    ids: Sequence[str]
    read: Callable[[Reader, Target], Iterator[Pixels | None]]
    labels: Int64 | None = None
    class_names: tuple[str, ...] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def array_part(path: Path, shape: tuple[int, int, int] | None, reader: Reader) -> Part:
    """A .npy or .npz file.

    Raises:
        InputError: The file cannot be used.
    """
    held = read_arrays(path, shape, reader)

    def read(reader: Reader, target: Target) -> Iterator[Pixels]:
        name = show(path)
        wanted = target(held.shape, name)
        for images in held.images(reader):
            if held.shape[1:] != wanted[1:]:
                reader.show(name, held.shape[1:], images)
            yield fit(images, wanted, name, reader.notes)

    ids = held.ids or tuple(f"{path}[{i}]" for i in range(held.count))
    return Part(path, ids, read, held.labels, held.class_names)


def files_part(path: Path, notes: Notes) -> Part:
    """An image file, or all images below a folder.

    Raises:
        InputError: The folder cannot be listed, or has no images.
    """
    return _of_files(path, _image_files(path, notes))


def class_folder_part(path: Path, notes: Notes) -> Part:
    """A folder with one sub-folder per class, in the sorted order of their names.

    Raises:
        InputError: There are no sub-folders, or one has no images.
    """
    items, folders = _listed(path)
    if not folders:
        raise InputError(f"{show(path)}: has no sub-folders; a labelled folder has one for each class")
    for item in items:
        if item not in folders:
            notes.add("skipped, not in a class folder ({})", show(item.name), noun="file")
    files = [_image_files(folder, notes) for folder in folders]
    labels = np.repeat(np.arange(len(folders)), [len(found) for found in files])
    names = tuple(folder.name for folder in folders)
    return _of_files(path, [file for found in files for file in found], labels.astype(np.int64), names)


def split_folder(path: Path, reader: Reader) -> Path:
    """The wanted split of a folder that has splits; another path is returned as it is.

    Raises:
        InputError: The folder has no such split.
    """
    names = split_folders(path) if path.is_dir() else ()
    if names:
        return path / reader.split.choose(names, path, reader.notes)
    reader.split.missing(path)
    return path


def find_splits(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of a source's splits, as they are spelled there; empty if it has none.

    Args:
        source: A folder or file with images.

    Raises:
        InputError: There is no such source.

    Example:
        >>> from fastdc.data import find_splits
        >>> for split in ("train", "val"):
        ...     (folder / "set" / split / "cat").mkdir(parents=True)
        >>> find_splits(folder / "set")
        ('train', 'val')
    """
    path = existing(source)
    return split_folders(path) if path.is_dir() else ()


def split_folders(path: Path) -> tuple[str, ...]:
    """The sub-folders of a folder if they are its splits: all are named after splits, and no image is beside them.

    A lone folder "train" without folders in it is no split; it may be a class, as in CIFAR-100.
    """
    items, folders = _listed(path)
    if not all(is_split(folder.name) for folder in folders) or any(map(_is_picture, items)):
        return ()
    if len(folders) == 1 and not _listed(folders[0])[1]:
        return ()
    return tuple(folder.name for folder in folders)


def part_of(
    path: Path,
    shape: tuple[int, int, int],
    reader: Reader,
    classes: Sequence[str] | None = None,
    *,
    strict: bool = True,
) -> Part:
    """A source of any kind; a folder is labelled by its sub-folders if these are `classes`.

    Raises:
        InputError: The source cannot be used.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES and path.is_file():
        return array_part(path, shape, reader)
    path = split_folder(path, reader)
    if classes is not None and path.is_dir() and is_class_folder(path, classes, loose=strict):
        return class_folder_part(path, reader.notes)
    if classes is not None and not strict and has_folders(path):
        reader.notes.add("without labels: not sorted into the model's classes alone", noun="folder")
    return files_part(path, reader.notes)


def has_folders(path: Path) -> bool:
    """Whether a path is a folder that holds folders."""
    return path.is_dir() and bool(_listed(path)[1])


def is_class_folder(path: Path, classes: Sequence[str], *, loose: bool) -> bool:
    """Whether all sub-folders of a folder are classes of a model; with images beside them only if `loose`."""
    items, folders = _listed(path)
    if not folders or (not loose and any(map(_is_picture, items))):
        return False
    try:
        match_classes([folder.name for folder in folders], classes)
    except InputError:
        return False
    return True


def existing_paths(sources: object) -> list[Path]:
    """The paths of a list of sources, or of one source.

    Raises:
        InputError: There are none, or one is no path or does not exist.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not isinstance(sources, Iterable) or isinstance(sources, np.ndarray):
        raise InputError(f"sources must be a list of paths, got {type(sources).__name__}")
    paths = [existing(source) for source in sources]
    if not paths:
        raise InputError("no images were given: the list of sources is empty")
    return paths


def existing(source: object) -> Path:
    """Returns `source` as the path of an existing file or folder."""
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise InputError(f"a source must be a path, got {show(repr(source))[:80]}")
    path = Path(source)
    try:
        usable = path.is_file() or path.is_dir()
    except (OSError, ValueError) as error:  # for example, a NUL byte in the name
        raise InputError(f"{show(path)}: {error}") from error
    if not usable:
        why = "is neither a file nor a folder" if path.exists() else "does not exist"
        hint = "; patterns are not expanded here: pass what glob.glob finds" if glob.has_magic(str(source)) else ""
        raise InputError(f"{show(path)}: {why}{hint}")
    return path


def read_parts(parts: Sequence[Part], reader: Reader, target: Target) -> tuple[Pixels, Mask]:
    """Reads all images of some parts.

    Args:
        parts: The parts, with n images.
        reader: Reads them; its `bad` says whether images that cannot be used are left out.
        target: The wanted shape.

    Returns:
        The m images that can be used (m, c, h, w), and which of the n they are, bool (n,).

    Raises:
        InputError: Images cannot be used and are not to be left out, or none can be used; or all are too large.
    """
    count, at = sum(len(part.ids) for part in parts), 0
    stack, usable = Stack(count, reader), np.ones(count, np.bool_)
    for images in chain.from_iterable(part.read(reader, target) for part in parts):
        if images is None:
            usable[at] = False
        elif reader.bad.skip or not reader.bad.found:  # otherwise the input will be refused
            stack.add(images)
        at += 1 if images is None else len(images)
    reader.bad.settle(count, reader.notes)
    if at != count:
        raise AssertionError(f"{at} of {count} images were read")
    return stack.whole(), usable


class Stack:
    """Images of one shape, collected in one array whose memory is taken as it is filled."""

    def __init__(self, count: int, reader: Reader) -> None:
        self._count, self._reader, self._filled = count, reader, 0
        self._array: Pixels | None = None
        self._scaled = 0  # images of levels among floats

    def add(self, images: Pixels) -> None:
        """Appends images (k, c, h, w). Levels become float32 if there are floats as well."""
        shape, levels = images.shape[1:], images.dtype == np.uint8
        if self._array is None:
            self._array = self._made(shape, images.dtype)
        if self._array.dtype == np.uint8 and not levels:
            before, self._array = self._array, self._made(shape, images.dtype)
            for start in range(0, self._filled, 1024):
                stop = min(start + 1024, self._filled)
                self._array[start:stop] = to_float(before[start:stop])
            self._scaled = self._filled
        elif levels and self._array.dtype != np.uint8:
            images, self._scaled = to_float(images), self._scaled + len(images)
        self._array[self._filled : self._filled + len(images)] = images
        self._filled += len(images)

    def whole(self) -> Pixels:
        """All images that were added."""
        if self._array is None:
            raise AssertionError("no images were read")
        if self._scaled:
            self._reader.notes.add("scaled from 0..255 to [0, 1]", count=self._scaled)
        return self._array[: self._filled]

    def _made(self, shape: tuple[int, ...], dtype: np.dtype[np.uint8 | np.float32]) -> Pixels:
        c, h, w = shape
        self._reader.budget.hold(self._count, (c, h, w), dtype.itemsize)
        return np.empty((self._count, c, h, w), dtype)


def _listed(path: Path) -> tuple[list[Path], list[Path]]:
    """The visible entries of a folder in sorted order, and those that are folders."""
    with reading(path, "a folder"):
        items = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        return items, [item for item in items if item.is_dir()]


def _is_picture(item: Path) -> bool:
    return item.suffix.lower() in image_suffixes()


def _image_files(path: Path, notes: Notes) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = list_images(path, notes)
    if not files:
        raise InputError(f"{show(path)}: there are no images in this folder")
    return files


def _of_files(
    path: Path, files: Sequence[Path], labels: Int64 | None = None, class_names: tuple[str, ...] | None = None
) -> Part:
    def read(reader: Reader, target: Target) -> Iterator[Pixels | None]:
        return (reader.tried(file, target) for file in files)

    return Part(path, tuple(map(str, files)), read, labels, class_names)
