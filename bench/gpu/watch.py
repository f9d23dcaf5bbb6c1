"""Runs the sides of bench/gpu_networks.py in processes that may end: one that does is followed by another.

A kernel that writes where it must not leaves its process without a device, a library may end it, and a capture may
wait for ever. Measurements are too dear for one of these to cost all the others: what a process begins is written down
before it begins, so that the next one knows what to leave out.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO

BROKEN = "begun, and not ended"
"""Why a part has no numbers while it runs; what is left in a result names what ended a process."""

ALIVE = "gpu_networks: still running"
"""A line that is a sign of life and no more."""

UNFINISHED, STOPPED = 3, 4
"""Exit statuses: of a process after which another should go on; of :func:`watch` where none got anywhere."""

ENDED = (0, 1, 2)  # all is well, problems, nothing to run on
_PROCESSES = 12


def watch(command: Sequence[str], minutes: float, *, more: Sequence[str] = (), silence: float | None = None) -> int:
    """Starts a command, and again where it did not come to its end, with the minutes that are left.

    Args:
        command: Is given "--run ID --minutes LEFT" besides; says something on stdout whenever it gets on.
        minutes: In all. The last ones that are given are at least a tenth of one, so that what is left is named.
        more: Arguments that come last.
        silence: Seconds without a word after which a process is ended; default half of the minutes, and 4 minutes at
            least: what cannot be cut short (an export, the build of an engine) takes that long.

    Returns:
        The last exit status, or STOPPED.
    """
    run = datetime.now(UTC).isoformat(timespec="seconds")
    end = time.monotonic() + 60 * minutes
    wait = max(240.0, 30 * minutes) if silence is None else silence
    for _ in range(_PROCESSES):
        left = max(0.1, (end - time.monotonic()) / 60)
        status, said = _listen([*command, "--run", run, "--minutes", f"{left:.2f}", *more], wait)
        if status in ENDED:
            return status
        if not said:  # it did not come to begin anything, and the next one would not either
            break
        print(f"the process ended with status {status}: another goes on", file=sys.stderr, flush=True)
    print("gpu_networks: stopped, what was measured until then is kept", file=sys.stderr)
    return STOPPED


def _listen(command: list[str], wait: float) -> tuple[int, bool]:
    """Exit status of a process, and whether it said anything; it is killed after so many seconds of silence."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        heard = [time.monotonic()]
        reader = threading.Thread(target=_pass_on, args=(process.stdout, heard), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                if time.monotonic() - heard[-1] > wait:
                    process.kill()
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
        reader.join(5)
        return process.wait(), len(heard) > 1


def _pass_on(lines: IO[str], heard: list[float]) -> None:
    for line in lines:
        heard.append(time.monotonic())
        if line.strip() != ALIVE:
            print(line, end="", flush=True)
