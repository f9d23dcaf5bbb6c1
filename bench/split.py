"""The gain from sharing computation: full steps of the denoiser as a whole and in parts, against the FLOP count.

    python bench/split.py [--networks SD-like UNet2D] [--rounds 9] [--cpu-time]

A step of 64 cells holds 64, 32, 6 or 1 pairs of image and draw, with 1, 2, 10 or all 64 classes each (60 cells if 10
classes share a pair). By the bundle's cost, a cell then takes rest + prefix / K, compared with the whole; the class
part has run before. Both sides are the onnx backend as users run it, with one thread, in turns within a round. The
whole is timed twice, as two sides; the difference between them shows what this machine cannot resolve.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from common import Timing, parser, print_table, save, time_sides
from fastdc.backends import AbstractSlot, NetworkOptions, OnnxNetwork
from fastdc.bundle import Bundle, saved_by_parts
from tables import announced
from typical import CONDITIONS, NETWORKS, exported, open_network

BATCH = 64
CLASSES = (1, 2, 10, 64)  # numbers of classes that share a pair


def fill(slot: AbstractSlot, classes: int, timesteps: tuple[float, float]) -> int:
    """Writes the cells of a step and returns their number."""
    pairs = BATCH // classes
    count = pairs * classes
    rng = np.random.default_rng(classes)
    pair, label = np.arange(count) // classes, np.arange(count) % classes
    slot.cells[:count] = np.stack([pair, label, pair], axis=1)
    slot.sample[:count] = rng.standard_normal((pairs, *slot.sample.shape[1:]), np.float32)[pair]
    slot.timestep[:count] = rng.uniform(*timesteps, pairs).astype(np.float32)[pair]
    slot.class_labels[:count] = label if classes > 1 else label % CONDITIONS
    return count


def median_ratio(part: Timing, whole: Timing) -> float:
    """The median over rounds of the ratio within a round."""
    return float(np.median(np.array(part.seconds) / np.array(whole.seconds)))


def measure(name: str, *, rounds: int, cpu_time: bool, classes: tuple[int, ...]) -> dict[str, Any]:
    """Measures one network: operations, seconds and differences for each number of classes."""
    source = open_network(name)
    levels = source.model.schedule.levels([0.01, 0.99]).timestep
    timesteps = (float(levels.min()), float(levels.max()))
    with exported(source, split=True) as bundle:
        cost: dict[str, Any] = bundle.manifest["cost"]
        entry: dict[str, Any] = {"network": name, "cost": cost, "parts": "cell_flops" in cost, "classes": []}
        if entry["parts"]:
            slots = {side: _slot(bundle, split=side == "parts") for side in ("whole", "parts", "whole again")}
            for sharing in classes:
                entry["classes"].append(_compare(slots, cost, sharing, timesteps, rounds=rounds, cpu_time=cpu_time))
    return entry


def _slot(bundle: Bundle, *, split: bool) -> AbstractSlot:
    return OnnxNetwork(bundle, NetworkOptions(batch=BATCH, threads=1), split=split).slots[0]


def _compare(
    slots: dict[str, AbstractSlot],
    cost: dict[str, Any],
    classes: int,
    timesteps: tuple[float, float],
    *,
    rounds: int,
    cpu_time: bool,
) -> dict[str, Any]:
    counts = [fill(slot, classes, timesteps) for slot in slots.values()]
    count = counts[0]
    clock = time.thread_time if cpu_time else time.perf_counter
    sides = {side: partial(slot.run, count) for side, slot in slots.items()}
    timings = time_sides(sides, rounds=rounds, warmup=1, clock=clock)
    whole, parts = (slots[side].output[:count] for side in ("whole", "parts"))
    predicted = 1 - saved_by_parts(cost, classes)
    measured = median_ratio(timings["parts"], timings["whole"])
    return {
        "classes": classes,
        "cells": count,
        "seconds": {side: timing.median for side, timing in timings.items()},
        "predicted_ratio": predicted,
        "measured_ratio": measured,
        "ratio_off": measured / predicted - 1,
        "unresolved": abs(median_ratio(timings["whole again"], timings["whole"]) - 1),
        "difference": float(np.abs(whole - parts).max()),
        "largest_output": float(np.abs(whole).max()),
    }


def costs(entry: dict[str, Any]) -> list[str]:
    """A row of the table of operations."""
    cost = entry["cost"]
    shares = [cost[key] / cost["flops"] for key in ("pair_flops", "class_flops", "cell_flops") if entry["parts"]]
    size = [f"{cost['parameters'] / 1e6:.1f}", f"{cost['flops'] / 1e9:.2f}"]
    return [entry["network"], *size, *(percent(share) for share in shares or (0.0, 0.0, 1.0))]


def gains(entry: dict[str, Any]) -> list[list[str]]:
    """Rows of the table of gains; none for a network that is not split."""
    return [
        [
            entry["network"],
            str(one["classes"]),
            *(f"{1e3 * one['seconds'][side] / one['cells']:.2f}" for side in ("whole", "parts")),
            percent(1 - one["predicted_ratio"]),
            percent(1 - one["measured_ratio"]),
            f"{100 * one['ratio_off']:+.1f} %",
            percent(one["unresolved"]),
            f"{one['difference'] / one['largest_output']:.0e}",
        ]
        for one in entry["classes"]
    ]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main() -> None:
    made = parser(__doc__, "split")
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS), help="networks [all]")
    made.add_argument(
        "--classes",
        nargs="+",
        type=int,
        default=list(CLASSES),
        help="numbers of classes that share a pair [%(default)s]",
    )
    made.add_argument("--rounds", type=int, default=9, help="timed rounds [%(default)s]")
    made.add_argument("--cpu-time", action="store_true", help="measure CPU time of the thread instead of wall time")
    arguments = made.parse_args()
    entries = []
    for name in arguments.networks:
        with announced(name):
            entries.append(
                measure(name, rounds=arguments.rounds, cpu_time=arguments.cpu_time, classes=tuple(arguments.classes))
            )
    columns = ["network", "M parameters", "GFLOP per row", "once per draw", "once per class", "once per cell"]
    print_table("operations, by what they depend on", columns, [costs(entry) for entry in entries])
    columns = ["network", "classes", "whole, ms/cell", "in parts", "saved by FLOPs", "saved, measured"]
    columns += ["time off by", "unresolved", "difference"]
    print_table(f"steps of {BATCH} cells, 1 thread", columns, [row for entry in entries for row in gains(entry)])
    save(
        arguments.out,
        {
            "question": "what sharing computation saves",
            "clock": "thread" if arguments.cpu_time else "wall",
            "rounds": arguments.rounds,
            "networks": entries,
        },
    )


if __name__ == "__main__":
    main()
