"""Base classifiers of randomized smoothing: what says which class a noisy copy is of.

A base classifier draws copies from a feed as it has room and hands back votes in any order. Its answer about a copy may
depend on the copy, on its stream and on the class that is asked about; never on other copies, on the image that it is a
copy of, or on what was answered before. That is what makes a certificate a statement about one fixed, randomised
classifier, however its work is batched.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastdc.engine import IN_FLIGHT, Finished, Request
from fastdc.inference import Job
from fastdc.support import InputError


@dataclass(frozen=True, eq=False)
class Copy:
    """A noisy copy to classify.

    Attributes:
        key: The feed's name for it.
        image: float32 (c, h, w), in the base classifier's value range and beyond it.
        stream: Noise stream of its own, in [0, 2^56).
        target: Ask only whether this class wins; None: which class wins.
    """

    key: int
    image: npt.NDArray[np.float32] = field(repr=False)
    stream: int
    target: int | None = None


@dataclass(frozen=True)
class Vote:
    """What a base classifier made of a copy.

    Attributes:
        key: The copy's.
        label: The class that wins; where a target was asked about and lost, any other class.
        evaluations: Network evaluations that it took.
    """

    key: int
    label: int
    evaluations: int


_ENCODED = 16  # copies at a time, where they become latents

Feed = Callable[[int], list[Copy]]
"""Up to so many copies; none where there are none until votes come, or at all."""


class AbstractBase(Protocol):
    """A base classifier."""

    @property
    def n_classes(self) -> int:
        """K."""

    @property
    def value_range(self) -> tuple[float, float]:
        """(low, high) of the pixel values it takes."""

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """Classifies what the feed gives until it gives no more and every vote was handed back."""

    def describe(self) -> dict[str, Any]:
        """What reproduces it, as plain values."""


@dataclass(frozen=True)
class DiffusionBase:
    """A (noised) diffusion classifier, decided by the mean error: copies are requests of one run.

    Attributes:
        job: Plan, rule and network.
        room: Copies in flight at once, on a device.
    """

    job: Job
    room: int = IN_FLIGHT

    @property
    def n_classes(self) -> int:
        """K."""
        return self.job.model.num_classes

    @property
    def value_range(self) -> tuple[float, float]:
        """See :class:`AbstractBase`."""
        return self.job.model.value_range

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """See :class:`AbstractBase`."""
        runner = self.job.runner(capacity=self.room)
        room = self.room * len(self.job.networks)
        denoising, in_flight = len(self.job.denoising), 0
        class_of = self.job.model.class_of

        def top_up() -> int:
            copies = feed(room - in_flight)
            for start in range(0, len(copies), _ENCODED):
                some = copies[start : start + _ENCODED]
                samples = [copy.image for copy in some]
                if self.job.encoder is not None:
                    samples = list(self.job.encode(np.stack(samples)))
                for copy, sample in zip(some, samples, strict=True):
                    runner.submit(Request(copy.key, sample, copy.stream, target=self._target(copy.target)))
            return in_flight + len(copies)

        while in_flight := top_up():
            with closing(runner.evaluate()) as steps:
                for _ in steps:
                    votes = [_vote(finished, denoising, class_of) for finished in runner.finished()]
                    if votes:
                        in_flight -= len(votes)
                        yield votes
                        in_flight = top_up()

    def _target(self, label: int | None) -> int | None:
        """The condition whose loss settles that a class lost: none where several prompts describe the class."""
        class_of = self.job.model.class_of
        if label is None or not class_of:
            return label
        return class_of.index(label) if class_of.count(label) == 1 else None

    def describe(self) -> dict[str, Any]:
        """See :class:`AbstractBase`."""
        return self.job.describe()


def _vote(finished: Finished, denoising: int, class_of: tuple[int, ...]) -> Vote:
    """The class that won, or of the prompt that did."""
    best = finished.best
    return Vote(finished.key, class_of[best] if class_of else best, len(finished.values) + denoising)


@dataclass(frozen=True)
class FunctionBase:
    """Any classifier, as a Python function: a CNN in torch, an ONNX session, denoising and a classifier.

    Attributes:
        function: Given float32 (m, c, h, w), m <= batch, returns scores (m, K) or labels (m,), NumPy or torch. It must
            be deterministic, and treat every image by itself.
        n_classes: K.
        value_range: (low, high) of the pixel values it takes.
        batch: Copies a call.
        evaluations: Network evaluations that a copy counts as.
        name: In records.
    """

    function: Callable[[npt.NDArray[np.float32]], Any]
    n_classes: int
    value_range: tuple[float, float] = (0.0, 1.0)
    batch: int = 256
    evaluations: int = 1
    name: str = "function"

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """See :class:`AbstractBase`."""
        while copies := feed(self.batch):
            labels = self._labels(np.stack([copy.image for copy in copies]))
            yield [Vote(copy.key, label, self.evaluations) for copy, label in zip(copies, labels, strict=True)]

    def describe(self) -> dict[str, Any]:
        """See :class:`AbstractBase`."""
        return {"base": self.name, "classes": self.n_classes, "value_range": list(self.value_range)}

    def _labels(self, images: npt.NDArray[np.float32]) -> list[int]:
        given = self.function(images)
        answer = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
        if answer.shape == (len(images), self.n_classes):
            if not np.all(np.isfinite(answer)):
                raise InputError(f"{self.name} gave scores that are not finite")
            return [int(label) for label in answer.argmax(axis=1)]
        if answer.shape != (len(images),) or answer.dtype.kind not in "iu":
            raise InputError(
                f"{self.name} must return scores ({len(images)}, {self.n_classes}) or labels ({len(images)},), "
                f"got {answer.dtype} of shape {answer.shape}"
            )
        if answer.min() < 0 or answer.max() >= self.n_classes:
            raise InputError(
                f"{self.name} must return labels in [0, {self.n_classes}), got {answer.min()} to {answer.max()}"
            )
        return [int(label) for label in answer]
