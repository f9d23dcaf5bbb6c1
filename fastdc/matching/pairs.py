"""Two images and two captions that differ in little: Winoground's scores (Thrush et al., arXiv 2204.03162).

Caption a describes image a. With s[i, c] the score of caption c for image i,

    text score     s[0, 0] > s[0, 1]  and  s[1, 1] > s[1, 0]      the captions of each image compare
    image score    s[0, 0] > s[1, 0]  and  s[1, 1] > s[0, 1]      the images of each caption compare
    group score    both

all strictly: a tie is no success. Captions compare by the errors of one image at equal noise; images only by what a
caption adds to no caption (:mod:`fastdc.matching.evidence`). Raw errors of two images compare the images, and fail: one
of the two is easier to denoise under both captions, so that the raw image score is near 0 for any model.

Chance: 1/4, 1/4 and 1/6 for scores that are independent and continuous.

Noise: the levels are those of the plan for all images. Both captions and "no caption" of an image see the same noise.
The two images of an example see noise of their own: one noise for both left the variance of the differences as it was,
since "no caption" has cancelled what the noise does to an image.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdc.certification import Estimate, share
from fastdc.matching.evidence import evidence
from fastdc.matching.matched import AbstractMatcher, OnMatched
from fastdc.matching.trials import Trials
from fastdc.support import Float64, InputError, Int64, Interrupted, Mask, plain, shown

MEASURES = ("text", "image", "group")
_FIRST = ", image 0"  # the end of the name of an example's first image
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


def pair_trials(images: Any, captions: Any, *, ids: Any = None, tags: Any = ()) -> Trials:
    """Trials of pairs: images 2e and 2e + 1 are those of example e, both with its two captions.

    Args:
        images: 2n paths of image files, or an array (2n, c, h, w).
        captions: n pairs of captions; the a-th describes the a-th image of its example.
        ids: n names of the examples; None: their numbers.
        tags: n kinds of examples, or none.

    Example:
        >>> from fastdc.matching import pair_trials
        >>> pair_trials(images[:2], [("a seven", "a nine")]).truth
        array([0, 1])

    Raises:
        InputError: Numbers do not fit, or captions are no two different texts.
    """
    n = len(captions)
    if len(images) != 2 * n:
        raise InputError(f"expected two images for each of {n} pairs of captions, got {len(images)}")
    wrong = next((e for e in range(n) if isinstance(captions[e], str) or len(captions[e]) != 2), None)
    if wrong is not None:
        raise InputError(f"example {wrong}: expected two captions, got {shown(captions[wrong])}")
    names = [f"example {e}" for e in range(n)] if ids is None else list(map(str, ids))
    if len(names) != n:
        raise InputError(f"ids must have an entry for each of {n} examples, got {len(names)}")
    return Trials.of(
        images,
        [pair for pair in captions for _ in range(2)],
        np.tile(np.arange(2), n),
        ids=[f"{name}, image {a}" for name in names for a in range(2)],
        groups=[tag for tag in tags for _ in range(2)],
    )


@dataclass(frozen=True, eq=False)
class PairScores:
    """The scores of n examples.

    Attributes:
        name: The model's name.
        scores: float64 (n, 2, 2), of image and caption.
        tags: n kinds of examples, or none.
        ids: n names of the examples, or none.
        evaluations: int64 (n,), network evaluations per example.
        seconds: Wall time.
        facts: What reproduces the scores.
    """

    name: str
    scores: Float64
    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    evaluations: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """n, the number of examples."""
        return len(self.scores)

    def __post_init__(self) -> None:
        if self.scores.shape[1:] != (2, 2) or not len(self.scores):
            raise InputError(f"scores must have shape (n, 2, 2) with n > 0, got {self.scores.shape}")

    @property
    def text(self) -> Mask:
        """Examples of whose images each has the larger score with its own caption, bool (n,)."""
        s = self.scores
        return np.asarray((s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0]))

    @property
    def image(self) -> Mask:
        """Examples of whose captions each has the larger score with its own image, bool (n,)."""
        s = self.scores
        return np.asarray((s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1]))

    @property
    def group(self) -> Mask:
        """Examples with both, bool (n,)."""
        return self.text & self.image

    def measures(self, rows: Any = slice(None)) -> dict[str, Estimate]:
        """Text, image and group score as shares of the examples, with Wilson's 95 % intervals.

        Args:
            rows: Examples that count; default: all.
        """
        found = {name: getattr(self, name)[rows] for name in MEASURES}
        return {name: share(int(hits.sum()), len(hits)) for name, hits in found.items()}

    def of_tags(self) -> dict[str, dict[str, Estimate]]:
        """:meth:`measures` of the examples of each tag."""
        tags = np.array(self.tags)
        return {tag: self.measures(tags == tag) for tag in dict.fromkeys(self.tags)}

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON values."""

        def values(found: dict[str, Estimate]) -> dict[str, Any]:
            return {name: one.to_dict() for name, one in found.items()}

        return {
            "model": self.name,
            "examples": len(self),
            **values(self.measures()),
            "chance": dict(CHANCE),
            **({"tags": {tag: values(found) for tag, found in self.of_tags().items()}} if self.tags else {}),
            "evaluations_per_example": float(self.evaluations.mean()) if len(self.evaluations) else None,
            "seconds": self.seconds,
            "facts": plain(self.facts),
        }

    def __str__(self) -> str:
        """A line per measure, with chance."""
        lines = [f"{self.name}, {len(self)} pair{'s'[: len(self) != 1]} of images and captions"]
        lines += [f"{name:<6} {one.percent(1)}   chance {CHANCE[name]:.1%}" for name, one in self.measures().items()]
        for tag, found in self.of_tags().items():
            lines.append(f"{shown(tag, 40)}: " + ", ".join(f"{name} {one.percent(1)}" for name, one in found.items()))
        return "\n".join(lines)


def score_pairs(
    matcher: AbstractMatcher,
    trials: Trials,
    *,
    subtract: bool = True,
    progress: OnMatched | None = None,
) -> PairScores:
    """Text, image and group score of a model.

    Args:
        matcher: The model. A diffusion model evaluates both captions and "no caption" of every image at every draw.
        trials: Examples as :func:`pair_trials` makes them.
        subtract: Whether a diffusion model's error without a caption is subtracted; if not, the image score compares
            how easy images are to denoise.
        progress: Called with the number of images that are done, and of all.

    Example:
        >>> from fastdc.matching import DiffusionMatcher, pair_trials, score_pairs
        >>> found = score_pairs(DiffusionMatcher(clf, draws=32), pair_trials(images[:2], [("7", "9")]))
        >>> found.text, found.group.shape
        (array([ True]), (1,))

    Raises:
        InputError: The trials are no pairs, or see :func:`fastdc.matching.evidence`.
        Interrupted: Ctrl-C; its ``result`` has the examples whose images were both finished.
    """
    pairs = list(zip(trials.candidates[::2], trials.candidates[1::2], strict=False))
    if len(trials) % 2 or any(len(a) != 2 or not np.array_equal(a, b) for a, b in pairs):
        raise InputError("expected pairs: images 2e and 2e + 1 with the same two captions, see pair_trials")

    def scored(matched: Any) -> PairScores | None:
        of_row = dict(zip(matched.rows.tolist(), range(len(matched)), strict=True))
        both = [e for e in range(len(pairs)) if {2 * e, 2 * e + 1} <= of_row.keys()]
        if not both:
            return None
        places = np.array([[of_row[2 * e + a] for a in range(2)] for e in both])
        return PairScores(
            name=matched.name,
            scores=np.array([[matched.scores[i] for i in pair] for pair in places.tolist()], np.float64),
            tags=tuple(trials.groups[2 * e] for e in both) if trials.groups else (),
            ids=tuple(trials.ids[2 * e].removesuffix(_FIRST) for e in both),
            evaluations=matched.evaluations[places].sum(axis=1),
            seconds=matched.seconds,
            facts=matched.facts,
        )

    try:
        found = scored(evidence(matcher, trials, subtract=subtract, progress=progress))
    except Interrupted as stop:
        raise Interrupted(str(stop), None if stop.result is None else scored(stop.result)) from None
    if found is None:
        raise InputError("there is no pair to score: expected at least one")
    return found
