"""The parts of an input: folders, image files and arrays. All are listed before any image is read.

Links are followed everywhere: a link to a file is that file, and a link to a folder that folder. Below a folder, a
folder that is reached again is read once, with a note. A link that leads nowhere, or in a circle, is an image that
cannot be used, whatever its name is; somebody meant something to be there.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdc.data.arrays import read_arrays
from fastdc.data.convert import Pixels, fit
from fastdc.data.dicom_files import count_frames
from fastdc.data.image_files import Reader, Target, is_dicom, is_visible, leads_nowhere, list_images
from fastdc.data.notes import reading, show
from fastdc.support import InputError, Int64

_CONVERTED = 2**22  # values of an array's images that are converted at a time, which can become much larger


class Listed(NamedTuple):
    """One image file, listed but not read.

    Attributes:
        path: The file.
        why: Why it cannot be used, if that is known already.
        frames: Number of frames, each an image, if it is a DICOM file; 0 for a picture.
    """

    path: Path
    why: str = ""
    frames: int = 0

    @property
    def names(self) -> list[str]:
        """Names of its images."""
        return [str(self.path)] if self.frames < 2 else [f"{self.path}[{k}]" for k in range(self.frames)]


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
        together = max(1, _CONVERTED // math.prod(wanted))
        for several in held.images(reader):
            for start in range(0, len(several), together):
                images = several[start : start + together]
                if held.shape[1:] != wanted[1:]:
                    reader.show(name, held.shape[1:], images)
                yield fit(images, wanted, name, reader.notes, reader.how)

    ids = held.ids or tuple(f"{path}[{i}]" for i in range(held.count))
    return Part(path, ids, read, held.labels, held.class_names)


def files_part(path: Path, reader: Reader) -> Part:
    """An image file, or all images below a folder.

    Raises:
        InputError: The folder cannot be listed, or has no images.
    """
    return part_of_files(path, _image_files(path, reader))


def class_folder_part(path: Path, reader: Reader) -> Part:
    """A folder with one sub-folder per class, in the sorted order of their names.

    Raises:
        InputError: There are no sub-folders, one has no images, or two are the same.
    """
    items, folders = listed(path)
    if not folders:
        raise InputError(f"{show(path)}: has no sub-folders; a labelled folder has one for each class")
    for item in items:
        if leads_nowhere(item):
            reader.bad.add(str(item), listed_file(item).why)
        elif item not in folders:
            reader.notes.add("skipped, not in a class folder ({})", show(item.name), noun="file")
    _check_different(folders)
    files = [_image_files(folder, reader) for folder in folders]
    labels = np.repeat(np.arange(len(folders)), [len(found) for found in files])
    names = tuple(folder.name for folder in folders)
    return part_of_files(path, [file for found in files for file in found], labels.astype(np.int64), names)


def part_of_files(
    path: Path,
    files: Sequence[Listed],
    labels: Int64 | None = None,
    class_names: tuple[str, ...] | None = None,
    columns: Mapping[str, tuple[str, ...]] | None = None,
) -> Part:
    """A part of image files, which are read one by one; labels and columns are those of the files."""

    def read(reader: Reader, target: Target) -> Iterator[Pixels | None]:
        for file in files:
            if file.why:
                reader.bad.add(str(file.path), file.why)
                yield None
            else:
                yield from reader.tried(file.path, target, file.names, dicom=file.frames > 0)

    ids, columns = tuple(name for file in files for name in file.names), columns or {}
    if len(ids) != len(files):
        frames = [max(1, file.frames) for file in files]
        labels = None if labels is None else np.repeat(labels, frames)
        columns = {name: tuple(np.repeat(np.array(cells, object), frames)) for name, cells in columns.items()}
    return Part(path, ids, read, labels, class_names, columns)


def listed_file(path: Path) -> Listed:
    """An image file, with the number of its frames."""
    if leads_nowhere(path):
        return Listed(path, "is a link that leads nowhere")
    if not is_dicom(path) or not path.is_file():
        return Listed(path)
    try:
        return Listed(path, frames=count_frames(path))
    except InputError as error:
        return Listed(path, str(error).removeprefix(f"{show(path)}: "))


def listed(path: Path) -> tuple[list[Path], list[Path]]:
    """The visible entries of a folder in sorted order, and those that are folders.

    Raises:
        InputError: The folder cannot be listed.
    """
    with reading(path, "a folder"):
        items = sorted(item for item in path.iterdir() if is_visible(item.name))
        return items, [item for item in items if item.is_dir()]


def _check_different(folders: Iterable[Path]) -> None:
    """Refuses two classes that are one folder under two names."""
    seen: dict[tuple[int, int], Path] = {}
    for folder in folders:
        status = folder.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), folder)
        if other is not folder:
            raise InputError(f"{show(folder)}: is the same folder as {show(other)}: two classes of one folder")


def _image_files(path: Path, reader: Reader) -> list[Listed]:
    if not path.is_dir():
        return [listed_file(path)]
    files = list_images(path, reader.notes)
    if not files:
        raise InputError(f"{show(path)}: there are no images in this folder")
    return [listed_file(file) for file in files]
