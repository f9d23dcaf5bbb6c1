"""Refuses to calibrate on images that a model was trained on, on which its errors are smaller than on new ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import Bundle, SeenImages
from fastdc.support import InputError, Int64
from fastdc.train.dataset import content_digest

_REPEATED = 0.05  # of images may repeat a training image, as single pictures do in many collections


def check_unseen(source: str, images: NDArray[Any], labels: Int64 | None, bundle: Bundle) -> None:
    """Refuses to calibrate on images that a bundle says it was trained on.

    A bundle of a training run knows its training images by their pixels (``fastdc.bundle.SeenImages``), whatever their
    order, names and labels are. Bundles of earlier versions know only the hash of the whole training set, in its order
    and with its labels; of those, a part of the set, and images of floats, cannot be told from new images.

    Args:
        source: Name of the images, for the message.
        images: Images (n, c, h, w).
        labels: int64 (n,), their classes, or None if they are unknown.
        bundle: The bundle to calibrate.

    Raises:
        InputError: The model was trained on these images, or on more than one in twenty of them.

    Example:
        >>> from fastdc.bundle import find_model
        >>> from fastdc.train import check_unseen
        >>> check_unseen("the first 20", images, labels, fastdc.load_bundle(find_model("digits")))
    """
    check_untrained(source, images, bundle.seen, bundle.name)
    provenance = bundle.manifest.get("provenance", {})
    trained_on = {provenance.get("data_sha256"), provenance.get("source_sha256")} - {None}
    if not trained_on or labels is None or images.dtype != np.uint8:
        return
    if content_digest(images, labels.astype(np.int64), bundle.class_names) in trained_on:
        raise InputError(f"{source} holds the images that {bundle.name} was trained on: calibrate on others")


def check_untrained(source: str, images: NDArray[Any], seen: SeenImages, name: str) -> None:
    """Refuses images of which a model was trained on more than one in twenty, as far as they can be looked up.

    Args:
        source: Name of the images, for the message.
        images: Images (n, c, h, w).
        seen: What the model has seen.
        name: Name of the model.

    Raises:
        InputError: There are too many.

    Example:
        >>> from fastdc.bundle import SeenImages
        >>> from fastdc.train import check_untrained
        >>> check_untrained("the second half", images[10:], SeenImages.of(images[:10], images[:0]), "mine")
    """
    known, looked_up = seen.trained_on(images)
    if known > max(_REPEATED * looked_up, 1):
        share = f"{known} of the {looked_up} that could be looked up, of {len(images)}"
        raise InputError(
            f"{source} holds images that {name} was trained on ({share}): calibrate on others, as in a run's val.npz"
        )
