"""What a user should know about the data before the training begins."""

from collections.abc import Iterator

import numpy as np

from fastdc.inference import split_images
from fastdc.train.config import AUTO, TrainConfig
from fastdc.train.dataset import FEWEST, TrainingData, held_out

_IMBALANCE = 3  # times as many images in one class as in another


def remarks(config: TrainConfig, data: TrainingData) -> Iterator[str]:
    """Lines about the data of a run.

    Args:
        config: The recipe as it was given.
        data: The data.
    """
    size = "x".join(map(str, data.shape))
    names, aside = len(data.class_names), len(data.val_images)
    yield f"data: {len(data.images)} images {size} in {names} classes, {aside} for validation"
    if data.repeated:
        yield f"note: {data.repeated} validation images are training images too: the validation loss is too good"
    counts = data.class_counts
    if max(counts) > _IMBALANCE * min(counts) and not config.balance:
        least, most = (data.class_names[counts.index(count)] for count in (min(counts), max(counts)))
        yield (
            f"note: class {least!r:.60} has {min(counts)} images and {most!r:.60} has {max(counts)}: --balance trains "
            "all classes equally often, and --prior data takes their frequencies into account in classifying"
        )
    aside_of = np.bincount(data.val_labels, minlength=names)
    if aside and aside_of.min() < 2:
        name, count = data.class_names[int(aside_of.argmin())], int(aside_of.min())
        yield (
            f"note: {count} validation image{'s' * (count != 1)} of class {name!r:.60}: it takes two, because one half "
            "of the validation images chooses the checkpoint and the other calibrates: give more (--val)"
        )
    elif aside and split_images(aside) is None:
        yield (
            f"note: {aside} validation images are too few for export --calibrate to choose the noise levels on, which "
            f"matter most for the accuracy: it takes 99. {_way_to_more(data)}"
        )
    if config.val == AUTO and data.val is None:
        yield (
            f"note: no images are kept aside for validation, because a class has fewer than {FEWEST}: give some "
            "(--val IMAGES or --val FRACTION) to measure the accuracy and to calibrate"
        )


def _way_to_more(data: TrainingData) -> str:
    """How to have enough validation images for a choice of the noise levels."""
    labels = np.concatenate([data.labels, data.val_labels])
    for percent in range(15, 55, 5) if data.source_digest else ():  # which stands for a fraction of the data
        if split_images(int(held_out(labels, percent / 100, 0).sum())) is not None:
            return f"Give more: --val {percent / 100:g} keeps enough aside, and --val FOLDER takes other images"
    return "Give more (--val FOLDER)"
