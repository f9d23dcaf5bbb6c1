"""A session: images from any thread, decided together, as a server needs it. ``classify`` takes a whole batch instead.

    with fastdc.Session(clf) as session:
        futures = [session.submit(image) for image in images]      # from as many threads as there are callers
        labels = [future.result().labels[0] for future in futures]

All images in flight share the steps of one scheduler: an image that comes while others run joins the next step, and
leaves as soon as it is decided. Its result is the one that ``classify`` gives for it alone.

There are two modes. "throughput" fills the steps with cells that decisions wait for, which serves many images soonest.
"latency" is for images that come one by one: it measures at the start what steps cost, and evaluates errors ahead of
the decisions where that ends an image's race clearly sooner (:mod:`fastdc.engine.look_ahead`), as on a device whose
small steps cost as much as large ones. Results are the same.
"""

import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Unpack

import numpy as np

from fastdc.classifier import DiffusionClassifier
from fastdc.engine import IN_FLIGHT, Finished, Request
from fastdc.inference import Classification, Options, RunOptions, check_candidates, prepare
from fastdc.support import BackendError, checks

MODES = ("throughput", "latency")


class Session:
    """Classifies images as they come.

    Args:
        classifier: Classifier whose network is used; other runs of the network are refused while the session is open.
        options: Options of the run.
        capacity: Images in flight at once on a device; more wait their turn.
        mode: "throughput" or "latency"; see the module.
        **keywords: Options by name, see :class:`fastdc.Options`; they win over `options`.

    Raises:
        InputError: An option cannot be used.
    """

    def __init__(
        self,
        classifier: DiffusionClassifier,
        options: Options | None = None,
        *,
        capacity: int = IN_FLIGHT,
        mode: str = "throughput",
        **keywords: Unpack[RunOptions],
    ) -> None:
        self._settings = classifier.settings(options, **keywords)
        checks.one_of("mode", mode, MODES)
        self._runner = self._settings.job.runner(capacity=capacity, latency=mode == "latency")
        self._model = classifier.model
        self._waiting: dict[int, tuple[Future[Classification], int, float]] = {}
        self._next_key = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="fastdc-session", daemon=True)
        self._thread.start()

    def submit(self, image: Any, *, stream: int | None = None, candidates: Any = None) -> "Future[Classification]":
        """Adds an image; returns at once.

        Args:
            image: (c, h, w), uint8 or float in [0, 1].
            stream: Noise stream in [0, 2^56); default: from the image's pixels.
            candidates: Class indices to consider, or a prefilter; see ``DiffusionClassifier.classify``.

        Returns:
            A future of the result, which has one row.

        Example:
            >>> with fastdc.Session(clf) as session: print(session.submit(images[0]).result().labels == labels[:1])
            [ True]

        Raises:
            InputError: The image or an option cannot be used.
            BackendError: The session is closed, or its network failed.
        """
        one = image[None] if hasattr(image, "detach") else np.asarray(image)[None]
        ready = prepare(one, self._model, None if stream is None else [stream])
        given = candidates if candidates is None or callable(candidates) else [candidates]
        classes = None if given is None else check_candidates(given, ready.unit, self._model)[0]
        sample, noise = self._settings.job.encode(ready.x)[0], int(ready.streams[0])
        future: Future[Classification] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._closed or self._failure is not None:
                raise BackendError(f"the session is over: {self._failure or 'it was closed'}")
            key, self._next_key = self._next_key, self._next_key + 1
            self._waiting[key] = (future, noise, time.perf_counter())
            self._runner.submit(Request(key, sample, noise, classes))
            self._changed.notify()
        return future

    @property
    def evaluated(self) -> int:
        """Network evaluations so far. In latency mode it includes those that no decision needed; results do not."""
        return self._runner.evaluated

    def close(self) -> None:
        """Waits until all images are decided and ends the session. Further images are refused.

        Example:
            >>> fastdc.Session(clf).close()
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed)
                    if not self._waiting:
                        return
                for _ in self._runner.evaluate(wait=True):
                    for finished in self._runner.finished():
                        self._deliver(finished)
        except BaseException as error:  # whatever it was, nobody may wait for ever
            with self._changed:
                self._failure = error
                waiting, self._waiting = self._waiting, {}
            for future, _, _ in waiting.values():
                future.set_exception(error)

    def _deliver(self, finished: Finished) -> None:
        with self._changed:
            future, stream, start = self._waiting.pop(finished.key)
        try:
            streams = np.array([stream], dtype=np.int64)
            table = self._settings.job.table_of([(finished.counts, finished.values)], streams)
            indices = np.zeros(1, np.int64)
            future.set_result(self._settings.decide(table, indices, seconds=time.perf_counter() - start))
        except Exception as error:  # of this image alone
            future.set_exception(error)
