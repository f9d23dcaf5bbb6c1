"""What it means to choose a wrong text: the kinds of errors of each compositional task.

With the image's own text first, and c and s for colours and shapes (Pearson et al., arXiv 2508.20783):

    single       c s             same colour (c s'), same shape (c' s), neither
    two objects  c1 s1, beside   second's colour (c2 s1), second's shape (c1 s2), other
                 a c2 s2
    relational   s1 left s2      flipped (s1 right s2), swapped (s2 left s1), other

A text that is true of the image, too (the second object; "s2 right s1"), is no error of the model. It is counted apart,
as "also true", which the paper's evaluation does not do. Other tasks name their kinds in the tables of prompts, or have
right and wrong.
"""

from collections.abc import Sequence

from fastdc.matching.trials import RIGHT
from fastdc.support import InputError, shown

SAME_COLOUR, SAME_SHAPE, NEITHER = "same colour", "same shape", "neither"
SECONDS_COLOUR, SECONDS_SHAPE, OTHER = "second's colour", "second's shape", "other"
FLIPPED, SWAPPED = "flipped", "swapped"
ALSO_TRUE, WRONG = "also true", "wrong"

OPPOSITE = {"left": "right", "above": "below", "front": "behind"}
OPPOSITE |= {there: here for here, there in OPPOSITE.items()}
"""Relations and what they are when seen from the other object."""

KINDS = {
    "single": (SAME_COLOUR, SAME_SHAPE, NEITHER),
    "two_object": (SECONDS_COLOUR, SECONDS_SHAPE, OTHER),
    "relational": (FLIPPED, SWAPPED, OTHER),
}
"""The kinds of errors of the paper's tasks, in the order of its tables."""


def kinds_of(task: str, names: Sequence[str], truth: int, group: str = "") -> tuple[str, ...]:
    """What it means to choose each candidate of an image.

    Args:
        task: "single", "two_object", "relational", or another task, of which nothing is known.
        names: Names of the candidates, such as "red cube" or "cube left sphere".
        truth: The place of the right one.
        group: Of two objects, the folder of the pair, such as "red_cube_blue_sphere".

    Returns:
        A kind per candidate, :data:`~fastdc.matching.RIGHT` for the right one.

    Raises:
        InputError: A name has not the words that the task's kinds are about.

    Example:
        >>> from fastdc.matching import kinds_of
        >>> kinds_of("single", ["red cube", "red cone", "blue cube", "blue cone"], 0)
        ('right', 'same colour', 'same shape', 'neither')
    """
    if task not in KINDS:
        return tuple(RIGHT if at == truth else WRONG for at in range(len(names)))
    count = 3 if task == "relational" else 2
    words = [name.replace("_", " ").casefold().split() for name in names]
    wrong = next((name for name, own in zip(names, words, strict=True) if len(own) != count), None)
    if wrong is not None:
        form = "SHAPE RELATION SHAPE" if count == 3 else "COLOUR SHAPE"
        raise InputError(f"expected names of the form {form}, as kinds of errors need, got {shown(wrong)}")
    own = words[truth]
    if words.count(own) > 1:
        raise InputError(f"expected the right name once, got {shown(names[truth])} twice")
    if task == "single":
        kinds = [_single(own, other) for other in words]
    elif task == "two_object":
        second = pair_of(group)[1]
        kinds = [_two_objects(own, second, other) for other in words]
    else:
        kinds = [_relational(own, other) for other in words]
    return tuple(RIGHT if at == truth else kind for at, kind in enumerate(kinds))


def pair_of(group: str) -> tuple[list[str], list[str]]:
    """The two objects of a folder's name, each a colour and a shape.

    Args:
        group: Such as "red_cube_blue_sphere".

    Raises:
        InputError: The name has another form.
    """
    words = group.casefold().split("_")
    if len(words) != 4 or not all(words):
        raise InputError(f"expected a folder's name of the form colour_shape_colour_shape, got {shown(group)}")
    return words[:2], words[2:]


def _single(own: list[str], other: list[str]) -> str:
    return SAME_COLOUR if other[0] == own[0] else SAME_SHAPE if other[1] == own[1] else NEITHER


def _two_objects(own: list[str], second: list[str], other: list[str]) -> str:
    if other == second:
        return ALSO_TRUE
    if other == [second[0], own[1]]:
        return SECONDS_COLOUR
    return SECONDS_SHAPE if other == [own[0], second[1]] else OTHER


def _relational(own: list[str], other: list[str]) -> str:
    first, relation, second = own
    opposite = OPPOSITE.get(relation)
    if other == [second, opposite, first]:
        return ALSO_TRUE
    if other == [first, opposite, second]:
        return FLIPPED
    return SWAPPED if other == [second, relation, first] else OTHER
