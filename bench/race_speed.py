"""The speed half of ``race.py``: images/s of real runs, how full steps are, and the cost of the scheduler.

The sides take turns within a round, each on the same number of threads: torch's own threads inside every operator for
the plain loop, and one step of ONNX Runtime per thread for fastdc. A slow side runs few images: without early stopping,
every image costs the same.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import TimedScheduler, TimedSlot, Timing, print_table, ratio
from fastdc.bundle import find_model
from fastdc.data import LabelledImages
from fastdc.diffusion import kernels
from fastdc.engine import IN_FLIGHT, Pool, Request, evaluate
from fastdc.inference import Job, Options, PlanOptions, streams_of, to_model_range
from fastdc.rules import AbstractRule, Full, Staged
from fastdc.support import require
from fastdc.testing import replay
from tables import announced, full_run, model_images, note
from torch_loop import torch_loop

LOOP_FULL, LOOP_STAGED = "plain PyTorch loop, full", "plain PyTorch loop, staged"
OURS_FULL, OURS_STAGED, OURS_RACE = "fastdc, full", "fastdc, staged", "fastdc, race"
COLUMNS = ["side", "images timed", "NFE/image", "accuracy, %", "images/s", "against the loop", "against staged"]


@dataclass(frozen=True)
class Speed:
    """The settings that all sides share.

    Attributes:
        model: Name of the model.
        plan: Options of the plan, with the draws J of the full run.
        test: Test images.
        threads: Number of threads of every side.
        rounds: Number of timed rounds.
        sizes: Number of images that the plain loop ("loop") and fastdc's full run ("full") time; others time all.
    """

    model: str
    plan: PlanOptions
    test: LabelledImages
    threads: int
    rounds: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Side:
    """One way to classify: a timed run on `images` images, and its results on all test images at seed 0."""

    images: int
    run: Callable[[], float]
    evaluations: float
    accuracy: float


def measure_speed(speed: Speed, race: AbstractRule, staged: Staged) -> dict[str, Any]:
    """Measures images/s of each side; prints a table."""
    require("torch", extra="export").set_num_threads(speed.threads)
    classifier = fastdc.load(speed.model, backend="onnx", threads=speed.threads)
    bundle = fastdc.load_bundle(find_model(speed.model))
    draws = speed.plan["draws"] or 1
    images, truth = speed.test.images, speed.test.labels
    with announced(f"full run over {len(images)} images, for accuracies"):
        errors = full_run(classifier, model_images(images, classifier.model), seed=0, plan=speed.plan).errors
    loop, some = images[: speed.sizes["loop"]], images[: speed.sizes["full"]]

    def ours(given: npt.NDArray[np.uint8], rule: AbstractRule) -> Callable[[], float]:
        wanted: PlanOptions = {**speed.plan, "draws": rule.draws or draws}
        return lambda: classifier.classify(given, rule=rule, **wanted).seconds

    def plain(rule: Staged | None) -> Callable[[], float]:
        wanted = draws if rule is None else rule.n_samples[-1]
        return lambda: torch_loop(bundle, loop, wanted, options=speed.plan, staged=rule)[1]

    def side(given: npt.NDArray[np.uint8], run: Callable[[], float], rule: AbstractRule) -> _Side:
        made = replay(rule, errors[:, :, : rule.draws or draws])
        return _Side(len(given), run, float(made.evaluations.mean()), float(np.mean(made.labels() == truth)))

    sides = {
        LOOP_FULL: side(loop, plain(None), Full()),
        LOOP_STAGED: side(loop, plain(staged), staged),
        OURS_FULL: side(some, ours(some, Full()), Full()),
        OURS_STAGED: side(images, ours(images, staged), staged),
        OURS_RACE: side(images, ours(images, race), race),
    }
    agreed = _agreement(bundle, loop, errors, speed.plan, staged)
    timings = _in_turns(sides, speed.rounds)
    records = _records(sides, timings)
    rows = [
        [
            record["side"],
            str(record["images"]),
            f"{record['nfe']:.1f}",
            f"{100 * record['accuracy']:.2f}",
            f"{record['images_per_second']:.2f}",
            f"{record['times_the_loop']:.1f}x",
            f"{record['times_staged']:.2f}x",
        ]
        for record in records
    ]
    title = f"{speed.model}, clean, {speed.threads} threads per side (torch's in the loop, ONNX Runtime's in fastdc)"
    print_table(f"{title}, median of {speed.rounds} rounds", COLUMNS, rows)
    return {"threads": speed.threads, "rounds": speed.rounds, "race": repr(race), "staged": repr(staged)} | {
        "loop_against_table": agreed,
        "records": records,
    }


def _agreement(
    bundle: fastdc.Bundle,
    images: npt.NDArray[np.uint8],
    errors: npt.NDArray[np.float32],
    plan: PlanOptions,
    staged: Staged,
) -> dict[str, float]:
    """Checks that the plain loop and fastdc have the same labels; this also warms the loop up.

    Returns:
        The largest difference of a mean error relative to the mean of all, for the full run and for staged pruning.
    """
    count, draws = len(images), errors.shape[2]
    found = {}
    rules: dict[str, Staged | None] = {"full": None, "staged": staged}
    for name, rule in rules.items():
        wanted = draws if rule is None else rule.n_samples[-1]
        table = errors[:count, :, :wanted]
        expected = replay(rule or Full(), table)
        means, _ = torch_loop(bundle, images, wanted, options=plan, staged=rule)
        winner = np.nanargmin(means, axis=1)
        assert np.array_equal(winner, expected.labels()), f"the plain loop, {name}, has other labels"
        reference = np.where(np.isnan(means), np.nan, np.nanmean(expected.errors.astype(np.float64), axis=2))
        found[name] = float(np.nanmax(np.abs(means - reference)) / np.nanmean(reference))
    note(f"the plain loop's errors differ by at most {max(found.values()):.1e} of their mean")
    return found


def _in_turns(sides: dict[str, _Side], rounds: int) -> dict[str, Timing]:
    """Seconds per image of each side in each round; the short sides run once before, to warm up."""
    for name in (OURS_STAGED, OURS_RACE):
        sides[name].run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        with announced(f"speed, round {turn + 1} of {rounds}"):
            for name, side in sides.items():
                seconds[name].append(side.run() / side.images)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _records(sides: dict[str, _Side], timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """One record per side; each side is compared with the staged run of its kind, loop or fastdc."""
    records = []
    for name, side in sides.items():
        like = LOOP_STAGED if name in (LOOP_FULL, LOOP_STAGED) else OURS_STAGED
        records.append(
            {
                "side": name,
                "images": side.images,
                "nfe": side.evaluations,
                "accuracy": side.accuracy,
                "images_per_second": 1 / timings[name].median,
                "spread": timings[name].spread,
                "seconds_per_image": list(timings[name].seconds),
                "times_the_loop": ratio(timings[LOOP_FULL], timings[name]),
                "times_staged": ratio(timings[like], timings[name]),
            }
        )
    return records


def _watched(job: Job, x: npt.NDArray[np.float32]) -> dict[str, float]:
    """Runs a job with a timed scheduler and timed slots."""
    network, capacity, streams = job.networks[0], min(len(x), IN_FLIGHT), streams_of(x)
    slots = tuple(TimedSlot(slot) for slot in network.slots)

    def requests() -> Iterator[Request]:
        for i in range(len(x)):
            yield Request(i, x[i], int(streams[i]))

    plain = network.slots
    network.slots = slots
    try:
        classes = job.model.num_classes
        start = time.perf_counter()
        pool = Pool.of(network, job.model.image_shape, job.plan, seed=job.seed, n_classes=classes, capacity=capacity)
        source = requests()
        scheduler = TimedScheduler(
            job.rule,
            job.plan.draws,
            classes,
            put=pool.put,
            next_request=lambda: next(source, None),
            capacity=capacity,
        )
        for _ in evaluate(network, pool, scheduler):
            scheduler.finished()
        wall = time.perf_counter() - start
    finally:
        network.slots = plain
    return {
        "steps": scheduler.steps,
        "cells": scheduler.cells,
        "occupancy": scheduler.cells / scheduler.steps / network.batch,
        "scheduler_share": sum(scheduler.seconds.values()) / wall,
        "scheduler_us_a_step": 1e6 * sum(scheduler.seconds.values()) / scheduler.steps,
        "network_share": sum(slot.seconds for slot in slots) / wall / len(slots),
        "wall": wall,
    }


def measure_scheduler(
    model: str, images: npt.NDArray[np.uint8], rule: AbstractRule, plan: PlanOptions, *, seeds: int, threads: int
) -> list[dict[str, Any]]:
    """Measures how full steps are and what the scheduler costs, over noise seeds; prints a table."""
    kernels.set_num_threads(threads)
    records, rows = [], []
    for batch in (128, 64):
        classifier = fastdc.load(model, backend="onnx", threads=threads, batch=batch)
        x = to_model_range(images, classifier.model)
        classifier.classify(images[:32], rule=rule, **plan)
        with announced(f"scheduler, batch {batch}"):
            runs = [
                _watched(Job.of(classifier.model, classifier.networks, Options(rule=rule, seed=seed).but(**plan)), x)
                for seed in range(seeds)
            ]
        record: dict[str, Any] = {"batch": batch, "slots": len(classifier.network.slots), "runs": runs}
        record |= {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        records.append(record)
        rows.append(
            [
                str(batch),
                f"{record['steps']:.1f}",
                f"{100 * record['occupancy']:.1f} %",
                f"{record['scheduler_us_a_step']:.0f}",
                f"{100 * record['scheduler_share']:.2f} %",
                f"{100 * record['network_share']:.1f} %",
            ]
        )
    columns = ["batch", "steps", "occupancy", "scheduler, us/step", "of wall time", "slots in the network"]
    print_table(f"race over {len(images)} images, {seeds} seeds, {len(classifier.network.slots)} slots", columns, rows)
    return records
