"""Answers and calibrations that a folder keeps, each with a hash of all that it depends on.

    FOLDER/answers/MODEL/TASK_SPLIT_SETTING.json
    FOLDER/races/MODEL/TASK_SPLIT_SETTING.json

A file is written in one step. One with another hash, of another version, or with a damage is as good as none.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.matching.cells import Cell
from fastdc.matching.matched import Matched
from fastdc.matching.trials import Trials
from fastdc.rules import Calibration, calibration_from_dict
from fastdc.support import BundleError, InputError, Int64, plain, strict_json, write_whole

FORMAT = "fastdc-answers"
VERSION = 1


class Keep:
    """A folder of answers.

    Args:
        folder: The folder, which is made if it is not there; None: nothing is kept.

    Raises:
        InputError: The folder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._digests = folder, dict[str, str]()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror or error}") from None

    @property
    def kept(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def key(self, cell: Cell, trials: Trials, facts: Mapping[str, Any]) -> str:
        """A hash of all that answers depend on: cell, texts, pixels and the model's facts; empty without a folder.

        Raises:
            InputError: An image file cannot be read.
        """
        if self._folder is None:
            return ""
        asked = hashlib.sha256(json.dumps([str(cell), plain(facts)], sort_keys=True).encode())
        for i in range(len(trials)):
            asked.update(json.dumps([trials.ids[i], *trials.texts_of(i), self._image(trials, i)]).encode())
        return asked.hexdigest()

    def read(self, name: str, cell: Cell, key: str, trials: Trials) -> Matched | None:
        """The answers with this key; None if there are none, or a file cannot be used."""
        entry = _entry(self._path("answers", name, cell), key)
        try:
            return None if entry is None else _matched(name, entry, trials)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def write(self, name: str, cell: Cell, key: str, matched: Matched) -> None:
        """Writes the answers of a model in a cell, in one step.

        Raises:
            InputError: They cannot be written.
        """
        entry = {
            "cell": str(cell),
            "model": name,
            "rows": matched.rows.tolist(),
            "answers": matched.answers.tolist(),
            "scores": [plain(scores) for scores in matched.scores],
            "evaluations": matched.evaluations.tolist(),
            "seconds": matched.seconds,
            "facts": plain(matched.facts),
        }
        _write(self._path("answers", name, cell), key, entry)

    def read_race(self, name: str, cell: Cell, key: str) -> Calibration | None:
        """The calibration with this key; None if there is none, or its file cannot be used."""
        entry = _entry(self._path("races", name, cell), key)
        try:
            return None if entry is None else calibration_from_dict(entry["calibration"])
        except (KeyError, InputError):
            return None

    def write_race(self, name: str, cell: Cell, key: str, calibration: Calibration) -> None:
        """Writes the calibration of a model's race on a cell.

        Raises:
            InputError: It cannot be written.
        """
        entry = {"cell": str(cell), "model": name, "calibration": calibration.to_dict()}
        _write(self._path("races", name, cell), key, entry)

    def _path(self, what: str, name: str, cell: Cell) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / what / _plain(name) / f"{_plain(cell.task)}_{cell.split}_{cell.setting.lower()}.json"

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


def _plain(name: str) -> str:
    """A name that any file can have, and no other name gets."""
    found = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".")
    return (
        found if found == name else f"{found}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
    )


def _entry(path: Path | None, key: str) -> dict[str, Any] | None:
    """What a file holds; None if it has another key or cannot be read."""
    if path is None:
        return None
    try:
        entry = strict_json(path.read_bytes(), path)
    except (OSError, BundleError, RecursionError):
        return None
    wanted = {"format": FORMAT, "version": VERSION, "key": key}
    return entry if isinstance(entry, dict) and {**entry, **wanted} == entry else None


def _write(path: Path | None, key: str, entry: Mapping[str, Any]) -> None:
    """Writes a file in one step, if there is a folder for it.

    Raises:
        InputError: It cannot be written.
    """
    if path is None:
        return
    whole = {"format": FORMAT, "version": VERSION, "key": key, **entry}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(whole, allow_nan=False).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _matched(name: str, entry: Mapping[str, Any], trials: Trials) -> Matched | None:
    """The answers of a file; None if they do not fit the trials."""
    scores = tuple(
        np.array([-np.inf if score is None else score for score in one], np.float64) for one in entry["scores"]
    )
    rows, answers, cost = (_whole(entry[one]) for one in ("rows", "answers", "evaluations"))
    counts = [len(trials.candidates[row]) for row in rows.tolist() if 0 <= row < len(trials)]
    fits = len(set(rows.tolist())) == len(counts) == len(rows) == len(answers) == len(cost) == len(scores)
    if not fits or counts != [len(one) for one in scores] or not ((answers >= 0) & (answers < counts)).all():
        return None
    return Matched(name, rows, scores, answers, cost, float(entry["seconds"]), dict(entry["facts"]))


def _whole(values: Any) -> Int64:
    """A list of whole numbers.

    Raises:
        ValueError: It is something else.
    """
    found = np.array(values)
    if found.ndim != 1 or not (found.dtype == np.int64 or found.size == 0):
        raise ValueError
    return found.astype(np.int64)
