"""Classifying images: one run over all of them, with results of consecutive images as soon as they are known.

A run that calibrates itself (:mod:`fastdc.inference.self_calibration`) has two phases: some images in full, then the
others under the race that those gave. Results come from the second phase on, so that all of them name the same rule.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from fastdc.engine import Finished
from fastdc.inference.error_table import ErrorTable
from fastdc.inference.images import Images
from fastdc.inference.job import Rows
from fastdc.inference.results import Classification, OnProgress, Progress
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
    run, n = _Run(settings, images, candidates, progress), len(images)
    begun = time.perf_counter() if start is None else start
    size = n if chunk is None else chunk
    rows = run.rows

    def result(indices: Int64) -> Classification:
        table, seconds = run.table(indices), time.perf_counter() - begun
        ids = chosen_ids(images.ids, indices)
        return run.settings.decide(table, indices, seconds=seconds, ids=ids, full=run.full[indices])

    given = 0
    try:
        for finished in run.finished():
            for done in finished:
                rows[done.key] = (done.counts, done.values)
            while run.racing and given + size < n and all(row is not None for row in rows[given : given + size]):
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
        raise Interrupted(f"interrupted: {given + len(left)} of {n} images finished{run.limits}", partial) from None


class _Run:
    """The phases of a run over images.

    Attributes:
        settings: Those of the phase.
        full: Which images are run in full because the run calibrates itself, bool (n,).
        racing: Whether it is the last phase.
        rows: The images that are finished; filled by whoever reads :meth:`finished`.
    """

    def __init__(
        self,
        settings: Settings,
        images: Images,
        candidates: Sequence[Int32] | None,
        progress: OnProgress | None,
    ) -> None:
        self.settings = settings
        own, n = settings.self_calibration, len(images)
        self.full = np.zeros(n, np.bool_) if own is None else own.chosen(images.streams, settings.job.seed)
        self.racing = bool(own is None or self.full.all())
        self.rows: Rows = [None] * n
        self._told = Progress(0, n, 0, 0)
        prior = settings.job.prior
        self._candidates = candidates if prior is None else prior.candidates(candidates, n)
        self._images, self._progress = images, progress

    def table(self, indices: Int64) -> ErrorTable:
        """The errors of images that are finished."""
        return self.settings.job.table_of([self.rows[i] for i in indices], self._images.streams[indices])

    @property
    def limits(self) -> str:
        """What the promise says of the images of a run that ends now, before the last one, as the end of a sentence."""
        own, raced = self.settings.self_calibration, int(np.count_nonzero(~self.full))
        if own is None or own.found is None or not self.racing or not raced:
            return ""
        return (
            f"; the promise is an average over all {raced} that were to race: {own.delta * raced:.3g} of their answers "
            "may differ from the full run, and all of these may be among the first"
        )

    def finished(self) -> Iterator[list[Finished]]:
        """The requests that finish, keyed by the image's index."""
        if not self.racing:
            chosen = np.flatnonzero(self.full)
            yield from self._phase(chosen)
            self.settings, self.racing = self.settings.calibrated(self.table(chosen)), True
        rest = np.array([i for i, row in enumerate(self.rows) if row is None], dtype=np.int64)
        self.full[rest] = self.settings.in_full
        yield from self._phase(rest)

    def _phase(self, rows: Int64) -> Iterator[list[Finished]]:
        """A run over some of the images."""
        job, images = self.settings.job, self._images
        before, told = self._told, self._progress
        later = (len(images) - before.finished - len(rows)) * job.most

        def progress(now: Progress) -> None:
            spent, finished = before.evaluations, before.finished
            self._told = Progress(
                finished + now.finished, len(images), spent + now.evaluations, spent + now.at_most + later
            )
            if told is not None:
                told(self._told)

        yield from job.run(images.samples, images.streams, rows=rows, candidates=self._candidates, progress=progress)
