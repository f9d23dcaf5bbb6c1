"""What a node makes at several numbers of rows per symbolic dimension.

A graph is checked at few numbers of rows and run at others. So shapes may grow with the rows no faster than
proportionally, and numbers that depend on the rows (of a Shape) are followed through operators only whose results are
straight lines, or stay on one side of another line: what holds at one row, two, three and very many holds in between.
"""

import math
from collections.abc import Sequence

import numpy as np

from fastdc.backends.onnx.followed import NUMBERS_OF, kind_of
from fastdc.backends.onnx.node import MOST_FOLLOWED, Node, Shape, Value, positive
from fastdc.backends.onnx.shapes import SHAPE_OF, scratch_of, split_shapes

ROWS = (1, 2, 3, 4096)
"""Numbers of rows at which a graph is checked."""

Rows = tuple[Value, ...]
"""A value at each of ``ROWS``."""

_GROWTH = 4096  # elements that a value may have beyond as many as one row has, times the rows

# The inputs of operators that may depend on the rows for the result to be followed; None: all.
_FOLLOWED_INPUTS: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Neg", "Cast", "Identity", "Concat", "Transpose"), None),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice", "Expand", "Div"), (0,)),
    **dict.fromkeys(("Shape", "Size", "Equal", "Less", "Greater", "ReduceProd"), None),
    "Where": (1, 2),
}


def made_by(node: Node, *, fixed: bool) -> tuple[list[Value], Shape]:
    """The values that a node makes, and the dimensions of its scratch memory; raises anything if it is not valid."""
    shapes = split_shapes(node) if node.operator == "Split" else [SHAPE_OF[node.operator](node)]
    shapes = [positive([int(size) for size in shape]) for shape in shapes]
    values = [Value(shape, kind_of(node), _followed(node, shape), fixed) for shape in shapes]
    if node.operator != "Split":  # further outputs are at most as large as the first, and of any type
        first = [max(1, size) for size in shapes[0]]
        others = () if node.operator == "DynamicQuantizeLinear" else tuple(first)
        values += [Value(others, 0, None, fixed) for _ in range(node.outputs - 1)]
    return values, scratch_of(node)


def _followed(node: Node, shape: Shape) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None":
    follow = NUMBERS_OF.get(node.operator)
    if follow is None or math.prod(shape) > MOST_FOLLOWED:
        return None
    try:
        numbers = np.asarray(follow(node))
    except Exception:  # not known, or a node that is not valid
        return None
    return numbers if numbers.shape == shape else None


def steady(rows: Rows) -> bool:
    """Whether a value is the same at all numbers of rows."""
    return all(value is rows[0] for value in rows)


def gathered(nodes: Sequence[Node], values: Sequence[Value]) -> Rows:
    """One output of a node at each of ``ROWS``; its numbers are dropped where they say nothing of other numbers.

    Args:
        nodes: The node at each of ``ROWS``.
        values: The output at each of ``ROWS``.
    """
    numbers = [value.numbers for value in values]
    if any(one is None for one in numbers) or not _may_follow(nodes) or not _straight(numbers):
        values = [Value(value.shape, value.kind, None, value.fixed) for value in values]
    first = values[0]
    # All have numbers, or none.
    pairs = [(value.numbers, first.numbers) for value in values]
    if all(value.shape == first.shape for value in values) and all(
        one is None or other is None or np.array_equal(one, other) for one, other in pairs
    ):
        return (first,) * len(ROWS)
    return tuple(values)


def _may_follow(nodes: Sequence[Node]) -> bool:
    """Whether the numbers that a node makes at ``ROWS`` are those of a line."""
    operator, moving = nodes[0].operator, []
    for index in range(len(nodes[0].inputs)):
        given = [node.inputs[index] for node in nodes]
        numbers = [value.numbers for value in given if value is not None and value.numbers is not None]
        if numbers and any(one.shape != numbers[0].shape or np.any(one != numbers[0]) for one in numbers):
            moving.append(index)
    allowed = _FOLLOWED_INPUTS.get(operator, ())
    if allowed is not None and set(moving) - set(allowed):
        return False
    if not moving or operator in ("Shape", "Size"):
        return True
    if operator in ("Equal", "Less", "Greater"):  # a difference of one sign at the ends has it in between
        signs = [np.sign(node.numbers(0) - node.numbers(1)) for node in nodes]
        return all(np.array_equal(sign, signs[0]) for sign in signs)
    if operator == "ReduceProd":
        return int(np.sum(nodes[0].numbers(0) != nodes[-1].numbers(0))) <= 1
    return True


def _straight(numbers: Sequence["np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None"]) -> bool:
    """Whether numbers change by the same for every row."""
    if any(one is None or one.shape != numbers[0].shape for one in numbers):  # type: ignore[union-attr]
        return False
    first, *rest = (np.asarray(one).astype(object) for one in numbers)
    if np.asarray(numbers[0]).dtype == np.bool_:
        return all(np.array_equal(one, first) for one in rest)
    step = rest[0] - first
    return all(np.array_equal(one, first + step * (rows - 1)) for one, rows in zip(rest, ROWS[1:], strict=True))


def check_growth(what: str, shapes: Sequence[Shape]) -> None:
    """Refuses dimensions (at each of ``ROWS``) whose product grows faster than the rows.

    Raises:
        ValueError: It does.
    """
    first = math.prod(shapes[0])
    for rows, shape in zip(ROWS, shapes, strict=True):
        if len(shape) != len(shapes[0]):
            raise ValueError(f"{what} has {len(shapes[0])} dimensions at one row and {len(shape)} at {rows}")
        moving = [any(one[place] != size for one in shapes) for place, size in enumerate(shape)]
        # A dimension that is empty at these rows only counts as one.
        size = math.prod(max(1, size) if moves else size for size, moves in zip(shape, moving, strict=True))
        if size > rows * first + _GROWTH:
            raise ValueError(f"{what} has {first} elements at one row and {size} at {rows}, more than in proportion")
