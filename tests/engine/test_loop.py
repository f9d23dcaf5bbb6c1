"""The engine: every cell once, the same numbers however the work is cut, and an orderly end whatever happens.

The network is the Gaussian world's denoiser in NumPy, which works element by element: equal cells give equal bits in
any batch, so equality is asserted, not closeness.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc.engine import Finished
from fastdc.engine.loop import evaluate
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.engine_runs import WORLD, counts_of, network, prepared, table
from helpers.races import DRAWS, RULES, rule_of, slow_race
from helpers.worlds import SHAPE, Float32, ManySlots, classifier, denoiser, gaussian, permutations, unit_images

# --- every cell once, the same numbers -------------------------------------------------------------------------------


@given(
    n=st.integers(1, 5),
    classes=st.integers(1, 4),
    draws=st.integers(1, 6),
    batch=st.integers(1, 40),
    slots=st.integers(1, 4),
)
def test_every_cell_is_evaluated_once_in_steps_of_at_most_a_batch(
    n: int, classes: int, draws: int, batch: int, slots: int
) -> None:
    world = gaussian(classes)
    net = ManySlots(denoiser(world), batch=batch, slots=slots)
    run, scheduler = prepared(net, n, draws, world=world)
    total = n * classes * draws
    assert sum(evaluate(net, run, scheduler)) == total
    assert set(scheduler.pairs()) == {(i, k, j) for i in range(n) for k in range(classes) for j in range(draws)}
    assert max(net.recorded) <= batch
    assert max(scheduler.rooms) <= batch
    # No step but the last ones, one a slot, runs part-filled.
    assert sum(size < min(batch, -(-total // slots)) for size in net.recorded) <= slots
    assert sorted(one.key for one in scheduler.finished()) == list(range(n))


@given(
    name=st.sampled_from(RULES),
    n=st.integers(1, 6),
    batch=st.sampled_from([1, 3, 16, 128]),
    slots=st.integers(1, 4),
    capacity=st.sampled_from([1, 2, 7, 64]),
)
def test_a_rule_stops_early_and_waits_for_errors_whatever_the_steps(
    name: str, n: int, batch: int, slots: int, capacity: int
) -> None:
    """Against the race of single images on the full table, bit for bit."""
    rule = rule_of(name, 3, scale=0.5)
    whole = table(unit_images(n), draws=DRAWS).errors
    net = network(batch=batch, slots=slots)
    run, scheduler = prepared(net, n, DRAWS, rule=rule, capacity=capacity)
    finished: list[Finished] = []
    for _ in evaluate(net, run, scheduler):
        finished += scheduler.finished()
    counts = {i: slow_race(rule, whole[i]) for i in range(n)}
    assert counts_of(finished) == counts
    cells = {(i, k, j) for i in range(n) for k in range(3) for j in range(counts[i][k])}
    assert scheduler.pairs() == {cell: float(whole[cell]) for cell in cells}
    assert max(net.recorded) <= batch
    assert sum(net.recorded) == scheduler.evaluated == len(cells)


@pytest.mark.parametrize("batch", [1, 2, 7, 128, 4096])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_batch_and_slots_change_no_number(batch: int, slots: int) -> None:
    images = unit_images(5)
    np.testing.assert_array_equal(table(images, batch=batch, slots=slots).errors, table(images).errors)


def test_order_and_grouping_of_images_change_no_number() -> None:
    images = unit_images(9)
    whole = table(images).errors
    for order in permutations(9):
        np.testing.assert_array_equal(table(images[order], batch=7).errors, whole[order])
    parts = [table(images[:2]), table(images[2:3], batch=5), table(images[3:], slots=3)]
    np.testing.assert_array_equal(np.concatenate([part.errors for part in parts]), whole)
    twice = table(images[[4, 4]]).errors
    np.testing.assert_array_equal(twice, whole[[4, 4]])


def test_permuting_the_classes_permutes_the_errors() -> None:
    images = unit_images(4)
    whole = table(images).errors
    for order in permutations(3):
        world = GaussianWorld(means=WORLD.means[order])
        np.testing.assert_array_equal(table(images, world=world).errors, whole[:, order])


def test_a_longer_plan_starts_with_the_shorter_one() -> None:
    images = unit_images(3)
    np.testing.assert_array_equal(table(images, draws=20).errors[:, :, :6], table(images, draws=6).errors)


def test_seeds_and_streams_choose_the_noise() -> None:
    images = unit_images(2)
    whole = table(images).errors
    assert not np.any(table(images, seed=1).errors == whole)
    assert not np.any(table(images, streams=[1, 2]).errors == whole)
    own = table(images).streams
    np.testing.assert_array_equal(table(images, streams=own).errors, whole)
    same = table(images[[0, 0]], streams=[5, 6]).errors
    assert not np.any(same[0] == same[1])


def test_a_pool_smaller_than_the_images_is_used_again() -> None:
    net = network(batch=4, slots=3)
    run, scheduler = prepared(net, 12, 6, capacity=2)
    assert sum(evaluate(net, run, scheduler)) == 12 * 3 * 6
    whole = table(unit_images(12)).errors
    assert scheduler.pairs() == {cell: float(error) for cell, error in np.ndenumerate(whole)}


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(images: Float32, draws: int) -> tuple[int, int]:
    """(peak of traced memory during a run, size of its table)."""
    clf = classifier(WORLD)
    clf.errors(images[:1], draws=1)
    tracemalloc.start()
    try:
        errors = clf.errors(images, draws=draws).values
        return tracemalloc.get_traced_memory()[1], errors.nbytes
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_draws_beyond_the_table() -> None:
    images = unit_images(40, SHAPE)
    few, few_table = peak_bytes(images, 16)
    many, many_table = peak_bytes(images, 1024)
    # The images' rows are put together to a table, which is there twice for a moment. The plan's rows and levels are a
    # few hundred bytes a draw; everything else belongs to a step.
    assert many - few < 2 * (many_table - few_table) + 400 * (1024 - 16) + 100_000


def test_nothing_is_kept_of_a_step() -> None:
    """After the first steps a run of full steps takes what its finished images take, and nothing a step."""
    net = network(batch=16)
    run, scheduler = prepared(net, 60, 64)
    steps = evaluate(net, run, scheduler)
    scheduler.observed = scheduler.errors = type("Forgetting", (list,), {"__iadd__": lambda self, _: self})()
    for _ in range(20):
        next(steps)
    tracemalloc.start()
    try:
        kept, before = [], tracemalloc.get_traced_memory()[0]
        for _ in range(600):
            next(steps)
            kept += scheduler.finished()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(kept) > 40
    own = sum(one.values.nbytes + one.counts.nbytes for one in kept)
    assert grown < own + 1000 * len(kept) + 600 * 16  # rooms are recorded
