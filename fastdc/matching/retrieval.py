"""Retrieval: which images does a text describe? Images are ranked for each text by what the text says about them.

The score of an image is comparable between images (:mod:`fastdc.matching.evidence`): of a diffusion model the error
without a text less that under it. For a text with several right images, the first of them in the ranking counts:

    rank = 1 + number of other images whose score is not smaller than the best right image's
    recall@k = share of texts with rank <= k           mean reciprocal rank = mean of 1 / rank

Ties count against the right image. All texts are evaluated on all images, n images x P texts x draws evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastdc.certification import Estimate, share
from fastdc.matching.evidence import evidence
from fastdc.matching.matched import AbstractMatcher, OnMatched
from fastdc.matching.trials import Trials
from fastdc.support import Float64, InputError, Int64, Mask, plain

CUTS = (1, 5, 10)
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Rankings of n images for P texts.

    Attributes:
        name: The model's name.
        texts: P texts.
        scores: float64 (n, P).
        right: bool (n, P), which images each text describes.
        evaluations: Network evaluations of all images.
        seconds: Wall time.
        facts: What reproduces the scores.

    Raises:
        InputError: Shapes differ, or a text describes no image.
    """

    name: str
    texts: tuple[str, ...]
    scores: Float64
    right: Mask
    evaluations: int = 0
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.shape != self.right.shape or self.scores.shape[1:] != (len(self.texts),) or not self.texts:
            raise InputError(
                f"scores and right must have shape (n, {len(self.texts)}), got {self.scores.shape}, {self.right.shape}"
            )
        without = np.flatnonzero(~self.right.any(axis=0))
        if len(without):
            raise InputError(f"the text {self.texts[without[0]]!r:.60} describes no image: expected one at least")

    @cached_property
    def ranks(self) -> Int64:
        """The rank of the first right image of each text, int64 (P,), from 1."""
        best = np.where(self.right, self.scores, -np.inf).max(axis=0)
        return np.asarray(1 + ((self.scores >= best) & ~self.right).sum(axis=0), np.int64)

    def recall(self, k: int) -> Estimate:
        """The share of texts with a right image among the first k, with Wilson's 95 % interval."""
        return share(int((self.ranks <= k).sum()), len(self.texts))

    @property
    def reciprocal(self) -> Estimate:
        """The mean reciprocal rank, with the 95 % interval of resampled texts (percentiles, a fixed seed)."""
        values = 1 / self.ranks
        n, rng = len(values), np.random.default_rng(0)
        means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)])
        low, high = np.percentile(means, (2.5, 97.5)) if n > 1 else (np.nan, np.nan)
        return Estimate(float(values.mean()), float(low), float(high))

    @property
    def chance(self) -> float:
        """Expected recall@1 of a random ranking: the mean share of right images."""
        return float(self.right.mean())

    def measures(self) -> dict[str, Estimate]:
        """Recall@k for k = 1, 5, 10 below the number of images, and the mean reciprocal rank."""
        found = {f"recall@{k}": self.recall(k) for k in CUTS if k < len(self.scores)}
        return {**found, "mean reciprocal rank": self.reciprocal}

    def to_dict(self) -> dict[str, Any]:
        """Measures and ranks as JSON values."""
        return {
            "model": self.name,
            "images": len(self.scores),
            "texts": len(self.texts),
            **{name: one.to_dict() for name, one in self.measures().items()},
            "chance_of_recall@1": self.chance,
            "ranks": dict(zip(self.texts, self.ranks.tolist(), strict=True)),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "facts": plain(self.facts),
        }

    def __str__(self) -> str:
        """A line per measure."""
        lines = [f"{self.name}, {len(self.texts)} texts, {len(self.scores)} images"]
        for name, one in self.measures().items():
            lines.append(
                f"{name:<20} {one.percent(1)}" + (f"   chance {self.chance:.1%}" if name == "recall@1" else "")
            )
        return "\n".join(lines)


def retrieve(
    matcher: AbstractMatcher,
    images: Any,
    texts: Sequence[str],
    right: Any,
    *,
    subtract: bool = True,
    progress: OnMatched | None = None,
) -> Retrieval:
    """Ranks images for texts.

    Args:
        matcher: The model.
        images: n paths of image files, or an array (n, c, h, w).
        texts: P different texts.
        right: Which images each text describes: bool (n, P), or the text of each image, n of them.
        subtract: Whether a diffusion model's error without a text is subtracted.
        progress: Called with the number of images that are done, and of all.

    Example:
        >>> from fastdc.matching import DiffusionMatcher, retrieve
        >>> found = retrieve(DiffusionMatcher(clf, draws=16), images[:4], ["7", "9"], ["7", "9", "7", "9"])
        >>> found.ranks.shape
        (2,)

    Raises:
        InputError: Numbers do not fit, or see :func:`fastdc.matching.evidence`.
        Interrupted: Ctrl-C; images that are not finished would change all ranks, so its ``result`` is no
            :class:`Retrieval`, but the :class:`Matched` scores of those that are.
    """
    trials = Trials.of(images, [list(texts)] * len(images), truth=-1)
    mask = np.asarray(right)
    if mask.dtype != np.bool_:
        if mask.shape != (len(trials),):
            raise InputError(f"right must be the text of each of {len(trials)} images, got shape {mask.shape}")
        place = {text: at for at, text in enumerate(texts)}
        of_image = np.array([place.get(str(text), -1) for text in right], np.int64)
        mask = of_image[:, None] == np.arange(len(texts))
    matched = evidence(matcher, trials, subtract=subtract, progress=progress)
    return Retrieval(
        name=matched.name,
        texts=tuple(map(str, texts)),
        scores=np.stack(matched.scores),
        right=mask,
        evaluations=int(matched.evaluations.sum()),
        seconds=matched.seconds,
        facts=matched.facts,
    )
