"""A hierarchy of classes: a tree whose leaves are the K classes and whose inner nodes are groups of similar ones.

Rules for many classes look at a group through one of its classes, the *representative*, before they pay for all of them
(:mod:`fastdc.rules.hierarchy`). The idea of descending a tree is that of Shanbhag et al. (arXiv 2411.12073), whose
inner nodes are WordNet's and have text prompts of their own. Here a node is seen through a leaf, so that any model with
K classes can be used, and so that what was evaluated for a node counts for its leaf: nothing is evaluated for the tree
alone.

The order of leaves carries the representatives. Depth first, the first leaf of a node represents it, and so the child
that holds it as well, down to the leaf itself: a class is met once, at the highest level where it represents a node.
Where only some classes are candidates, the first candidate of a node takes the place.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from fastdc.support import InputError

Nested = tuple[Union[int, "Nested"], ...]
"""A node: its children in order, each a class or a node."""

MAX_DEPTH = 64
"""Levels of a tree, at most. WordNet has about 20."""


@dataclass(frozen=True)
class ClassTree:
    """A tree over the classes 0 ... K - 1.

    Attributes:
        nested: The root: classes and nodes, nested; every class is there exactly once, and no node is empty.
    """

    nested: Nested = field(repr=False)

    def __post_init__(self) -> None:
        nested = _tuples(self.nested, _index)
        _check_complete(nested)
        object.__setattr__(self, "nested", nested)

    @classmethod
    def from_nested(
        cls, nested: Any, *, class_names: Sequence[str] | None = None, representative: Iterable[Any] = ()
    ) -> "ClassTree":
        """A tree given by nesting.

        Args:
            nested: Lists, tuples or dicts of classes, nested: [[0, 1], [2, [3, 4]]]. The keys of a dict name its
                children for the reader and are not kept. Classes are indices, or names if `class_names` is given.
            class_names: K names, each once.
            representative: Classes that represent every node they are in; of several in one node, the first of this
                list. All other nodes are represented by their first class. See also :meth:`with_medoids`.

        Raises:
            InputError: A class is missing, unknown or there twice, or a node is empty or no list.
        """
        read = _index if class_names is None else _reader(class_names)
        root = _tuples(nested, read)
        _check_complete(root, None if class_names is None else len(class_names))
        tree = cls(root)
        rank: dict[int, int] = {}
        for position, entry in enumerate(representative):
            leaf = read(entry)
            if not 0 <= leaf < tree.n_classes:
                raise InputError(f"representative must be classes in [0, {tree.n_classes}), got {leaf}")
            rank.setdefault(leaf, position)
        return cls(_first_ranked(root, rank)[1]) if rank else tree

    @classmethod
    def from_embeddings(
        cls, embeddings: npt.ArrayLike, *, groups: int | None = None, branching: int | None = None
    ) -> "ClassTree":
        """A tree of classes that lie close together, by Ward's clustering, with medoids as representatives.

        Ward's criterion, the least growth of squared distances to the centres, because the error of a class grows with
        a squared distance too, and because its groups do not differ in size as much as those of other criteria.

        The default is two levels. With G groups of K / G classes, of which q are opened, a request meets G + q K / G
        classes, fewest at G = sqrt(q K); q = 4 is assumed. More levels meet fewer classes and lose more of them: the
        larger a group, the less its representative says about it.

        Args:
            embeddings: (K, e), one of each class, such as what the network is conditioned on; Euclidean distances must
                mean something. The clustering takes 4 K^2 bytes.
            groups: Groups of a tree of two levels, from 1 to K; None: 2 sqrt(K).
            branching: Instead of `groups`, children of a node, at least 2, with as many levels as it takes, but no
                more than twice those of an even tree: the last nodes of a lopsided one hold more.

        Raises:
            InputError: Embeddings are not finite (K, e) with K, e > 0, an option is out of range, or both are given.
        """
        values = _embeddings(embeddings, None)
        n = len(values)
        if groups is not None and branching is not None:
            raise InputError(f"a tree has groups=... or branching=..., got both: {groups!r:.80} and {branching!r:.80}")
        if branching is not None:
            children = _whole("branching", branching, 2, None)
            levels = min(2 * math.ceil(math.log(n) / math.log(children) - 1e-9), MAX_DEPTH)
        else:
            children = min(n, math.ceil(2 * math.sqrt(n))) if groups is None else _whole("groups", groups, 1, n)
            levels = 2
        if n == 1:
            return cls((0,))
        from scipy.cluster.hierarchy import linkage

        merges = linkage(values, "ward")[:, :2].astype(np.int64)
        return cls(_cut(merges, 2 * n - 2, children, levels)).with_medoids(values)

    def with_medoids(self, embeddings: npt.ArrayLike) -> "ClassTree":
        """The same tree, in which a node's representative is its medoid: the class nearest to the mean of its classes.

        From the root down: a child that holds its parent's representative keeps it. The other classes of a node follow
        by distance to its mean, for requests in which the medoid is no candidate.

        Args:
            embeddings: (K, e).

        Raises:
            InputError: Embeddings are not finite (K, e).
        """
        values = _embeddings(embeddings, self.n_classes)
        return ClassTree(tuple(_by_medoid(child, values, None) for child in self.nested))

    @functools.cached_property
    def order(self) -> npt.NDArray[np.int32]:
        """int32 (K,), the classes depth first: each node's representative before its other classes."""
        return _read_only(np.fromiter(_leaves(self.nested), np.int32))

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.order)

    @property
    def depth(self) -> int:
        """Levels below the root; 1 if the root holds nothing but classes."""
        return len(self.levels)

    @functools.cached_property
    def levels(self) -> npt.NDArray[np.int32]:
        """int32 (depth, K), the node of each class at each level, level 0 right below the root.

        Nodes of a level are told apart by the place of their first leaf in `order`. A class is a node of its own from
        its level on, and so is every class at the last level.
        """
        paths: list[list[int]] = []
        _number(self.nested, [], paths)
        depth = max(map(len, paths))
        levels = np.empty((depth, len(paths)), np.int32)
        for place, path in enumerate(paths):
            levels[:, self.order[place]] = path + [place] * (depth - len(path))
        return _read_only(levels)

    def entry_levels(self, candidates: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.int32]:
        """The level at which each class is met: the highest one where it represents its node.

        Args:
            candidates: bool (K,), classes to consider, of which the first represents a node; None: all.

        Returns:
            int32 (K,), the level; -1 for classes that are no candidates.
        """
        met = self.order if candidates is None else self.order[candidates[self.order]]
        entry = np.full(self.n_classes, -1, np.int32)
        entry[met[:1]] = 0
        # Depth first, the classes of a node are neighbours: one is met at the level where it parts from the one before.
        entry[met[1:]] = (self.levels[:, met[1:]] != self.levels[:, met[:-1]]).argmax(axis=0)
        return entry

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"nested": _lists(self.nested)}

    @classmethod
    def from_dict(cls, entry: Any) -> "ClassTree":
        """The tree of :meth:`to_dict`.

        Raises:
            InputError: Not such an entry, or see :meth:`from_nested`.
        """
        if not isinstance(entry, dict) or set(entry) != {"nested"}:
            raise InputError(f"a tree of classes must be {{nested}}, got {' '.join(repr(entry).split()):.80}")
        return cls(entry["nested"])


def _read_only(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    values.setflags(write=False)
    return values


def _index(leaf: Any) -> int:
    if isinstance(leaf, bool) or not isinstance(leaf, Integral):
        raise InputError(f"a class of a tree must be an index, got {leaf!r:.80}")
    return int(leaf)


def _whole(name: str, value: Any, low: int, high: int | None) -> int:
    whole = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if whole is None or whole < low or (high is not None and whole > high):
        span = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise InputError(f"{name} must be a whole number {span}, got {value!r:.80}")
    return whole


def _reader(class_names: Sequence[str]) -> Callable[[Any], int]:
    """What reads a class that is an index or one of these names."""
    index = {name: k for k, name in enumerate(class_names)}
    if len(index) != len(class_names):
        raise InputError("class names must differ for a tree given by names: expected indices")

    def read(leaf: Any) -> int:
        if not isinstance(leaf, str):
            return _index(leaf)
        if leaf not in index:
            raise InputError(f"a class of a tree must be one of the {len(index)} class names, got {leaf!r:.80}")
        return index[leaf]

    return read


def _tuples(node: Any, read: Callable[[Any], int], depth: int = 1) -> Nested:
    """A node of lists, tuples and dicts as tuples."""
    if not isinstance(node, (list, tuple, dict)):
        raise InputError(f"a tree of classes must be nested lists, got {type(node).__name__}")
    if depth > MAX_DEPTH:
        raise InputError(f"a tree of classes must have at most {MAX_DEPTH} levels, got more")
    if not node:
        raise InputError("a node of a tree must hold one class or more, got an empty one")
    children = node.values() if isinstance(node, dict) else node
    return tuple(
        _tuples(child, read, depth + 1) if isinstance(child, (list, tuple, dict)) else read(child) for child in children
    )


def _leaves(node: Nested) -> Iterator[int]:
    for child in node:
        if isinstance(child, int):
            yield child
        else:
            yield from _leaves(child)


def _check_complete(nested: Nested, n_classes: int | None = None) -> None:
    """Refuses a tree that does not hold every class once; of indices alone, as many classes as there are leaves."""
    seen: set[int] = set()
    for leaf in _leaves(nested):
        if leaf in seen:
            raise InputError(f"a tree must hold every class once, got class {leaf} twice")
        if leaf < 0 or (n_classes is not None and leaf >= n_classes):
            span = "from 0 on" if n_classes is None else f"in [0, {n_classes})"
            raise InputError(f"classes of a tree must be {span}, got {leaf}")
        seen.add(leaf)
    missing = next((k for k in range(n_classes or len(seen)) if k not in seen), None)
    if missing is not None:
        raise InputError(f"a tree must hold every class once: class {missing} is missing")


def _first_ranked(node: Nested, rank: dict[int, int]) -> tuple[float, Nested]:
    """The node with the child that holds the lowest rank in front, in it as well, and that rank."""
    ranked: list[tuple[float, int | Nested]] = [
        (rank.get(child, math.inf), child) if isinstance(child, int) else _first_ranked(child, rank) for child in node
    ]
    front = min(range(len(ranked)), key=lambda i: ranked[i][0])
    children = [ranked[front], *ranked[:front], *ranked[front + 1 :]]
    return ranked[front][0], tuple(child for _, child in children)


def _number(node: Nested, above: list[int], paths: list[list[int]]) -> None:
    """Appends for each leaf, depth first, its nodes from the top, each by the place of its first leaf."""
    for child in node:
        path = [*above, len(paths)]
        if isinstance(child, int):
            paths.append(path)
        else:
            _number(child, path, paths)


def _lists(node: Nested) -> list[Any]:
    return [child if isinstance(child, int) else _lists(child) for child in node]


def _embeddings(embeddings: npt.ArrayLike, n_classes: int | None) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(embeddings, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"embeddings must be numbers (K, e), got {type(embeddings).__name__}") from None
    if values.ndim != 2 or 0 in values.shape or not np.all(np.isfinite(values)):
        raise InputError(f"embeddings must be finite (K, e), got shape {values.shape}")
    if n_classes is not None and len(values) != n_classes:
        raise InputError(f"embeddings must have a row for each of {n_classes} classes, got shape {values.shape}")
    return values


def _cut(merges: npt.NDArray[np.int64], cluster: int, branching: int, levels: int) -> Nested:
    """A cluster as a node of at most `branching` children, and so on for `levels` levels; the last ones hold classes.

    Args:
        merges: int64 (K - 1, 2): row i merges two clusters to cluster K + i, at growing distances; below K are classes.
        cluster: The cluster.
        branching: Children of a node.
        levels: How many there may be.
    """
    n = len(merges) + 1
    if levels == 1:
        return tuple(_classes_of(merges, cluster))
    parts = [cluster]
    while len(parts) < branching and max(parts) >= n:
        widest = max(parts)  # the last one merged is the one whose halves are farthest apart
        parts.remove(widest)
        parts += merges[widest - n].tolist()
    return tuple(part if part < n else _cut(merges, part, branching, levels - 1) for part in sorted(parts))


def _classes_of(merges: npt.NDArray[np.int64], cluster: int) -> list[int]:
    n, classes, parts = len(merges) + 1, [], [cluster]
    while parts:
        part = parts.pop()
        if part < n:
            classes.append(part)
        else:
            parts += merges[part - n].tolist()
    return sorted(classes)


def _by_medoid(child: "int | Nested", values: npt.NDArray[np.float64], wanted: int | None) -> "int | Nested":
    """A child reordered, with the class `wanted` in front, or else its medoid."""
    if isinstance(child, int):
        return child
    groups = [[part] if isinstance(part, int) else list(_leaves(part)) for part in child]
    members = np.array(sorted(leaf for group in groups for leaf in group))
    distance = np.full(len(values), np.inf)
    distance[members] = ((values[members] - values[members].mean(axis=0)) ** 2).sum(axis=1)
    medoid = int(members[distance[members].argmin()])
    front = medoid if wanted is None else wanted
    ranked = sorted(
        range(len(child)), key=lambda i: (front not in groups[i], min((distance[leaf], leaf) for leaf in groups[i]))
    )
    return tuple(_by_medoid(child[i], values, front if front in groups[i] else None) for i in ranked)
