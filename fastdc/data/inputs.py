"""The sources that a user names, each as a part of the input: what kind of source it is, and which split of it."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fastdc.data.arrays import array_splits, read_arrays
from fastdc.data.budget import Budget
from fastdc.data.classes import match_classes
from fastdc.data.image_files import Reader, is_picture
from fastdc.data.manifest_parts import manifest_part, manifest_splits
from fastdc.data.manifests import is_manifest, metadata_of, read_manifest
from fastdc.data.notes import WholeInputError, show
from fastdc.data.parts import Part, array_part, class_folder_part, files_part, listed
from fastdc.data.splits import is_split
from fastdc.support import InputError

ARRAY_SUFFIXES = (".npy", ".npz")


def folder_or_manifest(path: Path, reader: Reader, *, labelled: bool) -> Path | Part:
    """The part of a manifest, or of a folder that has one; of other folders the wanted split, and a file as it is.

    Args:
        path: The source.
        reader: Has the wanted split.
        labelled: See :func:`manifest_part`.

    Raises:
        InputError: The source has no such split, or its manifest cannot be used.
    """
    if (manifest := _manifest_of(path)) is not None:
        return manifest_part(manifest, reader, labelled=labelled)
    names = split_folders(path)
    if not names:
        reader.split.missing(path)
        return path
    folder = path / reader.split.choose(names, path, reader.notes)
    if (manifest := _manifest_of(folder)) is not None:
        return manifest_part(manifest, reader, labelled=labelled, whole=True)
    return folder


def _manifest_of(path: Path) -> Path | None:
    return path if is_manifest(path) else metadata_of(path) if path.is_dir() else None


def find_splits(source: str | os.PathLike[str], max_pixels: int | None = None) -> tuple[str, ...]:
    """The names of a source's splits, as they are spelled there; empty if it has none.

    Args:
        source: A folder or file with images.
        max_pixels: Bounds the size of a manifest, as in :func:`fastdc.data.load_images`.

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
    if is_array(path):
        return array_splits(path)
    if (manifest := _manifest_of(path)) is not None:
        return tuple(manifest_splits(read_manifest(manifest, Budget(max_pixels))))
    return split_folders(path)


def split_folders(path: Path) -> tuple[str, ...]:
    """The sub-folders of a folder if they are its splits: all are named after splits, and no image is beside them.

    A lone folder "train" without folders in it is no split; it may be a class, as in CIFAR-100.
    """
    items, folders = listed(path) if path.is_dir() else ([], [])
    if not all(is_split(folder.name) for folder in folders) or any(map(is_picture, items)):
        return ()
    if len(folders) == 1 and not listed(folders[0])[1]:
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
    if is_array(path):
        return array_part(path, shape, reader)
    found = folder_or_manifest(path, reader, labelled=False)
    if isinstance(found, Part):
        return found
    if classes is not None and found.is_dir() and is_class_folder(found, classes, loose=strict):
        return class_folder_part(found, reader)
    if classes is not None and not strict and has_folders(found):
        reader.notes.add("without labels: not sorted into the model's classes alone", noun="folder")
    return files_part(found, reader)


def is_usable(path: Path, shape: tuple[int, int, int], reader: Reader) -> bool:
    """Whether a source is no array, or one that can be read to its end; if not, it is kept in the reader's `bad`.

    An array that is damaged is lost as a whole, also if that shows in its last byte.

    Raises:
        WholeInputError: The wanted split is not there, or the memory is too small.
    """
    if not is_array(path):
        return True
    window = reader.levels.usual or reader.levels.window
    trial = Reader(reader.budget.max_pixels, window, layout=reader.layout, split=reader.split)
    try:
        for _ in read_arrays(path, shape, trial).images(trial):
            pass
    except WholeInputError:
        raise
    except InputError as error:
        reader.bad.add(str(path), error)
        return False
    return True


def is_array(path: Path) -> bool:
    """Whether a path is that of a .npy or .npz file."""
    return path.suffix.lower() in ARRAY_SUFFIXES and path.is_file()


def has_folders(path: Path) -> bool:
    """Whether a path is a folder that holds folders."""
    return path.is_dir() and bool(listed(path)[1])


def is_class_folder(path: Path, classes: Sequence[str], *, loose: bool) -> bool:
    """Whether all sub-folders of a folder are classes of a model; with images beside them only if `loose`."""
    items, folders = listed(path)
    if not folders or (not loose and any(map(is_picture, items))):
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
