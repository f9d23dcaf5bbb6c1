"""Base classifiers of randomized smoothing: which class a noisy copy belongs to.

A base classifier draws copies from a feed as it has room, and returns votes in any order. Its answer about a copy may
depend on the copy, on the copy's stream, and on the class that is asked about. It must not depend on other copies, on
the image that was copied, or on earlier answers. A certificate is then a statement about one fixed, randomised
classifier, however its work is batched.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastdc.engine import IN_FLIGHT, Finished, Request
from fastdc.inference import ImageOptions, Job
from fastdc.support import Float32, InputError, shown


@dataclass(frozen=True, eq=False)
class Copy:
    """A noisy copy to classify.

    Attributes:
        key: Number by which the feed knows the copy.
        image: float32 (c, h, w), in the base classifier's value range and, because of the noise, beyond it.
        stream: Noise stream of the copy, in [0, 2^56).
        target: Class in question: does it win? None: which class wins?
        image_index: Index of the image, so that the copies of an image are finished before those of later ones.
    """

    key: int
    image: Float32 = field(repr=False)
    stream: int
    target: int | None = None
    image_index: int = 0


@dataclass(frozen=True)
class Vote:
    """Answer of a base classifier about a copy.

    Attributes:
        key: Key of the copy.
        label: The class that wins; if the copy has a target that loses, any other class.
        evaluations: Number of network evaluations that the answer took.
    """

    key: int
    label: int
    evaluations: int


Feed = Callable[[int], list[Copy]]
"""Returns at most `room` copies; an empty list means: wait for votes, or done."""


class AbstractBase(Protocol):
    """A base classifier."""

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Range (low, high) of the pixel values that the classifier takes."""

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """Classifies copies until the feed is empty and every vote was returned."""

    def describe(self) -> dict[str, Any]:
        """Everything that reproduces the classifier, as plain values."""


def check_base(base: Any, options: Mapping[str, Any]) -> AbstractBase:
    """A base classifier that a user gives; options of the classifier's own make no sense beside it.

    Args:
        base: The base classifier.
        options: Options that the user gives beside it, by name; those that say how images are read are fine.

    Example:
        >>> from fastdc.certification import check_base
        >>> check_base(clf.base(sigma=0.25), {}).n_classes
        10

    Raises:
        InputError: It is something else, or there are other options.
    """
    if isinstance(base, type) or not all(hasattr(base, name) for name in ("votes", "n_classes", "value_range")):
        raise InputError(f"base must be a base classifier, such as clf.base(sigma=0.25), got {shown(base)}")
    beside = [name for name, value in options.items() if value is not None and name not in ImageOptions.__annotations__]
    if beside:
        raise InputError(f"base has options of its own: expected no {beside[0]} beside it")
    given: AbstractBase = base
    return given


@dataclass(frozen=True)
class DiffusionBase:
    """A (noised) diffusion classifier that decides by the mean error. The copies are requests of one engine.

    Attributes:
        job: Plan, rule and network.
        room: Number of copies in flight on each device.

    Raises:
        InputError: The rule is made for another decision.
    """

    job: Job
    room: int = IN_FLIGHT

    def __post_init__(self) -> None:
        rule = self.job.rule
        if rule.decision not in (None, "mean"):
            raise InputError(
                f"certificates are of the decision by the mean error, but {rule.called} needs "
                f"decision={rule.decision}: expected another rule"
            )

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return self.job.model.num_classes

    @property
    def value_range(self) -> tuple[float, float]:
        """Range (low, high) of the model's pixel values."""
        return self.job.model.value_range

    def check_sigma(self, sigma: float) -> None:
        """Refuses copies with another noise than the one that the base classifier was made for.

        Args:
            sigma: Standard deviation of the copies' noise, in pixels in [0, 1].

        Raises:
            InputError: The noises differ.
        """
        own, theirs = self.job.plan.config.noise, self.job.model.noise_ratio(sigma)
        if own and not math.isclose(own, theirs, rel_tol=1e-6):
            raise InputError(f"base must be made for the copies' sigma {sigma:g}, got one for {sigma * own / theirs:g}")

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """Classifies copies when it is the run's turn; votes come in the order in which the engine finishes them."""
        return self.job.turn().run(self._votes(feed))

    def _votes(self, feed: Feed) -> Generator[list[Vote], None, None]:
        runner = self.job.runner(capacity=self.room)
        room = self.room * len(self.job.networks)
        denoising, in_flight, together = self.job.denoisings, 0, self.job.together
        prior = self.job.prior
        classes = None if prior is None else prior.allowed

        def top_up() -> int:
            copies = feed(room - in_flight)
            for start in range(0, len(copies), together):
                some = copies[start : start + together]
                for copy, sample in zip(some, self._encoded(some), strict=True):
                    target, group = self._target(copy.target), copy.image_index
                    runner.submit(Request(copy.key, sample, copy.stream, classes, target=target, group=group))
            return in_flight + len(copies)

        while in_flight := top_up():
            with closing(runner.evaluate(held=True)) as steps:
                for _ in steps:
                    votes = [self._vote(finished, denoising) for finished in runner.finished()]
                    if votes:
                        in_flight -= len(votes)
                        yield votes
                        in_flight = top_up()

    def _vote(self, finished: Finished, denoising: int) -> Vote:
        """The vote for the winning condition; with prompts, for the class that the winning prompt describes."""
        prior, class_of = self.job.prior, self.job.model.class_of
        best = finished.best if prior is None else prior.best(finished)
        return Vote(finished.key, class_of[best] if class_of else best, len(finished.values) + denoising)

    def _encoded(self, copies: list[Copy]) -> Float32:
        return self.job.encode(np.stack([copy.image for copy in copies]), held=True)

    def _target(self, label: int | None) -> int | None:
        """The condition that loses only if its class loses; None if several prompts describe the class."""
        class_of = self.job.model.class_of
        if label is None or not class_of:
            return label
        return class_of.index(label) if class_of.count(label) == 1 else None

    def describe(self) -> dict[str, Any]:
        """Everything that reproduces the job, as plain values."""
        return self.job.describe()


@dataclass(frozen=True)
class FunctionBase:
    """Any classifier, as a Python function: a CNN in torch, an ONNX session, or denoising followed by a classifier.

    Attributes:
        function: Takes float32 (m, c, h, w) with m <= batch, and returns scores (m, K) or labels (m,), NumPy or torch.
            It must be deterministic and must treat every image by itself.
        n_classes: Number of classes, K.
        value_range: Range (low, high) of the pixel values that the function takes.
        batch: Largest number of copies in a call.
        evaluations: Number of network evaluations that a copy counts as.
        name: Name of the classifier in records and messages.
    """

    function: Callable[[Float32], Any]
    n_classes: int
    value_range: tuple[float, float] = (0.0, 1.0)
    batch: int = 256
    evaluations: int = 1
    name: str = "function"

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        """Classifies copies, one batch per call of the function.

        Raises:
            InputError: The function returned neither scores nor labels.
        """
        while copies := feed(self.batch):
            labels = self._labels(np.stack([copy.image for copy in copies]))
            yield [Vote(copy.key, label, self.evaluations) for copy, label in zip(copies, labels, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Name, number of classes and value range, as plain values."""
        return {"base": self.name, "classes": self.n_classes, "value_range": list(self.value_range)}

    def _labels(self, images: Float32) -> list[int]:
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
