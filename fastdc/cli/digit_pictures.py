"""Pictures that could be of a digit: what ``--model`` may be left out for, as the default model knows nothing else.

Such a picture is small and grey, with strokes on an even black or white background. On the 400 test digits as PNG of
8x8, 28x28 and 64x64, with and without a margin and inverted, the answer is always yes; on 3000 random crops of two
colour photos never, and on the same crops in grey 5 times.

The model was trained on white strokes on black: of the 400 test digits inverted, it names 10 % rightly, with certainty.
So a second look, at the images as the model gets them, refuses a bright background. The median of the left and the
right column is at most 0.06 for digits of 8x8 to 100x105 pixels, and at least 0.94 for the same digits inverted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdc.support import InputError

_LARGEST = 128  # pixels of the shorter side
_GREY = 0.03  # mean distance between the largest and the smallest channel
_EXTREME = 0.1  # distance of the background from black or white
_NEAR, _FAR = 0.15, 0.5  # distance from the background of its pixels, and of those of strokes
_BRIGHT = 0.5  # a brighter background is that of dark strokes
_EVEN = 0.8  # share of the background at the left and the right edge
_BACKGROUND, _STROKES = 0.35, (0.03, 0.5)  # shares of the picture


def could_be_a_digit(size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> bool:
    """Whether a picture could be of a digit.

    Args:
        size: Its stored (height, width).
        thumbnail: The picture as RGB, uint8 (3, h, w).
    """
    return unlike_a_digit(size, thumbnail) is None


def unlike_a_digit(size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> str | None:
    """Why a picture cannot be of a digit; None if it could.

    Args:
        size: Its stored (height, width).
        thumbnail: The picture as RGB, uint8 (3, h, w).
    """
    pixels = thumbnail / 255.0
    grey = pixels.mean(axis=0)
    edges = grey[:, [0, 1, -2, -1]]
    level = float(np.median(edges))
    distance = np.abs(grey - level)
    strokes = (distance > _FAR).mean()
    reasons = {
        f"both sides are above {_LARGEST} pixels": min(size) > _LARGEST,
        "it has colours": (pixels.max(axis=0) - pixels.min(axis=0)).mean() >= _GREY,
        "its left and right edges are neither black nor white": min(level, 1 - level) >= _EXTREME,
        "its left and right edges are not even": (np.abs(edges - level) <= _NEAR).mean() <= _EVEN,
        "too little of it is background": (distance <= _NEAR).mean() <= _BACKGROUND,
        "too little of it is strokes": strokes <= _STROKES[0],
        "too much of it is strokes": strokes >= _STROKES[1],
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def refuse_others(name: str, size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> None:
    """Refuses a picture that is not of a digit; see :func:`could_be_a_digit`.

    Raises:
        InputError: It is not, and the message says how to choose a model.
    """
    reason = unlike_a_digit(size, thumbnail)
    if reason is None:
        return
    from fastdc.bundle import shipped_models

    raise InputError(
        f"{name} does not look like a digit, as {reason}, and the default model knows nothing else: give --model, "
        f"one of {', '.join(shipped_models())} or a folder of your own (fastdc train photos/ --out run, then fastdc "
        "export run my-model), or --model digits to use it all the same"
    )


class SmallDigits:
    """The look at pictures that the default model, of small images, is to classify: others than digits are refused.

    Large ones are counted, because the model does not know what they look like when they are made small.

    Args:
        side: Side of the model's images.
    """

    def __init__(self, side: int) -> None:
        self._side, self._large, self._all = side, 0, 0

    def __call__(self, name: str, size: tuple[int, int], thumbnail: NDArray[np.uint8]) -> None:
        """As :func:`refuse_others`."""
        refuse_others(name, size, thumbnail)
        self._all += 1
        self._large += min(size) > 2 * self._side

    def notes(self) -> tuple[str, ...]:
        """What to say about large pictures, if there are any."""
        if not self._large:
            return ()
        count = f"{self._large} of {self._all} pictures are" if self._all > 1 else "the picture is"
        known = f"{self._side}x{self._side}"
        return (f"{count} much larger than the {known} of the default model's digits: --model mnist knows 28x28",)


def refuse_bright(names: Sequence[str], images: NDArray[Any]) -> None:
    """Refuses dark strokes on a bright background, which the default model does not know.

    Args:
        names: Names of the images.
        images: The images as the model gets them, (n, c, h, w), uint8 or float in [0, 1].

    Raises:
        InputError: An image has a bright background; the message names the first.
    """
    white = 255 if images.dtype == np.uint8 else 1
    bright = np.median(images[..., [0, -1]], axis=(1, 2, 3)) > _BRIGHT * white
    if bright.any():
        raise InputError(
            f"{names[int(bright.argmax())]} has a bright background, and the default model knows white strokes on "
            "black: invert the image, or give --model digits to classify it as it is"
        )
