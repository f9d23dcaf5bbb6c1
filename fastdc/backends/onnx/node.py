"""A node of a graph and the values that it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

MOST_FOLLOWED = 4096
"""Elements of the largest value whose numbers are followed: shapes and indices, not weights."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a graph, at one number of rows per symbolic dimension.

    Attributes:
        shape: Its dimensions.
        kind: ONNX's number of its element type.
        numbers: Its elements, if they are known and few.
        fixed: Whether it depends on no input, so that a library may compute it when it loads the graph.
    """

    shape: Shape
    kind: int
    numbers: npt.NDArray[Any] | None = field(default=None, repr=False)
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Node:
    """A node with the values that it reads.

    Attributes:
        operator: Name of the operator.
        inputs: Its inputs; None for an omitted one.
        attributes: Numbers (int, float), lists of them, bytes and tensors, by name.
        outputs: Number of outputs.
    """

    operator: str
    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: int = 1

    def shape(self, index: int = 0) -> Shape:
        """Shape of an input."""
        value = self.inputs[index]
        assert value is not None
        return value.shape

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def numbers(self, index: int, name: str | None = None) -> Any:
        """The elements of an input, or of the attribute that older versions have in its place; None if absent."""
        if name is not None and name in self.attributes:
            return np.asarray(self.attributes[name])
        if not self.has(index):
            return None
        value = self.inputs[index]
        if value is None or value.numbers is None:
            raise ValueError(f"input {index} is not known beforehand")
        return value.numbers

    def whole(self, index: int, name: str | None = None) -> list[int] | None:
        """The same as whole numbers."""
        found = self.numbers(index, name)
        return None if found is None else [int(number) for number in np.ravel(found)]

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


MOST_EXACT = 2**53
"""Whole numbers that are calculated with are smaller, so that every library has them exactly."""


def exact(number: int) -> int:
    """A whole number that may be calculated with.

    Raises:
        ValueError: It is too large.
    """
    if not -MOST_EXACT < number < MOST_EXACT:
        raise ValueError("a whole number is too large to be followed")
    return number


def positive(sizes: Sequence[int]) -> Shape:
    """Dimensions as a shape.

    Raises:
        ValueError: One is negative.
    """
    if min(sizes, default=0) < 0:
        raise ValueError(f"a dimension is negative: {list(sizes)}")
    return tuple(sizes)
