"""Tools of all benchmarks: paired timing, a description of the machine, tables, and one JSON file per benchmark.

Sides are timed in turns, round by round, so that other work of the machine affects all of them. A ratio is the median
over rounds of the ratio within a round. Times hold for one machine and one session; only ratios carry over.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from fastdc.diffusion import kernels
from fastdc.engine import Scheduler, Work
from fastdc.support import version_of, write_whole

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds per round of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float((high - low) / 2 / self.median)


class TimedSlot:
    """A slot that adds up the time spent in the network."""

    def __init__(self, slot: Any) -> None:
        self._slot = slot
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slot, name)

    def run(self, count: int) -> None:
        start = time.perf_counter()
        self._slot.run(count)
        self.seconds += time.perf_counter() - start


class TimedScheduler(Scheduler):
    """A scheduler that adds up the time spent in each of its methods, and counts steps and cells."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds = {"prepare": 0.0, "propose": 0.0, "observe": 0.0}
        self.steps = 0
        self.cells = 0

    def prepare(self) -> int:
        start = time.perf_counter()
        waiting = super().prepare()
        self.seconds["prepare"] += time.perf_counter() - start
        return waiting

    def propose(self, room: int) -> Work:
        start = time.perf_counter()
        work = super().propose(room)
        self.seconds["propose"] += time.perf_counter() - start
        self.steps += bool(len(work.cells))
        self.cells += len(work.cells)
        return work

    def observe(self, work: Work, errors: npt.NDArray[np.float32]) -> None:
        start = time.perf_counter()
        super().observe(work, errors)
        self.seconds["observe"] += time.perf_counter() - start


def time_sides(
    sides: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    min_seconds: float = 0.02,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times the sides in turns.

    Args:
        sides: Functions to time, by name.
        rounds: Number of timed rounds.
        min_seconds: Least time per side and round; shorter calls are repeated.
        warmup: Untimed calls per side.
        clock: Clock to read. ``time.thread_time`` suits sides of one thread on a busy machine: it does not count the
            time that a side waits for a core.
    """
    repeats = {}
    for name, side in sides.items():
        for _ in range(warmup):
            side()
        start = clock()
        side()
        repeats[name] = max(1, round(min_seconds / max(clock() - start, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = clock()
            for _ in range(repeats[name]):
                side()
            seconds[name].append((clock() - start) / repeats[name])
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is than `slow`: the median ratio over rounds."""
    return float(np.median(np.array(slow.seconds) / np.array(fast.seconds)))


def machine() -> dict[str, Any]:
    """The machine and the versions that the numbers hold for."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "fastdc": fastdc.__version__,
        "commit": _commit(),
        "cpu_isa": kernels.cpu_isa(),
        "numpy": np.__version__,
        "torch": version_of("torch"),
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "load_at_start": round(os.getloadavg()[0], 2),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # git is not installed
            return ""
        return done.stdout.strip()

    dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short=12", "HEAD") + dirty


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints an aligned Markdown table, ready for docs/benchmarks.md."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    print(f"\n{title}\n")
    print("\n".join([line(columns), line(rule), *map(line, rows)]), flush=True)


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the option --out, which all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file to write [%(default)s]")
    return made


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes the complete result, with a description of the machine, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "command": " ".join(sys.argv), **result}, indent=1)
    write_whole(path, f"{text}\n".encode())
    print(f"\nwritten to {path}")
