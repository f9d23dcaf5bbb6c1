#!/usr/bin/env python3
"""Feeds random and damaged inputs to every reader and every native entry of fastdc.

    python tools/fuzz.py                                every target, 1000 inputs each
    python tools/fuzz.py images onnx --inputs 100000    some targets, longer
    python tools/fuzz.py --list                         the targets
    python tools/fuzz.py images --again 4711            input 4711 once more, with its traceback

An input is a function of (target, seed, number), except that training runs note times. A child process reads it, which
may succeed, or raise one of fastdc's exceptions with a message of one line. Everything else is a finding:
another exception, a crash, more than 2 seconds, more than 1 GB of memory. Findings are written to --findings, one file
per input; the exit status is 1 if there are any.
"""

import argparse
import contextlib
import importlib
import mmap
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdc import FastdcError, MissingDependencyError
from fuzzing.target import Target

MODULE = "fuzzing.targets"
SECONDS = 2.0
WALL_SECONDS = 60.0  # for a child that waits and uses no processor time
MEMORY = 2**30
SHOWN = 10  # findings per target
PER_CHILD = 5000  # inputs, so that what the libraries leave behind does not add up


_PREPARING = 2**64 - 1  # in place of an input's number


@dataclass(frozen=True)
class Finding:
    """An input that was not handled.

    Attributes:
        target: Name of the target.
        number: Number of the input.
        what: What happened, in one line.
    """

    target: str
    number: int
    what: str


def targets_of(module: str) -> dict[str, Callable[[Path], Target]]:
    """The targets of a module, by name."""
    made: dict[str, Callable[[Path], Target]] = importlib.import_module(module).TARGETS
    return made


def input_of(target: Target, name: str, seed: int, number: int) -> bytes:
    """Input `number` of a target."""
    rng = random.Random(f"{name} {seed} {number}")
    return target.mutate(rng.choice(target.seeds), rng)


def problem_of(target: Target, data: bytes) -> str | None:
    """Reads an input; returns what is wrong with the reaction, or None."""
    try:
        target.read(data)
    except MissingDependencyError:
        raise
    except FastdcError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            return f"message of {len(str(error))} characters: {str(error)!r:.300}"
    except BaseException as error:  # the point of it all
        return f"{type(error).__name__}: {error!s:.300}; {_origin(error)}".replace("\n", " ")
    return None


def _origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}fastdc{os.sep}" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def child(
    targets: dict[str, Callable[[Path], Target]], name: str, seed: int, start: int, stop: int, status: Path
) -> None:
    """Reads inputs start ... stop - 1, and notes before each which one it is."""
    with status.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared, prepared(targets, name) as target:
        for seed_input in target.seeds:  # imports what is needed
            if what := problem_of(target, seed_input):
                raise SystemExit(f"a valid input fails: {what}")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for number in range(start, stop):
            shared[:] = number.to_bytes(8, "little")
            what = problem_of(target, input_of(target, name, seed, number))
            if what is not None:
                print(f"{number} {what}", flush=True)
        shared[:] = stop.to_bytes(8, "little")


def run(name: str, *, inputs: int, seed: int = 0, first: int = 0, module: str = MODULE) -> list[Finding]:
    """Reads inputs of a target in child processes and returns the findings.

    Raises:
        SystemExit: The target cannot be prepared, or fails with a valid input.
    """
    found: list[Finding] = []
    start, end = first, first + inputs
    with tempfile.TemporaryDirectory() as folder:
        status, log = Path(folder) / "status", Path(folder) / "log"
        while start < end:
            stop = min(start + PER_CHILD, end)
            status.write_bytes(_PREPARING.to_bytes(8, "little"))
            ended = _watch(name, seed, (start, stop), status, log, module)
            for line in log.read_text(errors="replace").splitlines():
                digits, _, what = line.partition(" ")
                if digits.isdecimal():
                    found.append(Finding(name, int(digits), what))
            number = int.from_bytes(status.read_bytes(), "little")
            if number == _PREPARING:
                raise SystemExit(f"{name} cannot be prepared: {ended}")
            if ended:
                found.append(Finding(name, number, ended))
            start = number + 1 if ended else stop
    return found


def _watch(name: str, seed: int, bounds: tuple[int, int], status: Path, log: Path, module: str) -> str:
    """Runs a child until it ends or hangs; returns what ended it early, or an empty text."""
    command = [sys.executable, __file__, name, "--seed", str(seed), "--module", module]
    command += ["--child", *map(str, bounds), str(status)]
    errors = log.with_suffix(".stderr")
    with log.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
    number, since, used = -1, time.monotonic(), 0.0
    try:
        while process.poll() is None:
            time.sleep(0.05)
            now = int.from_bytes(status.read_bytes(), "little")
            if now != number:
                number, since, used = now, time.monotonic(), _processor_seconds(process.pid)
                continue
            limit = 20 * SECONDS if number == _PREPARING else SECONDS
            waited = time.monotonic() - since
            if (waited > limit and _processor_seconds(process.pid) - used > limit) or waited > WALL_SECONDS:
                return f"hangs: more than {limit:g} s"
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return ""
    tail = errors.read_text(errors="replace").strip().splitlines()[-1:]
    return f"the process ended with {process.returncode}: {' '.join(tail):.300}"


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def prepared(targets: dict[str, Callable[[Path], Target]], name: str) -> Iterator[Target]:
    """A target in a scratch folder, which is the working directory."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        yield targets[name](Path(scratch))


def save(found: list[Finding], target: Target, seed: int, folder: Path) -> None:
    """Writes the inputs of findings, each with what happened in a file beside it."""
    for finding in found:
        file = folder / f"{finding.target}-{seed}-{finding.number}"
        file.write_bytes(input_of(target, finding.target, seed, finding.number))
        file.with_suffix(".txt").write_text(finding.what + "\n")


def again(target: Target, name: str, seed: int, number: int) -> None:
    """Reads one input in this process, so that its traceback is seen."""
    data = input_of(target, name, seed, number)
    print(f"{len(data)} bytes: {data[:400]!r}")
    print(f"read: {target.read(data)!r:.300}")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("targets", nargs="*", metavar="TARGET", help="targets; all without one")
    made.add_argument("--inputs", type=int, default=1000, help="inputs per target [%(default)s]")
    made.add_argument("--seed", type=int, default=0, help="another seed makes other inputs [%(default)s]")
    made.add_argument("--first", type=int, default=0, help="number of the first input [%(default)s]")
    made.add_argument("--findings", type=Path, help="folder for inputs that were not handled")
    made.add_argument("--list", action="store_true", help="name the targets and stop")
    made.add_argument("--again", type=int, metavar="NUMBER", help="read one input of one target, here")
    made.add_argument("--module", default=MODULE, help="module with a dictionary TARGETS [%(default)s]")
    made.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return made


def main() -> int:
    """Runs the command; returns the exit status."""
    options = parser()
    asked = options.parse_args()
    targets = targets_of(asked.module)
    unknown = set(asked.targets) - set(targets)
    if unknown:
        options.error(f"there is no target {min(unknown)}; --list names them")
    if asked.list:
        for name, make in targets.items():
            print(f"{name:14} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    if asked.child:
        start, stop, status = asked.child
        child(targets, asked.targets[0], asked.seed, int(start), int(stop), Path(status))
        return 0
    if asked.again is not None:
        if len(asked.targets) != 1:
            options.error("--again needs exactly one target")
        with prepared(targets, asked.targets[0]) as target:
            again(target, asked.targets[0], asked.seed, asked.again)
        return 0
    total = 0
    if asked.findings is not None:
        asked.findings = asked.findings.resolve()
        asked.findings.mkdir(parents=True, exist_ok=True)
    for name in asked.targets or targets:
        start = time.monotonic()
        found = run(name, inputs=asked.inputs, seed=asked.seed, first=asked.first, module=asked.module)
        print(f"{name:14} {asked.inputs} inputs, {len(found)} findings, {time.monotonic() - start:.0f} s", flush=True)
        total += len(found)
        for finding in found[:SHOWN]:
            print(f"  {finding.number}: {finding.what}", flush=True)
        if found and asked.findings is not None:
            with prepared(targets, name) as target:
                save(found, target, asked.seed, asked.findings)
    return 1 if total else 0


if __name__ == "__main__":
    raise SystemExit(main())
