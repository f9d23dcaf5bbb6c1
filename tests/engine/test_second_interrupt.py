"""A second Ctrl-C ends a run whose network does not come back; the first one waits for the steps in flight.

Each program runs in a process of its own and is sent the signals of a terminal.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import GRACE
from helpers.denoiser_graphs import graph, onnx_package
from helpers.worlds import tiny_bundle

FUNCTION = """
import sys, threading, time
import numpy as np
from fastdc import DiffusionClassifier
from helpers.worlds import ManySlots, gaussian

def hangs(sample, timestep, labels):
    print("running", flush=True)
    threading.Event().wait(600)

world = gaussian()
make = lambda slots: ManySlots(hangs, world.model.image_shape, batch=2, slots=slots)
slots = int(sys.argv[1])
clf = DiffusionClassifier(world.model, make(slots or 1), replicas=() if slots else (make(1),))
try:
    clf.classify(np.zeros((4, *world.model.image_shape), np.float32))
except KeyboardInterrupt:
    print("interrupted", flush=True)
try:
    clf.classify(np.zeros((1, *world.model.image_shape), np.float32))
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""

ONNX = """
import sys
import numpy as np
import fastdc

print("loading", flush=True)
clf = fastdc.load(sys.argv[1], backend="onnx", threads=int(sys.argv[2]))
print("running", flush=True)
try:
    clf.classify(np.zeros((4, 1, 2, 3), np.float32))
except KeyboardInterrupt:
    print("interrupted", flush=True)
try:
    clf.classify(np.zeros((4, 1, 2, 3), np.float32))
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


def endless(side: int) -> bytes:
    """A denoiser that multiplies matrices of side x side for hours."""
    onnx = onnx_package()
    helper = onnx.helper
    sides = onnx.numpy_helper.from_array(np.array([side, side]), "sides")
    nodes = [
        helper.make_node("Constant", [], ["sides"], value=sides),
        helper.make_node("ReduceSum", ["sample"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "sides"], ["v0"]),
        *(helper.make_node("MatMul", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(2000)),
        helper.make_node("ReduceSum", ["v2000"], ["last"], keepdims=0),
        helper.make_node("Add", ["sample", "last"], ["output"]),
    ]
    return graph(nodes=nodes)


def started(program: str, *arguments: Any) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def interrupted_twice(process: "subprocess.Popen[str]") -> tuple[str, str, float]:
    """Output and error of a process that got two signals, and the seconds that it lived after the second."""
    assert process.stdout is not None
    try:
        while "running" not in (line := process.stdout.readline()):
            assert line, process.communicate()[1]
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the first one waits for the steps in flight"
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        output, error = process.communicate(timeout=60)
        return output, error, time.monotonic() - start
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("slots", [2, 0], ids=["two slots", "two devices"])
def test_a_function_that_hangs(slots: int) -> None:
    output, _, seconds = interrupted_twice(started(FUNCTION, slots))
    assert "interrupted\nBackendError" in output
    assert "load the model again" in output
    assert seconds < GRACE + 15  # the interpreter's own end, on a busy machine


@pytest.mark.parametrize(("side", "threads"), [(1500, 1), (1500, 2), (6000, 2)])
def test_a_graph_that_hangs(side: int, threads: int, tmp_path: Path) -> None:
    """Products of 1500 x 1500 end soon, and ONNX Runtime stops after one of them; those of 6000 x 6000 do not."""
    bundle = tiny_bundle(tmp_path / "b", endless(side)).path
    output, error, seconds = interrupted_twice(started(ONNX, bundle, threads))
    assert "interrupted\nBackendError" in output, error
    assert "given up: load the model again" in output
    assert seconds < GRACE + 15


def test_the_command_ends_with_its_code_and_results(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", endless(6000)).path
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 2, 3), np.float32))
    program = "from fastdc.cli.main import main; print('running', flush=True); main()"
    process = started(program, "classify", tmp_path / "x.npy", "--model", bundle, "--backend", "onnx", "--quiet")
    time.sleep(4)  # the command says nothing while it works
    _, error, seconds = interrupted_twice(process)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted" in error
    assert seconds < GRACE + 15
