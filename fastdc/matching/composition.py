"""Runs several models over the cells of the compositional evaluation, and keeps what is finished.

With a folder, the answers of each model in each cell are written as soon as they are known, also after Ctrl-C. A second
run takes from there what was asked with the same model, options, images and texts, and asks for the rest alone, down to
single images: the answer to an image depends on no other image.

    FOLDER/answers/MODEL/TASK_SPLIT_SETTING.json
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.matching.cells import Cell
from fastdc.matching.comparison import Comparison
from fastdc.matching.comparison_numbers import Answered
from fastdc.matching.matched import AbstractMatcher, Matched
from fastdc.matching.trials import Trials
from fastdc.support import BundleError, InputError, Interrupted, plain, strict_json, write_whole

FORMAT = "fastdc-answers"
VERSION = 1

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
    """

    name: str
    matcher_of: Callable[[Cell], AbstractMatcher]
    cells: Mapping[Cell, Trials]
    facts_of: Callable[[Cell], Mapping[str, Any]] = field(default=lambda cell: {})

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
        known = getattr(matcher, "facts", {}) if facts is None else facts
        return cls(matcher.name, lambda cell: matcher, cells, lambda cell: known)


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
        InputError: Two models have one name, or images or texts cannot be used.
        Interrupted: Ctrl-C; its ``result`` is the comparison of what was finished, or None.
    """
    names = [one.name for one in entrants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"expected models with different names, got {twice!r:.80} twice")
    keep = None if out is None else Keep(Path(out))
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
                some = any(len(known.matched) for known in answered)
                raise Interrupted(said, compared([said]) if some else None) from None
    return compared()


def _answered(one: Entrant, cell: Cell, keep: "Keep | None", progress: OnComposed | None) -> Answered:
    """A model's answers in a cell: those that are kept, and the others asked for now.

    Raises:
        Interrupted: Ctrl-C; its ``result`` is all answers that are known, or None.
    """
    trials = one.cells[cell]
    key = "" if keep is None else keep.key(cell, trials, one.facts_of(cell))
    known = None if keep is None else keep.read(one.name, cell, key, trials)
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
        if keep is not None:
            keep.write(one.name, cell, key, whole)
        return whole

    try:
        part = trials if known is None else trials.take(missing)
        return Answered(cell, trials, joined(one.matcher_of(cell).match(part, told)))
    except KeyboardInterrupt as stop:
        new = getattr(stop, "result", None)
        raise Interrupted(str(stop), joined(new) if isinstance(new, Matched) else known) from None


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


class Keep:
    """A folder of answers.

    Args:
        folder: The folder, which is made if it is not there.

    Raises:
        InputError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._digests = folder, dict[str, str]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror or error}") from None

    def key(self, cell: Cell, trials: Trials, facts: Mapping[str, Any]) -> str:
        """A hash of everything that the answers depend on: what was asked, of which model, about which pixels.

        Raises:
            InputError: An image file cannot be read.
        """
        asked = hashlib.sha256(json.dumps([str(cell), plain(facts)], sort_keys=True).encode())
        for i in range(len(trials)):
            asked.update(json.dumps([trials.ids[i], *trials.texts_of(i), self._image(trials, i)]).encode())
        return asked.hexdigest()

    def read(self, name: str, cell: Cell, key: str, trials: Trials) -> Matched | None:
        """The answers with this key; None if there are none, or a file cannot be used."""
        path = self._path(name, cell)
        try:
            entry = strict_json(path.read_bytes(), path)
        except (OSError, BundleError):
            return None
        try:
            if (entry["format"], entry["version"], entry["key"]) != (FORMAT, VERSION, key):
                return None
            return _matched(name, entry, trials)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def write(self, name: str, cell: Cell, key: str, matched: Matched) -> None:
        """Writes the answers of a model in a cell, in one step.

        Raises:
            InputError: They cannot be written.
        """
        path = self._path(name, cell)
        entry = {
            "format": FORMAT,
            "version": VERSION,
            "key": key,
            "model": name,
            "cell": str(cell),
            "rows": matched.rows.tolist(),
            "answers": matched.answers.tolist(),
            "scores": [plain(scores) for scores in matched.scores],
            "evaluations": matched.evaluations.tolist(),
            "seconds": matched.seconds,
            "facts": plain(matched.facts),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(entry, allow_nan=False).encode())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None

    def _path(self, name: str, cell: Cell) -> Path:
        plain_name = re.sub(r"[^A-Za-z0-9.-]", "_", name)
        own = plain_name if plain_name == name else f"{plain_name}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        task = re.sub(r"[^A-Za-z0-9.-]", "_", cell.task)
        return self._folder / "answers" / own / f"{task}_{cell.split}_{cell.setting.lower()}.json"

    def _image(self, trials: Trials, i: int) -> str:
        """A hash of an image's file, read once, or of its pixels."""
        if not isinstance(trials.images, tuple):
            pixels = np.ascontiguousarray(trials.images[i])
            return hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        path = trials.images[i]
        if path not in self._digests:
            try:
                self._digests[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
        return self._digests[path]


def _matched(name: str, entry: Mapping[str, Any], trials: Trials) -> Matched | None:
    """The answers of a file; None if they do not fit the trials."""
    scores = tuple(
        np.array([-np.inf if score is None else score for score in one], np.float64) for one in entry["scores"]
    )
    rows, answers, cost = (np.array(entry[one], np.int64) for one in ("rows", "answers", "evaluations"))
    counts = [len(trials.candidates[row]) for row in rows.tolist() if 0 <= row < len(trials)]
    fits = len(set(rows.tolist())) == len(counts) == len(rows) == len(answers) == len(cost) == len(scores)
    if not fits or counts != [len(one) for one in scores] or not ((answers >= 0) & (answers < counts)).all():
        return None
    return Matched(name, rows, scores, answers, cost, float(entry["seconds"]), dict(entry["facts"]))
