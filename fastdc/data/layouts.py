"""Layouts: which axis of an array counts images, channels, rows and columns.

Layouts are (n, c, h, w), (n, h, w, c), (n, h, w), or one image as (c, h, w), (h, w, c), (h, w); c is 1, 3 or the
channels of the target shape. A shape can fit several layouts: (3, 8, 8) is three grey images or one RGB image.

The user may state the layout. Otherwise three criteria decide in a file, in this order: the number of labels, the exact
target shape, and that no side is below 5 pixels. The decision is noted. A shape that stays ambiguous is an error.

Whoever has an array in memory can be asked, so nothing is guessed: a shape that can mean two different things is an
error that names both, unless one of them alone is the target's size and channels. If images are to be resized, the
target's channels decide between one RGB image (3, h, w) and three grey ones.
"""

import math
from typing import NamedTuple

from fastdc.data.notes import Notes
from fastdc.support import InputError, checks

LAYOUTS = {2: ("hw",), 3: ("nhw", "chw", "hwc"), 4: ("nchw", "nhwc")}
"""The layouts of arrays by their number of axes."""

LAYOUT_WORDS = tuple(layout.upper() for layouts in reversed(LAYOUTS.values()) for layout in layouts)
"""The layouts as a user gives them: "NCHW", "NHWC", "NHW", "CHW", "HWC", "HW"."""

_MIN_SIDE = 5


def check_layout(layout: object) -> str | None:
    """Returns one of :data:`LAYOUT_WORDS`, or None.

    Raises:
        InputError: The value is something else.
    """
    return None if layout is None else checks.one_of("layout", layout, LAYOUT_WORDS)


class Reading(NamedTuple):
    """A way to read an array: its layout, the number of images, and their (c, h, w)."""

    layout: str
    n: int
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        c, h, w = self.shape
        kind = {1: "grey ", 3: "RGB "}.get(c, f"{c}-channel ")
        return f"{self.n} {kind}image{'s'[: self.n != 1]} {w}x{h}"


def choose_layout(
    dims: tuple[int, ...],
    target: tuple[int, int, int] | None,
    labels: int | None,
    what: str,
    notes: Notes,
    layout: str | None = None,
) -> Reading:
    """Chooses the way to read an array of `dims` in a file, by the rules in this module's docstring.

    Raises:
        InputError: No way fits, or several do.
    """
    channels = {1, 3} | ({target[0]} if target else set())
    options = _readings(dims, channels) if layout is None else [_stated(dims, layout, what)]
    if not options:
        raise InputError(f"{what}: no axis of shape {dims} can be the channels, which must be {sorted(channels)}")
    if layout is None and target is not None:
        _check_flat(dims, target, what)
    if labels is not None:
        matching = [option for option in options if option.n == labels]
        if not matching:
            counts = " or ".join(str(option.n) for option in options)
            raise InputError(f"{what}: shape {dims} means {counts} images, but there are {labels} labels")
        options = matching
    exact = [option for option in options if option.shape == target]
    large = [option for option in options if min(option.shape[1:]) >= _MIN_SIDE]
    for narrowed in (exact, large):
        if len(options) > 1 and len(narrowed) == 1:
            notes.add(f"read as {narrowed[0]} ({{}})", what, noun="array")
            options = narrowed
    if len(options) > 1:
        both = " or ".join(str(option) for option in options)
        raise InputError(f"{what}: shape {dims} is ambiguous, it may be {both}: save it as (n, c, h, w)")
    return options[0]


def given_layout(
    dims: tuple[int, ...], target: tuple[int, int, int], layout: str | None, name: str, *, resize: bool
) -> Reading:
    """The way to read an array in memory, by the rule in this module's docstring.

    Args:
        dims: Its shape.
        target: The wanted (c, h, w).
        layout: One of :data:`LAYOUT_WORDS`, or None; an array without the first axis is one image.
        name: Name of the array in messages.
        resize: Whether images of another size or other channels are converted afterwards.

    Raises:
        InputError: The shape fits no layout, is ambiguous, or is not the target's although nothing is converted.
    """
    wanted = f"{name} must have shape (n, {', '.join(map(str, target))}), got {dims}"
    if layout is None:
        options = _readings(dims, {1, 3, target[0]}) if len(dims) in LAYOUTS and 0 not in dims else []
    else:
        options = [_stated(dims, layout, name)]
    same = [option for option in options if option.shape[1:] == target[1:]]
    exact = [option for option in same if option.shape[0] == target[0]]
    if resize:
        if layout is None:
            _check_flat(dims, target, name)
        large = [option for option in options if min(option.shape[1:]) >= _MIN_SIDE]
        alike = [option for option in large if option.shape[0] == target[0]]
        ways = exact or same or alike or large or options
    else:
        ways = exact
    if len(ways) == 1 and ways[0].layout == "nhw":  # the n may be the channels of one image
        ways = [*ways, *(option for option in (same or options) if option.layout == "chw")]
    if not ways:
        raise InputError(f"{wanted}{_remedy(dims, target, options, resize)}")
    if len(ways) > 1:
        raise InputError(f"{name} of shape {dims} may be {' or '.join(_way(way, ways, name) for way in ways)}")
    return ways[0]


def _check_flat(dims: tuple[int, ...], target: tuple[int, int, int], what: str) -> None:
    """Refuses what may be an image for each row."""
    if len(dims) == 2 and dims[1] == math.prod(target) and dims != target[1:]:
        ways = f"{(dims[0], *target)} if it is flattened images, to {(1, *dims)} if it is one image"
        raise InputError(f"{what}: shape {dims} is ambiguous: reshape it to {ways}")


def _stated(dims: tuple[int, ...], layout: str, name: str) -> Reading:
    """The reading of an array whose layout the user states."""
    axes = layout.lower()
    if len(axes) == len(dims) + 1 and axes[0] == "n":
        axes = axes[1:]
    if len(axes) != len(dims) or 0 in dims:
        raise InputError(f"{name} must have the axes {layout} and be not empty, got shape {dims}")
    size = {"n": 1, "c": 1} | dict(zip(axes, dims, strict=True))
    return Reading(axes, size["n"], (size["c"], size["h"], size["w"]))


def _way(way: Reading, ways: list[Reading], name: str) -> str:
    """A reading, and how to say that it is meant."""
    says = f'layout="{way.layout.upper()}"'
    if way.layout == "nhw":
        says += f" or {name}[:, None]"
    elif way.layout in ("chw", "hwc") and {"chw", "hwc"} - {other.layout for other in ways}:
        says += f" or {name}[None]"
    return f"{way} ({says})"


def _remedy(dims: tuple[int, ...], target: tuple[int, int, int], options: list[Reading], resize: bool) -> str:
    """What to do with an array of the wrong shape, for a message."""
    if 0 in dims:
        return ": there is no image in it"
    if len(dims) in (1, 2) and dims[-1] == math.prod(target):
        return f": reshape flattened images to {(*dims[:-1], *target) if len(dims) == 2 else target}"
    if options and not resize:
        return f": fastdc.data.prepare(images, {target}) resizes images and converts their channels"
    return ", nor one of the same axes in another order, grey or RGB"


def _readings(dims: tuple[int, ...], channels: set[int]) -> list[Reading]:
    """Lists the ways to read an array of `dims`. Ways that give the same images appear once."""
    found: dict[tuple[object, ...], Reading] = {}
    for layout in LAYOUTS[len(dims)]:
        size = {"n": 1, "c": 1} | dict(zip(layout, dims, strict=True))
        if size["c"] in channels:
            order = tuple(axis for axis in layout if size[axis] > 1)  # axes of length 1 change no pixel's place
            option = Reading(layout, size["n"], (size["c"], size["h"], size["w"]))
            found.setdefault((option.n, option.shape, order), option)
    return list(found.values())
