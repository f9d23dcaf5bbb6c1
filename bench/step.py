"""The cost of a step besides the network: packing, noise, errors, bookkeeping.

    python bench/step.py [--model digits] [--batch 128] [--images 100]

The engine runs on one thread, and the slot measures the network's own time. The difference from the wall time is
everything else, including the rule and the ErrorTable. The kernels are then timed alone on the batch of a first look.
The benchmark also reports the peak memory of the process at few and many draws, next to the size of the ErrorTable.
"""

import subprocess
import sys
import time
from typing import Any

import numpy as np

import fastdc
from common import TimedScheduler, TimedSlot, parser, print_table, save, time_sides
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from fastdc.engine import Pool, Request, evaluate
from fastdc.inference import Job, Options, streams_of, to_model_range


def profile(model: str, batch: int, count: int, rule: str) -> dict[str, Any]:
    """Time per step of the network and of everything else, and its parts: the kernels alone, and the scheduler."""
    classifier = fastdc.load(model, batch=batch, threads=1)
    network, spec = classifier.network, classifier.model
    job = Job.of(spec, [network], Options(rule=rule))
    x = to_model_range(digits_test().images[:count], spec)
    streams = streams_of(x)
    slot = TimedSlot(network.slots[0])
    network.slots = (slot,)
    pool = Pool.of(network, spec.image_shape, job.plan, seed=0, n_classes=spec.num_classes, capacity=len(x))

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
    first = np.arange(batch, dtype=np.int32)  # a first look: all classes of one image after another
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


# VmHWM instead of getrusage, because a child's ru_maxrss starts at its parent's.
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
    """Growth of a fresh process's peak memory during a run, the peak, and the size of the ErrorTable, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, model, str(draws)], capture_output=True, text=True, check=True
    )
    before, after, table = map(int, done.stdout.split())
    return {"draws": draws, "growth_kib": after - before, "error_table_kib": table, "peak_kib": after}


def main() -> None:
    made = parser(__doc__, "step")
    made.add_argument("--model", default="digits", help="shipped model [%(default)s]")
    made.add_argument("--batch", type=int, default=128, help="network evaluations per step [%(default)s]")
    made.add_argument("--images", type=int, default=100, help="number of images [%(default)s]")
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
