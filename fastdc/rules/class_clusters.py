"""Trees of classes from embeddings: Ward's clustering cut into levels, with medoids as representatives."""

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastdc.rules.nested_classes import MAX_DEPTH, Nested, leaves
from fastdc.support import Float64, InputError, checks, shown

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import ClusterNode


def checked_embeddings(embeddings: npt.ArrayLike, n_classes: int | None = None) -> Float64:
    """Returns embeddings as float64 (K, e).

    Args:
        embeddings: One row per class.
        n_classes: The K that the embeddings must have; None: any.

    Raises:
        InputError: The embeddings are not finite (K, e) with K, e > 0, or have another K.
    """
    try:
        values = np.asarray(embeddings, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"embeddings must be numbers (K, e), got {type(embeddings).__name__}") from None
    if values.ndim != 2 or 0 in values.shape or not np.all(np.isfinite(values)):
        raise InputError(f"embeddings must be finite (K, e), got shape {values.shape}")
    if n_classes is not None and len(values) != n_classes:
        raise InputError(f"embeddings must have a row for each of {n_classes} classes, got shape {values.shape}")
    return values


def clustered(values: Float64, groups: int | None, branching: int | None) -> Nested:
    """Clusters K classes by Ward's criterion and cuts the result into a tree.

    Args:
        values: Embeddings, float64 (K, e).
        groups: Number of groups of a tree of two levels, from 1 to K; None: 2 sqrt(K).
        branching: Number of children per node instead of `groups`, at least 2.

    Raises:
        InputError: An option is out of range, or both are given.
    """
    n = len(values)
    if groups is not None and branching is not None:
        raise InputError(f"a tree has groups=... or branching=..., got both: {shown(groups)} and {shown(branching)}")
    if branching is not None:
        children = checks.whole("branching", branching, low=2)
        levels = min(2 * math.ceil(math.log(n) / math.log(children) - 1e-9), MAX_DEPTH)
    else:
        children = min(n, math.ceil(2 * math.sqrt(n))) if groups is None else checks.whole("groups", groups, high=n)
        levels = 2
    if n == 1:
        return (0,)
    from scipy.cluster.hierarchy import linkage, to_tree
    from scipy.spatial.distance import pdist

    # Distances, not the embeddings: linkage warns about embeddings that look like a table of distances.
    return _cut(to_tree(linkage(pdist(values), "ward")), children, levels)


def _cut(cluster: "ClusterNode", branching: int, levels: int) -> Nested:
    """Makes a cluster a node with at most `branching` children and at most `levels` levels; the last holds classes."""
    if levels == 1:
        return tuple(sorted(cluster.pre_order()))
    parts = [cluster]  # in the order of ids: the classes 0 ... K - 1, then merged clusters at growing distances
    while len(parts) < branching and not parts[-1].is_leaf():
        widest = parts.pop()  # merged last: its halves are farthest apart
        parts += [half for half in (widest.get_left(), widest.get_right()) if half is not None]
        parts.sort(key=lambda part: part.get_id())
    return tuple(part.get_id() if part.is_leaf() else _cut(part, branching, levels - 1) for part in parts)


def by_medoid(node: Nested, values: Float64) -> Nested:
    """Reorders a tree so that each node below the root is represented by its medoid.

    From the root down: a child that holds its parent's representative keeps it. The other children of a node follow by
    the distance of their nearest class to the node's mean.

    Args:
        node: The root.
        values: Embeddings, float64 (K, e).
    """
    return tuple(_by_medoid(child, values, None) for child in node)


def _by_medoid(child: int | Nested, values: Float64, wanted: int | None) -> int | Nested:
    """Reorders a child, with the class `wanted` in front, or else its medoid."""
    if isinstance(child, int):
        return child
    groups = [[part] if isinstance(part, int) else list(leaves(part)) for part in child]
    members = np.array(sorted(leaf for group in groups for leaf in group))
    distance = np.full(len(values), np.inf)
    distance[members] = ((values[members] - values[members].mean(axis=0)) ** 2).sum(axis=1)
    medoid = int(members[distance[members].argmin()])
    front = medoid if wanted is None else wanted
    ranked = sorted(
        range(len(child)), key=lambda i: (front not in groups[i], min((distance[leaf], leaf) for leaf in groups[i]))
    )
    return tuple(_by_medoid(child[i], values, front if front in groups[i] else None) for i in ranked)
