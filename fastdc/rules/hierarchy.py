"""Descending a tree of classes, for many classes (Shanbhag et al., arXiv 2411.12073, "Just Leaf It").

Level by level, the rule compares groups of classes through one class of each and opens only the best groups, until only
single classes are left. Then another rule, the inner one, decides among them. Let e_b be the mean errors of the
branches b of a level (the representatives of groups that hold more than one class). A branch stays if its error is

    among the `keep_nodes` smallest    and has    e_b - min e  <=  margin * sd(e),

sd over the branches of that level and request. The first condition is the source's strategy 1, with a number instead of
a share; the second, with margin 2, is its strategy 2. The whole descent takes place at one look: the classes of opened
groups catch up with the draws so far, and the look is taken again.

Departures. The source's inner nodes have prompts of their own, evaluated for the tree alone; here a class represents
its group (:mod:`fastdc.rules.class_tree`), and its errors also count for the class. The source drops single classes on
the way as it drops groups; here only the inner rule drops single classes. The source draws new noise at every level,
and again for the remaining classes; here all share the draws of one plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fastdc.rules.class_tree import ClassTree
from fastdc.rules.nested_classes import MAX_DEPTH
from fastdc.rules.protocol import AbstractRule, Classes, Look
from fastdc.rules.staged import Staged, smallest
from fastdc.support import Float64, InputError, Int32, Mask, checks


@dataclass(frozen=True)
class Hierarchy(AbstractRule):
    """Opens the best branches of a tree of classes, then leaves the classes in them to another rule.

    There is no guarantee for the descent. A class is lost with its branch, at one look and because of the errors of
    another class; how often depends on how well the tree fits the model. The inner rule's guarantee holds for the
    remaining classes.

    A look shows the state of the descent, which takes place at the first look of a run only. Every class that joins
    there is met at the level that was opened last, so the lowest level at which a class alive is met must be decided.

    Attributes:
        tree: Hierarchy over all classes of the model.
        inner: Rule that decides among the classes of the branches that were kept.
        keep_nodes: Largest number of branches that are kept at a level; None: any number.
        margin: Largest distance of a kept branch from the best one, in standard deviations over the branches of the
            level; from 0. Of two branches a margin of 2 keeps both, because they are exactly that far apart. None: any
            distance.
        first: Smallest number of draws of the descent, which takes place at the inner rule's first look after that many
            draws; None: at its first look.
    """

    name = "tree"
    expands = True

    tree: ClassTree
    inner: AbstractRule
    keep_nodes: int | None = field(default=None, kw_only=True)
    margin: float | None = field(default=2.0, kw_only=True)
    first: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.tree, ClassTree):
            raise InputError(f"rule tree: tree must be a ClassTree, got {type(self.tree).__name__}")
        if not isinstance(self.inner, AbstractRule) or self.inner.expands:
            raise InputError(f"rule tree: inner must be a rule without a tree, got {type(self.inner).__name__}")
        if self.keep_nodes is not None:
            object.__setattr__(self, "keep_nodes", checks.whole(f"rule {self.name}: keep_nodes", self.keep_nodes))
        if self.margin is not None:
            object.__setattr__(self, "margin", checks.positive(f"rule {self.name}: margin", self.margin, zero=True))
        if self.first is not None:
            object.__setattr__(self, "first", checks.whole(f"rule {self.name}: first", self.first))
        if self.keep_nodes is None and self.margin is None:
            raise InputError("rule tree needs keep_nodes=... or margin=..., got neither: it would keep every class")
        object.__setattr__(self, "draws", self.inner.draws)

    @property
    def n_classes(self) -> int | None:
        """Number of classes of the tree."""
        return self.tree.n_classes

    @property
    def timesteps(self) -> tuple[int, ...] | None:
        """The inner rule's timesteps."""
        return self.inner.timesteps

    def for_shifts(self, spread: float) -> "Hierarchy":
        """The rule with the inner rule for shifted errors."""
        return replace(self, inner=self.inner.for_shifts(spread))

    def looks(self, draws: int) -> tuple[int, ...]:
        """Looks where the inner rule does, beginning with the look of the descent.

        Raises:
            InputError: `first` would skip a stage of an inner rule with stages.
        """
        looks = self.inner.looks(draws)
        begin = next((i for i, look in enumerate(looks) if look >= (self.first or 1)), len(looks) - 1)
        if begin and isinstance(self.inner, Staged):  # it counts its stages by looks
            raise InputError(
                f"rule tree: first must be at most the {looks[0]} draws of the first stage, got {self.first}"
            )
        return looks[begin:]

    def begin(self, candidates: Classes) -> Classes:
        """Returns the representatives of the highest level."""
        chosen = np.zeros(self.tree.n_classes, np.bool_)
        chosen[candidates] = True
        return np.flatnonzero(self.tree.entry_levels(chosen) == 0).astype(np.int32)

    def keep(self, look: Look) -> Mask:
        """Keeps the best branches during the descent; then decides as the inner rule."""
        keep = look.alive.copy()
        settled = np.ones(len(keep), np.bool_)
        if look.index == 0:
            means = look.means
            for row, branches in enumerate(self._branches(look)):
                if len(branches.columns):
                    settled[row] = False
                    keep[row, branches.columns] = self._chosen(means[row, branches.columns])
        if not look.last and settled.any():  # after the last draw there is nothing to save
            rest = look if settled.all() else _some(look, settled)
            keep[settled] = self.inner.keep(rest)
        return keep

    def expand(self, look: Look, keep: Mask) -> Sequence[Classes] | None:
        """Adds the next level below the branches that are kept."""
        if look.index > 0:
            return None
        added = []
        for row, branches in enumerate(self._branches(look)):
            kept = look.classes[row, branches.columns[keep[row, branches.columns]]]
            opened = np.zeros(self.tree.n_classes, np.bool_)  # by node
            opened[branches.nodes[kept]] = True
            below = np.flatnonzero(opened[branches.nodes] & (branches.entry > branches.level)).astype(np.int32)
            levels = branches.entry[below]
            added.append(below[levels == levels.min(initial=MAX_DEPTH)])
        return added if any(map(len, added)) else None

    def _branches(self, look: Look) -> "list[_Branches]":
        """Finds the state of each request's descent."""
        everywhere = self.tree.entry_levels()
        result = []
        for row, classes in enumerate(look.classes):
            candidates = None if look.candidates is None else look.candidates[row]
            entry = everywhere if candidates is None else self.tree.entry_levels(candidates)
            columns = np.flatnonzero(classes >= 0)
            level = int(entry[classes[columns]].max())
            nodes = self.tree.levels[level]
            size = np.bincount(nodes[entry >= 0], minlength=len(nodes))
            result.append(_Branches(level, nodes, entry, columns[size[nodes[classes[columns]]] > 1]))
        return result

    def _chosen(self, means: Float64) -> Mask:
        """Chooses branches of a level by their mean errors (b,): bool (b,), always True for the best one."""
        gaps = means - means.min()
        chosen = np.ones(len(means), np.bool_)
        if self.margin is not None:
            chosen &= gaps <= self.margin * gaps.std()
        if self.keep_nodes is not None:
            chosen &= smallest(gaps[None], self.keep_nodes)[0]
        return chosen


@dataclass(frozen=True, eq=False)
class _Branches:
    """State of one request's descent.

    Attributes:
        level: Level that must be decided.
        nodes: int32 (K,), the node of every class at that level.
        entry: int32 (K,), the level at which every class is met; -1 for classes that are not candidates.
        columns: intp (b,), the columns of the classes alive that represent a group of several classes.
    """

    level: int
    nodes: Int32
    entry: Int32
    columns: npt.NDArray[np.intp]


def _some(look: Look, rows: Mask) -> Look:
    """The look of some of its requests."""
    began = None if look.began is None else look.began[rows]
    return replace(look, classes=look.classes[rows], errors=look.errors[rows], began=began)
