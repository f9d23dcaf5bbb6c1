"""Many requests at once: a thread per request, one batched call, a session, and one request after the other.

    python bench/threads.py [--models digits digits-mlp] [--requests 40] [--threads 2] [--rounds 9]

Each request is one image. "threads" calls ``classify`` from a thread per request, so that the runs take turns;
"session" submits the images of all threads to one session. The sides take turns; "faster" is the median over rounds of
the ratio to one request after the other. Labels and errors must be equal on all sides.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, ratio, save, time_sides
from fastdc import DiffusionClassifier, Session
from fastdc.data import digits_test

Errors = npt.NDArray[np.float64]


def sides_of(clf: DiffusionClassifier, session: Session, images: Any) -> dict[str, Callable[[], Errors]]:
    """Each side classifies all images and returns their errors (n, K)."""

    def on_threads(call: Callable[[Any], Any]) -> Errors:
        with ThreadPoolExecutor(len(images)) as threads:
            return np.concatenate([result.errors for result in threads.map(call, images)])

    return {
        "one after the other": lambda: np.concatenate([clf.classify(image[None]).errors for image in images]),
        "threads": lambda: on_threads(lambda image: clf.classify(image[None])),
        "session": lambda: on_threads(lambda image: session.submit(image).result()),
        "one batched call": lambda: clf.classify(images).errors,
    }


def measure(model: str, images: Any, threads: int, rounds: int) -> dict[str, Any]:
    clf = fastdc.load(model, threads=threads)
    with Session(fastdc.load(model, threads=threads)) as session:
        sides = sides_of(clf, session, images)
        want = clf.classify(images).errors
        for name, side in sides.items():
            if not np.array_equal(side(), want):
                raise SystemExit(f"{name} disagrees: expected equal errors")
        times = time_sides(sides, rounds=rounds)
    base = times["one after the other"]
    return {
        name: {"milliseconds": 1e3 * time.median, "spread": time.spread, "times_faster": ratio(base, time)}
        for name, time in times.items()
    }


def main() -> None:
    made = parser(__doc__, "threads")
    made.add_argument("--models", nargs="+", default=["digits", "digits-mlp"], help="shipped models [%(default)s]")
    made.add_argument("--requests", type=int, default=40, help="number of requests [%(default)s]")
    made.add_argument("--threads", type=int, default=2, help="CPU threads [%(default)s]")
    made.add_argument("--rounds", type=int, default=9, help="timed rounds [%(default)s]")
    arguments = made.parse_args()
    images = digits_test().images[: arguments.requests]
    records = {name: measure(name, images, arguments.threads, arguments.rounds) for name in arguments.models}
    for model, record in records.items():
        rows = [[name, f"{side['milliseconds']:.1f}", f"{side['times_faster']:.2f}x"] for name, side in record.items()]
        print_table(f"{model}, {len(images)} requests, {arguments.threads} thread(s)", ["side", "ms", "faster"], rows)
    save(arguments.out, {"question": "how long many requests at once take", "records": records})


if __name__ == "__main__":
    main()
