"""What every benchmark shares: paired timing, the stamp of the machine, tables, one JSON file a run.

Sides are timed in turns, round by round, so that whatever else the machine does falls on all of them; a ratio is the
median over rounds of the ratio within a round. Times are of one machine and one run: only ratios carry over.
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

import fastdc
from fastdc.diffusion import kernels
from fastdc.support.optional import version_of

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
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


def time_sides(
    sides: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    min_seconds: float = 0.02,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times each side in turns; a call shorter than `min_seconds` is repeated within its round.

    `clock` may be ``time.thread_time`` for sides of one thread on a machine that has other work: what they wait for a
    core is then not counted.
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
    """How many times faster `fast` is: the median of the rounds' ratios."""
    return float(np.median(np.array(slow.seconds) / np.array(fast.seconds)))


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
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
        except OSError:  # no git here
            return ""
        return done.stdout.strip()

    dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short=12", "HEAD") + dirty


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, aligned, ready to be pasted into bench/README.md."""
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
    """A parser with the option that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the JSON goes [%(default)s]")
    return made


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes the result with the machine's stamp, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "command": " ".join(sys.argv), **result}, indent=1)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"\nwritten to {path}")
