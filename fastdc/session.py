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

With the option self_calibrate=N, the first N images are run in full, and those that come before all N are finished wait
for the limit of the race that these give (:mod:`fastdc.inference.self_calibration` states what that promises, if the
images that come are exchangeable).
"""

import atexit
import contextlib
import os
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Unpack

import numpy as np

from fastdc.classifier import DiffusionClassifier
from fastdc.engine import IN_FLIGHT, STUCK, Finished, Request, Runner, holds
from fastdc.inference import Classification, Images, Job, Options, RunOptions, Settings, check_candidates, merged
from fastdc.support import GRACE, BackendError, Flag, Float32, InputError, Int32, check_process, checks

MODES = ("throughput", "latency")

_EXIT_SECONDS = 10.0  # for the step in flight when the interpreter exits


class Session:
    """Classifies images as they come.

    Args:
        classifier: Classifier whose network is used. Other runs of the network and the session take turns: images that
            come while another run waits are evaluated after it.
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
        wanted = merged(options, keywords)
        self._settings, self._reading = classifier.settings(wanted), wanted.reading
        checks.one_of("mode", mode, MODES)
        self._model = classifier.model
        self._server = _Server(self._settings.first_in_full(), capacity=capacity, latency=mode == "latency")
        # The threads know the server only, so that a session that nobody closes can be collected, and then ends.
        weakref.finalize(self, self._server.inbox.put, None).atexit = False
        _serving.add(self._server)
        self._server.start()

    def submit(self, image: Any, *, stream: int | None = None, candidates: Any = None) -> "Future[Classification]":
        """Adds an image; returns at once.

        Args:
            image: One image of any kind, see :func:`fastdc.data.prepare`; window and layout are the session's options.
            stream: Noise stream in [0, 2^56); default: from the image's pixels.
            candidates: Class names or indices to consider, or a prefilter; see ``DiffusionClassifier.classify``.

        Returns:
            A future of the result, which has one row. It cannot be cancelled. Its callbacks run on the session's
            thread, where they may submit and close, but not wait for other results.

        Example:
            >>> with fastdc.Session(clf) as session: print(session.submit(images[0]).result().labels == labels[:1])
            [ True]

        Raises:
            InputError: The image or an option cannot be used.
            BackendError: The session is closed, its network failed, or it was made before a fork.
        """
        server = self._server
        check_process(server.process, "the session")
        ready = Images.of(image, self._model, None if stream is None else [stream], **self._reading)
        if len(ready) != 1:
            raise InputError(f"submit takes one image, got {len(ready)}")
        classes = None if candidates is None else check_candidates(candidates, ready, self._model)[0]
        prior = self._settings.job.prior
        if prior is not None and (left := prior.candidates(None if classes is None else [classes], 1)) is not None:
            classes = left[0]
        sample, noise = self._settings.job.encode(ready.x)[0], int(ready.streams[0])
        if server.closed or server.failure is not None:
            raise server.refusal()
        answer = _Answer(server)
        server.inbox.put(_Image(answer, sample, noise, classes, time.perf_counter(), ready.ids))
        if server.over.is_set:  # it was closed meanwhile, and may not have seen the image
            server.refuse_rest()
        return answer

    @property
    def evaluated(self) -> int:
        """Network evaluations so far. In latency mode it includes those that no decision needed; results do not."""
        return self._server.evaluated

    def close(self) -> None:
        """Waits until all images are decided and ends the session. Further images are refused.

        A second call does nothing but wait. A call from the callback of a result, on the session's own thread, does not
        wait, and a call in a forked child does nothing. A session that is dropped without this call ends by itself.

        Example:
            >>> fastdc.Session(clf).close()

        Raises:
            BackendError: Images wait for a run that this thread has begun and not ended. The session ends after them.
        """
        server = self._server
        if server.process != os.getpid():
            return
        server.closed = True
        server.inbox.put(None)
        if threading.current_thread() is server.thread:
            return
        server.over.wait(GRACE if holds(server.networks) else None)
        if not server.over.is_set:
            raise BackendError(STUCK)

    def __reduce__(self) -> NoReturn:
        raise InputError("a session cannot be pickled or copied: pickle its classifier, and open a session there")

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Answer(Future[Classification]):
    """The future of an image; it raises instead of waiting for what cannot come."""

    def __init__(self, server: "_Server") -> None:
        super().__init__()
        self._process, self._thread = server.process, server.thread  # not the server, whose arrays are large
        self._networks = server.networks
        self._known = known = Flag()
        self.set_running_or_notify_cancel()
        self.add_done_callback(lambda _: known.set())  # the first one: those of the user come after it

    def result(self, timeout: float | None = None) -> Classification:
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        if self._known.is_set:
            return
        check_process(self._process, "the session of this result")
        if threading.current_thread() is self._thread:
            raise BackendError("a callback of a session cannot wait for another result of the session")
        if timeout is None and holds(self._networks):
            raise BackendError(STUCK)
        self._known.wait(timeout)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image on its way to the session's thread, as submitted at the time `start`; `ids` has its name, if known."""

    answer: _Answer
    sample: Float32
    stream: int
    classes: Int32 | None
    start: float
    ids: tuple[str, ...] | None


class _Server:
    """The threads of a session and what they work on: one takes the images that come, the other evaluates them.

    Callers reach them through the inbox alone. They hold no lock, so that a Ctrl-C, which may strike a caller between
    any two instructions, cannot leave one locked. None in the inbox closes the session.
    """

    def __init__(self, settings: Settings, *, capacity: int, latency: bool) -> None:
        self._open = partial(Job.runner, capacity=capacity, latency=latency)
        self._runner: Runner = self._open(settings.job)
        self.networks = settings.job.networks
        self.inbox: SimpleQueue[_Image | None] = SimpleQueue()
        self.process = os.getpid()
        self.closed = False
        self.over = Flag()
        self.failure: BaseException | None = None
        self.exiting = False
        self.thread = threading.Thread(target=self._serve, name="fastdc-session", daemon=True)
        self._reader = threading.Thread(target=self._read, name="fastdc-session-inbox", daemon=True)
        self._settings = settings
        self._changed = threading.Condition()  # between the two threads; guards everything below
        self._waiting: dict[int, _Image] = {}
        self._next_key = 0
        self._counted = (0, self._runner)  # evaluations of the runner before this one, and this one
        own = settings.self_calibration
        self._in_full = 0 if own is None else own.images  # images to run in full before any other; 0: any may run
        self._learnt: list[tuple[Int32, Float32]] = []  # the counts and values of those
        self._streams: list[int] = []
        self._held: list[Request] = []  # what waits for the limit that they give
        self._ending = False  # whether no more images are taken

    def start(self) -> None:
        """Starts the threads."""
        self._reader.start()
        self.thread.start()

    @property
    def evaluated(self) -> int:
        """Network evaluations so far."""
        earlier, runner = self._counted  # in one step: callers hold no lock
        return earlier + runner.evaluated

    def refusal(self) -> BackendError:
        """The error of an image that comes too late."""
        return BackendError(f"the session is over: {self.failure or 'it was closed'}")

    def refuse_rest(self) -> None:
        """Refuses the images that came too late to be taken."""
        with contextlib.suppress(Empty):
            while True:
                image = self.inbox.get_nowait()
                if image is not None:
                    image.answer.set_exception(self.refusal())

    def _read(self) -> None:
        while (image := self.inbox.get()) is not None:
            with self._changed:
                if taken := not self._ending:
                    key, self._next_key = self._next_key, self._next_key + 1
                    self._waiting[key] = image
                    request = Request(key, image.sample, image.stream, image.classes)
                    if self._in_full and key >= self._in_full:
                        self._held.append(request)
                    else:
                        self._runner.submit(request)
                    self._changed.notify()
            if not taken:
                image.answer.set_exception(self.refusal())
        with self._changed:
            self._ending = True
            self._changed.notify()

    def _serve(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._ending)
                    if not self._waiting:
                        break
                for _ in self._runner.evaluate(gives_way=True):
                    self._deliver()
                    if self.exiting:
                        raise BackendError("the interpreter exits")
                self._deliver()
                self._learn()
        except BaseException as error:  # whatever it was, nobody may wait for ever
            self.failure = error
        self.closed = True
        with self._changed:
            self._ending = True
            waiting, self._waiting = self._waiting, {}
        for image in waiting.values():
            image.answer.set_exception(self.refusal() if self.failure is None else self.failure)
        self.inbox.put(None)
        self._reader.join()  # from here on, late images are left to refuse_rest, here and in submit
        self.over.set()
        self.refuse_rest()

    def _deliver(self) -> None:
        """Hands out the results of the images that are decided."""
        for finished in self._runner.finished():
            with self._changed:
                image = self._waiting.pop(finished.key)
            if self._in_full:
                self._learnt.append((finished.counts, finished.values))
                self._streams.append(image.stream)
            try:
                result = self._result(finished, image)
            except Exception as error:  # of this image alone
                image.answer.set_exception(error)
            else:
                image.answer.set_result(result)

    def _learn(self) -> None:
        """Calibrates the race once all images that were to be run in full are finished; the others then begin."""
        if not self._in_full or len(self._learnt) < self._in_full:
            return
        table = self._settings.job.table_of(self._learnt, np.array(self._streams, dtype=np.int64))
        settings = self._settings.calibrated(table)
        runner = self._open(settings.job)
        with self._changed:
            self._counted = (self._runner.evaluated, runner)
            self._settings, self._runner, self._in_full = settings, runner, 0
            for request in self._held:
                runner.submit(request)
            self._learnt, self._streams, self._held = [], [], []

    def _result(self, finished: Finished, image: _Image) -> Classification:
        streams = np.array([image.stream], dtype=np.int64)
        table = self._settings.job.table_of([(finished.counts, finished.values)], streams)
        seconds = time.perf_counter() - image.start
        full = np.array([self._settings.in_full])
        return self._settings.decide(table, np.zeros(1, np.int64), seconds=seconds, ids=image.ids, full=full)


_serving: "weakref.WeakSet[_Server]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Ends the threads of sessions after their steps in flight: at exit, a thread in native code may crash."""
    mine = [server for server in _serving if server.process == os.getpid()]
    for server in mine:
        server.exiting = True
        server.inbox.put(None)
    for server in mine:
        if server.thread.ident is not None:
            server.over.wait(_EXIT_SECONDS)
