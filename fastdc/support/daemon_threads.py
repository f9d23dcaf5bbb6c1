"""Threads for calls that may never come back.

An executor of the standard library is joined when the interpreter ends, so that one call that hangs keeps the process
alive for ever. These threads are not joined, and a call may be given up: nobody waits for it any longer.
"""

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

GRACE = 1.0
"""Seconds that a call is given to end after it was asked to."""

DEVICE_THREAD = "fastdc-device"
"""Beginning of the names of threads that drive a device; they end with their run."""

_Item = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]

_running: "set[Future[Any]]" = set()
_callers: "list[DaemonThreads]" = []  # of :func:`interruptible`: at most one


def _forget() -> None:
    """A child process has none of the threads."""
    _running.clear()
    _callers.clear()


os.register_at_fork(after_in_child=_forget)


class DaemonThreads:
    """Threads that take calls in their order, and end with this object.

    Args:
        count: Number of threads.
        name: Beginning of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        for index in range(count):
            threading.Thread(target=_serve, args=(self._queue,), name=f"{name}-{index}", daemon=True).start()
        weakref.finalize(self, _end, self._queue, count)

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """A future of the result of a call on the next free thread."""
        future: Future[T] = Future()
        self._queue.put((future, function, arguments))
        return future


def _serve(queue: "SimpleQueue[_Item | None]") -> None:
    while (item := queue.get()) is not None:
        future, function, arguments = item
        if future.set_running_or_notify_cancel():
            _running.add(future)
            try:
                result = function(*arguments)
            except BaseException as error:  # for whoever waits
                _running.discard(future)
                future.set_exception(error)
            else:
                _running.discard(future)
                future.set_result(result)
                del result
        del item, future, function, arguments


def _end(queue: "SimpleQueue[_Item | None]", count: int) -> None:
    for _ in range(count):
        queue.put(None)


def interruptible(call: Callable[[], T], stop: Callable[[], None]) -> T:
    """The result of a call into a library that does not notice Ctrl-C, so that the main thread does.

    The first Ctrl-C takes effect when the call has ended. A second one asks the call to stop and gives it up if it does
    not. On other threads, which Ctrl-C does not reach, this is the call itself.

    Args:
        call: The call.
        stop: Asks it to stop, from another thread.

    Raises:
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> from fastdc.support import interruptible
        >>> interruptible(lambda: 6 * 7, lambda: None)
        42
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    if not _callers:
        _callers.append(DaemonThreads(1, "fastdc-call"))
    future = _callers[0].submit(call)
    try:
        return future.result()
    except KeyboardInterrupt:
        try:
            wait([future])
        except KeyboardInterrupt:
            stop()
            if wait([future], timeout=GRACE).not_done:
                _callers.clear()
            raise
        raise


def calls_left() -> bool:
    """Whether calls still run that nobody waits for. An interpreter that ends beside them may crash.

    Example:
        >>> from fastdc.support import calls_left
        >>> calls_left()
        False
    """
    return bool(_running) or any(thread.name.startswith(DEVICE_THREAD) for thread in threading.enumerate())
