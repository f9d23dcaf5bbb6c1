"""Classes in nested tuples, the form in which a class tree is given, stored and walked."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union

from fastdc.support import InputError, checks, shown

Nested = tuple[Union[int, "Nested"], ...]
"""A node: its children in order, each a class or a node."""

MAX_DEPTH = 64
"""Most levels of a tree. WordNet has about 20."""


def class_index(leaf: Any) -> int:
    """Returns a class that is given by its index.

    Raises:
        InputError: `leaf` is not a whole number.
    """
    if not checks.is_whole(leaf):
        raise InputError(f"a class of a tree must be an index, got {shown(leaf)}")
    return int(leaf)


def class_reader(class_names: Sequence[str]) -> Callable[[Any], int]:
    """Makes a function that reads a class given by its index or by one of these names.

    Raises:
        InputError: A name occurs twice. The function raises it for an unknown name or another type.
    """
    index = {name: k for k, name in enumerate(class_names)}
    if len(index) != len(class_names):
        raise InputError("class names must differ for a tree given by names: expected indices")

    def read(leaf: Any) -> int:
        if not isinstance(leaf, str):
            return class_index(leaf)
        if leaf not in index:
            raise InputError(f"a class of a tree must be one of the {len(index)} class names, got {shown(leaf)}")
        return index[leaf]

    return read


def nested_tuples(node: Any, read: Callable[[Any], int], depth: int = 1) -> Nested:
    """Converts a node of lists, tuples and dicts to tuples, with `read` for its classes.

    Raises:
        InputError: A node is empty or of another type, or the tree is too deep.
    """
    if not isinstance(node, (list, tuple, dict)):
        raise InputError(f"a tree of classes must be nested lists, got {type(node).__name__}")
    if depth > MAX_DEPTH:
        raise InputError(f"a tree of classes must have at most {MAX_DEPTH} levels, got more")
    if not node:
        raise InputError("a node of a tree must hold one class or more, got an empty one")
    children = node.values() if isinstance(node, dict) else node
    return tuple(
        nested_tuples(child, read, depth + 1) if isinstance(child, (list, tuple, dict)) else read(child)
        for child in children
    )


def nested_lists(node: Nested) -> list[Any]:
    """Converts a node to lists, for JSON."""
    return [child if isinstance(child, int) else nested_lists(child) for child in node]


def leaves(node: Nested) -> Iterator[int]:
    """Iterates over the classes of a node, depth first."""
    for child in node:
        if isinstance(child, int):
            yield child
        else:
            yield from leaves(child)


def paths(node: Nested) -> list[list[int]]:
    """Lists for each class, depth first, its nodes from the top, each named by the place of its first class."""
    found: list[list[int]] = []

    def walk(node: Nested, above: list[int]) -> None:
        for child in node:
            path = [*above, len(found)]
            if isinstance(child, int):
                found.append(path)
            else:
                walk(child, path)

    walk(node, [])
    return found


def check_complete(nested: Nested, n_classes: int | None = None) -> None:
    """Refuses a tree that does not hold each class exactly once.

    Args:
        nested: The tree.
        n_classes: K; None: the number of leaves.

    Raises:
        InputError: A class is missing, unknown, or in the tree twice.
    """
    seen: set[int] = set()
    for leaf in leaves(nested):
        if leaf in seen:
            raise InputError(f"a tree must hold every class once, got class {leaf} twice")
        if leaf < 0 or (n_classes is not None and leaf >= n_classes):
            span = "from 0 on" if n_classes is None else f"in [0, {n_classes})"
            raise InputError(f"classes of a tree must be {span}, got {leaf}")
        seen.add(leaf)
    missing = next((k for k in range(n_classes or len(seen)) if k not in seen), None)
    if missing is not None:
        raise InputError(f"a tree must hold every class once: class {missing} is missing")


def first_ranked(node: Nested, rank: Mapping[int, int]) -> Nested:
    """Moves the class of the lowest rank to the front of every node that holds a class with a rank."""
    return _first_ranked(node, rank)[1]


def _first_ranked(node: Nested, rank: Mapping[int, int]) -> tuple[float, Nested]:
    """Returns the lowest rank in the node, and the node in its new order."""
    ranked: list[tuple[float, int | Nested]] = [
        (rank.get(child, math.inf), child) if isinstance(child, int) else _first_ranked(child, rank) for child in node
    ]
    front = min(range(len(ranked)), key=lambda i: ranked[i][0])
    children = [ranked[front], *ranked[:front], *ranked[front + 1 :]]
    return ranked[front][0], tuple(child for _, child in children)
