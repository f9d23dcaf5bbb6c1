"""Threads that nobody has to wait for. What Ctrl-C does to them is tested on whole programs, in tests/engine."""

import gc
import threading
import time

import pytest

from fastdc.support import DaemonThreads, calls_left, interruptible


def test_calls_return_or_raise_what_the_function_does() -> None:
    threads = DaemonThreads(2, "test-pool")
    assert [threads.submit(pow, 2, power).result(20) for power in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 / 0).result(20)
    assert threads.submit(lambda: threading.current_thread().daemon).result(20)


def test_a_call_that_waits_can_be_cancelled() -> None:
    threads, go = DaemonThreads(1, "test-cancel"), threading.Event()
    first, second = threads.submit(go.wait, 20), threads.submit(int)
    while not first.running():
        time.sleep(0.001)
    assert calls_left()
    assert second.cancel()
    go.set()
    assert first.result(20)
    assert threads.submit(int).result(20) == 0
    assert not calls_left()


def test_threads_end_with_their_object() -> None:
    threads = DaemonThreads(3, "test-end")
    threads.submit(int).result(20)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("test-end")]
    assert len(mine) == 3
    del threads
    gc.collect()
    for thread in mine:
        thread.join(20)
        assert not thread.is_alive()


def test_only_the_main_thread_hands_its_calls_over() -> None:
    assert interruptible(threading.current_thread, lambda: None) is not threading.main_thread()
    found: list[object] = []
    other = threading.Thread(target=lambda: found.append(interruptible(threading.current_thread, lambda: None)))
    other.start()
    other.join(20)
    assert found == [other]
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, lambda: None)
