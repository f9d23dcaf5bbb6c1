"""What the loaders return: images, with or without their classes, of one shape or of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fastdc.data.classes import match_classes
from fastdc.data.convert import Pixels
from fastdc.support import Int64


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


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """RGB pictures of their own sizes, with their classes.

    Attributes:
        pictures: n arrays uint8 (3, h, w).
        labels: int64 (n,), each in 0..len(class_names)-1.
        class_names: One name per class.
        ids: n names, as in :class:`ImageSet`.
        notes: One line for each kind of conversion.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    labels: Int64
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)
