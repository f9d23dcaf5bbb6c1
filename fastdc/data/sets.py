"""The public loaders: :func:`load_images`, :func:`load_labelled` and :func:`digits_test`, and their results."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdc.data.arrays import ArrayFile, read_arrays
from fastdc.data.convert import Notes, Pixels, check_bytes, check_shape, fit, reading, show, to_float, to_uint8
from fastdc.data.image_files import list_images, read_image
from fastdc.support import InputError, Int64, checks

DIGITS_TEST = Path(__file__).resolve().parent.parent / "models" / "digits-test.npz"
"""The file of :func:`digits_test`."""

_ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one shape, ready to classify.

    Attributes:
        images: (n, c, h, w), uint8 levels; float32 in [0, 1] if any source held floats.
        ids: n names: the path of each image file (below a folder: the given folder plus the rest), ``file.npy[3]`` for
            arrays, or the ``ids`` of an .npz file.
        labels: int64 (n,), or None unless every source has labels.
        notes: One line for each kind of conversion.
        class_names: Names of the labels, or None unless every source is an .npz file with the same names.
    """

    images: Pixels
    ids: tuple[str, ...]
    labels: Int64 | None
    notes: tuple[str, ...]
    class_names: tuple[str, ...] | None = None

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
    """

    images: NDArray[np.uint8]
    labels: Int64
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def load_images(
    sources: Sequence[str | os.PathLike[str]],
    shape: tuple[int, int, int],
    *,
    on_note: Callable[[str], None] | None = None,
) -> ImageSet:
    """Loads images from files, folders and arrays, and converts all of them to one shape.

    Args:
        sources: Paths of image files (any format that Pillow reads), folders, .npy and .npz files; one path or a list.
            Folders are searched recursively, in sorted order; hidden files are ignored and other files are skipped with
            a note.
        shape: The wanted (c, h, w), normally the bundle's. Colour is converted first (grey <-> RGB), then the image is
            resized bicubically to cover h x w and its centre is cropped.
        on_note: Function that is called with each line of ``notes`` after everything has been read.

    Returns:
        The images, in the order of `sources`.

    Raises:
        InputError: A path is missing, a folder or the list is empty, or a file cannot be used; the message names the
            first one.

    Example:
        >>> from fastdc.data import load_images
        >>> np.save(folder / "three.npy", images[:3])
        >>> load_images([folder / "three.npy"], (1, 8, 8)).images.shape
        (3, 1, 8, 8)
    """
    shape = check_shape(shape)
    notes = Notes()
    parts: list[Pixels] = []
    labels: list[Int64 | None] = []
    ids: list[str] = []
    class_names: set[tuple[str, ...] | None] = set()

    def append(images: Pixels, names: Iterable[str], classes: Int64 | None) -> None:
        ids.extend(names)
        check_bytes(len(ids), shape, 4, f"{len(ids)} images of {shape}")
        parts.append(fit(images, shape, ids[-len(images)], notes))
        labels.append(classes)

    for path in _paths(sources):
        if path.suffix.lower() in _ARRAY_SUFFIXES and path.is_file():
            held = read_arrays(path, shape, notes)
            append(held.images, held.ids or _numbered(path, len(held.images)), held.labels)
            class_names.add(held.class_names)
        else:
            class_names.add(None)
            for file in _image_files(path, notes):
                append(read_image(file, notes)[None], [str(file)], None)
    common = class_names.pop() if len(class_names) == 1 else None
    result = ImageSet(_join(parts, notes), tuple(ids), _join_labels(labels, notes), notes.lines(), common)
    if on_note is not None:
        for line in result.notes:
            on_note(line)
    return result


def load_labelled(
    source: str | os.PathLike[str], shape: tuple[int, int, int] | None = None, *, size: int | None = None
) -> LabelledImages:
    """Loads a labelled set, for training or evaluation.

    Args:
        source: A folder with one sub-folder per class (classes in the sorted order of their names), or an .npz file
            with ``images`` and ``labels`` (integers from 0), optionally ``class_names``.
        shape: The (c, h, w) to convert all images to, as :func:`load_images` does.
        size: Side in pixels to resize and crop all images to. The channels are kept and must agree. If neither `shape`
            nor `size` is given, all images must have one shape.

    Returns:
        The images as uint8 levels, with their labels and class names.

    Raises:
        InputError: As :func:`load_images`. Also if images disagree (the message names the first one and the option that
            helps), a class folder has no images, or labels are missing or out of range.

    Example:
        >>> from fastdc.data import load_labelled
        >>> np.savez(folder / "digits.npz", images=images, labels=labels)
        >>> len(load_labelled(folder / "digits.npz"))
        20
    """
    if shape is not None and size is not None:
        raise InputError("give either shape or size, not both")
    if shape is not None:
        shape = check_shape(shape)
    elif size is not None:
        size = checks.whole("size", size)
    path = _existing(source)
    notes = Notes()
    if path.is_dir():
        return _labelled_folder(path, shape, size, notes)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{show(path)}: labelled images are a folder with one sub-folder per class, or an .npz file")
    held = read_arrays(path, shape, notes)
    if held.labels is None:
        raise InputError(f"{show(path)}: has no array named 'labels'")
    ids = held.ids or _numbered(path, len(held.images))
    shape = _target(held.images.shape[1:], shape, size)
    check_bytes(len(ids), shape, 4, f"{len(ids)} images of {shape}")
    images = fit(held.images, shape, ids[0], notes)
    if images.dtype != np.uint8:
        notes.add("rounded from float to 8 bits", count=len(images))
    return LabelledImages(to_uint8(images), held.labels, _class_names(held), ids, notes.lines())


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
    return replace(data, ids=_numbered(Path("digits-test"), len(data)))


def _labelled_folder(path: Path, shape: tuple[int, int, int] | None, size: int | None, notes: Notes) -> LabelledImages:
    with reading(path, "a folder"):
        items = sorted(item for item in path.iterdir() if not item.name.startswith("."))
        folders = [item for item in items if item.is_dir()]
    if not folders:
        raise InputError(f"{show(path)}: has no sub-folders; a labelled folder has one for each class")
    for item in items:
        if item not in folders:
            notes.add("skipped, not in a class folder ({})", show(item.name), noun="file")
    files = [(file, label) for label, folder in enumerate(folders) for file in _image_files(folder, notes)]
    parts: list[Pixels] = []
    first: tuple[int, ...] = ()
    for file, _ in files:
        image: Pixels = read_image(file, notes)[None]
        first = first or image.shape[1:]
        if shape is None:
            _check_agrees(image.shape[1:], first, size, (file, files[0][0]))
        target = _target(first, shape, size)
        check_bytes(len(files), target, 1, f"{len(files)} images of {target}")
        parts.append(fit(image, target, str(file), notes))
    labels = np.array([label for _, label in files], dtype=np.int64)
    names = tuple(folder.name for folder in folders)
    return LabelledImages(to_uint8(_join(parts, notes)), labels, names, tuple(str(f) for f, _ in files), notes.lines())


def _check_agrees(have: tuple[int, ...], first: tuple[int, ...], size: int | None, files: tuple[Path, Path]) -> None:
    """Refuses an image that differs from the first one in a property that is not converted.

    Raises:
        InputError: The image has other channels, or another size while no `size` is given.
    """
    if have[0] != first[0]:
        kinds = {1: "grey", 3: "RGB"}
        message = f"{show(files[0])} is {kinds[have[0]]} and {show(files[1])} is {kinds[first[0]]}"
        raise InputError(f"{message}: give shape=(channels, height, width) to convert all images")
    if size is None and have != first:
        sizes = f"{have[2]}x{have[1]} and {show(files[1])} is {first[2]}x{first[1]}"
        raise InputError(f"{show(files[0])} is {sizes}: give size={min(first[1:])} to resize and crop all images")


def _target(native: tuple[int, ...], shape: tuple[int, int, int] | None, size: int | None) -> tuple[int, int, int]:
    """Returns the shape to convert to: `shape`, else `size` x `size` with the native channels, else `native`."""
    if shape is not None:
        return shape
    return (native[0], size, size) if size is not None else check_shape(native)


def _class_names(held: ArrayFile) -> tuple[str, ...]:
    if held.class_names is not None or held.labels is None:
        return held.class_names or ()
    return tuple(str(k) for k in range(int(held.labels.max()) + 1))


def _paths(sources: object) -> list[Path]:
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if not isinstance(sources, Iterable) or isinstance(sources, np.ndarray):
        raise InputError(f"sources must be a list of paths, got {type(sources).__name__}")
    paths = [_existing(source) for source in sources]
    if not paths:
        raise InputError("no images were given: the list of sources is empty")
    return paths


def _existing(source: object) -> Path:
    """Returns `source` as the path of an existing file or folder."""
    if not isinstance(source, str | os.PathLike) or not str(source):
        raise InputError(f"a source must be a path, got {show(repr(source))[:80]}")
    path = Path(source)
    try:
        usable = path.is_file() or path.is_dir()
    except (OSError, ValueError) as error:  # for example, a NUL byte in the name
        raise InputError(f"{show(path)}: {error}") from error
    if not usable:
        raise InputError(f"{show(path)}: {'is neither a file nor a folder' if path.exists() else 'does not exist'}")
    return path


def _image_files(path: Path, notes: Notes) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = list_images(path, notes)
    if not files:
        raise InputError(f"{show(path)}: there are no images in this folder")
    return files


def _numbered(path: Path, n: int) -> tuple[str, ...]:
    return tuple(f"{path}[{i}]" for i in range(n))


def _join(parts: Sequence[Pixels], notes: Notes) -> Pixels:
    """Concatenates the parts. uint8 parts become float32 if other parts are."""
    kinds = {part.dtype for part in parts}
    if len(kinds) == 1:
        return np.concatenate(parts) if len(parts) > 1 else parts[0]
    notes.add("scaled from 0..255 to [0, 1]", count=sum(len(part) for part in parts if part.dtype == np.uint8))
    return np.concatenate([to_float(part) for part in parts])


def _join_labels(labels: Sequence[Int64 | None], notes: Notes) -> Int64 | None:
    known = [part for part in labels if part is not None]
    if len(known) == len(labels):
        return np.concatenate(known)
    if known:
        notes.add("ignored because other images have none", noun="label", count=sum(len(part) for part in known))
    return None
