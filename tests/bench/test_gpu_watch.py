"""bench/gpu/watch.py: processes that end, fall silent or make no progress, and their successors."""

import sys
from pathlib import Path

import pytest

from gpu.watch import ALIVE, STOPPED, watch

# Records its arguments, acts on the first remaining word, and leaves the other words to the next process.
STAND_IN = """
import os, signal, sys, time
log, words = sys.argv[1], sys.argv[2]
left = open(words).read().split()
open(words, "w").write(" ".join(left[1:]))
open(log, "a").write(" ".join(sys.argv[3:]) + chr(10))
if left[0] != "mute":
    print("ALIVE", flush=True)
print("a line of", left[0], "\\n\\nand another", flush=True) if left[0].isdigit() else None
if left[0] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if left[0] == "silent":
    time.sleep(600)
sys.exit(int(left[0]) if left[0].isdigit() else 3)
""".replace("ALIVE", ALIVE)


def watched(folder: Path, words: str, silence: float = 60.0) -> tuple[int, list[list[str]]]:
    """Exit status of watch(), and the arguments of each process that it started."""
    log, plan = folder / "log", folder / "words"
    plan.write_text(words, encoding="utf-8")
    command = [sys.executable, "-S", "-c", STAND_IN, str(log), str(plan), "given"]
    status = watch(command, 2, more=["--last"], silence=silence)
    return status, [line.split() for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_process_that_finishes_is_the_last(status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its output is passed on, but not its signs of life."""
    found, started = watched(tmp_path, str(status))
    assert (found, len(started)) == (status, 1)
    assert capfd.readouterr().out == f"a line of {status} \n\nand another\n"
    given, invocation, minutes = started[0][0], started[0][1:3], started[0][3:5]
    assert (given, invocation[0], minutes[0], started[0][5:]) == ("given", "--invocation", "--minutes", ["--last"])
    assert 1.5 < float(minutes[1]) <= 2


def test_another_goes_on_after_one_that_was_killed_or_lost_the_device(tmp_path: Path) -> None:
    status, started = watched(tmp_path, "killed lost 1")
    assert (status, len(started)) == (1, 3)
    assert len({one[2] for one in started}) == 1, "of the same invocation"


def test_a_silent_process_is_killed(tmp_path: Path) -> None:
    status, started = watched(tmp_path, "silent 0", silence=3.0)
    assert (status, len(started)) == (0, 2)


def test_a_process_without_progress_has_no_successor(tmp_path: Path) -> None:
    status, started = watched(tmp_path, "mute 0")
    assert (status, len(started)) == (STOPPED, 1)


def test_the_number_of_processes_is_limited(tmp_path: Path) -> None:
    status, started = watched(tmp_path, "lost " * 30)
    assert status == STOPPED
    assert len(started) == 12
