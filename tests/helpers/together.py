"""Python programs that run in several processes which find each other as under torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def in_processes(program: str, count: int, *arguments: str, timeout: float = 300) -> list[tuple[int, str]]:
    """Runs a program in several processes.

    Args:
        program: The program.
        count: Number of processes.
        arguments: Its arguments.
        timeout: Seconds after which the processes are ended, and the test fails.

    Returns:
        The exit code and the output of each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for index in range(count):
        told = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        usual = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        place = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
        environment = {**os.environ, **usual, **place, **{name: str(value) for name, value in told.items()}}
        command = [sys.executable, "-c", program, *arguments]
        children.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    try:
        outputs = [child.communicate(timeout=timeout)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, output) for child, output in zip(children, outputs, strict=True)]
