"""Certification by randomized smoothing: copies of many images in flight, and one certificate per image.

For each image (Cohen, Rosenfeld & Kolter, arXiv 1902.02918, section 3.2), n0 noisy copies select a class. Fresh copies,
with noise that selection has not seen, then bound the probability of that class. The selected class is a function of
the selection copies only, and is the only thing that estimation takes from them. So the base classifier that is
certified does not depend on the image or on the pilot, and each image uses alpha once.

Estimation asks of a copy only whether the selected class wins, so a race ends when that class has lost: the same count
for fewer evaluations. Images are opened one after another as long as there is room, so the last copies of one image
share steps with the first copies of the next. How copies are batched changes no number.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdc.bundle import PixelRange
from fastdc.certification.base_classifiers import AbstractBase, Copy, DiffusionBase, Vote
from fastdc.certification.certificate import ABSTAIN, Certificate
from fastdc.certification.estimation import MAX_COPIES, AbstractCounting, AbstractEstimation, Verdict
from fastdc.diffusion import PURPOSE_ESTIMATION, PURPOSE_SELECTION, noisy_copies
from fastdc.inference import Images
from fastdc.support import Float32, InputError, Int64, checks, shown

SELECTION_COPIES = 100
"""Default of n0, the number of copies that select a class."""

_OPEN = 64  # images that are open at once
_KEY = 2**32  # the key of a copy is its image's index times this, plus the number of the copy
_MADE = 256  # copies that are made in one call


@dataclass(frozen=True)
class CertifyProgress:
    """Progress of a certification.

    Attributes:
        finished: Number of images certified or abstained from.
        images: Number of images in all.
        copies: Number of noisy copies classified.
        evaluations: Number of network evaluations.
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
        estimation: Bound on the class's probability; it holds sigma and alpha.
        n0: Number of selection copies.
        seed: Seed of the copies' noise.
    """

    estimation: AbstractEstimation
    n0: int = SELECTION_COPIES
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.estimation, AbstractEstimation):
            raise InputError(f"estimation must be one, such as certification.Fixed, got {shown(self.estimation)}")
        object.__setattr__(self, "n0", checks.whole("n0", self.n0, high=MAX_COPIES))
        object.__setattr__(self, "seed", checks.seed(self.seed))
        self.estimation.check_selection(self.n0)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in pixels in [0, 1]."""
        return self.estimation.sigma

    def describe(self) -> dict[str, Any]:
        """Everything that reproduces the smoothing, as plain values."""
        return {**self.estimation.describe(), "n0": self.n0, "copies_seed": self.seed}


class CertificateStream(Iterator[tuple[int, Certificate]]):
    """Certificates of images with their indices, in order, as soon as they are known.

    Args:
        certified: The certificates.
        base: Base classifier.
        smoothing: How it is smoothed and certified.
        ids: Names of the images; None: they have none.

    Attributes:
        n_classes: Number of classes, K.
        provenance: Everything that reproduces the certificates, as plain values.
        ids: Names of the images, such as the path of each image's file; None: they have none.
    """

    def __init__(
        self,
        certified: Generator[tuple[int, Certificate], None, None],
        base: AbstractBase,
        smoothing: Smoothing,
        ids: tuple[str, ...] | None = None,
    ) -> None:
        self.ids = ids
        self.n_classes = base.n_classes
        self.provenance: dict[str, Any] = {"smoothing": smoothing.describe(), "base": base.describe()}
        self._certified = certified

    def __next__(self) -> tuple[int, Certificate]:
        return next(self._certified)

    def close(self) -> None:
        """Ends the run; the network is free for the next one."""
        self._certified.close()


def certify_images(
    base: AbstractBase,
    x: Float32,
    streams: Int64,
    smoothing: Smoothing,
    *,
    progress: OnCertifyProgress | None = None,
    ids: tuple[str, ...] | None = None,
) -> CertificateStream:
    """Certifies images; yields (index, certificate) in order, as soon as they are known.

    Guarantee: that of the estimation, for each image.

    Args:
        base: Base classifier.
        x: Images, float32 (n, c, h, w) in the base classifier's value range.
        streams: int64 (n,), noise stream of each image, in [0, 2^56).
        smoothing: Noise, selection and estimation.
        progress: Called whenever copies were classified.
        ids: Names of the images, which the stream keeps; None: they have none.

    Example:
        >>> from fastdc.certification import Fixed, FunctionBase, Smoothing, certify_images
        >>> bright = FunctionBase(lambda x: (x.mean(axis=(1, 2, 3)) > 0.5).astype(int), n_classes=2)
        >>> x = np.full((1, 1, 8, 8), 0.6, np.float32)
        >>> [found.label for _, found in certify_images(bright, x, np.zeros(1, int), Smoothing(Fixed(0.25, 100, 0.01)))]
        [1]
    """
    return CertificateStream(_certified(base, x, streams, smoothing, progress), base, smoothing, ids)


def certify_prepared(
    base: AbstractBase, images: Images, smoothing: Smoothing, progress: OnCertifyProgress | None = None
) -> CertificateStream:
    """Certifies images that were prepared for a model: :func:`certify_images` in the range that the base takes.

    Args:
        base: Base classifier.
        images: The images.
        smoothing: Noise, selection and estimation.
        progress: Called whenever copies were classified.

    Example:
        >>> from fastdc.certification import Fixed, Smoothing, certify_prepared
        >>> from fastdc.inference import Images
        >>> few = Smoothing(Fixed(0.25, 20, 0.01), n0=8)
        >>> len(list(certify_prepared(clf.base(sigma=0.25), Images.of(images[:1], clf.model), few)))
        1

    Raises:
        InputError: The base classifier was made for other noise.
    """
    if isinstance(base, DiffusionBase):
        base.check_sigma(smoothing.sigma)
    x = images.on(PixelRange(*base.value_range))
    return certify_images(base, x, images.streams, smoothing, progress=progress, ids=images.ids)


def _certified(
    base: AbstractBase, x: Float32, streams: Int64, smoothing: Smoothing, progress: OnCertifyProgress | None
) -> Generator[tuple[int, Certificate], None, None]:
    queue = _Queue(base, x, streams, smoothing)
    done: dict[int, Certificate] = {}
    given = 0
    copies = evaluations = 0
    last = time.perf_counter()
    for votes in base.votes(queue.feed):
        for vote in votes:
            image = queue.open[vote.key // _KEY]
            image.take(vote)
            evaluations += vote.evaluations
            if image.result is not None:
                del queue.open[image.index]
                done[image.index] = image.result
        copies += len(votes)
        if progress is not None:
            progress(CertifyProgress(given + len(done), len(x), copies, evaluations))
        while given in done:
            now = time.perf_counter()
            yield given, replace(done.pop(given), seconds=now - last)
            last = now
            given += 1


class _Queue:
    """Hands out copies of the images in order, and opens as many images as it takes to fill the room."""

    def __init__(self, base: AbstractBase, x: Float32, streams: Int64, smoothing: Smoothing) -> None:
        self._std = PixelRange(*base.value_range).noise(smoothing.sigma)
        self._classes, self._x, self._streams, self._smoothing = base.n_classes, x, streams, smoothing
        self._next = 0
        self.open: dict[int, _OpenImage] = {}

    def feed(self, room: int) -> list[Copy]:
        """Returns at most `room` copies; an empty list means: wait for votes, or done."""
        copies: list[Copy] = []
        for image in self.open.values():
            copies += image.copies(room - len(copies))
        while len(copies) < room and len(self.open) < _OPEN and self._next < len(self._x):
            index, self._next = self._next, self._next + 1
            stream = int(self._streams[index])
            image = _OpenImage(index, self._x[index], stream, self._smoothing, self._std, self._classes)
            self.open[index] = image
            copies += image.copies(room - len(copies))
        return copies


class _OpenImage:
    """One image on its way to a certificate: selection, then estimation up to one point after another."""

    def __init__(self, index: int, x: Float32, stream: int, smoothing: Smoothing, std: float, n_classes: int) -> None:
        self.index = index
        self.result: Certificate | None = None
        self._x, self._stream, self._std = x, stream, std
        self._smoothing = smoothing
        self._counting: AbstractCounting | None = None  # known once a class is selected
        self._counts = np.zeros(n_classes, np.int64)
        self._selected: int | None = None
        self._successes = 0
        self._evaluations = 0
        self._given = 0  # copies of this phase that were handed out
        self._known = 0  # copies of this phase that have a vote
        self._until = smoothing.n0  # copies of this phase that may be handed out before the next decision

    def copies(self, room: int) -> list[Copy]:
        """Returns up to `room` more copies, as many as may be classified before the next decision."""
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
            made += [Copy(first + i, images[i], int(streams[i]), self._selected, self.index) for i in range(count)]
            self._given += count
        return made

    def take(self, vote: Vote) -> None:
        """Counts a vote, and decides if it was the last one before a decision."""
        self._known += 1
        self._evaluations += vote.evaluations
        if self._counting is None:
            self._counts[vote.label] += 1
            if self._known == self._until:
                self._select()
            return
        self._successes += vote.label == self._selected
        if self._known == self._until:
            self._decide(self._counting)

    def _select(self) -> None:
        self._selected = int(self._counts.argmax())
        self._given = self._known = 0
        begun = self._smoothing.estimation.begin(self._counts)
        if isinstance(begun, Verdict):
            self._finish(begun, self._selected)
        else:
            self._counting = begun
            self._until = begun.next_point(0)

    def _decide(self, counting: AbstractCounting) -> None:
        assert self._selected is not None
        verdict = counting.verdict(self._successes, self._known)
        if verdict is None:
            self._until = counting.next_point(self._known)
        else:
            self._finish(verdict, self._selected)

    def _finish(self, verdict: Verdict, selected: int) -> None:
        self.result = Certificate(
            label=ABSTAIN if verdict.radius is None else selected,
            radius=0.0 if verdict.radius is None else verdict.radius,
            p_lower=verdict.p_lower,
            successes=self._successes,
            copies=self._known,
            selection_copies=self._smoothing.n0,
            evaluations=self._evaluations,
            seconds=0.0,
        )
