"""Stops at every line: a kill or a Ctrl-C at each line that an action executes in some source files, one at a time."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any


def lines_of(action: Callable[[], Any], modules: tuple[ModuleType, ...], at: int, stop: Callable[[], None]) -> int:
    """Runs an action, calls `stop` before its line number `at` in the modules, and returns the number of lines."""
    files = {str(Path(module.__file__ or "").resolve()) for module in modules}
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == at:
                sys.settrace(None)
                stop()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def killed_at_each_line(action: Callable[[], Any], *modules: ModuleType) -> Iterator[int]:
    """Runs an action in forked children, of which each is killed one line later than the last; yields the line."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    at = 0
    while True:
        at += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            child = os.fork()
        if not child:
            signal.alarm(20)  # instead of a hang
            try:
                lines_of(action, modules, at, kill)
            except BaseException:
                os._exit(3)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not status:
            return
        assert os.WIFSIGNALED(status), f"line {at}: exit code {os.waitstatus_to_exitcode(status)}"
        assert os.WTERMSIG(status) == signal.SIGKILL, f"line {at}: signal {os.WTERMSIG(status)}"
        yield at


def interrupted_at_each_line(action: Callable[[], Any], *modules: ModuleType) -> Iterator[int]:
    """Runs an action again and again, interrupted one line later each time; yields the line."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    at, lines = 0, 1
    while at < lines:
        at += 1
        try:
            lines = lines_of(action, modules, at, interrupt)
            return
        except KeyboardInterrupt:
            lines = at + 1
        yield at
