"""Runs of matchers, of which Ctrl-C loses nothing: scores of images become a :class:`Matched`, whenever it comes."""

import time
from collections.abc import Generator, Iterator
from typing import Any, cast

import numpy as np

from fastdc.inference import Classification
from fastdc.matching.matched import Matched, OnFinished, OnMatched, last_best
from fastdc.matching.trials import Trials
from fastdc.support import Float64, Int64, Interrupted


def different(trials: Trials, firsts: Int64) -> Iterator[tuple[Int64, Int64]]:
    """The different texts of each image, and the place of each of its candidates among them.

    Texts that a model reads as the same are scored once, so that rounding does not tell them apart: they tie.

    Args:
        trials: The trials.
        firsts: int64 (P,), for each text the first that the model reads as the same.
    """
    last, found = None, None
    for own in trials.candidates:
        if found is None or own is not last:  # images with the same list share it
            last, found = own, np.unique(firsts[own], return_inverse=True)
        yield found


def collect(
    name: str,
    trials: Trials,
    scored: Iterator[Float64],
    facts: dict[str, Any],
    progress: OnMatched | None,
    keep: OnFinished | None = None,
) -> Matched:
    """Takes the scores of the images in their order.

    Args:
        name: Name of the model.
        trials: The trials.
        scored: Yields the scores of one image after the other; the model runs while it is read.
        facts: What reproduces the scores.
        progress: Called after each image.
        keep: Called after each image.

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
            if keep is not None:
                keep(result)
    except KeyboardInterrupt:
        done = f"interrupted: {len(scores)} of {len(trials)} images finished"
        raise Interrupted(done, result() if scores else None) from None
    return result()


def unbroken(stream: Iterator[Classification]) -> "Generator[Classification, None, None]":
    """The results of a stream, of which Ctrl-C loses none, whether it comes in a step or between two results.

    Raises:
        Interrupted: Ctrl-C; raised after the finished results.
    """
    results = cast("Generator[Classification, None, None]", stream)
    try:
        yield from results
    except Interrupted as stop:
        if stop.result is not None:
            yield stop.result
        raise
    except KeyboardInterrupt:  # between two results
        try:
            results.throw(KeyboardInterrupt())
        except Interrupted as stop:
            if stop.result is not None:
                yield stop.result
            raise
        raise
