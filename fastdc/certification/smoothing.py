"""Certification by randomized smoothing: copies of many images in flight, one certificate an image.

For each image (Cohen, Rosenfeld & Kolter, arXiv 1902.02918, section 3.2): n0 noisy copies select a class; fresh copies,
of noise that selection has not seen, then bound how probable that class is. The selected class is a function of the
selection copies only, and is the only thing that estimation takes from them: the base classifier that is certified does
not depend on the image or on the pilot, and alpha is spent once.

Estimation asks of a copy only whether the selected class wins, so a race ends when it has lost: the same event for
fewer evaluations. Images are opened one after another as long as there is room, so that the last copies of one share
steps with the first of the next; how they are batched changes no number.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.certification.base_classifiers import AbstractBase, Copy, Vote
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.estimation import AbstractEstimation, Verdict, check_estimation
from fastdc.diffusion import PURPOSE_ESTIMATION, PURPOSE_SELECTION, noisy_copies
from fastdc.support import InputError, checks

Images = npt.NDArray[np.float32]

_OPEN = 64  # images at once
_KEY = 2**32  # keys of an image's copies: its number times this, plus theirs
_MADE = 256  # copies made in one call


@dataclass(frozen=True)
class CertifyProgress:
    """How far a run is.

    Attributes:
        finished: Images certified or refused.
        images: Images in all.
        copies: Noisy copies classified.
        evaluations: Network evaluations.
    """

    finished: int
    images: int
    copies: int
    evaluations: int


OnCertifyProgress = Callable[[CertifyProgress], None]


@dataclass(frozen=True)
class Smoothing:
    """A smoothed classifier and how it is certified.

    Attributes:
        estimation: How the class's probability is bounded; has sigma and alpha.
        n0: Selection copies.
        seed: Of the copies' noise.
    """

    estimation: AbstractEstimation
    n0: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_estimation(self.sigma, 0.5, self.n0)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= checks.MAX_SEED:
            raise InputError(f"seed must be a whole number in [0, 2^64), got {self.seed!r:.80}")

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in pixels in [0, 1]."""
        return self.estimation.sigma

    def describe(self) -> dict[str, Any]:
        """What reproduces it, as plain values."""
        return {**self.estimation.describe(), "n0": self.n0, "copies_seed": self.seed}


def certify_images(
    base: AbstractBase,
    x: Images,
    streams: npt.NDArray[np.int64],
    smoothing: Smoothing,
    *,
    progress: OnCertifyProgress | None = None,
) -> Iterator[tuple[int, Certificate]]:
    """Certifies images; yields (index, certificate) in order, as soon as they are known.

    Args:
        base: The base classifier.
        x: float32 (n, c, h, w) in the base classifier's value range.
        streams: int64 (n,), names the noise of each image.
        smoothing: What is certified, and how.
        progress: Called whenever copies were classified.
    """
    queue = _Queue(base, x, streams, smoothing)
    done: dict[int, Certificate] = {}
    given = 0
    copies = evaluations = 0
    last = time.perf_counter()
    for votes in base.votes(queue.feed):
        for vote in votes:
            trial = queue.open[vote.key // _KEY]
            trial.take(vote)
            evaluations += vote.evaluations
            if trial.result is not None:
                del queue.open[trial.index]
                done[trial.index] = trial.result
        copies += len(votes)
        if progress is not None:
            progress(CertifyProgress(given + len(done), len(x), copies, evaluations))
        while given in done:
            now = time.perf_counter()
            yield given, replace(done.pop(given), seconds=now - last)
            last = now
            given += 1


class _Queue:
    """Gives copies of the images in order, of as many images as it takes to fill the room."""

    def __init__(self, base: AbstractBase, x: Images, streams: npt.NDArray[np.int64], smoothing: Smoothing) -> None:
        low, high = base.value_range
        self._std = smoothing.sigma * (high - low)
        self._classes, self._x, self._streams, self._smoothing = base.n_classes, x, streams, smoothing
        self._next = 0
        self.open: dict[int, _Trial] = {}

    def feed(self, room: int) -> list[Copy]:
        """See ``base.Feed``."""
        copies: list[Copy] = []
        for trial in self.open.values():
            copies += trial.copies(room - len(copies))
        while len(copies) < room and len(self.open) < _OPEN and self._next < len(self._x):
            index, self._next = self._next, self._next + 1
            trial = _Trial(index, self._x[index], int(self._streams[index]), self._smoothing, self._std, self._classes)
            self.open[index] = trial
            copies += trial.copies(room - len(copies))
        return copies


class _Trial:
    """One image on its way to a certificate: selection, then estimation up to one point after another."""

    def __init__(self, index: int, x: Images, stream: int, smoothing: Smoothing, std: float, n_classes: int) -> None:
        self.index = index
        self.result: Certificate | None = None
        self._x, self._stream, self._std = x, stream, std
        self._smoothing = smoothing
        self._estimation = smoothing.estimation
        self._counts = np.zeros(n_classes, np.int64)
        self._selected: int | None = None
        self._successes = 0
        self._evaluations = 0
        self._given = 0  # copies of this phase handed out
        self._known = 0  # of them with a vote
        self._until = smoothing.n0  # copies that may be handed out before a decision

    def copies(self, room: int) -> list[Copy]:
        """Up to `room` more copies, as many as may be classified before the next decision."""
        made: list[Copy] = []
        purpose = PURPOSE_SELECTION if self._selected is None else PURPOSE_ESTIMATION
        while (count := min(room - len(made), self._until - self._given, _MADE)) > 0:
            images, streams = noisy_copies(
                self._x,
                self._given,
                count,
                std=self._std,
                seed=self._smoothing.seed,
                stream=self._stream,
                purpose=purpose,
            )
            first = self.index * _KEY + self._given
            made += [Copy(first + i, images[i], int(streams[i]), self._selected) for i in range(count)]
            self._given += count
        return made

    def take(self, vote: Vote) -> None:
        """Counts a vote, and decides if it was the last one before a decision."""
        self._known += 1
        self._evaluations += vote.evaluations
        if self._selected is None:
            self._counts[vote.label] += 1
            if self._known == self._until:
                self._select()
            return
        self._successes += vote.label == self._selected
        if self._known == self._until:
            self._estimate()

    def _select(self) -> None:
        self._selected = int(self._counts.argmax())
        self._given = self._known = 0
        begun = self._smoothing.estimation.begin(self._counts)
        if isinstance(begun, Verdict):
            self._finish(begun)
        else:
            self._estimation = begun
            self._until = begun.next_point(0)

    def _estimate(self) -> None:
        verdict = self._estimation.verdict(self._successes, self._known)
        if verdict is None:
            self._until = self._estimation.next_point(self._known)
        else:
            self._finish(verdict)

    def _finish(self, verdict: Verdict) -> None:
        assert self._selected is not None
        self.result = Certificate(
            label=ABSTAIN if verdict.radius is None else self._selected,
            radius=0.0 if verdict.radius is None else verdict.radius,
            p_lower=verdict.p_lower,
            successes=self._successes,
            copies=self._known,
            selection_copies=self._smoothing.n0,
            evaluations=self._evaluations,
            seconds=0.0,
        )
