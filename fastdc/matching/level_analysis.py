"""Which noise levels tell the right text from the wrong ones? Read off one table of errors of a full run.

The draws of a plan are sorted by their noise-to-signal ratio and cut into bins of equally many. In each bin, for each
kind of wrong candidate (same shape in another colour, the relation flipped, ...),

    one draw   the share of draws at which the right text's error is smaller than a candidate's, ties as halves, the
               mean over an image's candidates of the kind, and then over images; chance is 1/2
    together   the share of images whose right text has a smaller mean error over the bin's draws than every candidate
               of the kind; a tie is no success

A level that tells the candidates of one kind apart need not tell those of another: what a text says about colours is
decided at other levels than where things are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.certification import Estimate, mean, share
from fastdc.inference import ErrorTable
from fastdc.matching.trials import RIGHT, Trials
from fastdc.support import Float64, InputError, Mask, checks, shown

ALL = "any wrong text"
"""The name of all kinds together."""

_BINS = 8


@dataclass(frozen=True, eq=False)
class LevelAnalysis:
    """What the bins of noise levels tell about each kind of wrong text.

    Attributes:
        model: Name of the model.
        levels: float64 (B, 2), the smallest and largest noise-to-signal ratio of each bin, increasing.
        draws: Number of draws in each bin.
        kinds: The kinds of wrong candidates; the last one is :data:`ALL`, unless there is only one.
        images: Number of images that have candidates of each kind.
        single: For each kind, an estimate per bin: the share of single draws, with Student's 95 % interval over images;
            where all images are at 0 or 1, which has no spread, Wilson's.
        together: For each kind, an estimate per bin: the share of images, with Wilson's 95 % interval.
    """

    model: str
    levels: Float64
    draws: tuple[int, ...]
    kinds: tuple[str, ...]
    images: tuple[int, ...]
    single: dict[str, tuple[Estimate, ...]]
    together: dict[str, tuple[Estimate, ...]]

    def best(self, kind: str) -> int:
        """The bin whose single draws tell a kind apart most often."""
        if kind not in self.single:
            raise InputError(f"kind must be one of {', '.join(map(shown, self.kinds))}, got {shown(kind)}")
        return int(np.argmax([one.value for one in self.single[kind]]))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "model": self.model,
            "bins": [
                {"low": low, "high": high, "draws": draws}
                for (low, high), draws in zip(self.levels.tolist(), self.draws, strict=True)
            ],
            "kinds": {
                kind: {
                    "images": images,
                    "single_draw": [one.to_dict() for one in self.single[kind]],
                    "together": [one.to_dict() for one in self.together[kind]],
                }
                for kind, images in zip(self.kinds, self.images, strict=True)
            },
        }

    def __str__(self) -> str:
        """A line per bin: of each kind, the share of single draws, and that of images; what they are, in two more."""
        head = "sigma / alpha      " + "  ".join(f"{kind:>20.20}" for kind in self.kinds)
        lines = [head, " " * 19 + "  ".join([f"{'one draw':>9} {'whole bin':>10}"] * len(self.kinds))]
        for b, (low, high) in enumerate(self.levels.tolist()):
            cells = [f"{self.single[k][b].value:9.1%} {self.together[k][b].value:10.1%}" for k in self.kinds]
            lines.append(f"{low:8.3g} {high:8.3g}  " + "  ".join(cells))
        told = [
            "one draw: how often the right text is ahead of a wrong one, the mean over wrong texts; chance is 50 %",
            "whole bin: images whose right text is ahead ",
        ]
        return "\n".join([*lines, *told])


def level_analysis(table: ErrorTable, trials: Trials, *, bins: int | None = None) -> LevelAnalysis:
    """What each range of noise levels tells, from the errors of a full run, without another evaluation.

    Args:
        table: Errors by place, see :meth:`DiffusionMatcher.errors`; a last column without a text is left out.
        trials: The trials; images whose right text is not known are left out.
        bins: Number of bins B, at most that of draws; None: 8, or fewer.

    Example:
        >>> from fastdc.matching import DiffusionMatcher, Trials, level_analysis
        >>> trials = Trials.of(images[:2], [["7", "1"], ["9", "3"]])
        >>> level_analysis(DiffusionMatcher(clf, draws=16).errors(trials), trials, bins=2).draws
        (8, 8)

    Raises:
        InputError: The table is not a full run of the trials, no right text is known, or there are too many bins.
    """
    known = np.flatnonzero(trials.truth >= 0)
    _check(table, trials, known)
    order = np.argsort(table.sigma, kind="stable")
    bins = min(_BINS, len(order)) if bins is None else checks.whole("bins", bins)
    if bins > len(order):
        raise InputError(f"bins must be at most the {len(order)} draws, got {bins}")
    groups = np.array_split(order, bins)
    kinds, masks = _kinds(trials, known)
    wins, beats = _compared(table, trials, known, groups)
    single, together, images = {}, {}, []
    for kind, mask in zip(kinds, masks, strict=True):
        has = mask.any(axis=1)
        shares = np.where(mask[:, :, None], wins, 0).sum(axis=1)[has] / mask.sum(axis=1)[has, None]
        every = np.asarray((beats | ~mask[:, :, None]).all(axis=1))[has]
        single[kind] = tuple(_share_of_draws(shares[:, b]) for b in range(bins))
        together[kind] = tuple(share(int(every[:, b].sum()), len(every)) for b in range(bins))
        images.append(int(has.sum()))
    return LevelAnalysis(
        model=table.model,
        levels=np.array([[table.sigma[one].min(), table.sigma[one].max()] for one in groups], np.float64),
        draws=tuple(map(len, groups)),
        kinds=kinds,
        images=tuple(images),
        single=single,
        together=together,
    )


def _share_of_draws(shares: Float64) -> Estimate:
    """The mean of a share per image. Where all are at an end, Student's interval has no width: Wilson's of images."""
    n = len(shares)
    if n > 1 and shares[0] in (0.0, 1.0) and (shares == shares[0]).all():
        return share(n * int(shares[0]), n)
    found = mean(shares, lowest=0.0)
    return found._replace(high=min(found.high, 1.0)) if np.isfinite(found.high) else found


def _check(table: ErrorTable, trials: Trials, known: Any) -> None:
    """Refuses a table that does not belong to trials."""
    if len(table) != len(trials):
        raise InputError(f"expected a table of the {len(trials)} trials, got one of {len(table)} images")
    for i, own in enumerate(trials.candidates):
        if len(own) > table.counts.shape[1] or (table.counts[i, : len(own)] != table.draws).any():
            raise InputError(f"{trials.ids[i]}: expected the errors of a full run of its {len(own)} candidates")
    if not len(known):
        raise InputError("no right text is known: expected truth of one image or more")
    if not any(len(trials.candidates[i]) > 1 for i in known):
        raise InputError("expected images with two candidates or more, got one text for each")


def _kinds(trials: Trials, known: Any) -> tuple[tuple[str, ...], list[Mask]]:
    """The kinds of wrong candidates, and which places (m, A) of the images are of each."""
    width = max(len(trials.candidates[i]) for i in known)
    kinds = np.full((len(known), width), "", object)
    for row, i in enumerate(known.tolist()):
        count, truth = len(trials.candidates[i]), int(trials.truth[i])
        kinds[row, :count] = trials.kinds[i] if trials.kinds else ALL
        kinds[row, truth] = RIGHT
    wrong = np.array([[bool(kind) and kind != RIGHT for kind in row] for row in kinds])
    if not wrong.any():
        raise InputError("no wrong text has a kind: expected kinds of candidates, or none at all")
    every = tuple(dict.fromkeys(kinds[wrong].tolist()))
    names = every if len(every) == 1 else (*(name for name in every if name != ALL), ALL)
    return names, [wrong if name == ALL else np.asarray(kinds == name) for name in names]


def _compared(table: ErrorTable, trials: Trials, known: Any, groups: Any) -> tuple[Float64, Mask]:
    """For each image, place and bin: the share of draws that the right text wins, and whether it wins their mean."""
    width = max(len(trials.candidates[i]) for i in known)
    wins, beats = np.zeros((len(known), width, len(groups))), np.zeros((len(known), width, len(groups)), np.bool_)
    for row, i in enumerate(known.tolist()):
        count = len(trials.candidates[i])
        errors = table.rows(i, i + 1).errors[0, :count].astype(np.float64)
        ahead = errors - errors[int(trials.truth[i])]
        for b, draws in enumerate(groups):
            some = ahead[:, draws]
            wins[row, :count, b] = ((some > 0) + 0.5 * (some == 0)).mean(axis=1)
            beats[row, :count, b] = some.mean(axis=1) > 0
    return wins, beats
