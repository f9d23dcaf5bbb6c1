"""How much a choice may take, and which images it may see."""

import math

import numpy as np

from fastdc.support import Int64, Mask

WIDE_DRAWS, WIDE_SEEDS = 256, 2
"""Draws and noise seeds of the table that a choice replays, if they do not take too long."""

LEAST_CHOOSING = 50
"""The fewest images that a model's defaults are chosen on without being asked."""

LEAST_CALIBRATING = 19
"""The fewest images that a race is calibrated on: those of the largest default level, 0.05."""

_IMAGES = 200  # that a choice is made on if evaluations take long
_MOST_FLOPS = 6e13  # operations of a choice: some minutes on two cores
_MOST_CELLS = 2**25  # errors that are held, five times: under three losses, and Huber's in three spaces


def choice_size(flops: float, images: int, conditions: int, *, asked: bool = False) -> tuple[int, int, int] | None:
    """Images, draws and noise seeds that a choice takes; fewer if they would take too long, or too much memory.

    Args:
        flops: Operations of an evaluation; 0 if they are unknown.
        images: Number of images there are to choose on.
        conditions: Number of conditions of the model.
        asked: Whether a user asked for the choice: then the smallest one is made in any case.

    Returns:
        The three numbers; None if nobody asked, and the smallest choice would take too long or too much memory.

    Example:
        >>> from fastdc.inference import choice_size
        >>> choice_size(0, 98, 10), choice_size(1e8, 500, 10), choice_size(1e10, 500, 1000)
        ((98, 256, 2), (468, 128, 1), None)
        >>> choice_size(1e10, 500, 1000, asked=True)
        (50, 64, 1)
    """
    draws, seeds = WIDE_DRAWS, WIDE_SEEDS
    affordable = _affordable(flops) / conditions  # images times draws
    if images * draws * seeds > affordable:
        seeds = 1
    for least, fewer in ((images, 1), (_IMAGES, 2), (LEAST_CHOOSING, 2)):
        if images * draws > affordable:
            draws //= fewer
            images = min(images, max(least, int(affordable / draws)))
    return (images, draws, seeds) if asked or images * draws <= affordable else None


def _affordable(flops: float) -> float:
    """The most evaluations of a choice."""
    return min(_MOST_FLOPS / max(flops, 1e-9), _MOST_CELLS)


def size_note(size: tuple[int, int, int], images: int) -> str | None:
    """What to say about a choice that takes less than it could; None if it does not.

    Args:
        size: Images, draws and seeds that it takes.
        images: Number of images there are to choose on.

    Example:
        >>> from fastdc.inference import size_note
        >>> size_note((98, 256, 2), 98) is None
        True
    """
    if size == (images, WIDE_DRAWS, WIDE_SEEDS):
        return None
    count, draws, seeds = size
    seen = f"{count} of {images} images, {draws} draws and {seeds} noise seed{'s' if seeds > 1 else ''}"
    return f"the plan is chosen on {seen}, because more evaluations of this network would take long"


def declined_note(flops: float, images: int, conditions: int) -> str:
    """What to say about a choice that is not made because :func:`choice_size` is None.

    Args:
        flops: Operations of an evaluation; 0 if they are unknown.
        images: Number of images there are to choose on.
        conditions: Number of conditions of the model.

    Example:
        >>> from fastdc.inference import declined_note
        >>> declined_note(1e10, 500, 1000)[:81]
        'no plan is chosen: on 50 images at 64 draws it takes 3,200,000 evaluations of thi'
    """
    count, draws, seeds = choice_size(flops, images, conditions, asked=True) or (0, 0, 0)
    evaluations = count * draws * seeds * conditions
    return (
        f"no plan is chosen: on {count} images at {draws} draws it takes {evaluations:,} evaluations of this network, "
        f"{evaluations / _affordable(flops):.2g} times the most that is spent unasked; --choose (choose=True) spends it"
    )


def choosing_half(labels: Int64) -> Int64:
    """The numbers of the images that may choose, in the order of classes: every second one, from the first.

    Classes may alternate in a file, and then every second image of the file would miss some of them.

    Args:
        labels: int64 (n,), classes of the images.

    Example:
        >>> from fastdc.inference import choosing_half
        >>> choosing_half(np.array([0, 1, 0, 1])).tolist()
        [0, 1]
    """
    return np.argsort(labels, kind="stable")[::2]


def split_images(
    images: int,
    delta: float | None = None,
    *,
    least: int = LEAST_CHOOSING,
    labels: Int64 | None = None,
    chose: Mask | None = None,
) -> tuple[Int64, Int64] | None:
    """The images to choose on, and those to calibrate on.

    The choosing half is every second image in the order of classes, from the first. If the other half is too small for
    its level (delta, or 0.01 with its 99 images), the choosing part gives it as many as it needs, and keeps `least`.
    Images that have chosen something before, such as a checkpoint, choose again: they are never in the part to
    calibrate on, and others choose beside them only if they are fewer than a half.

    Args:
        images: Number of images.
        delta: Level of the race; None: 0.01 if there are enough images for it.
        least: The fewest images to choose on.
        labels: int64 (n,), their classes; None: they are taken as one class.
        chose: bool (n,), whether each image has chosen something before; None: none has.

    Returns:
        Two arrays of image numbers, increasing; None if there are too few images for both parts.

    Example:
        >>> from fastdc.inference import split_images
        >>> [len(part) for part in split_images(197)], [len(part) for part in split_images(120)], split_images(90)
        ([98, 99], [60, 60], None)
    """
    chosen = np.zeros(images, np.bool_) if chose is None else chose
    given, fresh = chosen.nonzero()[0], (~chosen).nonzero()[0]
    need = math.ceil(1 / (0.01 if delta is None else delta) - 1 - 1e-9)
    half = images - images // 2
    count = min(half, images - need)
    if delta is None and (count < least or len(fresh) < need):
        need = LEAST_CALIBRATING
        count = min(half, images - need)
    if count < least or len(fresh) < need:
        return None
    more = max(0, count - len(given))  # besides those that have chosen before
    candidates = choosing_half(np.zeros(len(fresh), np.int64) if labels is None else labels[fresh])
    kept = np.union1d(given, fresh[candidates[np.round(np.linspace(0, len(candidates) - 1, more)).astype(np.int64)]])
    return kept, np.setdiff1d(np.arange(images), kept)
