"""SIGINT and SIGTERM as a wish to stop after the current step, which a training loop asks about."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopSignals:
    """Collects the names of SIGINT and SIGTERM instead of stopping. A second signal acts as usual, unless it is held.

    Attributes:
        received: Names of the signals so far.
    """

    def __init__(self) -> None:
        self.received: list[str] = []
        self._held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopped(self) -> bool:
        """Whether a signal has come."""
        return bool(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number).name)
        if len(self.received) > 1 and not self._held:
            self.__exit__()
            signal.raise_signal(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds all signals back while a checkpoint is written: it takes moments, and losing it costs more."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
