"""The engine: every cell once, the same numbers however the work is cut, and an orderly end whatever happens.

The network is the Gaussian world's denoiser in NumPy, which works element by element: equal cells give equal bits in
any batch, so equality is asserted, not closeness.
"""

import gc
import os
import signal
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from races import DRAWS, RULES, rule_of, slow_race
from worlds import SHAPE, Float32, ManySlots, classifier, denoiser, fails_with, gaussian, permutations, unit_images

from fastdc import BackendError, DiffusionClassifier, ErrorTable
from fastdc.backends.function import NetworkFunction
from fastdc.engine import Run, evaluate
from fastdc.gaussian import GaussianWorld
from fastdc.images import streams_of, to_model_range
from fastdc.plan import PlanConfig, make_plan
from fastdc.rules.base import AbstractRule
from fastdc.rules.full import Full
from fastdc.rules.staged import Staged
from fastdc.scheduler import IN_FLIGHT, Finished, Request, Scheduler, Work

WORLD = gaussian(3)
MODEL = WORLD.model


class Recorder(Scheduler):
    """A scheduler that records what goes through it, and refuses to be asked from another thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rooms: list[int] = []
        self.waited = 0
        self.observed: list[tuple[int, int, int]] = []
        self.errors: list[float] = []
        self.thread = threading.get_ident()

    def prepare(self) -> int:
        assert threading.get_ident() == self.thread
        return super().prepare()

    def propose(self, room: int) -> Work:
        assert threading.get_ident() == self.thread
        self.rooms.append(room)
        work = super().propose(room)
        self.waited += not len(work.cells) and self.flying > 0
        return work

    def observe(self, work: Work, errors: Float32) -> None:
        assert threading.get_ident() == self.thread
        assert errors.dtype == np.float32
        self.observed += [(self.key(slot), k, j) for slot, k, j in work.cells.tolist()]
        self.errors += errors.tolist()
        super().observe(work, errors)

    def pairs(self) -> dict[tuple[int, int, int], float]:
        assert len(set(self.observed)) == len(self.observed), "a cell was evaluated twice"
        return dict(zip(self.observed, self.errors, strict=True))


def prepared(
    network: ManySlots,
    n: int,
    draws: int,
    *,
    rule: AbstractRule | None = None,
    world: GaussianWorld = WORLD,
    capacity: int = IN_FLIGHT,
) -> tuple[Run, Recorder]:
    """A run over n images, to be handed to evaluate()."""
    model = world.model
    x = to_model_range(unit_images(n), model) if n else np.empty((0, *SHAPE), np.float32)
    streams = streams_of(x)
    plan = make_plan(world.schedule, model.parameterization, PlanConfig(draws=draws, weighting="edm"))
    run = Run(network, SHAPE, plan, seed=0, n_classes=model.num_classes, capacity=capacity)
    requests = (Request(i, x[i], int(streams[i])) for i in range(n))
    made = Recorder(
        rule or Full(), draws, model.num_classes, place=run.place, requests=requests, capacity=min(capacity, IN_FLIGHT)
    )
    return run, made


def network(*, batch: int = 128, slots: int = 1, function: NetworkFunction | None = None) -> ManySlots:
    return ManySlots(function or denoiser(WORLD), batch=batch, slots=slots)


def table(
    images: Float32, *, batch: int = 128, slots: int = 1, world: GaussianWorld = WORLD, **options: Any
) -> ErrorTable:
    return classifier(world, batch=batch, slots=slots).errors(images, **{"draws": 6, **options})


def counts_of(finished: list[Finished]) -> dict[int, list[int]]:
    return {one.key: one.counts.tolist() for one in finished}


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


# --- slots -----------------------------------------------------------------------------------------------------------


def test_slots_run_on_their_own_threads() -> None:
    """Three steps wait until all three are in flight: with fewer threads this would time out."""
    barrier = threading.Barrier(3, timeout=20)

    def function(*cells: Any) -> Any:
        if len(net.recorded) <= 3:
            barrier.wait()
        return denoiser(WORLD)(*cells)

    net = network(slots=3, function=function)
    run, scheduler = prepared(net, 3, 3)
    assert sum(evaluate(net, run, scheduler)) == 27
    assert len(net.threads) == 3
    assert net.recorded == [9, 9, 9]


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_slots_without_work_wait_for_errors(batch: int) -> None:
    """One image at a time, and the first step is slow: the other slots find nothing to do meanwhile."""

    def function(*cells: Any) -> Any:
        if len(net.recorded) == 1:
            time.sleep(0.05)
        return denoiser(WORLD)(*cells)

    net = network(batch=batch, slots=3, function=function)
    run, scheduler = prepared(net, 4, 5, rule=Staged((1, 5), (2, 1)), capacity=1)
    finished: list[Finished] = []
    for _ in evaluate(net, run, scheduler):
        finished += scheduler.finished()
    worst = table(unit_images(4), draws=5).errors[:, :, 0].argmax(axis=1)
    assert [one.key for one in finished] == [0, 1, 2, 3]
    assert counts_of(finished) == {i: [1 if k == worst[i] else 5 for k in range(3)] for i in range(4)}
    assert scheduler.waited


@pytest.mark.parametrize("slots", [1, 3])
def test_without_requests_a_run_ends_at_once(slots: int) -> None:
    net = network(slots=slots)
    run, scheduler = prepared(net, 0, 1)
    assert list(evaluate(net, run, scheduler)) == []
    assert net.recorded == []


@pytest.mark.parametrize("slots", [1, 3])
def test_requests_submitted_between_steps_are_evaluated_too(slots: int) -> None:
    net = network(batch=5, slots=slots)
    run, scheduler = prepared(net, 2, 6)
    x = to_model_range(unit_images(4), MODEL)
    streams = streams_of(x)
    late = iter([2, 3])
    for _ in evaluate(net, run, scheduler):
        if (i := next(late, None)) is not None:
            scheduler.submit(Request(i, x[i], int(streams[i])))
    whole = table(unit_images(4)).errors
    assert scheduler.pairs() == {cell: float(error) for cell, error in np.ndenumerate(whole)}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_busy_network_refuses_another_run_or_makes_it_wait(slots: int) -> None:
    net = network(batch=4, slots=slots)
    run, scheduler = prepared(net, 5, 6)
    steps = evaluate(net, run, scheduler)
    next(steps)
    fails_with(lambda: next(evaluate(net, *prepared(net, 1, 1))), "busy with another run", kind=BackendError)
    done: list[int] = []

    def follow() -> None:
        other_run, other = prepared(net, 1, 1)
        done.append(sum(evaluate(net, other_run, other, wait=True)))

    waiting = threading.Thread(target=follow)
    waiting.start()
    waiting.join(0.05)
    assert done == []
    assert sum(steps) > 0
    waiting.join(20)
    assert done == [3]


def test_the_threads_of_a_network_serve_every_run_and_end_with_it() -> None:
    net = network(batch=4, slots=3)
    for _ in range(3):
        list(evaluate(net, *prepared(net, 5, 6)))
    assert len(net.threads) <= 3
    threads = [thread for thread in threading.enumerate() if thread.ident in net.threads]
    assert threads
    del net
    gc.collect()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    net = network(batch=4, slots=3)
    list(evaluate(net, *prepared(net, 5, 6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: what is tested
        child = os.fork()
    if not child:
        signal.alarm(20)  # instead of a hang
        os._exit(0 if sum(evaluate(net, *prepared(net, 5, 6))) == 5 * 3 * 6 else 1)
    assert os.waitpid(child, 0)[1] == 0


# --- interruptions and failures --------------------------------------------------------------------------------------


def check_observed(scheduler: Recorder, net: ManySlots) -> None:
    """All that the network has evaluated was observed, with the right numbers, and no step is left running."""
    assert not net.working
    got = scheduler.pairs()
    assert len(got) == sum(net.recorded)
    assert 20 <= len(got) < 5 * 3 * 6
    whole = table(unit_images(5)).errors
    assert all(whole[cell] == np.float32(error) for cell, error in got.items())


@pytest.mark.parametrize("slots", [1, 3])
def test_closing_a_run_keeps_every_finished_error(slots: int) -> None:
    net = network(batch=4, slots=slots)
    run, scheduler = prepared(net, 5, 6)
    steps = evaluate(net, run, scheduler)
    done = 0
    while done < 20:
        done += next(steps)
    steps.close()
    check_observed(scheduler, net)
    next(evaluate(net, *prepared(net, 1, 1)))  # the network is free again


def test_an_interrupt_while_waiting_keeps_every_finished_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ctrl-C mostly strikes: the caller waits for a step."""
    net = network(batch=4, slots=3)
    run, scheduler = prepared(net, 5, 6)
    calls = 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr("fastdc.engine.wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate(net, run, scheduler))
    check_observed(scheduler, net)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, MemoryError])
def test_what_a_network_raises_comes_out_and_no_step_stays(slots: int, kind: type[BaseException]) -> None:
    lock = threading.Lock()
    count, finished = 0, 0

    def function(*cells: Any) -> Any:
        nonlocal count, finished
        with lock:
            count += 1
            mine = count
        if mine >= 4:  # with three slots, several steps fail at once
            raise kind("from the network")
        time.sleep(0.01)
        with lock:
            finished += len(cells[0])
        return denoiser(WORLD)(*cells)

    net = network(batch=4, slots=slots, function=function)
    run, scheduler = prepared(net, 5, 6)
    with pytest.raises(kind, match="from the network"):
        list(evaluate(net, run, scheduler))
    assert not net.working
    if kind is KeyboardInterrupt:
        assert len(scheduler.pairs()) == finished == 12
    with pytest.raises(kind):  # and not "busy"
        list(evaluate(net, *prepared(net, 1, 1)))


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_an_error_that_is_not_finite_is_a_failure_of_the_network(slots: int, value: float) -> None:
    """NaN in a table means "not evaluated": a network that overflows must not drop classes silently."""

    def function(sample: Float32, _: Any, labels: Any) -> Float32:
        return np.where(labels[:, None, None, None] == 2, np.float32(value), sample)

    clf = DiffusionClassifier(MODEL, network(slots=slots, function=function))
    with pytest.raises(BackendError, match=r"not finite at image [012], class 2, draw \d+ in float32"):
        clf.classify(unit_images(3))


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("slots", [1, 3])
def test_the_image_of_a_failure_is_named_by_its_key_and_not_by_its_slot(capacity: int, slots: int) -> None:
    """Only the image far from all others makes the network fail; its slot of the pool was another image's before."""
    net = network(slots=slots, function=lambda sample, _, __: np.where(sample < -500, np.nan, sample))
    run, _ = prepared(net, 0, 2, capacity=capacity)
    images = [np.full(SHAPE, -1000 if key == 7 else 0, np.float32) for key in range(9)]
    requests = (Request(key, image, key) for key, image in enumerate(images))
    scheduler = Recorder(Full(), 2, 3, place=run.place, requests=requests, capacity=capacity)
    with pytest.raises(BackendError, match=r"not finite at image 7, class \d, draw \d in float32"):
        list(evaluate(net, run, scheduler))


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
