"""Runs several models over the cells of the compositional evaluation, and keeps what is finished.

With a folder, the answers of each model in each cell are written as soon as they are known, also after Ctrl-C. A second
run takes from there what was asked with the same model, options, images and texts, and asks for the rest alone, down to
single images: the answer to an image depends on no other image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.matching.cells import Cell
from fastdc.matching.comparison import Comparison
from fastdc.matching.comparison_numbers import Answered, check_known
from fastdc.matching.kept import Keep
from fastdc.matching.matched import AbstractMatcher, Matched
from fastdc.matching.trials import Trials
from fastdc.support import InputError, Interrupted

OnComposed = Callable[[str, Cell, int, int], None]
"""Called with a model's name, a cell, and the numbers of its images that are done, and of all."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """A model with the cells in which it is asked.

    Attributes:
        name: Its name in tables.
        matcher_of: Gives the matcher for a cell.
        cells: The trials by cell.
        facts_of: Gives what reproduces the answers in a cell, as JSON values: another model or option must change them.
            None: that is not known, and answers cannot be kept.
    """

    name: str
    matcher_of: Callable[[Cell], AbstractMatcher]
    cells: Mapping[Cell, Trials]
    facts_of: Callable[[Cell], Mapping[str, Any]] | None = None

    @classmethod
    def of(
        cls, matcher: AbstractMatcher, cells: Mapping[Cell, Trials], facts: Mapping[str, Any] | None = None
    ) -> "Entrant":
        """One matcher for all cells.

        Args:
            matcher: The model.
            cells: The trials by cell.
            facts: What reproduces its answers; None: the matcher's own ``facts``, if it has some.
        """
        known = getattr(matcher, "facts", None) if facts is None else facts
        return cls(matcher.name, lambda cell: matcher, cells, None if known is None else lambda cell: known)


def compose(
    entrants: Sequence[Entrant],
    *,
    out: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    progress: OnComposed | None = None,
) -> Comparison:
    """Asks every model in its cells, cell by cell, and compares the answers.

    Args:
        entrants: The models, with different names.
        out: A folder that keeps answers; None: they are not kept.
        facts: What holds for all, such as the data.
        notes: What a reader should know.
        progress: Called as images are done.

    Example:
        >>> from fastdc.matching import Cell, DiffusionMatcher, Entrant, Trials, compose
        >>> cells = {Cell("digits", "val"): Trials.of(images[:2], [["7", "1"], ["9", "3"]], truth=[0, 1])}
        >>> compose([Entrant.of(DiffusionMatcher(clf), cells)]).scores[0].images
        2

    Raises:
        InputError: Two models have one name, answers are to be kept of one without facts, a right text is not known, or
            images or texts cannot be used.
        Interrupted: Ctrl-C; its ``result`` is the comparison of what was finished, or None.
    """
    _check(entrants, kept=out is not None)
    keep = Keep(None if out is None else Path(out))
    answered: list[Answered] = []

    def compared(more: Sequence[str] = ()) -> Comparison:
        return Comparison.of(answered, facts=facts, notes=[*more, *notes])

    for cell in dict.fromkeys(cell for one in entrants for cell in one.cells):
        for one in entrants:
            if cell not in one.cells:
                continue
            try:
                answered.append(_answered(one, cell, keep, progress))
            except KeyboardInterrupt as stop:
                if isinstance(part := getattr(stop, "result", None), Matched):
                    answered.append(Answered(cell, one.cells[cell], part))
                said = f"interrupted: {one.name} in {cell}"
                told = f"{said}; a race finishes easy images first, and what it has finished tells little of the others"
                some = any(len(known.matched) for known in answered)
                raise Interrupted(said, compared([told]) if some else None) from None
    return compared()


def _check(entrants: Sequence[Entrant], *, kept: bool) -> None:
    """Refuses models and cells before any work starts.

    Raises:
        InputError: See :func:`compose`.
    """
    names = [one.name for one in entrants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"expected models with different names, got {twice!r:.80} twice")
    for one in entrants:
        if kept and one.facts_of is None:
            raise InputError(f"{one.name}: expected facts by which its answers are found again, as out keeps them")
        for cell, trials in one.cells.items():
            check_known(cell, trials)


def _answered(one: Entrant, cell: Cell, keep: Keep, progress: OnComposed | None) -> Answered:
    """A model's answers in a cell: those that are kept, and the others asked for now.

    Raises:
        Interrupted: Ctrl-C; its ``result`` is all answers that are known, or None.
    """
    trials = one.cells[cell]
    key = "" if one.facts_of is None else keep.key(cell, trials, one.facts_of(cell))
    known = keep.read(one.name, cell, key, trials)
    missing = np.setdiff1d(np.arange(len(trials)), [] if known is None else known.rows)
    if known is not None and not len(missing):
        return Answered(cell, trials, known)
    done = len(trials) - len(missing)

    def told(finished: int, _: int) -> None:
        if progress is not None:
            progress(one.name, cell, done + finished, len(trials))

    def joined(new: Matched) -> Matched:
        new = replace(new, name=one.name, rows=missing[new.rows])
        whole = new if known is None else _joined(known, new)
        try:
            keep.write(one.name, cell, key, whole)
        except KeyboardInterrupt:
            keep.write(one.name, cell, key, whole)
            raise Interrupted("interrupted", whole) from None
        return whole

    part = trials if known is None else trials.take(missing)
    try:
        new = one.matcher_of(cell).match(part, told)
    except KeyboardInterrupt as stop:
        found = getattr(stop, "result", None)
        raise Interrupted(str(stop), joined(found) if isinstance(found, Matched) else known) from None
    return Answered(cell, trials, joined(new))


def _joined(first: Matched, second: Matched) -> Matched:
    """The answers to some images, and to others, in the order of the images."""
    order = np.argsort(np.concatenate([first.rows, second.rows]), kind="stable")
    both = replace(
        second,
        rows=np.concatenate([first.rows, second.rows]),
        scores=(*first.scores, *second.scores),
        answers=np.concatenate([first.answers, second.answers]),
        evaluations=np.concatenate([first.evaluations, second.evaluations]),
        seconds=first.seconds + second.seconds,
    )
    return both.take(order)
