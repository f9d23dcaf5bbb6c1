"""Several processes train one model: the same numbers, one that speaks, and all of them end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastdc.cli.launching import launch
from fastdc.support import InputError, MissingDependencyError
from fastdc.train import told
from fastdc.train.joining import joined
from fastdc.train.processes import Processes
from helpers.subprocesses import without
from helpers.tiny_runs import differences, same_bits, tiny
from helpers.together import in_processes

pytest.importorskip("torch")

from fastdc.train import RunFolder, train

# With dropout, changed images, and a batch that two processes cannot share equally.
RECIPE: dict[str, Any] = {
    "steps": 12, "batch": 11, "dropout": 0.3, "augment": "photo", "val": "0.25", "checkpoint_every": 4, "log_every": 4,
}  # fmt: skip

_PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from fastdc.support import FastdcError
from fastdc.train import accuracy, best, loop, told, train
from helpers.tiny_runs import tiny

data, place, recipe = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
index, said = told()[1], []
loop_step = loop._Trainer._train_step

def run(name, *, resume=False, **changes):
    return train(tiny(data, place / name, **(recipe | changes)), resume=resume, progress=False, notify=said.append)

def at(number, action):
    def step(self):
        if index == 1 and self.state.step == number:
            action()
        loop_step(self)
    loop._Trainer._train_step = step

run("two")
print("steps", run("parts", accumulate=3).step)
at(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
stopped = run("resumed")
print("stopped", stopped.step, stopped.stopped_by)
loop._Trainer._train_step = loop_step
print("resumed", run("resumed", resume=True).step)
timed = run("timed", steps=None, minutes=0.01)
print("timed", timed.step == timed.steps)
accuracy._SHARE, best.Best.beaten_by = 10.0, lambda *_: False  # every checkpoint is measured, the first is the best
patient = run("patient", patience=1)
print("patient", patient.step, patient.stopped_by)
try:
    run("none", batch=1)
except FastdcError as error:
    print("refused", error)
print("said", len(said))
"""

_FAILS = """
import json, sys
from pathlib import Path
from fastdc.train import loop, told, train
from helpers.tiny_runs import tiny

def step(self):
    if told()[1] == 1 and self.state.step == 6:
        raise ValueError("a plane\\ncrashed")
    self.step()

loop._Trainer._train_step = step
try:
    train(tiny(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3])), progress=False)
except Exception as error:
    print(type(error).__name__, error)
    import os
    sys.stdout.flush()
    os._exit(3)
"""


def losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines for key in ("loss", "val_loss") if key in line}


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_end_together(data: Path, tmp_path: Path) -> None:
    """The batch of 11 is shared as 5 and 6; the second process alone gets SIGTERM, after six steps."""
    pytest.importorskip("accelerate")
    (code, out), (other_code, other) = in_processes(_PROGRAM, 2, str(data), str(tmp_path), json.dumps(RECIPE))
    assert (code, other_code) == (0, 0), out + other
    lines = out.splitlines()
    assert lines[:4] == ["steps 12", "stopped 7 SIGTERM", "resumed 12", "timed True"]
    assert lines[4] == "patient 8 patience"
    assert lines[5].startswith("refused batch must be at least 2, an image for each of 1 parts (accumulate) in 2 proc")
    assert int(lines[6].split()[1]) > 10
    assert other.splitlines()[:-1] == lines[:-1]
    assert other.splitlines()[-1] == "said 0"

    whole = train(tiny(data, tmp_path / "one", **RECIPE)).path
    for name in ("two", "parts", "resumed"):
        assert differences(whole, tmp_path / name) < 1e-5
        assert losses(tmp_path / name) == pytest.approx(losses(whole), rel=1e-5)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(
            path.name for path in whole.iterdir()
        )
    assert not same_bits(whole, tmp_path / "two")
    # One goes on alone with what two began.
    train(tiny(data, tmp_path / "two", **(RECIPE | {"steps": 14})), resume=True)


def test_the_failure_of_one_process_is_said_by_the_first(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    found = in_processes(_FAILS, 2, str(data), str(tmp_path / "run"), json.dumps(RECIPE))
    assert [code for code, _ in found] == [3, 3]
    assert found[0][1] == "BackendError process 1 of this training: a plane crashed\n"
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.progress["step"] == 4


def _command(data: Path, run: Path, *more: str) -> list[str]:
    options = ["--model", "mlp", "--width", "16", "--batch", "16", "--steps", "1000000", "--threads", "1"]
    start = [sys.executable, "-P", "-m", "fastdc", "train", str(data), "--out", str(run), "--processes", "2"]
    return [*start, *options, "--checkpoint-every", "100", "--val", "0", *more]


def _children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _runs(child: int) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _until(condition: Any, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_with_a_checkpoint_and_a_death_is_noticed(data: Path, tmp_path: Path) -> None:
    """Three fates: Ctrl-C in the process that started them, the death of one, and the death of that process itself."""
    pytest.importorskip("accelerate")
    run = tmp_path / "run"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(_command(data, run), **pipes) as process:
        _until((run / "checkpoint.safetensors").exists, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert f"stopped by SIGINT and saved: {run}" in out
    assert out.endswith(f"next: fastdc train --out {run} --resume --processes 2\n")
    saved = RunFolder(run).load_checkpoint()
    assert saved is not None
    assert f", {saved.progress['step']} of 1000000 steps" in out

    later = (run / "checkpoint.safetensors").stat().st_mtime_ns
    with subprocess.Popen(_command(data, run, "--resume"), **pipes) as process:
        _until(lambda: (run / "checkpoint.safetensors").stat().st_mtime_ns > later, process)
        os.kill(_children(process)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 2
    last = err.splitlines()[-1]
    assert last.startswith("fastdc: error: another process of this training has ended (killed, or out of memory): the")
    assert err.count("error") == 1

    later = (run / "checkpoint.safetensors").stat().st_mtime_ns
    with subprocess.Popen(_command(data, run, "--resume"), **pipes) as process:
        _until(lambda: (run / "checkpoint.safetensors").stat().st_mtime_ns > later, process)
        children = _children(process)
        process.kill()
        out, err = process.communicate(timeout=200)  # which ends when the last process has closed its output
    deadline = time.monotonic() + 10
    while any(map(_runs, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "stopped by SIGTERM and saved" in out, err


def test_a_training_on_its_own_imports_no_accelerate(data: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from fastdc.train import TrainConfig, train
print(train(TrainConfig(data={str(data)!r}, out={str(tmp_path / "run")!r}, model="mlp", width=16, steps=1)).step)
"""
    assert without("accelerate", code) == "1\n"


def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert told() == (1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert told() == (1, 0)  # some clusters say this much of machines
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(InputError, match="whole numbers for several processes, got WORLD_SIZE=4, RANK=2, LOCAL_RANK=x"):
        told()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert told() == (4, 2)
    monkeypatch.setattr("fastdc.support.optional.installed", lambda name: name != "accelerate")
    with pytest.raises(MissingDependencyError, match="accelerate is needed here"), joined("cpu", foreign=False):
        pass


def test_one_process_agrees_with_itself() -> None:
    alone = Processes()
    assert (alone.main, alone.largest(3), alone.of_main(4)) == (True, 3, 4)


def test_a_launch_gives_the_exit_code_of_the_first_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The data are refused by both processes, and it is said once."""
    pytest.importorskip("accelerate")
    (tmp_path / "data.npz").write_bytes(b"no data")
    assert launch(["train", str(tmp_path / "data.npz"), "--out", str(tmp_path / "run")], 2, None) == 2
    err = capfd.readouterr().err
    assert err.startswith("fastdc: error: ")
    assert err.count("\n") == 1
