"""The images that a model has seen, by their fingerprints: those it was trained on, and those that chose something.

What is calibrated or measured on such images promises or says too much about others. A fingerprint is a hash of the
pixels after conversion to the model's shape, so that neither order nor names, folders or labels matter. Of many
training images only the smallest fingerprints are kept (a bottom-k sketch, Bar-Yossef et al. 2002, "Counting distinct
elements in a data stream"): they are a random part of the images, and the same part of every other set that shares
images with them. So a part of the training set is found out too, from the images whose fingerprints are small enough to
be looked up.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.support import BundleError, Mask

SKETCH = 2048
"""The most training images whose fingerprints are kept."""

Fingerprints = NDArray[np.uint64]

_NONE = np.empty(0, np.uint64)


def fingerprints(images: NDArray[Any]) -> Fingerprints:
    """A hash of the pixels, as levels of 8 bits, and the shape of each image, uint64 (n,).

    Args:
        images: Images (n, c, h, w), uint8, or floats in [0, 1], which are rounded to the nearest level.

    Example:
        >>> from fastdc.bundle import fingerprints
        >>> fingerprints(np.zeros((2, 1, 8, 8), np.uint8)).tolist() == fingerprints(np.zeros((2, 1, 8, 8))).tolist()
        True
    """
    start = hashlib.blake2b(repr(images.shape[1:]).encode(), digest_size=8)
    found = np.empty(len(images), np.uint64)
    for i, image in enumerate(images):
        digest = start.copy()
        pixels = image if image.dtype == np.uint8 else np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
        digest.update(np.ascontiguousarray(pixels).data)
        found[i] = int.from_bytes(digest.digest(), "little")
    return found


@dataclass(frozen=True, eq=False)
class SeenImages:
    """Fingerprints of the images that a model has seen, each array increasing and without repetitions.

    Attributes:
        trained: uint64 (m,): of the training images, at most the ``SKETCH`` smallest.
        chosen: uint64 (k,): of all images that chose a checkpoint or a plan.

    Example:
        >>> from fastdc.bundle import SeenImages
        >>> seen = SeenImages.of(images[:10], chosen=images[10:12])
        >>> seen.trained_on(images[5:20]), seen.chose(images).nonzero()[0].tolist()
        ((5, 15), [10, 11])
    """

    trained: Fingerprints = field(default_factory=_NONE.copy)
    chosen: Fingerprints = field(default_factory=_NONE.copy)

    @classmethod
    def of(cls, trained: NDArray[Any], chosen: NDArray[Any]) -> "SeenImages":
        """The record of images (n, c, h, w) on which a model was trained, and of those that chose something."""
        return cls(np.unique(fingerprints(trained))[:SKETCH], np.unique(fingerprints(chosen)))

    def also(self, other: "SeenImages") -> "SeenImages":
        """What two models have seen together, one of which began as the other."""
        return SeenImages(np.union1d(self.trained, other.trained)[:SKETCH], np.union1d(self.chosen, other.chosen))

    def trained_on(self, images: NDArray[Any]) -> tuple[int, int]:
        """How many of the images that can be looked up are training images, and how many can be looked up.

        Args:
            images: Images (n, c, h, w).
        """
        if not len(self.trained):
            return 0, 0
        found = fingerprints(images)
        if len(self.trained) == SKETCH:  # there may be more, all of them larger
            found = found[found <= self.trained[-1]]
        return int(np.isin(found, self.trained).sum()), len(found)

    def chose(self, images: NDArray[Any]) -> Mask:
        """Whether each image chose something, bool (n,).

        Args:
            images: Images (n, c, h, w).
        """
        if not len(self.chosen):
            return np.zeros(len(images), np.bool_)
        return np.isin(fingerprints(images), self.chosen)

    def to_dict(self) -> dict[str, str]:
        """Both arrays as base64 of little-endian integers; what is empty is left out."""
        held = {"trained": self.trained, "chosen": self.chosen}
        return {name: base64.b64encode(one.astype("<u8").tobytes()).decode() for name, one in held.items() if len(one)}

    @classmethod
    def from_dict(cls, entry: Any) -> "SeenImages":
        """The inverse of :meth:`to_dict`; None: nothing is known.

        Raises:
            BundleError: It is something else.
        """
        if entry is None:
            return cls()
        try:
            arrays = {}
            for name, text in entry.items():
                found = np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)
                if not np.all(found[1:] > found[:-1]):
                    raise ValueError("its numbers do not increase")
                arrays[name] = found
            return cls(**arrays)
        except (AttributeError, TypeError, ValueError, binascii.Error) as error:
            raise BundleError(f"training.seen must hold fingerprints as base64: {str(error)[:80]}") from None
