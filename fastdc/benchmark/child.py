"""Measures one configuration in a process of its own, and writes what it knows after every part.

The first answer comes first: it is the end of the start-up. The answers of all images follow, in runs that grow; they
are compared with the reference's and warm everything up. Then come the time of an evaluation in full steps, the race
over all images, single images by ``classify``, and single images through a session in latency mode.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from fastdc.benchmark.memory import device_memory_taken, resident_peak
from fastdc.benchmark.statistics import Latency, Spread
from fastdc.classifier import DiffusionClassifier
from fastdc.inference import Classification, ErrorTable
from fastdc.session import Session
from fastdc.support import FastdcError, one_line, whole_file, write_whole

RECORD, TABLE, LABELS = "record.json", "errors.npz", "labels.npy"

# Shares of the time after the start-up.
_ANSWERS, _RATE, _RACE, _SINGLE = 0.35, 0.2, 0.2, 0.1
_STEPS = 4  # full steps per slot in one timing of the evaluations
_REPEATS = 3  # of each timing, unless one takes longer than its share
_MOST_REPEATS = 25
_WARM_UP = 2  # single images before those that count
_MOST_SINGLE = 200
_LARGEST_RUN = 64  # images in one run of the answers


@dataclass(frozen=True)
class Request:
    """What to measure, as JSON values.

    Attributes:
        model: Folder of the bundle.
        backend, device, precision, batch, threads: Options of :func:`fastdc.load`.
        images: An .npy file of images.
        out: Folder for the results.
        seconds: How long to measure after the start-up.
        started: ``time.monotonic()`` before this process was started.
        all_images: Whether to answer all images in up to `seconds`; otherwise as many as a share of it allows.
    """

    model: str
    backend: str
    device: str
    precision: str
    batch: int | None
    threads: int | None
    images: str
    out: str
    seconds: float
    started: float
    all_images: bool


def main(resident_at_start: int | None) -> None:
    """Measures what ``sys.argv[1]``, a request as JSON, asks for."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = Request(**json.loads(sys.argv[1]))
    record: dict[str, Any] = {}

    def keep() -> None:
        write_whole(Path(request.out) / RECORD, json.dumps(record, allow_nan=False).encode())

    try:
        _measure(request, record, keep, resident_at_start)
    except FastdcError as error:
        record["error"] = one_line(error)
    except MemoryError as error:
        record["error"] = f"out of memory: {one_line(error)}"
    except Exception as error:  # of the backend's library, which may raise anything
        record["error"] = f"{type(error).__name__}: {one_line(error)}"
    keep()
    sys.stderr.flush()
    os._exit(0)  # at once: some libraries take seconds to unload


def _measure(request: Request, record: dict[str, Any], keep: Callable[[], None], resident_at_start: int | None) -> None:
    on_device = request.device != "cpu"
    taken = device_memory_taken(request.device) if on_device else None
    images = np.load(request.images)
    options = {name: getattr(request, name) for name in ("backend", "device", "precision", "batch", "threads")}
    classifier = fastdc.load(request.model, **options)
    classifier.classify(images[:1])
    record["startup_seconds"] = time.monotonic() - request.started
    record["batch"] = classifier.network.batch
    left = request.seconds
    for_answers = left if request.all_images else _ANSWERS * left
    per_image, per_evaluation = _answers(classifier, images, for_answers, request, record)
    keep()
    record["ms_per_evaluation"] = asdict(_rate(classifier, images, _RATE * left, per_evaluation))
    keep()
    rates = _race(classifier, images, _RACE * left, per_image, record["answered"])
    record["images_per_second"] = asdict(Spread.of([rate / record["evaluations_per_image"] for rate in rates]))
    keep()
    record["classify_ms"] = asdict(_latency(lambda image: classifier.classify(image[None]), images, _SINGLE * left))
    keep()
    with Session(classifier, mode="latency") as session:
        record["session_ms"] = asdict(_latency(lambda image: session.submit(image).result(), images, _SINGLE * left))
    if on_device:
        now = device_memory_taken(request.device)
        record["memory_bytes"] = None if taken is None or now is None else now - taken
    else:
        peak = resident_peak()
        record["memory_bytes"] = None if peak is None or resident_at_start is None else peak - resident_at_start


def _answers(
    classifier: DiffusionClassifier, images: npt.NDArray[Any], limit: float, request: Request, record: dict[str, Any]
) -> tuple[float, float]:
    """Answers as many images as the time allows; returns seconds per image and per evaluation of the last run."""
    start = time.perf_counter()
    results: list[Classification] = []
    done, size = 0, 1
    while True:
        begin = time.perf_counter()
        result = classifier.classify(images[done : done + size])
        seconds = time.perf_counter() - begin
        results.append(result)
        done += len(result.labels)
        per_image = seconds / len(result.labels)
        rest = limit - (time.perf_counter() - start)
        size = min(2 * size, _LARGEST_RUN, max(0, int(rest / per_image)))
        if done == len(images) or not size:
            break
    table = ErrorTable.concatenate([result.table for result in results])
    table.save(Path(request.out) / TABLE)
    with whole_file(Path(request.out) / LABELS) as file:  # whole or absent, whenever the process is ended
        np.save(file, np.concatenate([result.labels for result in results]))
    record["answered"] = done
    record["evaluations_per_image"] = float(np.concatenate([result.evaluations for result in results]).mean())
    return per_image, seconds / max(1, int(results[-1].evaluations.sum()))


def _rate(classifier: DiffusionClassifier, images: npt.NDArray[Any], limit: float, per_evaluation: float) -> Spread:
    """Milliseconds per evaluation when every step is full, noise and errors included."""
    network, conditions = classifier.network, len(classifier.model.conditions)
    affordable = int(limit / _REPEATS / per_evaluation)
    cells = max(1, min(affordable, _STEPS * network.batch * len(network.slots)))
    count = min(len(images), -(-cells // conditions))
    draws = max(1, cells // (conditions * count))
    first = classifier.errors(images[:count], draws=draws)  # untimed: a size of steps may be new
    evaluations = int(first.evaluations.sum())
    runs = _timed(lambda: classifier.errors(images[:count], draws=draws), limit)
    return Spread.of([1e3 * seconds / evaluations for seconds in runs])


def _race(
    classifier: DiffusionClassifier, images: npt.NDArray[Any], limit: float, per_image: float, answered: int
) -> list[float]:
    """Evaluations per second of races over all images that were answered, or as many as the time allows to repeat.

    By their mean cost they become images/s: a few images may cost more or less than all of them.
    """
    count = max(1, min(answered, int(limit / _REPEATS / per_image)))
    evaluations: list[int] = []
    runs = _timed(lambda: evaluations.append(int(classifier.classify(images[:count]).evaluations.sum())), limit)
    return [number / seconds for number, seconds in zip(evaluations, runs, strict=True)]


def _timed(action: Callable[[], object], limit: float) -> list[float]:
    """Seconds of each repeat: once at least, three times unless that takes longer than the limit, then until it."""
    seconds: list[float] = []
    while len(seconds) < _MOST_REPEATS:
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
        most = limit if len(seconds) >= _REPEATS else 2 * limit
        if sum(seconds) + seconds[-1] > most:
            break
    return seconds


def _latency(answer: Callable[[Any], object], images: npt.NDArray[Any], limit: float) -> Latency:
    """The times of single images, one after the other."""
    seconds: list[float] = []
    start = time.perf_counter()
    for number in range(_MOST_SINGLE + _WARM_UP):
        image = images[number % len(images)]
        begin = time.perf_counter()
        answer(image)
        seconds.append(time.perf_counter() - begin)
        if time.perf_counter() - start > limit and number >= _WARM_UP:
            break
    return Latency.of(seconds[_WARM_UP:])


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, which closes the other end of the pipe."""
    sys.stdin.buffer.read()
    os._exit(1)
