"""What goes into the scheduler and what comes out: requests, cells for a step, finished requests."""

from dataclasses import dataclass, field
from typing import TypeAlias

from fastdc.support import Float32, Int32

Cells: TypeAlias = Int32
"""int32 (m, 3): place of the image, class, draw."""

IN_FLIGHT = 1024
"""Requests that may be in flight at once: many steps' worth, at O(classes) memory each."""


@dataclass(frozen=True, eq=False)
class Request:
    """One image to decide.

    Attributes:
        key: The caller's name for the image.
        image: float32 (c, h, w) in the model's value range, or an image and its target, see ``Pool.put``.
        stream: Noise stream, in [0, 2^56).
        classes: int32 (A,), candidate classes in increasing order; None: all classes.
        target: Ask only whether this class wins: once it is dropped the request ends, with another class left. None:
            ask which class wins. Not for rules that expand.
        group: Requests of a lower group go first, from 0; within a group, early looks go before late ones, so that the
            hard requests that remain at the end fill their steps together. It changes no result.
    """

    key: int
    image: Float32 = field(repr=False)
    stream: int
    classes: Int32 | None = None
    target: int | None = None
    group: int = 0


@dataclass(frozen=True, eq=False)
class Finished:
    """A request that was decided.

    Attributes:
        key: The request's key.
        counts: int32 (K,), draws at which each class was evaluated: the first ones of the plan.
        values: float32 (sum of counts,), the errors in (class, draw) order.
        best: The class with the smallest mean error among those evaluated at most draws; the first one at ties.
    """

    key: int
    counts: Int32 = field(repr=False)
    values: Float32 = field(repr=False)
    best: int


@dataclass(frozen=True, eq=False)
class Work:
    """Cells for one step.

    Attributes:
        ticket: Number to hand the errors back with; None if the step has only denoising cells.
        cells: The cells, those that denoise first.
        denoising: Number of cells that denoise; the others have errors.
    """

    ticket: int | None
    cells: Cells
    denoising: int = 0
