"""The phantoms that come with fastdc: rendered X-ray-like images whose lesions are known to the pixel.

``fastdc.testing.phantoms`` renders them and others. ``models/make_phantoms.py`` writes the file: labelled images with
the further arrays masks, groups and added, which is what the lesion adds to the grey levels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdc.data.labelled import PHANTOMS_TEST
from fastdc.support import Int64, Mask


@dataclass(frozen=True, eq=False, repr=False)
class Phantoms:
    """Rendered images, n of them, and everything that is known of them.

    Attributes:
        images: Grey levels, uint8 (n, 1, 32, 32).
        labels: The class of each image, int64 (n,): 0 "healthy", 1 "lesion".
        masks: The pixels of the lesion, bool (n, 32, 32); none of a healthy image.
        groups: The scanner of each image, "a" or "b", str (n,).
        healthy: The same images without their lesions, uint8 (n, 1, 32, 32).
        class_names: The names of the classes.
    """

    images: npt.NDArray[np.uint8]
    labels: Int64
    masks: Mask
    groups: npt.NDArray[np.str_]
    healthy: npt.NDArray[np.uint8]
    class_names: tuple[str, ...] = ("healthy", "lesion")

    def __len__(self) -> int:
        return len(self.images)


def phantoms_test() -> Phantoms:
    """Loads 200 phantoms (1, 32, 32) that the bundle `phantoms` was not trained on, with the masks of their lesions.

    They are the first of ``fastdc.testing.phantoms(1500, "test")``.

    Example:
        >>> from fastdc.data import phantoms_test
        >>> test = phantoms_test()
        >>> test.images.shape, test.masks.shape
        ((200, 1, 32, 32), (200, 32, 32))
    """
    with np.load(PHANTOMS_TEST, allow_pickle=False) as file:
        images, added = file["images"], file["added"]
        return Phantoms(images, file["labels"], file["masks"], file["groups"], images - added)
