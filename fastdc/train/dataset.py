"""Labelled images made ready for training: checked, split and hashed.

The hash covers pixels, labels and class names, so that a resumed run can tell whether its data are those it began with.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.bundle import SeenImages, fingerprints
from fastdc.data import LabelledImages, find_splits, load_labelled, plain_split, shortened
from fastdc.support import Float32, InputError, Int64, Mask, whole_file
from fastdc.train.config import AUTO, MAX_SIDE, TrainConfig

# Purposes keep the random streams of one seed apart; torch_state.py has the others.
_VALIDATION = 1

AUTO_FRACTION = 0.1
"""The fraction of the data that is kept aside if nobody says how much."""

FEWEST = 10
"""Images per class of which a tenth is an image."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Training and validation images of a run.

    Attributes:
        images: Training images, uint8 (n, c, h, w), or their latents, float32.
        labels: Classes of the training images, int64 (n,).
        class_names: One name per class.
        val_images: Validation images, uint8 (m, c, h, w), m possibly 0, or their latents, float32.
        val_labels: Classes of the validation images, int64 (m,).
        digest: sha256 of the training images, labels and class names.
        val_digest: sha256 of the validation images, labels and class names.
        val_digest_as_given: The same before they were put in the order of their classes, as earlier versions have it.
        source_digest: sha256 of both together, as ``data`` holds them, if ``val`` is a fraction; else empty.
        sigma_data: Standard deviation of the training images in [-1, 1], to four digits.
        repeated: Number of validation images that equal a training image, pixel for pixel.
        seen: The training images, and the validation images that choose the checkpoint, every second one.
        val: The recipe's ``val``; a fraction or None if it was "auto", unless the data have validation images.
        mirrored: Latents of the mirrored training images, if these are latents and are to be mirrored; else None.
    """

    images: NDArray[Any]
    labels: Int64
    class_names: tuple[str, ...]
    val_images: NDArray[Any]
    val_labels: Int64
    digest: str
    val_digest: str
    val_digest_as_given: str
    source_digest: str
    sigma_data: float
    repeated: int
    seen: SeenImages
    val: str | None
    mirrored: Float32 | None = None

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of training images of each class."""
        return tuple(np.bincount(self.labels, minlength=len(self.class_names)).tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Image shape (c, h, w)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def load_training_data(
    config: TrainConfig,
    notify: Callable[[str], None] | None = None,
    shape: tuple[int, int, int] | None = None,
) -> TrainingData:
    """Loads, checks and splits the images that ``config.data`` and ``config.val`` name.

    Validation images are put in the order of their classes, so that every second one is half of each class.

    Args:
        config: The recipe.
        notify: Called with a line for each kind of conversion.
        shape: The (c, h, w) to convert images to; None: as the recipe says.

    Raises:
        InputError: Images, their classes or their size cannot be used.
    """
    say = notify or (lambda line: None)
    read = functools.partial(
        load_labelled, window=config.window, fit=config.fit, max_pixels=config.max_pixels, skip_bad=config.skip_bad
    )
    if shape is None and config.channels and config.size:
        shape = (config.channels, config.size, config.size)
    data = read(config.data, shape, size=None if shape else config.size, split=config.split, natural="train")
    _tell(say, data.notes, "note: ")
    check_labelled(data)
    images, labels, whole, wanted = data.images, data.labels, "", config.val
    fraction, source = config.val_fraction, validation_source(config)
    if wanted == AUTO and source is None:
        fraction, wanted = _auto(labels)
    if fraction is not None:
        whole, kept = content_digest(images, labels, data.class_names), held_out(labels, fraction, config.seed)
        val_images, val_labels = images[kept], labels[kept]
        images, labels = images[~kept], labels[~kept]
    elif source is not None:
        val = read(source, images.shape[1:], classes=data.class_names, natural="val")
        _tell(say, val.notes, "note: validation: ")
        val_images, val_labels = val.images, val.labels
    else:
        val_images, val_labels = images[:0], labels[:0]
    order, as_given = np.argsort(val_labels, kind="stable"), content_digest(val_images, val_labels, data.class_names)
    val_images, val_labels = val_images[order], val_labels[order]
    sigma_data = measure_sigma_data(images)
    if sigma_data == 0.0:
        raise InputError(f"the images of {config.data} are all the same single colour")
    return TrainingData(
        images=images,
        labels=labels,
        class_names=data.class_names,
        val_images=val_images,
        val_labels=val_labels,
        digest=content_digest(images, labels, data.class_names),
        val_digest=content_digest(val_images, val_labels, data.class_names),
        val_digest_as_given=as_given,
        source_digest=whole,
        sigma_data=sigma_data,
        repeated=int(np.isin(fingerprints(val_images), fingerprints(images)).sum()) if len(val_images) else 0,
        seen=SeenImages.of(images, chosen=val_images[::2]),
        val=wanted,
    )


def _auto(labels: Int64) -> tuple[float | None, str | None]:
    """The fraction to keep aside unless a user says otherwise, and its text; None if a class has too few images."""
    fraction = AUTO_FRACTION if np.bincount(labels).min() >= FEWEST else None
    return fraction, None if fraction is None else str(fraction)


def _tell(say: Callable[[str], None], notes: Sequence[str], start: str) -> None:
    for note in notes:
        say(start + note)


def validation_source(config: TrainConfig) -> str | None:
    """The source of the validation images: ``config.val``, or the split "val" of the data; None: a fraction, or none.

    A split that the user chose to train on has no validation images beside it, unless it is "train".

    Example:
        >>> from fastdc.train import TrainConfig, validation_source
        >>> validation_source(TrainConfig(data="photos", out="run", val="photos-val"))
        'photos-val'
    """
    if config.val != AUTO:
        return config.val_source
    if plain_split(config.split or "train") != "train":
        return None
    splits = find_splits(config.data, config.max_pixels)
    return config.data if "val" in map(plain_split, splits) else None


def kept_aside(path: str, out: Path, config: TrainConfig) -> str:
    """The place of a run's validation images: `path`, or what stands for ``val.npz`` of a run that has kept none aside.

    A run holds its validation images itself only if it took them from the training data.

    Args:
        path: Where images are looked for.
        out: The run's folder.
        config: Its recipe.

    Example:
        >>> from fastdc.train import TrainConfig, kept_aside
        >>> kept_aside(f"{folder}/run/val.npz", folder / "run", TrainConfig(data="a", out="run", val="photos-val"))
        'photos-val'
    """
    if os.path.abspath(path) != os.path.abspath(out / "val.npz") or os.path.exists(path):
        return path
    return validation_source(config) or path


def check_labelled(data: LabelledImages) -> None:
    """Refuses labelled images on which no classifier can be trained.

    Raises:
        InputError: Fewer than two classes, a class without images, or sides outside 2 to 1024 pixels.
    """
    count = len(data.class_names)
    if count < 2:
        raise InputError(f"training needs at least 2 classes, got {count}: {shortened(data.class_names)}")
    empty = [name for k, name in enumerate(data.class_names) if not np.any(data.labels == k)]
    if empty:
        raise InputError(f"every class needs images, these have none: {shortened(empty)}")
    height, width = data.images.shape[2:]
    if not 2 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise InputError(f"image sides must be 2 to {MAX_SIDE} pixels for training, got {height}x{width}")


def measure_sigma_data(images: NDArray[np.uint8]) -> float:
    """Standard deviation of all pixels of uint8 images (n, c, h, w) mapped to [-1, 1], to four digits."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(images), 1024):  # in parts, because counting takes eight bytes per pixel
        counts += np.bincount(images[start : start + 1024].ravel(), minlength=256)
    level = np.arange(256) / 127.5 - 1.0
    mean = np.average(level, weights=counts)
    return float(f"{np.sqrt(np.average((level - mean) ** 2, weights=counts)):.4g}")


def held_out(labels: Int64, fraction: float, seed: int) -> Mask:
    """A stratified random choice: about ``fraction`` of the images of every class, at least one and never all.

    Args:
        labels: Classes of the images, int64 (n,).
        fraction: Share of the images to choose, above 0 and at most 0.5.
        seed: Seed of the choice.

    Returns:
        Whether each image is chosen, bool (n,).

    Raises:
        InputError: A class has a single image.

    Example:
        >>> from fastdc.train import held_out
        >>> held_out(np.repeat([0, 1], 10), 0.2, seed=0).sum()
        np.int64(4)
    """
    kept = np.zeros(len(labels), dtype=np.bool_)
    rng = np.random.default_rng([seed, _VALIDATION])
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        if len(members) < 2:
            raise InputError(f"a validation fraction needs at least 2 images per class, class {k} has {len(members)}")
        take = min(max(1, round(fraction * len(members))), len(members) - 1)
        kept[rng.permutation(members)[:take]] = True
    return kept


def content_digest(images: NDArray[np.uint8], labels: Int64, class_names: tuple[str, ...]) -> str:
    """sha256 of labelled images: of shapes, pixels, labels and class names.

    Args:
        images: Images, uint8 (n, c, h, w).
        labels: Classes of the images, int64 (n,).
        class_names: One name per class.

    Example:
        >>> from fastdc.train import content_digest
        >>> len(content_digest(images, labels, ("0", "1")))
        64
    """
    digest = hashlib.sha256(repr(class_names).encode())
    for array in (images, labels):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_labelled(path: Path, images: NDArray[np.uint8], labels: Int64, class_names: tuple[str, ...]) -> None:
    """Writes an .npz file that :func:`fastdc.data.load_labelled` reads, all of it or nothing.

    Args:
        path: The file.
        images: Images, uint8 (n, c, h, w).
        labels: Classes of the images, int64 (n,).
        class_names: One name per class.

    Example:
        >>> from fastdc.train import save_labelled
        >>> save_labelled(folder / "two.npz", images, labels % 2, ("even", "odd"))
    """
    with whole_file(path) as file:
        np.savez_compressed(file, images=images, labels=labels, class_names=np.array(class_names, dtype=np.str_))
