"""Trees of classes: the level at which a class is met, against a walk over nested lists; trees of embeddings."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.nested_classes import MAX_DEPTH
from fastdc.support import Float64
from helpers.trees import leaves, nestings
from helpers.worlds import fails_with


def inner_nodes(node: Any) -> Iterator[Any]:
    """All nodes below the root that are not classes."""
    for child in node:
        if not isinstance(child, int):
            yield child
            yield from inner_nodes(child)


def clusters(sizes: list[int], *, seed: int = 0, dimensions: int = 6) -> tuple[Float64, list[set[int]]]:
    """Points around distant centres, shuffled, and the sets of points that belong together."""
    rng = np.random.default_rng(seed)
    centres = 20 * rng.standard_normal((len(sizes), dimensions))
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = centres[group] + rng.uniform(-1, 1, (len(group), dimensions))
    return points, [set(np.flatnonzero(group == g).tolist()) for g in range(len(sizes))]


def test_an_example() -> None:
    tree = ClassTree.from_nested([[3, [1, 4]], 0, [[5], [2, 6]]])
    assert tree.n_classes == 7
    assert tree.depth == 3
    np.testing.assert_array_equal(tree.order, [3, 1, 4, 0, 5, 2, 6])
    np.testing.assert_array_equal(tree.levels[0], [3, 0, 4, 0, 0, 4, 4])
    np.testing.assert_array_equal(tree.levels[1], [3, 1, 5, 0, 1, 4, 5])
    np.testing.assert_array_equal(tree.levels[2], [3, 1, 5, 0, 2, 4, 6])
    np.testing.assert_array_equal(tree.entry_levels(), [0, 1, 1, 0, 2, 0, 2])
    assert not tree.order.flags.writeable
    assert not tree.levels.flags.writeable


@given(nestings(), st.integers(0, 2**32 - 1))
def test_a_class_is_met_where_it_first_represents_a_node(nested: list[Any], seed: int) -> None:
    tree = ClassTree.from_nested(nested)
    chosen = np.random.default_rng(seed).random(tree.n_classes) < 0.6
    for candidates in (np.ones(tree.n_classes, np.bool_), chosen):
        expected: dict[int, int] = {}
        level, nodes = 0, list(nested)
        while nodes:
            for node in nodes:
                inside = [leaf for leaf in leaves(node) if candidates[leaf]]
                if inside:
                    expected.setdefault(inside[0], level)
            level, nodes = level + 1, [child for node in nodes if not isinstance(node, int) for child in node]
        result = tree.entry_levels(candidates)
        assert {k: int(result[k]) for k in np.flatnonzero(candidates)} == expected
        assert np.all(result[~candidates] == -1)
        assert level == tree.depth
    np.testing.assert_array_equal(tree.entry_levels(), tree.entry_levels(np.ones(tree.n_classes, np.bool_)))


@given(nestings())
def test_levels_tell_nodes_apart(nested: list[Any]) -> None:
    tree = ClassTree.from_nested(nested)
    nodes = list(nested)
    for level in tree.levels:
        together = {frozenset(np.flatnonzero(level == node).tolist()) for node in np.unique(level)}
        assert together == {frozenset(leaves(node)) for node in nodes}
        nodes = [child for node in nodes for child in ([node] if isinstance(node, int) else node)]


@given(nestings())
def test_round_trip(nested: list[Any]) -> None:
    tree = ClassTree.from_nested(nested)
    again = ClassTree.from_dict(json.loads(json.dumps(tree.to_dict())))
    assert again == tree
    assert hash(again) == hash(tree)
    assert tree.to_dict() == {"nested": nested}


def test_dicts_and_names() -> None:
    names = ("cat", "dog", "car", "bus", "sky")
    by_name = {"animals": ["dog", "cat"], "things": {"on wheels": ("car", np.int64(3)), "above": "sky"}}
    tree = ClassTree.from_nested(by_name, class_names=names)
    assert tree.nested == ((1, 0), ((2, 3), 4))
    assert all(type(leaf) is int for leaf in leaves(tree.nested))


@given(nestings(), st.integers(0, 2**32 - 1))
def test_given_representatives(nested: list[Any], seed: int) -> None:
    plain = ClassTree.from_nested(nested)
    rng = np.random.default_rng(seed)
    wanted = rng.permutation(plain.n_classes)[: rng.integers(0, plain.n_classes + 1)].tolist()
    tree = ClassTree.from_nested(nested, representative=wanted)
    before = {frozenset(leaves(node)): leaves(node)[0] for node in inner_nodes(plain.nested)}
    assert {frozenset(leaves(node)) for node in inner_nodes(tree.nested)} == set(before)
    for node in inner_nodes(tree.nested):
        members = leaves(node)
        listed = [leaf for leaf in wanted if leaf in members]
        assert members[0] == (listed[0] if listed else before[frozenset(members)])


@pytest.mark.parametrize(
    ("nested", "says"),
    [
        ([[0, 1], [1, 2]], "class 1 twice"),
        ([[0, 1], [3]], "class 2 is missing"),
        ([1, 2], "class 0 is missing"),
        ([0, -1], "got -1"),
        ([[0, 1], []], "empty"),
        ([], "empty"),
        ({"a": {}}, "empty"),
        (3, "int"),
        ("ab", "str"),
        (None, "NoneType"),
        ([0, 1.0], "1.0"),
        ([0, True], "True"),
        ([0, "one"], "'one'"),
        ([0, None], "None"),
        ([0, np.arange(1, 3)], "array"),
    ],
)
def test_other_values_are_refused_as_trees(nested: Any, says: str) -> None:
    fails_with(lambda: ClassTree.from_nested(nested), says, kind=InputError)
    fails_with(lambda: ClassTree.from_dict({"nested": nested}), says, kind=InputError)
    fails_with(lambda: ClassTree(nested), says, kind=InputError)


@pytest.mark.parametrize("entry", [None, [[0]], {}, {"nested": [0], "more": 1}, {"tree": [0]}, np.zeros((9, 9))])
def test_other_entries_are_refused(entry: Any) -> None:
    fails_with(lambda: ClassTree.from_dict(entry), "{nested}", kind=InputError)


def test_names_that_do_not_fit_are_refused() -> None:
    def build(nested: Any, names: Any = ("a", "b", "c"), **options: Any) -> None:
        fails_with(lambda: ClassTree.from_nested(nested, class_names=names, **options), says, kind=InputError)

    says = "'d'"
    build(["a", "b", "d"])
    says = "class 2 is missing"
    build(["a", "b"])
    says = "[0, 3), got 3"
    build(["a", "b", "c", 3])
    says = "class 0 twice"
    build(["a", "b", "c", 0])
    says = "must differ"
    build(["a", "b"], names=("a", "a"))
    says = "representative must be classes in [0, 3), got 3"
    build(["a", "b", "c"], representative=[3])
    says = "'x'"
    build(["a", "b", "c"], representative=["x"])


def test_too_deep_a_tree_is_refused() -> None:
    nested: Any = 0
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert ClassTree.from_nested(nested).depth == MAX_DEPTH
    fails_with(lambda: ClassTree.from_nested([nested]), f"{MAX_DEPTH} levels", kind=InputError)
    loop: list[Any] = [0]
    loop.append(loop)
    fails_with(lambda: ClassTree.from_nested(loop), f"{MAX_DEPTH} levels", kind=InputError)


@pytest.mark.parametrize("seed", range(4))
def test_far_groups_are_found(seed: int) -> None:
    points, groups = clusters([3, 9, 1, 12, 5], seed=seed)
    tree = ClassTree.from_embeddings(points, groups=5)
    assert {frozenset(leaves(child)) for child in tree.nested} == set(map(frozenset, groups))
    assert tree.depth == 2


def test_the_default_has_two_levels() -> None:
    points = np.random.default_rng(0).standard_normal((100, 5))
    tree = ClassTree.from_embeddings(points)
    assert len(tree.nested) == 20
    assert tree.depth == 2
    assert tree == ClassTree.from_embeddings(points.tolist(), groups=20)


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0]))
def test_branching_bounds_children_and_levels(n: int, branching: int, seed: int, spread: float) -> None:
    """Also for points that are all equal, whose clustering is as lopsided as possible."""
    points = spread * np.random.default_rng(seed).standard_normal((n, 3))
    tree = ClassTree.from_embeddings(points, branching=branching)
    even = next(levels for levels in range(1, 10) if branching**levels >= n)
    assert tree.depth <= 2 * even
    below = {id(node) for node in inner_nodes(tree.nested) if not all(isinstance(child, int) for child in node)}
    for node in (tree.nested, *inner_nodes(tree.nested)):
        assert len(node) <= branching or (id(node) not in below and tree.depth == 2 * even)


@pytest.mark.parametrize("options", [{}, {"groups": 1}, {"groups": 7}, {"branching": 3}], ids=str)
def test_medoids_represent(options: dict[str, Any]) -> None:
    """The medoid minimises the sum of squared distances to the members; a parent's represents its child, too."""
    points = np.random.default_rng(3).standard_normal((60, 4))
    tree = ClassTree.from_embeddings(points, **options)

    def check(node: Any, inherited: int | None) -> int:
        members = leaves(node)
        apart = ((points[members][:, None] - points[members][None]) ** 2).sum(axis=(1, 2))
        medoid = members[int(apart.argmin())]
        assert members[0] == (medoid if inherited is None else inherited)
        for child in node:
            if not isinstance(child, int):
                check(child, members[0] if members[0] in leaves(child) else None)
        return medoid

    tops = [check(child, None) for child in tree.nested if not isinstance(child, int)]
    assert tops
    assert ClassTree(tree.nested).with_medoids(points) == tree


def test_classes_follow_by_distance() -> None:
    line = np.array([[0.0], [4.0], [1.0], [2.5], [9.0]])
    assert ClassTree(((0, 1, 2, 3, 4),)).with_medoids(line).nested == ((1, 3, 2, 0, 4),)


def test_given_trees_take_medoids() -> None:
    line = np.arange(7.0)[:, None] ** 2
    tree = ClassTree.from_nested([[[0, 1, 2], [3, 4]], [6, 5]]).with_medoids(line)
    assert tree.nested == (((2, 1, 0), (3, 4)), (5, 6))


def test_order_of_classes_changes_only_names() -> None:
    points = np.random.default_rng(1).standard_normal((50, 4))
    shuffle = np.random.default_rng(2).permutation(50)
    for options in ({}, {"branching": 3}):
        tree, other = (ClassTree.from_embeddings(p, **options) for p in (points, points[shuffle]))
        renamed = {frozenset(shuffle[leaves(node)].tolist()) for node in inner_nodes(other.nested)}
        assert renamed == {frozenset(leaves(node)) for node in inner_nodes(tree.nested)}


def test_few_classes() -> None:
    assert ClassTree.from_embeddings([[1.0, 2.0]]).nested == (0,)
    assert ClassTree.from_embeddings([[1.0, 2.0]], branching=2).nested == (0,)
    for n in (2, 3, 4):
        tree = ClassTree.from_embeddings(np.eye(n))
        assert len(tree.nested) == min(n, math.ceil(2 * n**0.5))
    assert ClassTree.from_embeddings(np.zeros((9, 2)), groups=3).n_classes == 9


@pytest.mark.parametrize(
    ("embeddings", "options", "says"),
    [
        (np.zeros((3,)), {}, "(3,)"),
        (np.zeros((0, 2)), {}, "(0, 2)"),
        (np.zeros((2, 0)), {}, "(2, 0)"),
        ([[1.0, float("nan")]], {}, "finite"),
        ([["a"]], {}, "list"),
        ([[1, 2], [3]], {}, "list"),
        (np.eye(4), {"groups": 0}, "from 1 to 4, got 0"),
        (np.eye(4), {"groups": 5}, "from 1 to 4, got 5"),
        (np.eye(4), {"groups": 2.0}, "2.0"),
        (np.eye(4), {"groups": True}, "True"),
        (np.eye(4), {"branching": 1}, "at least 2, got 1"),
        (np.eye(4), {"branching": "2"}, "'2'"),
        (np.eye(4), {"groups": 2, "branching": 2}, "both"),
    ],
)
def test_wrong_embeddings_are_refused(embeddings: Any, options: dict[str, Any], says: str) -> None:
    fails_with(lambda: ClassTree.from_embeddings(embeddings, **options), says, kind=InputError)


def test_embeddings_of_other_classes_are_refused() -> None:
    fails_with(lambda: ClassTree((0, 1)).with_medoids(np.eye(3)), "2 classes", "(3, 3)", kind=InputError)
