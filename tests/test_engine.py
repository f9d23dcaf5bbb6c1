"""The engine: every cell once, the same numbers however the work is cut, and an orderly end whatever happens.

The network is the Gaussian world's denoiser in NumPy, which works element by element: equal cells give equal bits in
any batch, so equality is asserted, not closeness.
"""

import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import SHAPE, Float32, Float64, Int64, ManySlots, classifier, denoiser, gaussian, permutations, unit_images

from fastdc import BackendError, DiffusionClassifier, ErrorTable
from fastdc.backends.function import NetworkFunction
from fastdc.cells import Cells, FullRule
from fastdc.engine import Run, TableRule, evaluate, fill_table
from fastdc.gaussian import GaussianWorld
from fastdc.images import streams_of, to_model_range
from fastdc.plan import PlanConfig, make_plan

WORLD = gaussian(3)
MODEL = WORLD.model


class Recorder:
    """A rule that passes another on and records what went through it."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.rooms: list[int] = []
        self.proposed: list[Cells] = []
        self.observed: list[Cells] = []
        self.errors: list[Float32] = []
        self.thread = threading.get_ident()

    @property
    def remaining(self) -> int:
        return int(self.rule.remaining)

    def propose(self, room: int) -> Cells:
        assert threading.get_ident() == self.thread
        cells: Cells = self.rule.propose(room)
        self.rooms.append(room)
        self.proposed.append(cells)
        return cells

    def observe(self, cells: Cells, errors: Float32) -> None:
        assert threading.get_ident() == self.thread
        assert errors.dtype == np.float32
        self.observed.append(cells.copy())
        self.errors.append(errors.copy())
        self.rule.observe(cells, errors)

    def pairs(self) -> dict[tuple[int, int, int], float]:
        cells = np.concatenate([np.empty((0, 3), np.int32), *self.observed]).tolist()
        errors = np.concatenate([np.empty(0, np.float32), *self.errors]).tolist()
        assert len({tuple(cell) for cell in cells}) == len(cells), "a cell was evaluated twice"
        return {(image, label, draw): error for (image, label, draw), error in zip(cells, errors, strict=True)}


def run_of(network: ManySlots, n: int, draws: int, world: GaussianWorld = WORLD, seed: int = 0) -> Run:
    x = to_model_range(unit_images(n), world.model)
    plan = make_plan(world.schedule, world.model.parameterization, PlanConfig(draws=draws, weighting="edm"))
    return Run(network, x, streams_of(x), plan, seed, world.model.num_classes)


def network(*, batch: int = 128, slots: int = 1, function: NetworkFunction | None = None) -> ManySlots:
    return ManySlots(function or denoiser(WORLD), batch=batch, slots=slots)


@given(n=st.integers(0, 6), classes=st.integers(1, 5), draws=st.integers(1, 7), room=st.integers(1, 50))
def test_the_full_rule_hands_out_every_cell_once(n: int, classes: int, draws: int, room: int) -> None:
    rule = FullRule(n, classes, draws)
    seen: list[tuple[int, ...]] = []
    while rule.remaining:
        before = rule.remaining
        cells = rule.propose(room)
        assert cells.dtype == np.int32
        assert 0 < len(cells) <= room
        assert rule.remaining == before - len(cells)
        seen += map(tuple, cells.tolist())
    assert seen == [(i, k, j) for i in range(n) for j in range(draws) for k in range(classes)]
    assert len(rule.propose(room)) == 0


@settings(max_examples=50, deadline=None)
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
    rule = Recorder(FullRule(n, classes, draws))
    calls: list[tuple[int, int]] = []
    total = n * classes * draws
    done = evaluate(net, run_of(net, n, draws, world), rule, progress=lambda *call: calls.append(call))
    assert done == total
    assert set(rule.pairs()) == {(i, k, j) for i in range(n) for k in range(classes) for j in range(draws)}
    assert max(net.recorded) <= batch
    assert max(rule.rooms) <= batch
    # No step but the last ones, one a slot, runs part-filled.
    assert sum(size < min(batch, -(-total // slots)) for size in net.recorded) <= slots
    assert [call[0] for call in calls] == sorted({call[0] for call in calls})
    assert {call[1] for call in calls} == {total}
    assert calls[-1] == (total, total)


def table(
    images: Float32, *, batch: int = 128, slots: int = 1, world: GaussianWorld = WORLD, **options: Any
) -> ErrorTable:
    return classifier(world, batch=batch, slots=slots).errors(images, **{"draws": 6, **options})


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


def test_slots_run_on_their_own_threads() -> None:
    """Three steps wait until all three are in flight: with fewer threads this would time out."""
    barrier = threading.Barrier(3, timeout=20)

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        if len(net.recorded) <= 3:
            barrier.wait()
        return denoiser(WORLD)(sample, timestep, labels)

    net = network(slots=3, function=function)
    rule = Recorder(FullRule(3, 3, 3))
    assert evaluate(net, run_of(net, 3, 3), rule) == 27
    assert len(net.threads) == 3
    assert net.recorded == [9, 9, 9]


# --- other rules -----------------------------------------------------------------------------------------------------


class DropHalf:
    """Evaluates every class at draw 0, waits for all of them, then goes on with the best class of each image alone."""

    def __init__(self, n: int, classes: int, draws: int) -> None:
        self.first = FullRule(n, classes, 1)
        self.errors = np.full((n, classes), np.nan, np.float32)
        self.known = 0
        self.draws = draws
        self.rest: list[tuple[int, int, int]] = []
        self.waited = 0

    @property
    def remaining(self) -> int:
        if np.isnan(self.errors).any():
            return self.first.remaining + len(self.errors) * (self.draws - 1)
        return len(self.rest)

    def propose(self, room: int) -> Cells:
        if self.first.remaining:
            return self.first.propose(room)
        self.waited += bool(np.isnan(self.errors).any())
        cells, self.rest = self.rest[:room], self.rest[room:]
        return np.array(cells, np.int32).reshape(-1, 3)

    def observe(self, cells: Cells, errors: Float32) -> None:
        self.known += len(cells)
        if np.isnan(self.errors).any():
            self.errors[cells[:, 0], cells[:, 1]] = errors
            if not np.isnan(self.errors).any():
                best = self.errors.argmin(axis=1)
                self.rest = [(i, int(k), j) for i, k in enumerate(best) for j in range(1, self.draws)]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_rule_may_wait_for_errors_and_stop_early(slots: int, batch: int) -> None:
    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        if len(net.recorded) == 1:  # the first step is slow: the other slots find nothing to do meanwhile
            time.sleep(0.1)
        return denoiser(WORLD)(sample, timestep, labels)

    net = network(batch=batch, slots=slots, function=function)
    plan = make_plan(WORLD.schedule, MODEL.parameterization, PlanConfig(draws=5, weighting="edm"))
    x = to_model_range(unit_images(4), MODEL)
    rule = DropHalf(4, 3, 5)
    calls: list[tuple[int, int]] = []
    got = fill_table(net, MODEL, x, streams_of(x), plan, rule, seed=0, progress=lambda *call: calls.append(call))
    whole = table(unit_images(4), draws=5).errors
    np.testing.assert_array_equal(got.evaluations, [3 + 4] * 4)
    known = ~np.isnan(got.errors)
    np.testing.assert_array_equal(got.errors[known], whole[known])
    np.testing.assert_array_equal(known.sum(axis=2).argmax(axis=1), whole[:, :, 0].argmin(axis=1))
    assert calls[-1] == (28, 28)
    assert bool(rule.waited) == (slots == 3)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_rule_with_nothing_to_do_ends_at_once(slots: int) -> None:
    net = network(slots=slots)
    assert evaluate(net, run_of(net, 1, 1), FullRule(0, 3, 1)) == 0
    assert net.recorded == []


# --- interruptions and failures --------------------------------------------------------------------------------------


def step_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastdc-step")]


@pytest.mark.parametrize("slots", [1, 3])
def test_an_interrupt_keeps_every_finished_error(slots: int) -> None:
    net = network(batch=4, slots=slots)
    rule = Recorder(FullRule(5, 3, 6))

    def progress(done: int, _: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(net, run_of(net, 5, 6), rule, progress=progress)
    assert step_threads() == []
    got = rule.pairs()
    assert len(got) == sum(net.recorded)
    assert 20 <= len(got) < 5 * 3 * 6
    whole = table(unit_images(5)).errors
    assert all(whole[cell] == np.float32(error) for cell, error in got.items())


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_what_a_network_raises_comes_out_and_no_thread_stays(slots: int, kind: type[BaseException]) -> None:
    lock = threading.Lock()
    count, finished = 0, 0

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        nonlocal count, finished
        with lock:
            count += 1
            mine = count
        if mine >= 4:  # with three slots, several steps fail at once
            raise kind("from the network")
        time.sleep(0.01)
        finished += len(sample)
        return denoiser(WORLD)(sample, timestep, labels)

    net = network(batch=4, slots=slots, function=function)
    rule = Recorder(FullRule(5, 3, 6))
    with pytest.raises(kind, match="from the network"):
        evaluate(net, run_of(net, 5, 6), rule)
    assert step_threads() == []
    if kind is KeyboardInterrupt:
        assert len(rule.pairs()) == finished == 12


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_an_error_that_is_not_finite_is_a_failure_of_the_network(slots: int, value: float) -> None:
    """NaN in a table means "not evaluated": a network that overflows must not drop classes silently."""

    def function(sample: Float32, _: Float32, labels: Int64) -> Float32:
        return np.where(labels[:, None, None, None] == 2, np.float32(value), sample)

    clf = DiffusionClassifier(MODEL, network(slots=slots, function=function))
    with pytest.raises(BackendError, match=r"not finite at image \d+, class 2, draw \d+ in float32"):
        clf.classify(unit_images(3))


def test_a_table_rule_writes_what_it_observes() -> None:
    target = np.full((2, 3, 2), np.nan, np.float32)
    rule = TableRule(FullRule(2, 3, 2), target)
    cells = rule.propose(5)
    rule.observe(cells[3:], np.array([3, 4], np.float32))
    assert target[0, 0, 1] == 3
    assert target[0, 1, 1] == 4
    assert rule.remaining == 7
    assert np.count_nonzero(~np.isnan(target)) == 2


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(images: Float32, draws: int) -> tuple[int, int]:
    """(peak of traced memory during a run, size of its table)."""
    clf = classifier(WORLD)
    clf.errors(images[:1], draws=1)
    tracemalloc.start()
    try:
        errors = clf.errors(images, draws=draws).errors
        return tracemalloc.get_traced_memory()[1], errors.nbytes
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_draws_beyond_the_table() -> None:
    images = unit_images(40, SHAPE)
    few, few_table = peak_bytes(images, 16)
    many, many_table = peak_bytes(images, 1024)
    # The plan's rows and levels are a few hundred bytes a draw; everything else belongs to a step.
    assert many - few < (many_table - few_table) + 400 * (1024 - 16) + 100_000
