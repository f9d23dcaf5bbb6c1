"""Several processes of one command on this machine, each told its place as torchrun tells it.

The processes are in sessions of their own, so that Ctrl-C reaches this one alone, which passes each signal on once.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

_GRACE = 20.0
"""Seconds that the others have to end after one has failed; a GPU that waits for a lost one would wait for ever."""

_PARENT = "FASTDC_PARENT"


def launch(arguments: Sequence[str], count: int, threads: int | None) -> int:
    """Runs ``fastdc`` in several processes, and returns the exit code of the first of them.

    Args:
        arguments: What follows ``fastdc``.
        count: Number of processes.
        threads: Number of CPU threads of each, if the arguments say it; None: an equal share of the CPUs.

    Raises:
        ClickException: One was killed, or had to be.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    share = threads or max(1, len(os.sched_getaffinity(0)) // count)
    usual = {"OMP_NUM_THREADS": share, "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    children: list[subprocess.Popen[bytes]] = []
    with _passed_on(children):
        for index in range(count):
            own = {"RANK": index, "LOCAL_RANK": index, _PARENT: os.getpid()}
            told = {name: str(value) for name, value in (shared | own).items()}
            environment = {name: str(value) for name, value in usual.items()} | dict(os.environ) | told
            command = [sys.executable, "-P", "-m", "fastdc", *arguments]
            children.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        first = _wait(children)
    code = children[0].returncode
    if code < 0:  # otherwise it has said what there is to say
        how = children[first].returncode
        end = f"was ended by {signal.Signals(-how).name}" if how < 0 else f"failed with exit code {how}"
        raise click.ClickException(f"process {first} of {count} {end}")
    return code


def follow() -> None:
    """Lets a process that :func:`launch` has started stop, as on SIGTERM, when the one that started it has ended."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return

    def ended(number: int, frame: FrameType | None) -> None:
        # The signal comes again with each thread of the one that ends, and a second SIGTERM would stop without saving.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGHUP, ended)
    ctypes.CDLL(None).prctl(1, signal.SIGHUP)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        raise KeyboardInterrupt


def _wait(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Waits until all have ended, ends those that stay after one has failed, and says which was the first to fail."""
    first, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        failed = [index for index, child in enumerate(children) if child.poll()]
        if failed and deadline == float("inf"):
            first, deadline = failed[0], time.monotonic() + _GRACE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    return first


@contextmanager
def _passed_on(children: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Passes Ctrl-C and SIGTERM on to processes; ends them if this one is stopped by anything else."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)  # which does nothing for one that has ended

    before: dict[int, Any] = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
