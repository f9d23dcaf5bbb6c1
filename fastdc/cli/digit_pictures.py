"""Pictures that could be of a digit: what ``--model`` may be left out for, as the default model knows nothing else.

Such a picture is small and grey, with strokes on an even black or white background. On the 400 test digits as PNG of
8x8, 28x28 and 64x64, with and without a margin and inverted, the answer is always yes; on 3000 random crops of two
colour photos never, and on the same crops in grey 5 times.
"""

import numpy as np
from numpy.typing import NDArray

from fastdc.support import InputError

_LARGEST = 128  # pixels of the shorter side
_GREY = 0.03  # mean distance between the largest and the smallest channel
_EXTREME = 0.1  # distance of the background from black or white
_NEAR, _FAR = 0.15, 0.5  # distance from the background of its pixels, and of those of strokes
_EVEN = 0.8  # share of the background at the left and the right edge
_BACKGROUND, _STROKES = 0.35, (0.03, 0.5)  # shares of the picture


def could_be_a_digit(size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> bool:
    """Whether a picture could be of a digit.

    Args:
        size: Its stored (height, width).
        thumbnail: The picture as RGB, uint8 (3, h, w).
    """
    pixels = thumbnail / 255.0
    grey = pixels.mean(axis=0)
    edges = grey[:, [0, 1, -2, -1]]
    level = float(np.median(edges))
    distance = np.abs(grey - level)
    return bool(
        min(size) <= _LARGEST
        and (pixels.max(axis=0) - pixels.min(axis=0)).mean() < _GREY
        and min(level, 1 - level) < _EXTREME
        and (np.abs(edges - level) <= _NEAR).mean() > _EVEN
        and (distance <= _NEAR).mean() > _BACKGROUND
        and _STROKES[0] < (distance > _FAR).mean() < _STROKES[1]
    )


def refuse_others(name: str, size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> None:
    """Refuses a picture that is not of a digit; see :func:`could_be_a_digit`.

    Raises:
        InputError: It is not, and the message says how to choose a model.
    """
    if could_be_a_digit(size, thumbnail):
        return
    from fastdc.bundle import shipped_models

    raise InputError(
        f"{name} does not look like a digit, and the default model knows nothing else: give --model, one of "
        f"{', '.join(shipped_models())} or a folder of your own (fastdc train photos/ --out run, then fastdc export "
        "run my-model), or --model digits to use it all the same"
    )
