"""Turns: who may run when runs from many threads share networks, and that nobody waits for ever."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, DiffusionClassifier, Interrupted, Session
from fastdc.engine import Turn, holds, turns
from fastdc.engine.turns import _turns
from fastdc.support import flag
from helpers.stops import interrupted_at_each_line
from helpers.worlds import ManySlots, classifier, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(3)
WAIT = 20
FULL: dict[str, Any] = {"rule": "full", "draws": 8}


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert _turns == []


def networks(count: int) -> list[Any]:
    return [ManySlots(denoiser(WORLD)) for _ in range(count)]


def begun(call: Callable[[], Any]) -> threading.Thread:
    """A thread that makes the call and waits for a turn by now, or has ended."""
    before = len(_turns)
    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(2000):
        if len(_turns) > before or not thread.is_alive():
            break
        time.sleep(0.002)
    return thread


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    (net,) = networks(1)
    order: list[int] = []
    opened = threading.Event()
    first = begun(lambda: Turn([net]).call(lambda: opened.wait(WAIT)))
    others = [begun(lambda i=i: Turn([net]).call(lambda: order.append(i))) for i in range(20)]  # type: ignore[misc]
    assert order == []
    opened.set()
    ended(first, *others)
    assert order == list(range(20))


def test_a_turn_waits_for_those_before_it_that_share_a_network_and_for_no_other() -> None:
    """A run on both networks waits for one of them; a later run on the other one does not pass it."""
    one, two, three = networks(3)
    order: list[str] = []
    opened = threading.Event()
    first = begun(lambda: Turn([one]).call(lambda: opened.wait(WAIT)))
    both = begun(lambda: Turn([two, one]).call(lambda: order.append("both")))
    late = begun(lambda: Turn([two]).call(lambda: order.append("late")))
    Turn([three]).call(lambda: order.append("free"))
    assert order == ["free"]
    opened.set()
    ended(first, both, late)
    assert order == ["free", "both", "late"]


def test_what_a_run_raises_lets_the_next_one_go() -> None:
    (net,) = networks(1)
    with pytest.raises(ZeroDivisionError):
        Turn([net]).call(lambda: 1 // 0)
    assert Turn([net]).call(lambda: 7) == 7


@pytest.mark.parametrize("slots", [1, 2])
def test_a_network_that_fails_lets_the_next_run_go(slots: int) -> None:
    failing = threading.Event()

    def function(*cells: Any) -> Any:
        if failing.is_set():
            raise MemoryError("from the network")
        return denoiser(WORLD)(*cells)

    clf = DiffusionClassifier(WORLD.model, ManySlots(function, slots=slots, batch=4))
    want = clf.classify(unit_images(2), **FULL)
    failing.set()
    found: list[Any] = []
    for _ in range(4):
        with pytest.raises(MemoryError):
            clf.classify(unit_images(2), **FULL)
    failing.clear()
    ended(*[begun(lambda: found.append(clf.classify(unit_images(2), **FULL))) for _ in range(3)])
    assert all(np.array_equal(one.errors, want.errors) for one in found)
    assert len(found) == 3


@pytest.mark.parametrize("slots", [1, 2])
def test_a_thread_that_would_wait_for_itself_is_told(slots: int) -> None:
    clf = classifier(WORLD, slots=slots, batch=4)
    images = unit_images(4)
    want = clf.classify(images, **FULL)
    results = clf.stream(images, chunk=1, **FULL)
    next(results)
    for call in (
        lambda: clf.classify(images, **FULL),
        lambda: clf.errors(images, draws=2),
        lambda: clf.calibrate(images, delta=0.3, seeds=1, draws=2),
        lambda: next(clf.stream(images)),
    ):
        fails_with(call, "busy", "this thread", kind=BackendError)
    assert [len(next(results)) for _ in range(3)] == [1] * 3, "the refused runs do not end it"
    np.testing.assert_array_equal(clf.classify(images, **FULL).errors, want.errors)  # whoever has all results may ask
    with pytest.raises(BackendError, match="callback"):
        clf.classify(images, progress=lambda _: print(clf.classify(images)), **FULL)
    prefilter = clf.classify(images, candidates=lambda x: clf.classify(x, **FULL).probabilities > -1, **FULL)
    np.testing.assert_array_equal(prefilter.errors, want.errors)  # it is called before the run


def test_threads_that_would_wait_for_each_other_are_told() -> None:
    """Each stops in the middle of a run and begins one on the other's network: one is refused, then both end."""
    clfs = [classifier(WORLD), classifier(WORLD)]
    ready, told, got = threading.Barrier(2), [], []

    def cross(own: DiffusionClassifier, other: DiffusionClassifier) -> None:
        results = own.stream(unit_images(3), chunk=1, rule="full", draws=100)
        next(results)
        ready.wait(WAIT)
        try:
            got.append(other.classify(unit_images(1), **FULL))
        except BackendError as error:
            told.append(error)
        results.close()  # type: ignore[attr-defined]

    threads = [threading.Thread(target=cross, args=pair) for pair in (clfs, clfs[::-1])]
    for thread in threads:
        thread.start()
    ended(*threads)
    assert told
    assert len(told) + len(got) == 2


def test_runs_that_name_networks_in_any_order_do_not_lock_each_other_out() -> None:
    one, two = networks(2)
    count = [0]

    def work(*both: Any) -> None:
        for _ in range(200):
            Turn(both).call(lambda: count.__setitem__(0, count[0] + 1))

    threads = [threading.Thread(target=work, args=pair) for pair in ((one, two), (two, one), (two,))]
    for thread in threads:
        thread.start()
    ended(*threads)
    assert count == [600]


def test_a_run_that_is_dropped_ends_also_from_another_thread() -> None:
    clf = classifier(WORLD, slots=2, batch=4)
    made: list[Any] = []

    def leave() -> None:
        made.append(clf.stream(unit_images(4), chunk=1, rule="full", draws=100))
        next(made[0])

    ended(begun(leave))
    found: list[Any] = []
    waiting = begun(lambda: found.append(clf.classify(unit_images(1), **FULL)))
    waiting.join(0.05)
    assert found == []
    made.clear()
    ended(waiting)
    assert len(found) == 1
    next(clf.stream(unit_images(4), chunk=1, **FULL))  # and is dropped here
    assert len(clf.classify(unit_images(1), **FULL).labels) == 1


def test_nobody_waits_for_a_run_whose_thread_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_LOOK_AGAIN", 0.1)
    clf = classifier(WORLD, batch=4)
    stay, made, told = threading.Event(), [], []

    def leave() -> None:
        made.append(clf.stream(unit_images(4), chunk=1, rule="full", draws=100))
        next(made[0])
        stay.wait(WAIT)

    def classify() -> None:
        try:
            clf.classify(unit_images(1), **FULL)
        except BackendError as error:
            told.append(str(error))

    first = threading.Thread(target=leave)
    first.start()
    while not made or not holds_any():
        time.sleep(0.002)
    waiting = begun(classify)
    waiting.join(0.3)
    assert waiting.is_alive(), "the first thread may go on"
    stay.set()  # it ends while the other one waits
    ended(first, waiting)
    fails_with(lambda: clf.classify(unit_images(1), **FULL), "whose thread has ended", kind=BackendError)
    assert "whose thread has ended" in told[0]
    assert sum(len(rest) for rest in made[0]) == 3
    assert len(clf.classify(unit_images(1), **FULL).labels) == 1


def test_a_run_that_nobody_can_reach_ends_for_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that fails may leave its stream in a circle of references, which only the collector finds."""
    monkeypatch.setattr(turns, "_LOOK_AGAIN", 0.05)
    clf = classifier(WORLD, batch=4)

    def leave() -> None:
        results = clf.stream(unit_images(4), chunk=1, rule="full", draws=100)
        next(results)
        circle: list[Any] = [results]
        circle.append(circle)

    gc.disable()
    try:
        ended(begun(leave))
        assert len(_turns) == 1
        assert len(clf.classify(unit_images(1), **FULL).labels) == 1
    finally:
        gc.enable()


def holds_any() -> bool:
    return bool(_turns) and _turns[0]._go.is_set


def test_a_run_may_go_on_in_another_thread() -> None:
    """Its last thread is the one that may not wait for it."""
    clf = classifier(WORLD, batch=4)
    results = clf.stream(unit_images(4), chunk=1, **FULL)
    next(results)
    ended(begun(lambda: next(results)))
    assert not holds(clf.networks)
    found: list[Any] = []

    def go_on() -> None:
        time.sleep(0.05)
        found.extend(results)

    rest = threading.Thread(target=go_on)
    rest.start()
    clf.classify(unit_images(1), **FULL)
    assert found  # a run ends before its last result is taken
    ended(rest)
    assert len(found) == 2


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_waiting_gives_the_place_up() -> None:
    clf = classifier(WORLD)
    opened, main = threading.Event(), threading.get_ident()
    first = begun(lambda: Turn(clf.networks).call(lambda: opened.wait(WAIT)))

    def interrupt() -> None:
        while len(_turns) < 2:
            time.sleep(0.002)
        time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(Interrupted, match="0 of 2 images"):
        clf.classify(unit_images(2), **FULL)
    assert len(_turns) == 1
    opened.set()
    ended(first, other)
    assert len(clf.classify(unit_images(2), **FULL).labels) == 2


@pytest.mark.parametrize("waits", [False, True])
def test_an_interrupt_at_any_line_leaves_no_network_taken(waits: bool) -> None:
    """``waits``: another run has the network for a moment."""
    clf, opened = classifier(WORLD), threading.Event()
    others: list[threading.Thread] = []

    def use() -> None:
        if waits:
            opened.clear()
            others.append(begun(lambda: Turn(clf.networks).call(lambda: opened.wait(0.02))))
        clf.classify(unit_images(1), **FULL)

    stops = 0
    for line in interrupted_at_each_line(use, turns, flag):
        stops += 1
        opened.set()
        ended(*others)
        assert _turns == [], f"line {line}"
    assert stops > 30


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2])
def test_a_session_that_is_never_idle_lets_other_runs_have_their_turn(devices: int) -> None:
    nets = [ManySlots(denoiser(WORLD), batch=4) for _ in range(devices)]
    clf = DiffusionClassifier(WORLD.model, nets[0], replicas=tuple(nets[1:]))
    images = unit_images(8)
    want = clf.classify(images, **FULL)
    stop, answers = threading.Event(), []
    with Session(clf, **FULL) as session:

        def feed() -> None:
            queue: list[Any] = []
            while not stop.is_set():
                queue += [session.submit(image) for image in images]
                while len(queue) > 16:
                    answers.append(queue.pop(0).result(WAIT))
            answers.extend(one.result(WAIT) for one in queue)

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            for _ in range(5):
                np.testing.assert_array_equal(clf.classify(images, **FULL).errors, want.errors)
        finally:
            stop.set()
            thread.join(WAIT)
    assert len(answers) >= 16
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.errors[0], want.errors[i % 8])


def test_who_waits_for_a_session_that_waits_for_him_is_told() -> None:
    clf = classifier(WORLD)
    results = clf.stream(unit_images(3), chunk=1, rule="full", draws=100)
    next(results)
    session = Session(clf, **FULL)
    answer = session.submit(unit_images(1)[0])
    fails_with(answer.result, "busy", "this thread", kind=BackendError)
    fails_with(session.close, "busy", "this thread", kind=BackendError)
    results.close()  # type: ignore[attr-defined]
    assert len(answer.result(WAIT).labels) == 1
    session.close()
    told: list[BaseException | None] = []
    with Session(clf, **FULL) as other:

        def again(_: Any) -> None:
            try:
                clf.classify(unit_images(1))
            except BackendError as error:
                told.append(error)

        other.submit(unit_images(1)[0]).add_done_callback(again)
    assert "busy" in str(told[0])
