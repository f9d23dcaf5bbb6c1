"""What a step costs besides the network: packing, noise, error, bookkeeping.

    python bench/step.py [--model digits] [--batch 128] [--images 100]

Runs the engine on one thread with the network's own time taken inside the slot; everything else, the rule and the
ErrorTable included, is the difference to the wall time. The kernels are then timed alone on the batch of a first look.
Also reports the peak memory of the process at few and many draws, beside the size of the ErrorTable.
"""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import TimedSlot, parser, print_table, save, time_sides
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from fastdc.engine import Pool, Request, Scheduler, Work, evaluate
from fastdc.inference import Job, Options, streams_of, to_model_range


class TimedScheduler(Scheduler):
    """A scheduler that counts the time spent in it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds = {"propose": 0.0, "observe": 0.0}

    def propose(self, room: int) -> Work:
        start = time.perf_counter()
        work = super().propose(room)
        self.seconds["propose"] += time.perf_counter() - start
        return work

    def observe(self, work: Work, errors: npt.NDArray[np.float32]) -> None:
        start = time.perf_counter()
        super().observe(work, errors)
        self.seconds["observe"] += time.perf_counter() - start


def profile(model: str, batch: int, count: int, rule: str) -> dict[str, Any]:
    """Network and everything else of one run, and the parts: kernels alone, scheduler as it ran."""
    classifier = fastdc.load(model, batch=batch, threads=1)
    network, spec = classifier.network, classifier.model
    job = Job.of(spec, [network], Options(rule=rule))
    x = to_model_range(digits_test().images[:count], spec)
    streams = streams_of(x)
    slot = TimedSlot(network.slots[0])
    network.slots = (slot,)
    pool = Pool(network, spec.image_shape, job.plan, seed=0, n_classes=spec.num_classes, capacity=len(x))

    def whole() -> tuple[int, dict[str, float]]:
        requests = (Request(i, x[i], int(streams[i])) for i in range(len(x)))
        scheduler = TimedScheduler(
            job.rule,
            job.plan.draws,
            spec.num_classes,
            put=pool.put,
            next_request=lambda: next(requests, None),
            capacity=len(x),
        )
        return sum(1 for _ in evaluate(network, pool, scheduler)), scheduler.seconds

    whole()
    slot.seconds = 0.0
    start = time.perf_counter()
    steps, scheduling = whole()
    wall = time.perf_counter() - start
    views = [kernels.view(array) for array in (slot.cells, slot.sample, slot.timestep, slot.class_labels, slot.output)]
    errors = kernels.view(slot.errors)
    table_view, sample, timestep, labels, output = views
    arrays = pool.arrays
    shared = (arrays.images_view, table_view, arrays.rows_view, arrays.streams_view)
    first = np.arange(batch, dtype=np.int32)  # a first look: runs of all classes of an image
    cells = np.stack([first // spec.num_classes % len(x), first % spec.num_classes, 0 * first], axis=1)
    slot.cells[:] = cells
    parts = time_sides(
        {
            "add_noise": lambda: kernels.add_noise(*shared, seed=0, out=sample, timestep=timestep, labels=labels),
            "denoising_error": lambda: kernels.denoising_error(output, *shared, seed=0, out=errors),
            "write cells": lambda: network.write(slot.cells, cells),
            "read errors": lambda: network.read(slot.errors, batch),
        }
    )
    return {
        "model": model,
        "rule": job.rule.name,
        "batch": batch,
        "steps": steps,
        "step_us": 1e6 * wall / steps,
        "network_us": 1e6 * slot.seconds / steps,
        "around_us": 1e6 * (wall - slot.seconds) / steps,
        "around_share": (wall - slot.seconds) / wall,
        "parts_us": {
            **{name: 1e6 * timing.median for name, timing in parts.items()},
            **{f"scheduler, {name}": 1e6 * seconds / steps for name, seconds in scheduling.items()},
        },
    }


# VmHWM, not getrusage: a child's ru_maxrss starts at its parent's.
_MEMORY = """
import pathlib, re, sys, fastdc
from fastdc.data import digits_test

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1))

clf = fastdc.load(sys.argv[1], threads=2)
images = digits_test().images
clf.classify(images[:8], rule="full", draws=4)
before = peak()
table = clf.errors(images, draws=int(sys.argv[2]))
print(before, peak(), (table.values.nbytes + table.counts.nbytes) // 1024)
"""


def memory(model: str, draws: int) -> dict[str, int]:
    """Peak memory in KiB of a fresh process before and after a run, and the ErrorTable's size."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, model, str(draws)], capture_output=True, text=True, check=True
    )
    before, after, table = map(int, done.stdout.split())
    return {"draws": draws, "growth_kib": after - before, "error_table_kib": table, "peak_kib": after}


def main() -> None:
    made = parser(__doc__, "step")
    made.add_argument("--model", default="digits")
    made.add_argument("--batch", type=int, default=128)
    made.add_argument("--images", type=int, default=100)
    arguments = made.parse_args()
    profiles = [profile(arguments.model, arguments.batch, arguments.images, rule) for rule in ("full", "race")]
    for measured in profiles:
        rows = [
            ["network", f"{measured['network_us']:.0f}", f"{100 * (1 - measured['around_share']):.2f} %"],
            ["everything else", f"{measured['around_us']:.0f}", f"{100 * measured['around_share']:.2f} %"],
        ]
        rows += [
            [f"  {name}", f"{us:.1f}", f"{100 * us / measured['step_us']:.2f} %"]
            for name, us in measured["parts_us"].items()
        ]
        title = f"a step of {arguments.model}, batch {arguments.batch}, rule {measured['rule']}, 1 thread"
        print_table(title, ["part", "us", "share"], rows)
    grown = [memory("digits-mlp", draws) for draws in (16, 256, 1024)]
    columns = ["draws", "ErrorTable KiB", "growth of peak KiB", "peak KiB"]
    cells = [[str(m["draws"]), *(f"{m[k]:,}" for k in ("error_table_kib", "growth_kib", "peak_kib"))] for m in grown]
    print_table("peak memory, digits-mlp, 400 images", columns, cells)
    save(arguments.out, {"question": "what a step costs besides the network", "steps": profiles, "memory": grown})


if __name__ == "__main__":
    main()
