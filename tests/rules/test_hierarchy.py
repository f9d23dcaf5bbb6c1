"""Descending a tree: against a plain walk over nested lists, in the scheduler, and in worlds with many classes."""

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.engine import Request, Scheduler
from fastdc.rules.betting import Betting
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.full import Full
from fastdc.rules.hierarchy import Hierarchy
from fastdc.rules.paired import Paired
from fastdc.rules.protocol import AbstractRule
from fastdc.rules.registry import describe
from fastdc.rules.staged import Staged
from fastdc.rules.ttest import TTest
from fastdc.support import Float32, Int32, Mask
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.rule_runs import pack, single
from helpers.sources import Source
from helpers.trees import leaves, nestings
from helpers.worlds import classifier, fails_with, gaussian, refusing

FLAT = ClassTree((0, 1, 2))


def scheduled(
    rule: AbstractRule, errors: Float32, *, candidates: Sequence[Mask | None] | None = None, seed: int = 0
) -> Int32:
    """Draws at which each class of each request was evaluated, int32 (n, K), by the scheduler.

    Errors come from a table (n, K, J). Steps have any size, several are in flight, and they end in any order.
    """
    n, n_classes, draws = errors.shape
    rng = np.random.default_rng(seed)
    image = np.zeros((1, 1, 1), np.float32)
    chosen = candidates or [None] * n
    masks = [None if mask is None else np.flatnonzero(mask).astype(np.int32) for mask in chosen]
    placed: dict[int, int] = {}
    scheduler = Scheduler(
        rule,
        draws,
        n_classes,
        put=lambda place, _, stream: placed.update({place: stream}),
        next_request=Source(Request(i, image, i, mask) for i, mask in enumerate(masks)),
        capacity=int(rng.integers(1, n + 1)),
    )
    seen: set[tuple[int, ...]] = set()
    counts = np.full((n, n_classes), -1, np.int32)
    flying = []
    while True:
        work = scheduler.propose(int(rng.integers(1, 3 * n_classes)))
        if len(work.cells):
            requests = np.array([placed[slot] for slot in work.cells[:, 0].tolist()])
            flying.append((work, requests))
        elif not flying:
            break
        if not len(work.cells) or rng.random() < 0.5:
            work, requests = flying.pop(rng.integers(len(flying)))
            _, labels, at = work.cells.T
            cells = set(zip(requests.tolist(), labels.tolist(), at.tolist(), strict=True))
            assert len(cells) == len(work.cells)
            assert not cells & seen
            seen |= cells
            scheduler.observe(work, errors[requests, labels, at])
        for done in scheduler.finished():
            counts[done.key] = done.counts
            evaluated = np.arange(draws) < done.counts[:, None]  # a prefix of every class
            np.testing.assert_array_equal(done.values, errors[done.key][evaluated])
    assert len(seen) == counts.sum() == scheduler.evaluated == scheduler.at_most
    return counts


def walked(nested: Any, errors: Float32, keep_nodes: int | None, margin: float | None) -> tuple[set[int], set[int]]:
    """The classes met and the classes left in a descent of one image, with a list of nodes and exact numbers.

    Args:
        nested: Nested lists.
        errors: (K, m); they and their means are exact in binary.
        keep_nodes: Option of the rule.
        margin: Option of the rule.
    """
    means = {k: sum(map(Fraction, map(float, row))) / len(row) for k, row in enumerate(errors)}
    nodes = list(nested)
    met = {leaves(node)[0] for node in nodes}
    while any(len(leaves(node)) > 1 for node in nodes):
        branches = sorted((means[leaves(node)[0]], leaves(node)[0]) for node in nodes if len(leaves(node)) > 1)
        count = len(branches)
        average = sum(e for e, _ in branches) / count
        variance = sum((e - average) ** 2 for e, _ in branches) / count
        kept = set()
        for place, (error, name) in enumerate(branches):
            near = margin is None or (error - branches[0][0]) ** 2 <= Fraction(margin) ** 2 * variance
            if near and (keep_nodes is None or place < keep_nodes):
                kept.add(name)
        nodes = [node for node in nodes if len(leaves(node)) == 1 or leaves(node)[0] in kept]
        while True:  # down to where a new class is met
            nodes = [child for node in nodes for child in ([node] if isinstance(node, int) else node)]
            new = {leaves(node)[0] for node in nodes} - met
            if new or all(isinstance(node, int) for node in nodes):
                break
        met |= new
    return met, {leaves(node)[0] for node in nodes}


def among(node: Any, chosen: Mask) -> Any:
    """A nested list without the classes that are not chosen; None if nothing is left."""
    if isinstance(node, int):
        return node if chosen[node] else None
    children = [left for child in node if (left := among(child, chosen)) is not None]
    return children or None


@given(
    nestings(),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, 0.0, 0.3, 0.7, 1.3, 2.0]),
    st.integers(0, 2**32 - 1),
)
def test_descends_as_a_walk_does(nested: list[Any], keep_nodes: int | None, margin: float | None, seed: int) -> None:
    """Errors are multiples of 1/8 and often equal; some requests have candidates."""
    if keep_nodes is None and margin is None:
        margin = 2.0
    rng = np.random.default_rng(seed)
    tree = ClassTree.from_nested(nested)
    errors = (rng.integers(1, 40, (5, tree.n_classes, 4)) / 8).astype(np.float32)
    candidates: list[Mask | None] = [None, None]
    for _ in range(3):
        mask = rng.random(tree.n_classes) < rng.choice([0.1, 0.5, 0.9])
        mask[rng.integers(tree.n_classes)] = True
        candidates.append(mask)
    rule = Hierarchy(tree, Staged((2, 4), (999, 999)), keep_nodes=keep_nodes, margin=margin)
    counts = scheduled(rule, errors, candidates=candidates, seed=seed)
    for image, mask, row in zip(errors, candidates, counts, strict=True):
        rest = nested if mask is None else among(nested, mask)
        met, left = walked(rest, image[:, :2], keep_nodes, margin)
        expected = [0 if k not in met else 2 if k not in left or len(left) == 1 else 4 for k in range(len(row))]
        assert row.tolist() == expected


@given(nestings(), st.integers(0, 2**32 - 1))
def test_requests_do_not_depend_on_one_another(nested: list[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = ClassTree.from_nested(nested)
    errors = (rng.random((6, tree.n_classes, 1)) / 4 + rng.normal(5, 0.3, (6, tree.n_classes, 16))).astype(np.float32)
    masks: list[Mask | None] = [None] * 3 + [rng.random(tree.n_classes) < 0.5 for _ in range(3)]
    for mask in masks[3:]:
        assert mask is not None
        mask[0] = True
    rule = Hierarchy(tree, Calibrated(0.2), margin=1.0)
    together = scheduled(rule, errors, candidates=masks, seed=seed)
    for i in range(6):
        alone = scheduled(rule, errors[i : i + 1], candidates=[masks[i]], seed=seed + 1)
        np.testing.assert_array_equal(alone[0], together[i])


@given(nestings(), st.integers(0, 2**32 - 1), st.sampled_from([Full(), Calibrated(0.1), TTest(3, 0.2), Paired(0.3)]))
def test_with_every_branch_kept_it_is_the_inner_rule(nested: list[Any], seed: int, inner: AbstractRule) -> None:
    rng = np.random.default_rng(seed)
    tree = ClassTree.from_nested(nested)
    if isinstance(inner, Paired):
        inner = Paired(inner.alpha, rivals=max(tree.n_classes - 1, 1))
    level = 5 + rng.random((4, tree.n_classes, 1))
    errors = (level + rng.normal(0, 0.5, (4, tree.n_classes, 20))).astype(np.float32)
    descended = scheduled(Hierarchy(tree, inner, keep_nodes=99, margin=None), errors, seed=seed)
    flat = scheduled(inner, errors, seed=seed)
    if tree.n_classes == 1:
        assert np.all(descended == inner.looks(20)[0])
    np.testing.assert_array_equal(descended, flat)


def test_two_branches_are_two_deviations_apart() -> None:
    tree = ClassTree(((0, 1), (2, 3)))
    for gap in (1e-7, 0.1, 1 / 3, 1e5):
        look = single([[0.7], [0.7 + gap]], classes=[0, 2])
        assert Hierarchy(tree, Full()).keep(look).tolist() == [[True, True]]
        assert Hierarchy(tree, Full(), margin=1.999).keep(look).tolist() == [[True, False]]
    look = single([[0.5], [0.5]], classes=[0, 2])
    assert Hierarchy(tree, Full(), margin=0).keep(look).tolist() == [[True, True]]
    assert Hierarchy(tree, Full(), margin=0, keep_nodes=1).keep(look).tolist() == [[True, False]]


def test_single_classes_are_left_to_the_inner_rule() -> None:
    """Class 4 is the worst at the top and stays while branches are dropped; then the race drops it."""
    tree = ClassTree(((0, 1), (2, 3), 4))
    rule = Hierarchy(tree, Calibrated(0.5), keep_nodes=1, margin=None)
    look = single([[1.0], [1.2], [9.0]], classes=[0, 2, 4])
    keep = rule.keep(look)
    assert keep.tolist() == [[True, False, True]]
    added = rule.expand(look, keep)
    assert added is not None
    assert [new.tolist() for new in added] == [[1]]
    look = single([[1.0], [1.1], [9.0]], classes=[0, 1, 4])
    keep = rule.keep(look)
    assert keep.tolist() == [[True, True, False]]
    assert rule.expand(look, keep) is None


def test_the_tree_is_not_entered_again() -> None:
    """At later looks the classes alive may look like those of a descent."""
    rule = Hierarchy(ClassTree(((0, 1), (2, 3))), Calibrated(0.5), keep_nodes=1)
    look = single([[1.0, 1.0], [1.1, 1.1]], index=1, classes=[0, 2])
    keep = rule.keep(look)
    assert keep.tolist() == [[True, True]]
    assert rule.expand(look, keep) is None


def test_the_inner_rule_is_not_asked_after_the_last_draw() -> None:
    """No rule is asked then, except a rule with a tree whose descent takes place at the last look."""
    rule = Hierarchy(ClassTree(((0, 1), (2, 3))), Calibrated(0.1), keep_nodes=1)
    opened = (np.array([0, 1], np.int32), np.array([[1.0], [5.0]], np.float32))
    assert rule.keep(pack([opened], last=True)).tolist() == [[True, True]]
    assert rule.keep(pack([opened], last=False)).tolist() == [[True, False]]


def test_looks() -> None:
    assert Hierarchy(FLAT, Calibrated(1)).looks(32) == (1, 2, 3, 4, 8, 16, 32)
    assert Hierarchy(FLAT, Calibrated(1), first=3).looks(32) == (3, 4, 8, 16, 32)
    assert Hierarchy(FLAT, Calibrated(1), first=5).looks(32) == (8, 16, 32)
    assert Hierarchy(FLAT, Calibrated(1), first=99).looks(32) == (32,)
    assert Hierarchy(FLAT, Paired(rivals=2)).looks(8) == (3, 4, 8)
    staged = Staged((4, 16), (5, 1))
    assert Hierarchy(FLAT, staged).draws == 16
    assert Hierarchy(FLAT, staged, first=4).looks(16) == (4, 16)
    fails_with(lambda: Hierarchy(FLAT, staged, first=5).looks(16), "at most the 4 draws", "got 5", kind=InputError)
    fails_with(lambda: Hierarchy(FLAT, Full()).looks(0), "at least one draw", kind=InputError)
    li = Staged((5, 50), (5, 1), compat="li")
    assert Hierarchy(FLAT, li).timesteps == li.timesteps
    assert Hierarchy(FLAT, Full()).timesteps is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tree": ((0, 1), 2)}, "ClassTree, got tuple"),
        ({"inner": "race"}, "got str"),
        ({"inner": Hierarchy(FLAT, Full())}, "got Hierarchy"),
        ({"margin": None}, "keep_nodes=... or margin=..."),
        ({"margin": -0.5}, "margin must be 0 or positive and finite, got -0.5"),
        ({"margin": float("inf")}, "inf"),
        ({"keep_nodes": 0}, "keep_nodes"),
        ({"keep_nodes": 1.5}, "1.5"),
        ({"first": 0}, "first"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    given_options = {"tree": FLAT, "inner": Full(), **options}
    fails_with(lambda: Hierarchy(**given_options), "rule tree", says, kind=InputError)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_tree_of_other_classes_is_refused(n_classes: int) -> None:
    world = gaussian(n_classes)
    images = np.zeros((1, 1, 4, 4), np.float32)
    call = lambda: refusing(world.model).classify(images, rule=Hierarchy(FLAT, Full()))  # noqa: E731
    fails_with(call, "rule tree", "3 classes", f"has {n_classes}", kind=InputError)


def test_provenance_names_the_inner_rule() -> None:
    described = describe(Hierarchy(ClassTree(((2, 0), 1)), Calibrated(0.5, draws=8), keep_nodes=2, first=4))
    assert json.loads(json.dumps(described)) == {
        "name": "tree",
        "tree": {"nested": [[2, 0], 1]},
        "inner": {"name": "calibrated", "limit": 0.5, "draws": 8},
        "keep_nodes": 2,
        "margin": 2.0,
        "first": 4,
    }


def test_a_class_that_stays_at_every_look_is_the_label() -> None:
    """End to end: the inner rule's options are filled in, and only candidates are evaluated."""
    world = gaussian(12)
    tree = ClassTree.from_embeddings(world.means.reshape(12, -1), groups=4)
    images = ((world.sample(np.arange(12), seed=1) + 1) / 2).astype(np.float32)
    chosen = np.random.default_rng(0).random((12, 12)) < 0.5
    np.fill_diagonal(chosen, True)
    inners = [Full(), Paired(), Calibrated(0.3), Betting(bound=50.0), Staged((4, 16), (3, 1))]
    for inner in inners:
        rule = Hierarchy(tree, inner, keep_nodes=2)
        result = classifier(world).classify(images, rule=rule, draws=16, candidates=chosen)
        counts = result.table.counts
        assert not np.any(counts[~chosen])
        assert np.all(counts[np.arange(12), result.labels] == counts.max(axis=1))
        other = classifier(world, batch=7, slots=2).classify(images[::-1], rule=rule, draws=16, candidates=chosen[::-1])
        np.testing.assert_array_equal(other.table.counts[::-1], counts)
        np.testing.assert_array_equal(other.labels[::-1], result.labels)


def test_many_classes_cost_a_fraction() -> None:
    """1000 classes in 32 groups: the same answers as the race over all of them, for a fraction of its evaluations.

    The tree determines the number of classes that a request meets: the representatives and the rest of three groups.
    """
    rng = np.random.default_rng(0)
    group = rng.integers(0, 32, 1000)
    centres = rng.uniform(-0.5, 0.5, (32, 1, 8, 8))
    world = GaussianWorld(means=centres[group] + rng.uniform(-0.2, 0.2, (1000, 1, 8, 8)))
    tree = ClassTree.from_embeddings(world.means.reshape(1000, -1), groups=32)
    labels = rng.integers(0, 1000, 40)
    images = ((world.sample(labels, seed=1) + 1) / 2).astype(np.float32)
    race = Calibrated(0.2)
    flat = classifier(world).classify(images, rule=race, draws=16)
    result = classifier(world).classify(images, rule=Hierarchy(tree, race, keep_nodes=3, margin=None), draws=16)
    assert np.mean(flat.labels == labels) > 0.7
    assert abs(np.mean(result.labels == labels) - np.mean(flat.labels == labels)) <= 1 / 40
    assert np.all(flat.evaluations >= 1000)
    sizes = sorted(len(leaves(child)) for child in tree.nested)
    met = np.count_nonzero(result.table.counts, axis=1)
    assert np.all((met >= 32 + sum(sizes[:3]) - 3) & (met <= 32 + sum(sizes[-3:]) - 3))
    assert np.all(result.evaluations >= met)
    assert result.evaluations.mean() < 200
    np.testing.assert_array_equal(group[result.labels], group[flat.labels])
