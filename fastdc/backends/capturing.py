"""Rules that every capture of a step into a CUDA graph follows, whichever library makes the graph."""

from fastdc.support import fork_safe_lock

CAPTURING = fork_safe_lock()
"""Lock to hold during a capture: a process makes one capture at a time.

torch waits for the whole device before a capture, and CUDA refuses that wait while any stream of the device is being
captured.
"""


def first_cause(error: BaseException) -> BaseException:
    """The exception that was raised first in a chain: a capture that fails fails again when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return error
