"""Runs the configurations of a benchmark, one after the other, each in a process of its own.

First come all backends and precisions with their default batch. Other batches follow only where they may matter: where
all answers agreed at half the speed of the best or more.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.benchmark.advice import Advice, advise
from fastdc.benchmark.child import LABELS, RECORD, TABLE, Request
from fastdc.benchmark.configuration import Configuration, configurations, other_batches, usual
from fastdc.benchmark.rows import Answers, Row
from fastdc.benchmark.samples import Samples
from fastdc.bundle import Bundle
from fastdc.support import checks, shorten, temporary_folder

Starting = Callable[[Configuration, int, int], None]
"""Called before a configuration with it, the number of those that are done, and the number of all that are known."""

_WORTH = 0.5  # other batches are tried from this share of the best rate on
_MEASURING = 0.7  # share of the time for measuring; starting processes takes the rest, or longer on a busy machine
_LIMIT, _LEAST_LIMIT = 10.0, 120.0  # a configuration ends after this many times the whole time, or these seconds

# Resident memory before fastdc is imported, in bytes; the folder of the caller is not searched for modules (-P).
_CHILD = """
from pathlib import Path
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
start = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), None)
from fastdc.benchmark.child import main
main(start)
"""


class Benchmark:
    """The configurations of a model, measured as :meth:`rows` is read.

    Args:
        bundle: The model.
        samples: Images to classify.
        seconds: How long all configurations take together, roughly; longer if libraries are slow to load.
        threads: Number of CPU threads; None: the default.
        quick: Whether to leave out other batches than the defaults, and half precision on the CPU.
        wanted: The configurations, the reference first; None: those that machine and bundle have.

    Attributes:
        known: The rows so far, in the order in which they were measured.
        left_out: Lines that say which batches were not tried, and why.

    Raises:
        InputError: An option is out of range.
        MissingDependencyError: No backend is installed that can run the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        samples: Samples,
        *,
        seconds: float = 60.0,
        threads: int | None = None,
        quick: bool = False,
        wanted: Sequence[Configuration] | None = None,
    ) -> None:
        self.bundle, self.samples = bundle, samples
        self.seconds = checks.positive("seconds", seconds)
        self.threads = threads
        self._more = 0 if quick else 2  # other batches, of one configuration at least
        self.wanted = tuple(configurations(bundle, quick=quick) if wanted is None else wanted)
        self.known: list[Row] = []
        self.left_out: list[str] = []
        self._reference: Answers | None = None

    @property
    def reference(self) -> Configuration:
        """The configuration that the others are compared with."""
        return self.wanted[0]

    @property
    def advice(self) -> Advice:
        """What the rows so far recommend."""
        default = usual(self.wanted) or self.reference
        return advise(
            self.known, next((row for row in self.known if row.configuration.network == default.network), None)
        )

    def rows(self, starting: Starting | None = None) -> Iterator[Row]:
        """Measures one configuration after the other; yields a row each.

        Args:
            starting: Called before each configuration.
        """
        waiting, more = list(self.wanted), self._more
        share = _MEASURING * self.seconds / (len(waiting) + more)
        with temporary_folder() as folder:
            np.save(folder / "images.npy", self.samples.images)
            while waiting:
                one = waiting.pop(0)
                if starting is not None:
                    starting(one, len(self.known), len(self.known) + 1 + len(waiting) + more)
                row = self._row(one, folder, share)
                self.known.append(row)
                yield row
                if not waiting and more:
                    waiting, more = self._others(), 0

    def _row(self, one: Configuration, folder: Path, share: float) -> Row:
        out = folder / str(len(self.known))
        out.mkdir()
        images, first = folder / "images.npy", self._reference is None
        request = Request(
            model=str(self.bundle.path.resolve()),
            backend=one.backend,
            device=one.device,
            precision=one.precision,
            batch=one.batch,
            threads=self.threads,
            images=str(images),
            out=str(out),
            seconds=share,
            started=time.monotonic(),
            all_images=not first,
        )
        row = Row.of(one, run_child(request, limit=max(_LEAST_LIMIT, _LIMIT * self.seconds)))
        if not (out / LABELS).exists() or not (out / TABLE).exists():
            return row if row.reason else replace(row, reason="it gave no answers")
        answers = Answers.read(out / LABELS, out / TABLE)
        if first and one == self.reference:
            self._reference = answers
            np.save(images, self.samples.images[: len(answers.labels)])
        if self._reference is None:
            return row
        row = answers.compare(row, self._reference)
        answered, all_images = len(answers.labels), len(self._reference.labels)
        if not row.reason and answered < all_images:
            row = replace(row, reason=f"slow: only {answered} of {all_images} images were answered in its time")
        return row

    def _others(self) -> list[Configuration]:
        """Other batches of the configurations that are fast enough; notes the rest."""
        rates = {row.configuration: row.images_per_second.median for row in self.known if row.images_per_second}
        best = max((rates[row.configuration] for row in self.known if row.agrees and not row.reason), default=0.0)
        found: list[Configuration] = []
        for row in self.known:
            if row.batch is None or row.configuration not in rates:
                continue
            if row.agrees and not row.reason and rates[row.configuration] >= _WORTH * best:
                found += [row.configuration.with_batch(batch) for batch in other_batches(row.batch)]
            else:
                slow = row.reason or rates[row.configuration] < _WORTH * best
                why = "it is less than half as fast as the best" if slow else "its answers differ"
                self.left_out.append(f"{row.configuration}: no other batches, since {why}")
        return found


def run_child(request: Request, *, limit: float) -> dict[str, Any]:
    """What a process of its own measured; with "error" if it did not come to its end.

    Args:
        request: What to measure.
        limit: Seconds after which the process is ended.
    """
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(asdict(request))]
    said = Path(request.out) / "stderr"
    late = False
    with said.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = True
        finally:  # also after Ctrl-C, which the terminal does not send to another session
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    try:
        record: dict[str, Any] = json.loads((Path(request.out) / RECORD).read_bytes())
    except FileNotFoundError:
        record = {}
    if late:
        record["error"] = f"stopped: it took longer than {limit:.0f} s"
    elif process.returncode:
        record["error"] = _end_of(process.returncode, said)
    return record


def _end_of(code: int, said: Path) -> str:
    """Why a process ended, from its exit code and the last line that it wrote."""
    if code < 0:
        cause = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{cause}"
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"its process ended with exit code {code}: {shorten(last)}"
