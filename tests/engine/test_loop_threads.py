"""The engine's slots and their threads: who runs what, and an orderly end whatever is raised and whenever.

The network is that of test_engine.py.
"""

import gc
import os
import signal
import threading
import time
import warnings
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, DiffusionClassifier
from fastdc.diffusion import PlanConfig, make_plan
from fastdc.engine import Denoiser, Finished, Request, Work
from fastdc.engine.loop import evaluate
from fastdc.inference.images import streams_of, to_model_range
from fastdc.rules.full import Full
from fastdc.rules.staged import Staged
from helpers.engine_runs import MODEL, WORLD, Recorder, counts_of, network, prepared, table
from helpers.worlds import SHAPE, Float32, ManySlots, denoiser, fails_with, unit_images

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


@pytest.mark.parametrize(("images", "proposed"), [(6, [8, 8, 8, 8]), (3, [8, 8, 8]), (2, [8, 8])])
def test_a_slot_has_its_next_step_while_full_ones_are_waiting(images: int, proposed: list[int]) -> None:
    """No step ends before all that may be are proposed: of 54, 27 and 18 cells four, three and two steps of 8."""

    def function(*cells: Any) -> Any:
        ready.wait(20)
        return denoiser(WORLD)(*cells)

    class Watched(Recorder):
        def propose(self, room: int) -> Work:
            work = super().propose(room)
            sizes.append(len(work.cells))
            if sizes == proposed:
                threading.Timer(0.1, ready.set).start()  # more would follow at once
            return work

    sizes: list[int] = []
    ready = threading.Event()
    net = network(batch=8, slots=2, function=function)
    run, scheduler = prepared(net, images, 3, kind=Watched)
    steps = evaluate(net, run, scheduler)
    next(steps)
    assert ready.is_set()
    assert sizes == proposed
    list(steps)
    assert scheduler.pairs() == {
        cell: float(e) for cell, e in np.ndenumerate(table(unit_images(images), draws=3).errors)
    }


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
            scheduler.source.add(Request(i, x[i], int(streams[i])))
    whole = table(unit_images(4)).errors
    assert scheduler.pairs() == {cell: float(error) for cell, error in np.ndenumerate(whole)}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_busy_network_refuses_its_own_thread_and_makes_others_wait(slots: int) -> None:
    net = network(batch=4, slots=slots)
    run, scheduler = prepared(net, 5, 6)
    steps = evaluate(net, run, scheduler)
    next(steps)
    fails_with(lambda: next(evaluate(net, *prepared(net, 1, 1))), "busy", "this thread", kind=BackendError)
    done: list[int] = []

    def follow() -> None:
        other_run, other = prepared(net, 1, 1)
        done.append(sum(evaluate(net, other_run, other)))

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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_denoises_while_the_parent_does() -> None:
    parent, begun, go = os.getpid(), threading.Event(), threading.Event()

    def function(*cells: Any) -> Any:
        if os.getpid() == parent:
            begun.set()
            go.wait(20)
        return denoiser(WORLD)(*cells)

    config = PlanConfig(draws=1, method="denoised", noise=0.5)
    plan = make_plan(MODEL.schedule, MODEL.parameterization, config)
    made = Denoiser(network(function=function), SHAPE, plan, label=0)
    images = np.zeros((2, *SHAPE), np.float32)
    thread = threading.Thread(target=made, args=(images,))
    thread.start()
    assert begun.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        signal.alarm(10)
        os._exit(0 if made(images).shape == images.shape else 1)
    assert os.waitpid(child, 0)[1] == 0
    go.set()
    thread.join()


# --- interruptions and failures --------------------------------------------------------------------------------------


def check_observed(scheduler: Recorder, net: ManySlots, at_least: int) -> None:
    """All that the network has evaluated was observed, with the right numbers, and no step is left running."""
    assert not net.working
    got = scheduler.pairs()
    assert len(got) == sum(net.recorded)
    assert at_least <= len(got) < 5 * 3 * 6
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
    check_observed(scheduler, net, at_least=20)
    next(evaluate(net, *prepared(net, 1, 1)))  # the network is free again


def test_an_interrupt_while_waiting_keeps_every_finished_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ctrl-C mostly strikes: the caller waits for a step."""
    net = network(batch=4, slots=3)
    run, scheduler = prepared(net, 5, 6)
    calls = 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # before every step was begun
            raise KeyboardInterrupt
        return wait(*args, **options)

    monkeypatch.setattr("fastdc.engine.loop.wait_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate(net, run, scheduler))
    check_observed(scheduler, net, at_least=2 * 4)  # a step of each wait: on a busy machine no other has begun


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
    scheduler = Recorder(Full(), 2, 3, put=run.put, requests=requests, capacity=capacity)
    with pytest.raises(BackendError, match=r"not finite at image 7, class \d, draw \d in float32"):
        list(evaluate(net, run, scheduler))
