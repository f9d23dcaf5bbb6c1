"""A hierarchy of classes: a tree whose leaves are the K classes and whose inner nodes are groups of similar classes.

Rules for many classes evaluate one class of a group, its *representative*, before they pay for all of them
(:mod:`fastdc.rules.hierarchy`). Descending a tree is the idea of Shanbhag et al. (arXiv 2411.12073), whose inner nodes
are WordNet's and have text prompts of their own. Here a leaf represents a node, so that any model with K classes can be
used, and the errors of a representative also count for its class: nothing is evaluated for the tree alone.

The order of leaves defines the representatives. Depth first, the first leaf of a node represents it; it also represents
the child that holds it, down to the leaf itself. So a class is met once, at the highest level at which it represents a
node. If only some classes are candidates, the first candidate of a node represents it.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.rules.class_clusters import by_medoid, checked_embeddings, clustered
from fastdc.rules.nested_classes import (
    Nested,
    check_complete,
    class_index,
    class_reader,
    first_ranked,
    leaves,
    nested_lists,
    nested_tuples,
    paths,
)
from fastdc.support import InputError, Int32, Mask


@dataclass(frozen=True)
class ClassTree:
    """A tree over the classes 0 ... K - 1.

    Attributes:
        nested: The root: nested tuples of classes. Each class occurs exactly once, and no node is empty.
    """

    nested: Nested = field(repr=False)

    def __post_init__(self) -> None:
        nested = nested_tuples(self.nested, class_index)
        check_complete(nested)
        object.__setattr__(self, "nested", nested)

    @classmethod
    def from_nested(
        cls, nested: Any, *, class_names: Sequence[str] | None = None, representative: Iterable[Any] = ()
    ) -> "ClassTree":
        """Makes a tree that is given by nesting.

        Args:
            nested: Lists, tuples or dicts of classes, nested: [[0, 1], [2, [3, 4]]]. The keys of a dict name its
                children for the reader and are not kept. Classes are indices, or names if `class_names` is given.
            class_names: K names, all different.
            representative: Classes that represent every node that holds them; if a node holds several, the first in
                this list represents it. All other nodes are represented by their first class. See also
                :meth:`with_medoids`.

        Returns:
            The tree.

        Raises:
            InputError: A class is missing, unknown or in the tree twice, or a node is empty or not a list.

        Example:
            >>> from fastdc.rules import ClassTree
            >>> ClassTree.from_nested({"even": [0, 2], "odd": [1, 3]}).nested
            ((0, 2), (1, 3))
        """
        read = class_index if class_names is None else class_reader(class_names)
        root = nested_tuples(nested, read)
        check_complete(root, None if class_names is None else len(class_names))
        tree = cls(root)
        rank: dict[int, int] = {}
        for position, entry in enumerate(representative):
            leaf = read(entry)
            if not 0 <= leaf < tree.n_classes:
                raise InputError(f"representative must be classes in [0, {tree.n_classes}), got {leaf}")
            rank.setdefault(leaf, position)
        return cls(first_ranked(root, rank)) if rank else tree

    @classmethod
    def from_embeddings(
        cls, embeddings: npt.ArrayLike, *, groups: int | None = None, branching: int | None = None
    ) -> "ClassTree":
        """Makes a tree of classes that lie close together, by Ward's clustering, with medoids as representatives.

        Ward's criterion is the least growth of squared distances to the centres. It is used because the error of a
        class grows with a squared distance, too, and because its groups differ less in size than those of other
        criteria.

        The default is two levels. With G groups of K / G classes, of which q are opened, a request meets G + q K / G
        classes, fewest at G = sqrt(q K); q = 4 is assumed. More levels meet fewer classes and lose more of them: the
        larger a group, the less its representative says about it.

        Args:
            embeddings: (K, e), one row per class, such as the vector that conditions the network; Euclidean distances
                must be meaningful. The clustering takes 4 K^2 bytes.
            groups: Number of groups of a tree of two levels, from 1 to K; None: 2 sqrt(K).
            branching: Number of children per node, at least 2, instead of `groups`. The tree has as many levels as it
                takes, but at most twice those of a balanced tree; the last nodes of a lopsided tree hold more children.

        Returns:
            The tree.

        Raises:
            InputError: Embeddings are not finite (K, e) with K, e > 0, an option is out of range, or both are given.

        Example:
            >>> from fastdc.rules import ClassTree
            >>> ClassTree.from_embeddings([[0.0], [9.0], [0.1], [9.2]], groups=2).nested
            ((0, 2), (1, 3))
        """
        values = checked_embeddings(embeddings)
        return cls(clustered(values, groups, branching)).with_medoids(values)

    def with_medoids(self, embeddings: npt.ArrayLike) -> "ClassTree":
        """Returns the same tree with the medoid of each node as its representative.

        The medoid is the class nearest to the mean of the node's classes. From the root down, a child that holds its
        parent's representative keeps it. The other classes of a node follow by distance to its mean, for requests in
        which the medoid is not a candidate.

        Args:
            embeddings: (K, e).

        Raises:
            InputError: Embeddings are not finite (K, e).
        """
        return ClassTree(by_medoid(self.nested, checked_embeddings(embeddings, self.n_classes)))

    @functools.cached_property
    def order(self) -> Int32:
        """int32 (K,), the classes depth first: each node's representative before its other classes."""
        return _read_only(np.fromiter(leaves(self.nested), np.int32))

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.order)

    @property
    def depth(self) -> int:
        """Number of levels below the root; 1 if the root holds only classes."""
        return len(self.levels)

    @functools.cached_property
    def levels(self) -> Int32:
        """int32 (depth, K), the node of each class at each level; level 0 is directly below the root.

        A node is identified by the place of its first leaf in `order`. From its own level on, a class is a node by
        itself, and at the last level every class is.
        """
        nodes = paths(self.nested)
        depth = max(map(len, nodes))
        levels = np.empty((depth, len(nodes)), np.int32)
        for place, path in enumerate(nodes):
            levels[:, self.order[place]] = path + [place] * (depth - len(path))
        return _read_only(levels)

    def entry_levels(self, candidates: Mask | None = None) -> Int32:
        """Finds the level at which each class is met: the highest one at which it represents its node.

        Args:
            candidates: bool (K,), classes to consider, of which the first represents a node; None: all.

        Returns:
            int32 (K,), the level; -1 for classes that are not candidates.
        """
        met = self.order if candidates is None else self.order[candidates[self.order]]
        entry = np.full(self.n_classes, -1, np.int32)
        entry[met[:1]] = 0
        # Depth first, the classes of a node are neighbours. A class is met at the level where it and the class before
        # it first belong to different nodes.
        entry[met[1:]] = (self.levels[:, met[1:]] != self.levels[:, met[:-1]]).argmax(axis=0)
        return entry

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {"nested": nested_lists(self.nested)}

    @classmethod
    def from_dict(cls, entry: Any) -> "ClassTree":
        """Makes the tree of an entry that :meth:`to_dict` returned.

        Raises:
            InputError: The entry has another form, or :meth:`from_nested` refuses the nesting.
        """
        if not isinstance(entry, dict) or set(entry) != {"nested"}:
            raise InputError(f"a tree of classes must be {{nested}}, got {' '.join(repr(entry).split()):.80}")
        return cls(entry["nested"])


def _read_only(values: Int32) -> Int32:
    values.setflags(write=False)
    return values
