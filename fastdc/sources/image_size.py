"""The size of the images that a model classifies, checked in one place for all families."""

from collections.abc import Sequence
from typing import Any

from fastdc.support import InputError, checks, shown

ImageSize = int | Sequence[int] | None
"""Side or (height, width) in pixels; None: the size that the network was trained on."""

MAX_SIDE = 4096


def image_sides(image_size: ImageSize, trained: Any, *, multiple: int, scale: int = 1) -> tuple[int, int]:
    """The height and the width of images in pixels.

    Args:
        image_size: The size that the user asks for.
        trained: Side, or list of two sides, of the network's training samples, as its config states it; None if the
            config does not.
        multiple: The number that both sides must be divisible by.
        scale: Number of pixels per side of a sample: 1 for images, the autoencoder's factor for latents.

    Raises:
        InputError: The size is of another form, is out of range or not divisible, or neither argument states one.
    """
    wanted = trained if image_size is None else image_size
    if wanted is None:
        raise InputError("the model does not say what size it was trained on: give the image size (--image-size)")
    sides = tuple(wanted) if isinstance(wanted, Sequence) and not isinstance(wanted, str) else (wanted, wanted)
    plain = len(sides) == 2 and all(checks.is_whole(side) for side in sides)
    if plain:
        factor = scale if image_size is None else 1
        sides = (int(sides[0]) * factor, int(sides[1]) * factor)
    if not plain or any(not 1 <= side <= MAX_SIDE or side % multiple for side in sides):
        got = sides if image_size is None else image_size
        raise InputError(
            f"the image size (--image-size) must be a side or (height, width) of at most {MAX_SIDE}, divisible by "
            f"{multiple}, got {shown(got)}"
        )
    return sides[0], sides[1]
