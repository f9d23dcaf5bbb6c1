"""A matcher's run: scores of one image after the other become a :class:`Matched`, also when Ctrl-C ends it early."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastdc.matching.matched import Matched, OnMatched, last_best
from fastdc.matching.trials import Trials
from fastdc.support import Float64, Interrupted


def collect(
    name: str, trials: Trials, scored: Iterator[Float64], facts: dict[str, Any], progress: OnMatched | None
) -> Matched:
    """Takes the scores of the images in their order.

    Args:
        name: Name of the model.
        trials: The trials.
        scored: Yields the scores of one image after the other; the model runs while it is read.
        facts: What reproduces the scores.
        progress: Called after each image.

    Raises:
        Interrupted: Ctrl-C; ``result`` has the images that were finished, or None.
    """
    start, scores = time.perf_counter(), list[Float64]()

    def result() -> Matched:
        return Matched(
            name=name,
            rows=np.arange(len(scores), dtype=np.int64),
            scores=tuple(scores),
            answers=np.array([last_best(one) for one in scores], np.int64),
            evaluations=np.array([len(one) for one in scores], np.int64),
            seconds=time.perf_counter() - start,
            facts=facts,
        )

    try:
        for one in scored:
            scores.append(one)
            if progress is not None:
                progress(len(scores), len(trials))
    except KeyboardInterrupt:
        done = f"interrupted: {len(scores)} of {len(trials)} images finished"
        raise Interrupted(done, result() if scores else None) from None
    return result()
