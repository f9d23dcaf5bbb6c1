"""The command line as a process: signals, closed pipes, missing packages, and encodings."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.data import digits_test
from fastdc.support import install_hint
from fastdc.testing.absent import WITHOUT

# A background job of a shell and its children ignore SIGINT; these processes must react.
MAIN = "import signal; signal.signal(signal.SIGINT, signal.{}); from fastdc.cli.main import main; main()"


def command(*args: str, without: str = "", background: bool = False) -> list[str]:
    prelude, hidden = (WITHOUT, (without,)) if without else ("", ())
    main = MAIN.format("SIG_IGN" if background else "default_int_handler")
    return [sys.executable, "-c", prelude + main, *hidden, *args]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """4,000 images: classification is still running when a test reads the first line."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "many.npy"
    np.save(path, np.tile(digits_test().images, (10, 1, 1, 1)))
    return path


@pytest.mark.parametrize(("number", "code", "background"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)])
def test_an_interrupt_leaves_whole_lines(many: Path, number: signal.Signals, code: int, background: bool) -> None:
    errors = str(many.with_name("errors.npz"))
    wanted = ("classify", str(many), "--model", "digits-mlp", "--json", "--draws", "32", "--save", errors)
    args = command(*wanted, background=background)
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline()]
        process.send_signal(number)
        lines += process.stdout
        err = process.stderr.read()
    assert process.returncode == code
    assert all(line.endswith("\n") for line in lines)
    entries = [json.loads(line) for line in lines]
    assert 1 <= len(entries) < 4000
    assert err.split("\n") == [
        "note: the race is calibrated for 128 draws: with 32 it makes no promise",
        f"errors saved to {errors}",
        "",
        f"fastdc: interrupted: {len(entries)} of 4000 images finished",
        "",
    ]  # the line end after ^C
    assert len(fastdc.ErrorTable.load(errors)) == len(entries)
    numbers = [int(entry["image"].removeprefix(f"{many}[").removesuffix("]")) for entry in entries]
    assert numbers == sorted(set(numbers))  # in order, without unfinished images
    again = fastdc.load("digits-mlp").classify(digits_test().images, draws=32)
    assert [entry["label"] for entry in entries] == [int(again.labels[number % 400]) for number in numbers]


def test_a_closed_pipe_is_not_an_error(many: Path) -> None:
    args = command("classify", str(many), "--model", "digits-mlp", "--draws", "1", "--quiet")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(str(many).encode())
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_no_fault_of_the_command_line(many: Path) -> None:
    args = command("classify", str(many), "--model", "digits-mlp", "--draws", "1", "--quiet")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(args, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "fastdc: error: No space left on device\n")


@pytest.mark.parametrize("backend", ["auto", "onnx", "torch"])
def test_a_missing_backend_is_one_line_that_names_the_extra(backend: str) -> None:
    args = command("demo", "--model", "digits-mlp", "--backend", backend, without="onnxruntime,torch")
    result = subprocess.run(args, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastdc: error: ")
    assert install_hint("torch" if backend == "torch" else "cpu") in line


def test_a_plot_without_matplotlib_is_refused_before_the_work(tmp_path: Path) -> None:
    args = command("demo", "--plot", str(tmp_path / "sheet.png"), without="matplotlib")
    result = subprocess.run(args, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert install_hint("plot") in line
    assert list(tmp_path.iterdir()) == []


def test_help_and_refusals_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom fastdc.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'onnxruntime', 'diffusers', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    for args in (["--help"], ["classify", "--help"], ["info"], ["classify", "x", "--model", "no-such-model"]):
        result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]", args


def test_a_terminal_that_cannot_show_a_character_is_not_an_error(tmp_path: Path) -> None:
    """A class or file may have any name, and the terminal may have another encoding."""
    pytest.importorskip("onnxruntime")
    from PIL import Image

    Image.fromarray(digits_test().images[0, 0]).save(tmp_path / "naïve ☃.png")
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    for extra in ([], ["--json"]):
        args = command("classify", ".", "--model", "digits-mlp", "--draws", "1", "--quiet", *extra)
        result = subprocess.run(args, capture_output=True, check=False, timeout=60, env=env, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, b"")
        (line,) = result.stdout.decode("latin-1").splitlines()
        shown = json.loads(line)["image"] if extra else line.split("\t")[0]
        assert shown == ("naïve ☃.png" if extra else "naïve \\u2603.png")


def test_the_installed_script_is_main() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="fastdc")
    assert script.value == "fastdc.cli.main:main"
