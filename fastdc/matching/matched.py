"""What a matcher answers: a score for every candidate text of every image."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fastdc.matching.trials import Trials
from fastdc.support import Float64, Int64, Mask

OnMatched = Callable[[int, int], None]
"""Called with the number of images that are done, and of all images."""

OnFinished = Callable[[Callable[[], "Matched"]], None]
"""Called now and then in a run with a function that gives the answers so far; whoever keeps them may call it."""


class AbstractMatcher(Protocol):
    """A model that says how well texts describe images: a diffusion classifier, CLIP, SigLIP, ViLT."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    def match(self, trials: Trials, progress: OnMatched | None = None) -> "Matched":
        """Scores the candidates of every image.

        Raises:
            InputError: Images or texts cannot be used; raised before any work starts.
            Interrupted: Ctrl-C; its ``result`` holds the images that were finished.
        """
        ...


class AbstractKeptMatcher(AbstractMatcher, Protocol):
    """A matcher that hands out answers while it runs: :func:`match` calls `keep` with what is known so far."""

    def match(self, trials: Trials, progress: OnMatched | None = None, keep: OnFinished | None = None) -> "Matched":
        """As :meth:`AbstractMatcher.match`."""
        ...


@dataclass(frozen=True, eq=False)
class Matched:
    """A model's scores of the candidate texts of m images.

    Attributes:
        name: The model's name.
        rows: int64 (m,), the position of each image in the trials: 0 ... n - 1 unless the run was interrupted.
        scores: m arrays float64, one score per candidate in the order of the trials: the larger, the better the text
            fits. A diffusion classifier's is its negative mean error, a class that was dropped early placed by its
            paired differences.
        answers: int64 (m,), the place of the chosen text among the image's candidates. An exact tie goes to the last
            of the tied, so that the first place, in which tables put the right text, gains nothing from it.
        evaluations: int64 (m,), network evaluations per image; for other models, the texts that an image was compared
            with.
        seconds: Wall time.
        facts: What reproduces the scores: model, files, versions, options. Of a diffusion model, "bundle" is the sha256
            that fastdc info has, and "sha256" that of the bundle with the texts as its prompts.
    """

    name: str
    rows: Int64
    scores: tuple[Float64, ...]
    answers: Int64
    evaluations: Int64
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """m, the number of images."""
        return len(self.scores)

    def right(self, trials: Trials) -> Mask:
        """Whether each answer is the right text, bool (m,).

        Args:
            trials: The trials that were matched.

        Example:
            >>> from fastdc.matching import Trials, last_best
            >>> int(last_best(np.array([1.0, 1.0, 0.5])))
            1
        """
        return np.asarray(self.answers == trials.truth[self.rows])

    def take(self, places: Any) -> "Matched":
        """Some of the images: indices into this result, a slice or a mask."""
        chosen: list[int] = np.arange(len(self))[places].tolist()
        return replace(
            self,
            rows=self.rows[chosen],
            scores=tuple(self.scores[i] for i in chosen),
            answers=self.answers[chosen],
            evaluations=self.evaluations[chosen],
        )


def last_best(scores: Float64) -> int:
    """The place of the largest score; of tied ones, the last.

    Args:
        scores: float64 (m,), without NaN.

    Example:
        >>> from fastdc.matching import last_best
        >>> last_best(np.array([1.0, 3.0, 3.0]))
        2
    """
    return len(scores) - 1 - int(np.argmax(scores[::-1]))
