"""Agreement of a race with the full run: how often both give one answer, counted on a random sample of the images.

The full run evaluates every class at every draw of the very plan that the race had, under the same seed and the same
noise of each image, and decides in the same way. An answer that differs was therefore lost by dropping a class early.
A calibrated race promises that this happens rarely (:mod:`fastdc.calibration.race`); the sample shows whether it holds
on these images, which may be of another kind than the validation images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdc.certification import Estimate, share
from fastdc.inference import FULL, Classification, Images, OnProgress, Settings, stream_results
from fastdc.rules import Full
from fastdc.support import InputError, Int64, Mask, checks

CHECKED = 100
"""Most images of a check, unless a user asks for more."""

# Images of a check that costs more than the run itself: the fewest that say something. If a race loses one answer in
# five, where calibrations promise to lose at most one in twenty, nine of ten such checks find one.
_FEW = 10

_MOST_FLOPS = 1e13  # operations of these: some minutes on one core


@dataclass(frozen=True)
class Agreement:
    """How many answers are those of the full run.

    Attributes:
        agreed: Number of images with the same answer.
        compared: Number of images compared.
        promised: Share that the race's calibration promises at least; None if it promises nothing here.
        differing: Indices of the images whose answers differ.
        evaluations: Network evaluations of the full runs, which no other number includes.
        seconds: Their wall time.
    """

    agreed: int
    compared: int
    promised: float | None
    differing: tuple[int, ...]
    evaluations: int
    seconds: float

    @classmethod
    def of(
        cls, settings: Settings, answers: dict[int, int], full: Sequence[tuple[Int64, Classification]]
    ) -> "Agreement":
        """The agreement of a race's answers with full runs.

        Args:
            settings: The race's.
            answers: Answer of the race by index of the image.
            full: Results of :func:`full_runs`, each with the indices int64 (m,) that its images have in the race.

        Raises:
            InputError: There is no full run.
        """
        indices = np.concatenate([known for known, _ in full]) if full else np.empty(0, np.int64)
        if not len(indices):
            raise InputError("no image was run in full: expected one or more")
        labels = np.concatenate([result.labels for _, result in full])
        differing = [int(i) for i, label in zip(indices, labels, strict=True) if answers[int(i)] != label]
        return cls(
            agreed=len(indices) - len(differing),
            compared=len(indices),
            promised=settings.promised,
            differing=tuple(differing),
            evaluations=int(sum(result.evaluations.sum() for _, result in full)),
            seconds=full[-1][1].seconds,
        )

    @property
    def share(self) -> Estimate:
        """The share that agrees, with Wilson's 95 % confidence interval."""
        return share(self.agreed, self.compared)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "differing": list(self.differing), "share": self.share.to_dict()}

    def __str__(self) -> str:
        found = f"{self.agreed} of {self.compared} images, {self.share.percent(1)}"
        return found if self.promised is None else f"{found}; promised: at least {100 * self.promised:.4g} %"


def check_count(images: int, *, full: int, spent: int, flops: float | None) -> int:
    """Number of images to check by default: at most 100, and as many as take no more evaluations than the run did.

    If these are fewer than ten, it is ten, or as many of them as take some minutes.

    Args:
        images: Number of images of the run.
        full: Evaluations of a full run, per image.
        spent: Evaluations of the run.
        flops: Operations of an evaluation; None if they are unknown, which only a cheap network leaves them.

    Example:
        >>> from fastdc.scoring import check_count
        >>> check_count(400, full=1280, spent=6880, flops=7e5), check_count(400, full=128_000, spent=10**6, flops=1e11)
        (10, 7)
    """
    few = _FEW if not flops else int(min(_FEW, _MOST_FLOPS / (flops * full)))
    return min(images, CHECKED, max(few, spent // full))


def sampled(indices: Int64, count: int, seed: int) -> Int64:
    """Some of the images, drawn at random without repetition, in their order.

    Args:
        indices: int64 (m,), images to draw from.
        count: Number of images; all if there are fewer.
        seed: Seed of the draw.

    Example:
        >>> from fastdc.scoring import sampled
        >>> len(sampled(np.arange(400), 100, seed=0))
        100
    """
    chosen = np.random.default_rng(seed).choice(indices, min(count, len(indices)), replace=False)
    return np.sort(np.asarray(chosen, np.int64))


def raced_of(result: Classification) -> Mask:
    """Which images raced, bool (m,): all, but for those that a run which calibrates itself took in full.

    Args:
        result: The result.

    Example:
        >>> from fastdc.scoring import raced_of
        >>> int(raced_of(clf.classify(images, self_calibrate=19)).sum())
        1
    """
    promises = result.promises
    return np.array([promises is None or promises[row] != FULL for row in range(len(result))], np.bool_)


def full_runs(
    settings: Settings, images: Images, *, chunk: int | None = None, progress: OnProgress | None = None
) -> Iterator[Classification]:
    """Results of the full run of the plan of a race, as :func:`fastdc.inference.stream_results` yields them.

    Args:
        settings: The race's.
        images: The images.
        chunk: Images per result; None: all in one.
        progress: Called after every step.

    Example:
        >>> from fastdc.inference import Images
        >>> from fastdc.scoring import full_runs
        >>> int(next(full_runs(clf.settings(draws=8), Images.of(images[:1], clf.model))).evaluations[0])
        80

    Raises:
        Interrupted: Ctrl-C; its ``result`` holds the images that were finished and not yielded.
    """
    full = replace(settings, job=settings.job.but(rule=Full()), self_calibration=None)
    return stream_results(full, images, chunk=chunk, progress=progress)


def agreement(
    result: Classification,
    images: Any,
    settings: Settings,
    *,
    count: int = CHECKED,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Agreement:
    """Runs a sample of classified images in full, and says how many answers agree.

    Args:
        result: The race's result.
        images: The images that were classified, of any kind, see :func:`fastdc.data.prepare`.
        settings: Those of the race: ``clf.settings`` with the same options.
        count: Number of images to run in full; each takes an evaluation per class and draw.
        seed: Seed of the sample.
        progress: Called after every step.

    Example:
        >>> from fastdc.scoring import agreement
        >>> print(agreement(clf.classify(images), images, clf.settings(), count=5))
        5 of 5 images, 100.0 % (95 % interval 56.6 to 100.0 %); promised: at least 99 %

    Raises:
        InputError: Images or counts cannot be used, or the result is a full run itself.
    """
    checks.whole("count", count)
    raced = raced_of(result)
    if not settings.races or not raced.any():
        raise InputError("the full run agrees with itself: expected a race of two classes or more")
    ready = Images.of(images, settings.job.model)
    if not len(result) or int(result.indices.max()) >= len(ready):
        raise InputError(f"images must be those that were classified, {len(result)} or more, got {len(ready)}")
    rows = sampled(np.flatnonzero(raced), count, seed)
    places = result.indices[rows]
    chosen = Images(ready.given[places], ready.samples[places], result.table.streams[rows])
    answers = dict(zip(result.indices.tolist(), result.labels.tolist(), strict=True))
    return Agreement.of(settings, answers, [(places, next(full_runs(settings, chosen, progress=progress)))])
