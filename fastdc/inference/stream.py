"""Classifying images: one run over all of them, with results of consecutive images as soon as they are known."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from fastdc.inference.images import Images
from fastdc.inference.job import Rows
from fastdc.inference.results import Classification, OnProgress
from fastdc.inference.settings import Settings
from fastdc.support import Int32, Int64, Interrupted, chosen_ids


def stream_results(
    settings: Settings,
    images: Images,
    *,
    chunk: int | None = None,
    candidates: Sequence[Int32] | None = None,
    progress: OnProgress | None = None,
    start: float | None = None,
) -> Iterator[Classification]:
    """Classifies images in one run; yields results of consecutive images as soon as they are known.

    Args:
        settings: Job, decision and temperature.
        images: The images.
        chunk: Images per result; None: all in one.
        candidates: Candidate conditions of each image, increasing; None: all.
        progress: Called after every step.
        start: Time that ``seconds`` counts from, as of ``time.perf_counter``; None: now.

    Example:
        >>> from fastdc.inference import Images, stream_results
        >>> ready = Images.of(images, clf.model)
        >>> [len(part.labels) for part in stream_results(clf.settings(), ready, chunk=10)]
        [10, 10]

    Raises:
        Interrupted: Ctrl-C; its ``result`` holds the images that were finished and not yielded.
    """
    job, n = settings.job, len(images)
    begun = time.perf_counter() if start is None else start
    size = n if chunk is None else chunk
    rows: Rows = [None] * n

    def result(indices: Int64) -> Classification:
        table = job.table_of([rows[i] for i in indices], images.streams[indices])
        seconds = time.perf_counter() - begun
        return settings.decide(table, indices, seconds=seconds, ids=chosen_ids(images.ids, indices))

    given = 0
    try:
        for finished in job.run(images.x, images.streams, candidates=candidates, progress=progress):
            for done in finished:
                rows[done.key] = (done.counts, done.values)
            while given + size < n and all(row is not None for row in rows[given : given + size]):
                known = result(np.arange(given, given + size, dtype=np.int64))
                rows[given : given + size] = [None] * size  # handed on, and not needed again
                given += size
                yield known
        if n:  # the rest, once the run has ended: whoever has it all may begin another run
            last = result(np.arange(given, n, dtype=np.int64))
            given = n
            yield last
    except KeyboardInterrupt:
        if None not in rows[given:]:  # it came after the last step: nothing is lost
            for first in range(given, n, size):
                given = min(first + size, n)
                yield result(np.arange(first, given, dtype=np.int64))
        left = np.array([i for i in range(given, n) if rows[i] is not None], dtype=np.int64)
        partial = result(left) if len(left) else None
        raise Interrupted(f"interrupted: {given + len(left)} of {n} images finished", partial) from None
