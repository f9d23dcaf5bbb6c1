"""Ctrl-C and SIGTERM of a command: both end it in the same way, and neither tears a result apart."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_terminated: list[int] = []


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM, which batch systems send before they kill, end a command as Ctrl-C does."""
    _terminated.clear()
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # another thread than the main one cannot set handlers, and whoever has set one wants it
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_code() -> int:
    """The exit code of a command that was stopped: 128 and the number of the signal, as shells report it."""
    return 128 + (signal.SIGTERM if _terminated else signal.SIGINT)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Delays the first Ctrl-C or SIGTERM.

    Yields:
        A function that says whether there was one.
    """
    held = False
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield lambda: False
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}

    def hold(number: int, frame: FrameType | None) -> None:
        nonlocal held
        if held:
            handlers[number](number, frame)
        if number == signal.SIGTERM:
            _terminated.append(number)
        held = True

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield lambda: held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    _terminated.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a background job of a shell ignores SIGINT
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)
