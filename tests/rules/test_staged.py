"""Staged pruning: the classes that stay, the exact cost in cells, and the numbers of the paper and of its code."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.rules.staged import Staged, li_stages, smallest
from helpers.rule_runs import Request, batches, check_alone, kept, run, single
from helpers.worlds import fails_with

# Flags of Li et al., arXiv 2303.16203: (n_samples, to_keep, classes, evaluations per image by their table, and by their
# code). The table says 1890 for Pets, which does not follow from its flags.
PUBLISHED = {
    "food": ((20, 50, 100, 500), (20, 10, 5, 1), 101, 5120, 5570),
    "flowers": ((20, 50, 100, 500), (20, 10, 5, 1), 102, 5140, 5590),
    "imagenet": ((50, 100, 500, 1000), (500, 50, 10, 1), 1000, 100_000, 124_500),
    "objectnet": ((50, 100, 500, 1000), (25, 10, 5, 1), 113, 13_400, 14_400),
    "aircraft": ((20, 50, 100, 500), (20, 10, 5, 1), 100, 5100, 5550),
    "cifar10": ((50, 500), (5, 1), 10, 2750, 2750),
    "stl10": ((100, 500), (5, 1), 10, 3000, 3000),
    "pets": ((25, 250), (5, 1), 37, 2050, 2050),
}


@pytest.mark.parametrize("data", PUBLISHED)
def test_published_budgets(data: str) -> None:
    n_samples, to_keep, n_classes, paper, code = PUBLISHED[data]
    assert Staged(n_samples, to_keep).evaluations(n_classes) == paper
    assert Staged(n_samples, to_keep, compat="li").evaluations(n_classes) == code


def slow_stages(n_samples: tuple[int, ...], timesteps: int) -> list[list[int]]:
    """The grids as slices of a range, stage by stage, as in the paper's code."""
    most = max(n_samples)
    step = timesteps // most
    grid = list(range(step // 2, timesteps, step))[:most]
    stages: list[list[int]] = []
    for count in n_samples:
        stride = len(grid) // count
        taken = [t for stage in stages for t in stage]
        stages.append([t for t in grid[stride // 2 :: stride][:count] if t not in taken])
    return stages


@st.composite
def increasing(draw: st.DrawFn, most: int = 120) -> tuple[int, ...]:
    return tuple(sorted(draw(st.sets(st.integers(1, most), min_size=1, max_size=4))))


@given(increasing(), st.integers(120, 1100))
def test_stages_of_the_released_code(n_samples: tuple[int, ...], timesteps: int) -> None:
    stages = li_stages(n_samples, timesteps)
    assert [list(stage) for stage in stages] == slow_stages(n_samples, timesteps)
    flat = [t for stage in stages for t in stage]
    assert len(set(flat)) == len(flat) == n_samples[-1]  # the last stage takes what is left of the whole grid
    assert all(0 <= t < timesteps for t in flat)


def test_known_stages() -> None:
    first, second = li_stages((75, 200))
    assert (first[0], first[-1], len(first)) == (7, 747, 75)
    assert max(second) == 997
    assert li_stages((2, 4)) == ((375, 875), (125, 625))
    assert li_stages((1, 2, 4), 8) == ((5,), (3, 7), (1,))


@given(increasing())
def test_looks_of_the_released_code_are_the_ends_of_its_stages(n_samples: tuple[int, ...]) -> None:
    stages = slow_stages(n_samples, 1000)
    to_keep = (2,) * len(n_samples)
    if any(not stage for stage in stages):
        fails_with(lambda: Staged(n_samples, to_keep, compat="li"), "no timestep of its own", kind=InputError)
        return
    rule = Staged(n_samples, to_keep, compat="li")
    ends = np.cumsum([len(stage) for stage in stages]).tolist()
    assert rule.draws == ends[-1]
    assert rule.looks(ends[-1]) == tuple(ends)
    assert rule.timesteps == tuple(t for stage in stages for t in stage)
    assert Staged(n_samples, to_keep).timesteps is None


def test_a_stage_of_the_released_code_may_have_nothing_to_do() -> None:
    assert li_stages((2, 3, 4)) == ((375, 875), (125, 625), ())
    fails_with(
        lambda: Staged((2, 3, 4), (3, 2, 1), compat="li"),
        "stage 3 of n_samples (2, 3, 4) has no timestep of its own",
        kind=InputError,
    )


@pytest.mark.parametrize("compat", [None, "li"])
@given(increasing(), st.data())
def test_a_run_costs_what_was_said_and_keeps_the_smallest_means(
    compat: str | None, n_samples: tuple[int, ...], data: st.DataObject
) -> None:
    keeps = data.draw(st.lists(st.integers(1, 8), min_size=len(n_samples), max_size=len(n_samples)))
    to_keep = tuple(sorted(keeps, reverse=True))
    try:
        rule = Staged(n_samples, to_keep, compat=compat)
    except InputError:
        return
    n_classes = data.draw(st.integers(1, 12))
    draws = n_samples[-1]
    assert rule.draws == draws
    errors = np.random.default_rng(0).random((3, n_classes, draws)).astype(np.float32)
    result = run(rule, errors)
    if n_classes > 1:
        assert (result.evaluations == rule.evaluations(n_classes)).all()
    for image, alive in zip(errors, result.alive, strict=True):
        expected = list(range(n_classes))
        for m, keep in list(zip(rule.looks(draws), to_keep, strict=True))[:-1]:
            expected = sorted(k for _, k in sorted((image[k, :m].astype(float).mean(), k) for k in expected)[:keep])
        assert np.flatnonzero(alive).tolist() == expected


def test_one_class_runs_to_its_first_look() -> None:
    assert Staged((5, 9), (2, 1)).evaluations(1) == 5
    assert Staged((5, 9, 30), (1, 1, 1)).evaluations(4) == 20


def test_ties_go_to_the_smaller_class() -> None:
    rule = Staged((2, 4), (2, 1))
    assert kept(rule, single([[1, 1], [2, 0], [0, 2], [1, 1]], classes=[3, 5, 8, 9])) == [[3, 5]]
    assert kept(rule, single([[1, 1], [2, 0], [0, 1], [1, 1]], classes=[3, 5, 8, 9])) == [[3, 8]]
    assert kept(rule, single([[1, 1], [2, 0], [0, 1], [1, 1]], index=1)) == [[2]]
    assert kept(rule, single([[1, 1]])) == [[0]]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.inf]), min_size=4, max_size=4), min_size=1), st.integers(1, 6)
)
def test_smallest_is_a_stable_sort(rows: list[list[float]], count: int) -> None:
    ranked = [[k for _, k in sorted((value, k) for k, value in enumerate(row))] for row in rows]
    expected = [[k in order[:count] for k in range(4)] for order in ranked]
    np.testing.assert_array_equal(smallest(np.array(rows), count), expected)


def test_smallest_is_stable_among_many() -> None:
    values = np.tile([2.0, 1.0], (1, 500))
    assert np.flatnonzero(smallest(values, 300)[0]).tolist() == list(range(1, 600, 2))
    assert np.flatnonzero(smallest(values, 501)[0]).tolist() == [0, *range(1, 1000, 2)]


@given(batches(), st.integers(0, 2), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], index: int, padding: int) -> None:
    check_alone(Staged((4, 8, 40), (5, 2, 1)), requests, index, padding)


def test_other_draws_are_refused() -> None:
    for compat in (None, "li"):
        rule = Staged((4, 16), (3, 1), compat=compat)
        assert rule.looks(16) == (4, 16)
        for draws in (4, 15, 17):
            fails_with(partial(rule.looks, draws), "needs draws=16", f"got {draws}", kind=InputError)
        fails_with(partial(rule.looks, 0), "at least one draw", kind=InputError)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (((), ()), "n_samples"),
        (((1, 2), (1,)), "got 2 and 1"),
        (((2, 2), (2, 1)), "must increase"),
        (((4, 2), (2, 1)), "must increase"),
        (((2, 4), (1, 2)), "never increase"),
        (((0, 4), (2, 1)), "n_samples must be a whole number of at least 1, got 0"),
        (((2, 4), (2, 0)), "to_keep must be a whole number of at least 1, got 0"),
        (((2.5, 4), (2, 1)), "2.5"),
        ((float("nan"), (2, 1)), "nan"),
        (("24", (2, 1)), "'24'"),
    ],
)
def test_wrong_options_are_refused(options: tuple[Any, Any], says: str) -> None:
    fails_with(lambda: Staged(*options), "rule staged", says, kind=InputError)


def test_other_wrong_options_are_refused() -> None:
    fails_with(lambda: Staged((2,), (1,), compat="lee"), "compat", "'lee'", kind=InputError)
    fails_with(lambda: Staged((2,), (1,)).evaluations(0), "n_classes", "got 0", kind=InputError)
    for wrong in ((5, 2000), (5, 5), (9, 5)):
        fails_with(partial(li_stages, wrong), "must increase up to at most 1000", str(wrong), kind=InputError)
    fails_with(lambda: Staged((5, 2000), (5, 1), compat="li"), "at most 1000", kind=InputError)


def test_lists_become_tuples() -> None:
    rule = Staged([2, 4], np.array([3, 1]))  # type: ignore[arg-type]
    assert rule == Staged((2, 4), (3, 1))
    assert hash(rule) == hash(Staged((2, 4), (3, 1)))
    assert dataclasses.asdict(rule) == {"n_samples": (2, 4), "to_keep": (3, 1), "compat": None}
    assert dataclasses.replace(rule, n_samples=(2, 9)).draws == 9
