"""What a forked child may use: threads and devices stay with the process that made them."""

import os
import threading

from fastdc.support.exceptions import BackendError


def check_process(process: int, what: str) -> None:
    """Refuses to use something in a forked child that works only in the process that made it.

    Args:
        process: Id of the process that made it, from ``os.getpid``.
        what: What was made, for the message, such as "the session".

    Raises:
        BackendError: This is another process.

    Example:
        >>> import os
        >>> from fastdc.support import check_process
        >>> check_process(os.getpid(), "the session")
    """
    if process != os.getpid():
        raise BackendError(f"{what} was made in process {process}: make a new one after the fork, in {os.getpid()}")


def fork_safe_lock() -> threading.Lock:
    """A lock of a module, which is free in a forked child even if a thread of the parent held it.

    Example:
        >>> from fastdc.support import fork_safe_lock
        >>> with fork_safe_lock() as acquired: print(acquired)
        True
    """
    lock = threading.Lock()
    os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]  # as in Python's own modules
    return lock
