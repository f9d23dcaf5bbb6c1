"""The images of trials as RGB pictures of their own sizes, for models whose processors resize by themselves.

Files are read as everywhere in fastdc (:func:`fastdc.data.read_picture`). Of arrays, grey images repeat their channel,
and floats become the nearest of 256 levels, because processors work on 8 bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.data import prepare, read_picture
from fastdc.matching.trials import Trials


class Pictures:
    """The images of trials, checked once and read one by one, so that thousands of large ones need no memory.

    Args:
        trials: The trials.

    Raises:
        InputError: An image file is missing or damaged, or an array does not hold images.
    """

    def __init__(self, trials: Trials) -> None:
        self._images: tuple[str, ...] | NDArray[Any]
        if isinstance(trials.images, tuple):
            self._images = trials.images
            for path in dict.fromkeys(self._images):
                read_picture(path)
        else:
            side = trials.images.shape[2:] if trials.images.ndim == 4 else (1, 1)
            pixels = prepare(trials.images, (3, *side), layout="NCHW", resize=True) if len(trials) else trials.images
            self._images = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """The picture of a trial, uint8 (3, h, w)."""
        one = self._images[row]
        return read_picture(one) if isinstance(one, str) else np.asarray(one)
