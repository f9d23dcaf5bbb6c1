"""The images of a benchmark: the user's, the shipped digits, or images made up in the model's shape.

The cost of a race depends on its images: similar classes take more evaluations. Made-up images belong to no class, so
their images/s tell little about real ones; times per evaluation do not depend on images.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.bundle import Model
from fastdc.data import load_labelled, shipped_test_file

MOST = 400
"""Most images of a benchmark."""

_SIDE = 4  # made-up images are a grid of 4 x 4 colours with a little noise


@dataclass(frozen=True, eq=False)
class Samples:
    """Images to classify, in an order in which the first ones are like all of them.

    Attributes:
        images: (n, c, h, w), uint8 or float in [0, 1].
        source: What they are, in words.
        made_up: Whether they are not images of the model's classes.
    """

    images: npt.NDArray[Any] = field(repr=False)
    source: str
    made_up: bool = False


def sample_images(model: Model, given: npt.NDArray[Any] | None = None, name: str = "", most: int = MOST) -> Samples:
    """Images for a benchmark of a model.

    Args:
        model: The model.
        given: (n, c, h, w), the user's images; None: the shipped test images of the model's size if its classes are
            digits and there are some, else made-up images.
        name: What the user's images are, in words.
        most: Largest number of images.

    Returns:
        At most `most` images in random order, the same in every call.

    Example:
        >>> from fastdc.benchmark import sample_images
        >>> sample_images(clf.model, most=5).images.shape
        (5, 1, 8, 8)
    """
    rng = np.random.default_rng(0)
    if given is not None:
        images, source = given, name
    else:
        path = shipped_test_file(model.image_shape, model.class_names)
        if path is None:
            return Samples(_made_up(model.image_shape, min(most, 64), rng), "made-up images", made_up=True)
        kind = "digits" if "0" in model.class_names else "phantoms"
        images, source = load_labelled(path).images, f"shipped test {kind}"
    chosen = rng.permutation(len(images))[:most]
    return Samples(images[chosen], source)


def _made_up(shape: tuple[int, int, int], count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    channels, height, width = shape
    grid = rng.integers(0, 256, (count, channels, _SIDE, _SIDE))
    rows, columns = (np.arange(extent) * _SIDE // extent for extent in (height, width))
    images = grid[:, :, rows][:, :, :, columns] + rng.normal(0, 8, (count, channels, height, width))
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
