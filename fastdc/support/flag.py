"""An event that survives a Ctrl-C at any moment."""

import contextlib
import threading


class Flag:
    """An event that survives a Ctrl-C at any moment of a wait, since no waiter ever holds a lock that others need.

    Attributes:
        is_set: Whether :meth:`set` was called.

    Example:
        >>> from fastdc.support import Flag
        >>> flag = Flag()
        >>> flag.set()
        >>> flag.wait()
    """

    def __init__(self) -> None:
        self.is_set = False
        self._waiters: list[threading.Lock] = []

    def set(self) -> None:
        """Ends all waits, and those to come. A second call does nothing."""
        self.is_set = True
        with contextlib.suppress(IndexError):
            while True:
                self._waiters.pop().release()

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the flag is set, or for `timeout` seconds."""
        mine = threading.Lock()
        mine.acquire()
        self._waiters.append(mine)
        try:
            if not self.is_set:  # set() sees the waiter, or the waiter sees that it was set
                mine.acquire(timeout=-1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX))
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(mine)
