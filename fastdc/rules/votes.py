"""Pruning by votes (Favero et al., arXiv 2502.03687): stages that keep the classes which won the most draws so far.

Every draw votes for the class with the smallest error. After n_samples[i] draws, the to_keep[i] classes with the most
votes stay. Votes are counted anew at every stage, among the classes that are still alive: a draw that a dropped class
had won goes to the best of those left. So no vote is wasted, a dropped class never returns, and the last count is that
of ``decision="vote"``. With two classes, or one stage, this is the plain majority vote of the paper.

The released code counts each draw once, among the classes alive at that draw: a dropped class wins no later draw, but
keeps its votes, which are lost to the others, and is ranked with them. ``compat="favero"`` reproduces its answers. Two
things follow from that count, with ties to the first class. A class that is not among the kept can only fall further
behind those before it, so none returns if to_keep never increases. The code allows it to increase, and then one can.
"""

from dataclasses import dataclass, field

import numpy as np

from fastdc.rules.protocol import AbstractRule, Look
from fastdc.rules.staged import check_last_stage, checked_stages, evaluations_of, smallest
from fastdc.support import Floats, InputError, Int64, Mask, shown


@dataclass(frozen=True)
class Votes(AbstractRule):
    """Keeps a given number of classes, those with the most votes, after a given number of draws.

    The rule gives no guarantee about errors; its cost is known beforehand. Where several prompts describe a class, it
    ranks prompts, which take votes from each other.

    Attributes:
        n_samples: Numbers of draws after which the stages end, counted from the first draw; increasing. The last one is
            the run's number of draws. Odd numbers leave fewer ties. In the released code: evaluation_per_stage.
        to_keep: Number of classes that stay after each stage, never increasing; usually ends with 1. Of classes with
            equal votes, those with the smaller mean error stay. In the released code: n_keep_per_stage.
        compat: None to count votes anew among the classes alive. "favero" for the count of the released code, with ties
            to the smaller class index; to_keep must end with 1 and may increase before. Every class is then evaluated
            at every draw, because a count needs the errors of dropped classes. The count leaves out what the code does
            not evaluate, and needs ``decision="vote"``.
    """

    name = "votes"

    n_samples: tuple[int, ...]
    to_keep: tuple[int, ...]
    compat: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.compat not in (None, "favero"):
            raise InputError(f"rule votes: compat must be 'favero' or None, got {shown(self.compat)}")
        released = self.compat is not None
        n_samples, to_keep = checked_stages(self.name, self.n_samples, self.to_keep, grows=released)
        if released and to_keep[-1] != 1:
            raise InputError(f"rule votes with compat 'favero': to_keep must end with 1, got {to_keep}")
        object.__setattr__(self, "n_samples", n_samples)
        object.__setattr__(self, "to_keep", to_keep)
        object.__setattr__(self, "draws", n_samples[-1])

    @property
    def decision(self) -> str | None:
        """The count of the released code is a decision by votes."""
        return None if self.compat is None else "vote"

    @property
    def called(self) -> str:
        """The rule in a message about its decision, with compat, which asks for it."""
        return "rule votes" if self.compat is None else f"rule votes with compat={self.compat}"

    def evaluations(self, n_classes: int) -> int:
        """Computes the exact number of network evaluations of a request.

        A request ends with the stage that leaves one class. With compat "favero", every class has every draw.

        Args:
            n_classes: Number of candidate classes.

        Raises:
            InputError: `n_classes` is not a whole number of at least 1.
        """
        if self.compat is not None:
            return evaluations_of(self.name, n_classes, self.n_samples[-1:], (1,))
        return evaluations_of(self.name, n_classes, self.n_samples, self.to_keep)

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks at the end of each stage; with compat "favero", after the last draw.

        Raises:
            InputError: `draws` is not the number of draws of the last stage.
        """
        check_last_stage(self.name, self.n_samples, draws)
        return self.n_samples if self.compat is None else (draws,)

    def keep(self, look: Look) -> Mask:
        """Keeps the stage's number of classes with the most votes, counted among the classes alive."""
        if self.compat is not None:
            return look.alive
        votes = _won(look.errors, look.alive)
        means = np.argsort(np.argsort(look.means, axis=1, kind="stable"), axis=1)  # 0 for the smallest, ... A - 1
        ranks = (means - votes * votes.shape[1]).astype(np.float64)  # more votes first, then the smaller mean
        ranks[~look.alive] = np.inf
        return smallest(ranks, self.to_keep[look.index]) & look.alive

    def votes_of(self, errors: Floats) -> Int64 | None:
        """The count of the released code, int64 (n, K), of which the first largest wins; None without compat."""
        return None if self.compat is None else _released_votes(errors, self.n_samples, self.to_keep)


def _won(errors: Floats, alive: Mask) -> Int64:
    """Draws won by each class among those alive, int64 (r, A), of errors (r, A, m); ties go to the first class."""
    winners = np.where(alive[:, :, None] & ~np.isnan(errors), errors, np.inf).argmin(axis=1)
    classes = np.arange(errors.shape[1])
    return np.asarray((winners[:, None, :] == classes[:, None]).sum(axis=2), np.int64)


def _released_votes(errors: Floats, n_samples: tuple[int, ...], to_keep: tuple[int, ...]) -> Int64:
    """Votes of the released code, int64 (n, K): at each draw among the classes alive then, and never counted again."""
    votes = np.zeros(errors.shape[:2], np.int64)
    candidates: Mask = np.asarray(~np.isnan(errors).all(axis=2))
    alive, before = candidates, 0
    for end, keep in zip(n_samples, to_keep, strict=True):
        votes += _won(errors[:, :, before:end], alive)
        alive, before = smallest(np.where(candidates, -votes, np.inf), keep), end
    return votes
