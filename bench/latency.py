"""Latency of one image: percentiles over single images in both modes of a session, and of classify itself.

    python bench/latency.py [--models digits digits-mlp] [--images 200] [--threads 1] [--device cpu]

One caller submits an image, waits for its label, and submits the next: the closed loop of a single client. The sides
take turns image by image, each on its own network, so that other work of the machine affects all of them. The column
"faster" is the median over images of the ratio to the throughput mode. Labels and errors must be equal on all sides.
Evaluations are those of the network; in latency mode they include some that no decision needed.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc import Classification, Session
from fastdc.classifier import DiffusionClassifier
from fastdc.data import digits_test
from fastdc.engine import steps_of
from fastdc.session import MODES
from fastdc.support import require

PERCENTILES = (50, 95, 99)
WARMUP = 5


class Side:
    """One way to classify an image, with the seconds of each image."""

    def __init__(self, classify: Callable[[Any], Classification], evaluated: Callable[[], int | None]) -> None:
        self._classify = classify
        self._evaluated = evaluated
        self._before = 0
        self.seconds: list[float] = []
        self.needed = 0

    def warm_up(self, images: Any) -> None:
        for image in images:
            self._classify(image)
        self._before = self._evaluated() or 0

    def __call__(self, image: Any) -> Classification:
        start = time.perf_counter()
        result = self._classify(image)
        self.seconds.append(time.perf_counter() - start)
        self.needed += int(result.evaluations[0])
        return result

    def record(self, base: "Side") -> dict[str, Any]:
        evaluated = self._evaluated()
        done = self.needed if evaluated is None else evaluated - self._before
        return {
            "milliseconds": {f"p{p}": 1e3 * float(np.percentile(self.seconds, p)) for p in PERCENTILES},
            "mean_milliseconds": 1e3 * float(np.mean(self.seconds)),
            "times_faster": float(np.median(np.array(base.seconds) / np.array(self.seconds))),
            "evaluations_per_image": done / len(self.seconds),
            "needed_per_image": self.needed / len(self.seconds),
        }


def of_session(session: Session) -> Side:
    return Side(lambda image: session.submit(image).result(), lambda: session.evaluated)


def of_classify(classifier: DiffusionClassifier) -> Side:
    return Side(lambda image: classifier.classify(image[None]), lambda: None)


def measure(model: str, images: npt.NDArray[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Records of all sides, and the table of step times that the latency mode used."""
    with ExitStack() as stack:
        classifiers = {mode: fastdc.load(model, **options) for mode in MODES}
        sides = {
            f"session, {mode}": of_session(stack.enter_context(Session(clf, mode=mode, capacity=8)))
            for mode, clf in classifiers.items()
        }
        sides["classify"] = of_classify(fastdc.load(model, **options))
        for side in sides.values():
            side.warm_up(images[:WARMUP])
        for image in images:
            first, *others = [side(image) for side in sides.values()]
            for other in others:
                if not np.array_equal(first.errors, other.errors) or first.labels[0] != other.labels[0]:
                    raise SystemExit("the sides disagree: expected equal errors and labels")
        base = sides[f"session, {MODES[0]}"]
        records = {name: side.record(base) for name, side in sides.items()}
        latency = classifiers["latency"]
        job = latency.settings().job
        pool, _ = job.scheduler(latency.network, lambda: None, 1)
        steps = steps_of(latency.network, pool, draws=job.plan.draws)
    return {"model": model, "device": latency.network.device, "sides": records, "steps": asdict(steps)}


def main() -> None:
    made = parser(__doc__, "latency")
    made.add_argument("--models", nargs="+", default=["digits", "digits-mlp"], help="shipped models [%(default)s]")
    made.add_argument("--images", type=int, default=200, help="number of images [%(default)s]")
    made.add_argument("--threads", type=int, default=1, help="CPU threads [%(default)s]")
    made.add_argument("--backend", default="auto", help="backend [%(default)s]")
    made.add_argument("--device", default="auto", help="device [%(default)s]")
    made.add_argument("--precision", default="auto", help="precision of the network [%(default)s]")
    arguments = made.parse_args()
    options = {name: getattr(arguments, name) for name in ("threads", "backend", "device", "precision")}
    if arguments.backend == "torch":
        require("torch", extra="export").set_num_threads(arguments.threads)
    images = digits_test().images[: arguments.images]
    records = [measure(model, images, options) for model in arguments.models]
    for record in records:
        rows = [
            [
                name,
                *(f"{side['milliseconds'][f'p{p}']:.2f}" for p in PERCENTILES),
                f"{side['times_faster']:.2f}x",
                f"{side['evaluations_per_image']:.1f}",
            ]
            for name, side in record["sides"].items()
        ]
        columns = ["side", *(f"p{p} ms" for p in PERCENTILES), "faster", "evaluations/image"]
        title = (
            f"{record['model']} on {record['device']}, {len(images)} images one by one, {arguments.threads} thread(s)"
        )
        print_table(title, columns, rows)
    save(arguments.out, {"question": "how long one image takes", **options, "records": records})


if __name__ == "__main__":
    main()
