"""Measurements of one side of bench/gpu/networks.py: each part is a function of the opened side and gives a record.

* check: errors of one image under all classes, compared with torch in float32 on the CPU. The tolerance is twice that
  of an output relative to the largest one, as ``fastdc/export/verify.py`` derives it: the error is w mean r^2 with
  r = a F + t, and a network with random weights is independent of t, so that rms(r) >= rms(a F) and
  d(err) / err <= 2 rms(a dF) / rms(r).
* step: a full step, evaluated three times on the same cells (launched, captured and replayed); the errors must have the
  same bits. Also the time of a step on the device, launched repeatedly without the host waiting; if steps are not
  captured, this includes launching their kernels.
* full: all classes at all draws. With `step`: the host's share, 1 - device time of a step / time of a step in the
  evaluation; it is below 0 if steps of two slots overlap on the device.
* race: with the limit of ``gpu/models.py``.
* latency: single images in a session's latency mode, one after the other; for the plain loop, at full draws.
* certify: noisy copies classified per second with the race, as in ``fastdc certify``, and the resulting certificates of
  n = 1000 copies (and 100 for the selection) per hour; for the plain loop, from its full draws.

Every measurement is made once before it is timed, so that compiling, capturing and allocating do not count.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc import DiffusionClassifier, Session
from fastdc.certification import Fixed
from fastdc.diffusion import make_plan
from fastdc.engine import Pool
from fastdc.engine.step import Step
from fastdc.inference import PlanOptions, plan_config, to_model_range
from fastdc.rules import Calibrated
from gpu.models import Case
from gpu.plain_loop import PlainLoop

Record = dict[str, Any]
Part = Callable[[dict[str, Record]], Record]
"""Makes the record of a part, given the side's records so far."""

PARTS = ("check", "step", "full", "race", "latency", "certify")
SIGMA, COPIES, SELECTION = 0.25, 1000, 100
_SECONDS = 1.0  # time of repeated launches
_LATENCY_SECONDS = 8.0


@dataclass(frozen=True, eq=False)
class Opened:
    """A side of fastdc that is open.

    Attributes:
        case: The network and its work.
        classifier: Classifier on the opened network.
        allowed: Relative tolerance of an error against the CPU's.
        oracle: Errors (K,) of the first image from the CPU.
    """

    case: Case
    classifier: DiffusionClassifier
    allowed: float
    oracle: npt.NDArray[np.float64]


def full_options(case: Case) -> PlanOptions:
    """Plan options of the parts that use all draws."""
    return {"draws": case.work.draws}


def allowed(case: Case, precision: str) -> float:
    """Relative tolerance of an error: twice the rounding of an output (the module's docstring has the derivation)."""
    weights = [weight for weight in case.source.denoiser.parameters() if weight.ndim > 1]
    bits = {"float16": 11, "tf32": 11, "default": 11, "bfloat16": 8}.get(precision)
    if bits is None:
        return 16 * 2.0**-24 * sum(math.sqrt(math.prod(weight.shape[1:])) for weight in weights)
    return 16 * 2.0**-bits * math.sqrt(len(weights))


def compare(errors: npt.NDArray[np.float64], oracle: npt.NDArray[np.float64], limit: float) -> Record:
    """Compares errors (K,) of an image with the CPU's."""
    difference = float(np.abs(errors / oracle - 1).max())
    return {
        "difference": difference,
        "allowed": limit,
        "held": difference <= limit,
        "same_label": bool(errors.argmin() == oracle.argmin()),
    }


def check(side: Opened) -> Record:
    """Compares errors of one image with the CPU's."""
    errors = side.classifier.errors(side.case.images[:1], draws=side.case.work.check).errors
    return compare(errors.mean(axis=2, dtype=np.float64)[0], side.oracle, side.allowed)


def step(side: Opened) -> Record:
    """Compares a captured step with the same step launched directly, and times it on the device."""
    network, model = side.classifier.network, side.classifier.model
    plan = make_plan(model.schedule, model.parameterization, plan_config(model, full_options(side.case)))
    pool = Pool.of(network, model.sample_shape, plan, seed=0, n_classes=model.num_classes, capacity=1)
    x = to_model_range(side.case.images[:1], model)
    pool.put(0, x[0] if side.classifier.encoder is None else side.classifier.encoder.encode(x)[0], 0)
    one = Step(network, network.slots[0], pool, lambda place: place)
    size = network.batch
    index = np.arange(size, dtype=np.int32)
    cells = np.stack([0 * index, index % model.num_classes, index // model.num_classes % plan.draws], axis=1)
    errors = [one.evaluate(cells) for _ in range(3)]
    launch = one._launch(size) if network.sizes is None else lambda: one._launch_or_replay(size)
    slot = network.slots[0]

    def launched(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            launch()
        slot.read(slot.errors, 1)
        return time.perf_counter() - start

    times = max(3, min(200, round(_SECONDS / launched(2) * 2)))
    return {
        "cells": size,
        "equal_bits": all(np.array_equal(errors[0], other) for other in errors[1:]),
        "device_milliseconds": 1e3 * launched(times) / times,
    }


def full(side: Opened, measured: dict[str, Record]) -> Record:
    """Times all classes at all draws, and the host's share of a step."""
    work = side.case.work
    record = _classify(side, side.case.images[: work.full], "full")
    if "step" in measured:
        record["step_milliseconds"] = 1e3 * work.batch / record["evaluations_per_second"]
        record["host_share"] = 1 - measured["step"]["device_milliseconds"] / record["step_milliseconds"]
    return record


def race(side: Opened) -> Record:
    """Times the race."""
    return _classify(side, side.case.images[: side.case.work.raced], Calibrated(side.case.work.limit))


def latency(side: Opened) -> Record:
    """Times single images in latency mode."""
    work = side.case.work
    rule = Calibrated(work.limit)
    seconds: list[float] = []
    evaluations = 0
    with Session(side.classifier, rule=rule, mode="latency", capacity=8, **full_options(side.case)) as session:
        for _ in range(3):
            session.submit(side.case.images[0]).result()
        begun = time.perf_counter()
        for image in side.case.images[: work.latency]:
            start = time.perf_counter()
            evaluations += int(session.submit(image).result().evaluations[0])
            seconds.append(time.perf_counter() - start)
            if time.perf_counter() - begun > _LATENCY_SECONDS:
                break
    return {**percentiles(seconds), "evaluations_per_image": evaluations / len(seconds)}


def certify(side: Opened) -> Record:
    """Times noisy copies of an image."""
    work = side.case.work
    base = side.classifier.base(rule=Calibrated(work.limit), sigma=SIGMA, draws=work.draws)
    seconds, copies, evaluations = 0.0, 0, 0
    for image in side.case.images[:2]:  # the first image is not timed
        start = time.perf_counter()
        (made,) = side.classifier.certify(image[None], Fixed(SIGMA, work.copies, 0.001), n0=work.copies // 4, base=base)
        seconds = time.perf_counter() - start
        copies, evaluations = made.copies + made.selection_copies, made.evaluations
    return {
        "copies": copies,
        "copies_per_second": copies / seconds,
        "evaluations_per_copy": evaluations / copies,
        "images_per_hour": per_hour(copies / seconds),
    }


def engine_parts(side: Opened) -> dict[str, Part]:
    """The parts of a side of fastdc, by name."""
    return {
        "check": lambda _: check(side),
        "step": lambda _: step(side),
        "full": lambda measured: full(side, measured),
        "race": lambda _: race(side),
        "latency": lambda _: latency(side),
        "certify": lambda _: certify(side),
    }


def plain_parts(loop: PlainLoop, case: Case, oracle: npt.NDArray[np.float64], limit: float) -> dict[str, Part]:
    """The parts of the plain loop, by name."""
    work, classes = case.work, case.source.model.num_classes

    def checked(measured: dict[str, Record]) -> Record:
        errors, _ = loop(case.images[:1], {"draws": work.check})
        return compare(errors[0], oracle, limit)

    def at_full(measured: dict[str, Record]) -> Record:
        loop.warm_up(work.draws)
        _, seconds = loop(case.images[: work.plain], full_options(case))
        each = float(np.mean(seconds))
        return _rates(1 / each, classes * work.draws) | {"seconds_of_images": seconds}

    def at_latency(measured: dict[str, Record]) -> Record:
        return percentiles(measured["full"]["seconds_of_images"]) | {"evaluations_per_image": classes * work.draws}

    def certified(measured: dict[str, Record]) -> Record:
        rate = measured["full"]["images_per_second"]
        return {
            "copies_per_second": rate,
            "evaluations_per_copy": classes * work.draws,
            "images_per_hour": per_hour(rate),
        }

    return {"check": checked, "full": at_full, "latency": at_latency, "certify": certified}


def percentiles(seconds: list[float]) -> Record:
    """Percentiles of the times of single images, in milliseconds."""
    return {
        "images": len(seconds),
        **{f"p{p}_milliseconds": 1e3 * float(np.percentile(seconds, p)) for p in (50, 95, 99)},
    }


def per_hour(copies_per_second: float) -> float:
    """Certificates per hour, each with COPIES copies and SELECTION more for the selection."""
    return 3600 * copies_per_second / (COPIES + SELECTION)


def _classify(side: Opened, images: npt.NDArray[np.uint8], rule: Any) -> Record:
    side.classifier.classify(images, rule=rule, **full_options(side.case))
    start = time.perf_counter()
    result = side.classifier.classify(images, rule=rule, **full_options(side.case))
    rate = len(images) / (time.perf_counter() - start)
    return _rates(rate, float(result.evaluations.mean()))


def _rates(images_per_second: float, evaluations_per_image: float) -> Record:
    return {
        "images_per_second": images_per_second,
        "evaluations_per_second": images_per_second * evaluations_per_image,
        "evaluations_per_image": evaluations_per_image,
    }
