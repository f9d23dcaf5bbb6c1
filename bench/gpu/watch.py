"""Runs the sides of bench/gpu/networks.py in a process of their own, and starts another process if that one fails.

A kernel that writes out of bounds leaves its process without a device, a library may end the process, and a capture may
wait forever. None of these may cost the measurements of the other sides. Each part is therefore written down before it
begins, so that the next process knows which part to leave out.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO

BROKEN = "begun, and not ended"
"""Reason noted for a part while it runs. If it is still in a result, the part ended its process."""

ALIVE = "networks: still running"
"""A line that is only a sign of life."""

UNFINISHED, STOPPED = 3, 4
"""Exit status of a process that another one should follow, and of :func:`watch` if no process made progress."""

ENDED = (0, 1, 2)  # all is well; problems; nothing to run on
_PROCESSES = 12


def watch(command: Sequence[str], minutes: float, *, more: Sequence[str] = (), silence: float | None = None) -> int:
    """Starts a command, and starts it again with the remaining minutes for as long as it does not finish.

    Args:
        command: The command. It also gets "--invocation ID --minutes LEFT", and prints whenever it makes progress.
        minutes: Time for all processes together. A process gets at least a tenth of a minute, in which it can still
            name the parts that are left out.
        more: Arguments that come last.
        silence: Seconds without output after which a process is killed; default: half of the minutes, but at least
            4 minutes, because an export or the build of an engine cannot be interrupted.

    Returns:
        The last exit status, or STOPPED.
    """
    invocation = datetime.now(UTC).isoformat(timespec="seconds")
    end = time.monotonic() + 60 * minutes
    wait = max(240.0, 30 * minutes) if silence is None else silence
    for _ in range(_PROCESSES):
        left = max(0.1, (end - time.monotonic()) / 60)
        status, said = _listen([*command, "--invocation", invocation, "--minutes", f"{left:.2f}", *more], wait)
        if status in ENDED:
            return status
        if not said:  # it did not begin anything, and the next one would not either
            break
        print(f"the process ended with status {status}: another one goes on", file=sys.stderr, flush=True)
    print("networks: stopped; the measurements so far are kept", file=sys.stderr)
    return STOPPED


def _listen(command: list[str], wait: float) -> tuple[int, bool]:
    """Exit status of a process, and whether it printed anything; it is killed after `wait` seconds of silence."""
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
