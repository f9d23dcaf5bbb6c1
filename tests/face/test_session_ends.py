"""How sessions end: interrupted at any line, closed from a callback, dropped, forked, or alive at the exit."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, Classification, DiffusionClassifier, Session, session
from fastdc.support import flag
from helpers.stops import interrupted_at_each_line
from helpers.worlds import SHAPE, ManySlots, classifier, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(4)
OPTIONS: dict[str, Any] = {"rule": "full", "draws": 4}
IMAGES = unit_images(4)


def threads_end(seconds: float = 10.0) -> bool:
    """Whether all threads of sessions end."""
    begin = time.monotonic()
    while any(thread.name.startswith("fastdc-session") for thread in threading.enumerate()):
        if time.monotonic() > begin + seconds:
            return False
        if time.monotonic() > begin + 0.05:
            gc.collect()
        time.sleep(0.002)
    return True


@pytest.fixture
def held() -> Iterator[tuple[DiffusionClassifier, threading.Event]]:
    """A classifier whose network waits for the event."""
    go = threading.Event()

    def evaluate(*cells: Any) -> Any:
        assert go.wait(20)
        return denoiser(WORLD)(*cells)

    yield DiffusionClassifier(WORLD.model, ManySlots(evaluate, SHAPE, batch=64)), go
    go.set()
    assert threads_end()


def test_an_interrupt_at_any_line_leaves_no_thread_behind() -> None:
    clf = classifier(WORLD)

    def use() -> None:
        with Session(clf, **OPTIONS) as one:
            assert one.submit(IMAGES[0]).result(20).labels.shape == (1,)

    stops = 0
    for line in interrupted_at_each_line(use, session, flag):
        stops += 1
        assert threads_end(), f"line {line}"
    assert stops > 60
    clf.classify(IMAGES)  # the network is free


def test_an_interrupt_at_any_line_of_a_call_leaves_the_session_usable() -> None:
    with Session(classifier(WORLD), **OPTIONS) as one:
        answers: list[Future[Classification]] = []
        stops = 0
        for _ in interrupted_at_each_line(lambda: answers.append(one.submit(IMAGES[0])), session):
            stops += 1
            assert one.submit(IMAGES[1]).result(20).labels.shape == (1,)
        assert stops > 10
        answer = one.submit(IMAGES[2])
        for call in (lambda: answer.result(20), lambda: answer.exception(20)):
            for _ in interrupted_at_each_line(call, session, flag):
                answer.result(20)
        assert answers[0].result(20).labels.shape == (1,)
    for _ in interrupted_at_each_line(one.close, session):
        one.close()
    assert threads_end()


def test_an_interrupt_while_waiting_leaves_the_rest(held: tuple[DiffusionClassifier, threading.Event]) -> None:
    """A signal, as Ctrl-C sends it, while the caller waits for a result, and while it waits for the end."""
    clf, go = held
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    try:
        one = Session(clf, **OPTIONS)
        answer = one.submit(IMAGES[0])
        for wait in (answer.result, answer.exception, one.close):
            threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    with pytest.raises(TimeoutError):
        answer.result(0.01)
    with pytest.raises(TimeoutError):
        answer.exception(-1)
    go.set()
    assert answer.result(20).labels.shape == (1,)
    one.close()
    assert not answer.cancel()


def test_closing_again_and_submitting_afterwards(held: tuple[DiffusionClassifier, threading.Event]) -> None:
    clf, go = held
    one = Session(clf, **OPTIONS)
    answer = one.submit(IMAGES[0])
    assert not answer.cancel()
    closers = [threading.Thread(target=one.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    until = time.monotonic() + 10
    while time.monotonic() < until:  # another thread has begun to close
        try:
            one.submit(IMAGES[1]).add_done_callback(lambda _: None)
        except BackendError:
            break
    go.set()
    for closer in closers:
        closer.join(20)
        assert not closer.is_alive()
    assert answer.done()
    one.close()
    fails_with(lambda: one.submit(IMAGES[0]), "over", "closed", kind=BackendError)


def test_every_image_that_races_with_the_end_is_answered() -> None:
    for _ in range(5):
        one = Session(classifier(WORLD), **OPTIONS)
        answers: list[Future[Classification]] = []

        def submit(one: Session = one, answers: list[Future[Classification]] = answers) -> None:
            with suppress(BackendError):
                for _ in range(20):
                    answers.append(one.submit(IMAGES[0], candidates=[0]))

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        one.close()
        for thread in threads:
            thread.join(20)
        for answer in answers:
            error = answer.exception(20)
            assert error is None or "the session is over" in str(error)


def test_a_callback_may_submit_and_close_but_not_wait() -> None:
    one = Session(classifier(WORLD), **OPTIONS)
    found: list[Any] = []

    def callback(done: Future[Classification]) -> None:
        found.append(done.result().labels.shape)
        other = one.submit(IMAGES[1])
        found.append(other)
        try:
            other.result()
        except BackendError as error:
            found.append(str(error))
        one.close()
        found.append("closed")

    one.submit(IMAGES[0]).add_done_callback(callback)
    until = time.monotonic() + 20
    while len(found) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    one.close()
    assert found[0] == (1,)
    assert found[1].result(20).labels.shape == (1,)
    assert "cannot wait" in found[2]
    assert threads_end()


def test_a_dropped_session_answers_and_ends(held: tuple[DiffusionClassifier, threading.Event]) -> None:
    clf, go = held
    answer = Session(clf, **OPTIONS).submit(IMAGES[0])
    gc.collect()
    go.set()
    assert answer.result(20).labels.shape == (1,)
    assert threads_end()


# --- processes -------------------------------------------------------------------------------------------------------


def in_child(check: Callable[[], bool]) -> bool:
    """Whether a check succeeds in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: what is tested
        child = os.fork()
    if not child:
        signal.alarm(20)  # instead of a hang
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("slots", [1, 3])
def test_a_forked_child_is_told_and_can_work_on_its_own(slots: int) -> None:
    """The parent's session runs, its step holds the network, and another thread is about to wait for it."""
    started, go = threading.Event(), threading.Event()
    parent = os.getpid()

    def evaluate(*cells: Any) -> Any:
        if os.getpid() == parent:
            started.set()
            assert go.wait(20)
        return denoiser(WORLD)(*cells)

    clf = DiffusionClassifier(WORLD.model, ManySlots(evaluate, SHAPE, batch=8, slots=slots))
    expected = classifier(WORLD).classify(IMAGES, **OPTIONS)
    with Session(clf, **OPTIONS) as one:
        answer = one.submit(IMAGES[0])
        assert started.wait(20)

        def check() -> bool:
            said = f"was made in process {parent}: make a new one after the fork"
            fails_with(lambda: one.submit(IMAGES[0]), "the session", said, kind=BackendError)
            fails_with(answer.result, said, kind=BackendError)
            one.close()
            with Session(clf, **OPTIONS) as own:
                same = own.submit(IMAGES[1]).result(20).errors[0].tolist() == expected.errors[1].tolist()
            return same and np.array_equal(clf.classify(IMAGES, **OPTIONS).errors, expected.errors)

        assert in_child(check)
        go.set()
        assert answer.result(20).errors[0].tolist() == expected.errors[0].tolist()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_begun_before_a_fork_ends_in_the_child_with_one_error(devices: int) -> None:
    networks = [ManySlots(denoiser(WORLD), SHAPE, batch=4, slots=2) for _ in range(devices)]
    clf = DiffusionClassifier(WORLD.model, networks[0], None, tuple(networks[1:]))
    stream = clf.stream(unit_images(50), chunk=1, rule="full", draws=20)
    next(stream)

    def check() -> bool:
        fails_with(lambda: list(stream), "the run was made in process", kind=BackendError)
        return True

    assert in_child(check)
    assert len(list(stream)) == 49


@pytest.mark.parametrize("case", ["idle", "busy", "exception", "no close in a child"])
def test_an_open_session_does_not_hold_up_the_exit(case: str) -> None:
    code = f"""
        import os, sys, time
        import fastdc
        from helpers.worlds import *
        def evaluate(*cells):
            time.sleep(0.02)
            return denoiser(WORLD)(*cells)
        WORLD = gaussian(4)
        one = fastdc.Session(fastdc.DiffusionClassifier(WORLD.model, ManySlots(evaluate, SHAPE, batch=1)), rule="full")
        case = {case!r}
        if case != "idle":
            answers = [one.submit(image) for image in unit_images(50)]  # more than a minute of work
            time.sleep(0.1)
        if case == "no close in a child" and os.fork():
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        print("end", flush=True)
        if case == "exception":
            sys.exit(3)
    """
    begin = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (3 if case == "exception" else 0, "end\n", "")
    assert time.monotonic() - begin < 30
