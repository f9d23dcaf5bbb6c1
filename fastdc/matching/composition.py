"""Runs several models over the cells of the compositional evaluation, and keeps what is finished.

With a folder, the answers of each model in each cell are written as they become known, every few seconds, and at once
after Ctrl-C or an error; what is killed loses those of the last seconds. A second run takes from there what was asked
with the same model, options, images and texts, and asks for the rest alone, down to single images: the answer to an
image depends on no other image.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastdc.matching.cells import Cell
from fastdc.matching.comparison import Comparison
from fastdc.matching.comparison_numbers import Answered, check_known
from fastdc.matching.kept import Keep
from fastdc.matching.matched import AbstractKeptMatcher, AbstractMatcher, Matched, OnMatched
from fastdc.matching.trials import Trials
from fastdc.support import FastdcError, InputError, Interrupted

_EVERY = 5.0  # seconds between two writes of a cell's answers, at least
_EASY = "a race finishes the easy images first, so these say little about the others"

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
        FastdcError: A model or an image fails later; its ``result`` is the comparison of what was finished, or None.
        Interrupted: Ctrl-C; ``result`` as above.
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
            except (KeyboardInterrupt, FastdcError) as stop:
                if isinstance(part := getattr(stop, "result", None), Matched):
                    answered.append(Answered(cell, one.cells[cell], part))
                some = any(len(known.matched) for known in answered)
                failed = isinstance(stop, FastdcError)
                said = f"{'failed' if failed else 'interrupted'}: {one.name} in {cell}"
                said = str(stop) if isinstance(stop, _Unprepared) else said
                again = "; the same command goes on" if keep.kept else ""
                found = compared([f"{said}{again}; {_EASY}"]) if some else None
                if isinstance(stop, FastdcError):
                    stop.result = found
                    raise
                raise Interrupted(said, found) from None
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
        FastdcError: The model or an image cannot be used; ``result`` as above.
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
        return new if known is None else _joined(known, new)

    def written(new: Matched) -> Matched:
        whole = joined(new)
        try:
            keep.write(one.name, cell, key, whole)
        except KeyboardInterrupt:
            keep.write(one.name, cell, key, whole)
            raise Interrupted("interrupted", whole) from None
        return whole

    part = trials if known is None else trials.take(missing)
    parts = _Parts(written if keep.kept else None)
    try:
        new = _match(_prepared(one, cell, known), part, told, parts)
    except _Unprepared:
        raise
    except KeyboardInterrupt as stop:
        found = getattr(stop, "result", None)
        raise Interrupted(str(stop), written(found) if isinstance(found, Matched) else known) from None
    except Exception as error:
        if isinstance(error, FastdcError):
            error.result = known if parts.last is None else joined(parts.last())
        with suppress(InputError):  # of a full disk, which may be what has failed
            parts.flush()
        raise
    return Answered(cell, trials, written(new))


class _Unprepared(Interrupted):
    """Ctrl-C came before a matcher was asked; the message says what was stopped."""


def _prepared(one: Entrant, cell: Cell, known: Matched | None) -> AbstractMatcher:
    """The matcher of a cell, which may have to be calibrated first."""
    try:
        return one.matcher_of(cell)
    except Interrupted as stop:
        raise _Unprepared(str(stop), known) from None


class _Parts:
    """Writes the answers so far every few seconds, and more seldom where that itself takes long.

    Args:
        write: Writes answers; None: they are not kept.

    Attributes:
        last: Gives the answers so far; None: there are none.
    """

    def __init__(self, write: Callable[[Matched], Any] | None) -> None:
        self.last: Callable[[], Matched] | None = None
        self._write, self._due = write, time.monotonic() + _EVERY

    def __call__(self, finished: Callable[[], Matched]) -> None:
        self.last = finished
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Writes what is there now."""
        if self._write is None or self.last is None:
            return
        start = time.monotonic()
        self._write(self.last())
        end = time.monotonic()
        self._due = end + max(_EVERY, 20 * (end - start))


def _match(matcher: AbstractMatcher, trials: Trials, progress: OnMatched, parts: _Parts) -> Matched:
    """A matcher's answers; one that knows how hands them out as it runs."""
    if "keep" not in signature(matcher.match).parameters:
        return matcher.match(trials, progress)
    return cast(AbstractKeptMatcher, matcher).match(trials, progress, keep=parts)


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
