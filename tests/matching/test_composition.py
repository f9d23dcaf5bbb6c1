"""A run over several models and cells keeps what is finished, and a second one asks for the rest alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.matching import (
    Cell,
    Comparison,
    DiffusionMatcher,
    Entrant,
    Matched,
    OnFinished,
    OnMatched,
    TaskRaces,
    Trials,
    compose,
    last_best,
)
from fastdc.matching.kept import Keep
from helpers.matching_worlds import NAMES, asked_all, with_null, with_prompts
from helpers.worlds import unit_images

CELLS = (Cell("single", "val"), Cell("single", "val", True))
TEXTS = ("a red cube", "a blue cube", "a red cone")


def trials_of(values: list[int]) -> Trials:
    """Images of one value, which is the place of the right text."""
    images = np.array(values).astype(np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    return Trials.of(images, [TEXTS] * len(values), values)


class PixelMatcher:
    """A matcher that reads the answer off the pixels, and can be stopped after a number of images in all."""

    def __init__(self, name: str = "pixels", stop: int | None = None, empty: bool = False) -> None:
        self.name, self.facts, self.asked = name, {"version": 1}, list[int]()
        self._stop, self._empty = stop, empty

    def match(self, trials: Trials, progress: OnMatched | None = None) -> Matched:
        """Scores the images; what is -inf was not evaluated."""
        scores: list[fastdc.support.Float64] = []

        def known() -> Matched:
            answers = np.array([last_best(one) for one in scores], np.int64)
            return Matched(self.name, np.arange(len(scores)), tuple(scores), answers, answers + 5, 1.5, {"a": 1})

        for image in np.asarray(trials.images):
            if self._stop is not None and len(self.asked) >= self._stop:
                raise fastdc.support.Interrupted("stop", known() if scores else None)
            value = int(image.flat[0])
            scores.append(np.where(np.arange(3) == value, 0.25, -np.inf))
            self.asked.append(value)
            if progress is not None:
                progress(len(scores), len(trials))
        return known()


CASES = {CELLS[0]: trials_of([0, 1, 2, 1]), CELLS[1]: trials_of([2, 2, 0])}


def run(matcher: PixelMatcher, out: Path, cells: dict[Cell, Trials] = CASES, **more: object) -> Comparison:
    return compose([Entrant.of(matcher, cells)], out=out, **more)  # type: ignore[arg-type]


def test_every_model_is_asked_in_every_cell(tmp_path: Path) -> None:
    told: list[tuple[str, str, int, int]] = []
    entrants = [Entrant.of(PixelMatcher(name), CASES) for name in ("a", "b/../c")]
    found = compose(
        entrants, out=tmp_path, progress=lambda name, cell, *counts: told.append((name, str(cell), *counts))
    )
    assert [(score.name, score.cell, score.accuracy.value) for score in found.scores] == [
        (name, cell, 1.0) for cell in CELLS for name in ("a", "b/../c")
    ]
    assert told[:5] == [("a", "single val ZSL", done, 4) for done in (1, 2, 3, 4)] + [
        ("b/../c", "single val ZSL", 1, 4)
    ]
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files[:2] == ["answers/a/single_val_gzsl.json", "answers/a/single_val_zsl.json"]
    assert files[2].startswith("answers/b_.._c-")
    assert len(found.tests) == 2


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    first = run(PixelMatcher(), tmp_path)
    again = PixelMatcher()
    second = run(again, tmp_path)
    assert again.asked == []
    assert second.to_dict() == first.to_dict()
    for one, other in zip(first.answered, second.answered, strict=True):
        np.testing.assert_array_equal(one.matched.scores, other.matched.scores)


@pytest.mark.parametrize("stop", range(7))
def test_what_ctrl_c_leaves_is_kept_and_the_rest_is_asked_for(tmp_path: Path, stop: int) -> None:
    whole = run(PixelMatcher(), tmp_path / "whole")
    with pytest.raises(fastdc.support.Interrupted) as stopped:
        run(PixelMatcher(stop=stop), tmp_path / "out")
    part = stopped.value.result
    if stop:
        assert sum(score.images for score in part.scores) == stop
        assert "interrupted: pixels in single val" in part.notes[0]
    else:
        assert part is None
    rest = PixelMatcher()
    found = run(rest, tmp_path / "out")
    assert len(rest.asked) == 7 - stop
    for one, other in zip(found.answered, whole.answered, strict=True):
        assert one.matched.rows.tolist() == other.matched.rows.tolist()
        assert one.matched.answers.tolist() == other.matched.answers.tolist()
        np.testing.assert_array_equal(one.matched.scores, other.matched.scores)
    with pytest.raises(fastdc.support.Interrupted) as again:  # stopped at once, but all is known
        run(PixelMatcher(stop=0), tmp_path / "out", {CELLS[0]: CASES[CELLS[0]], CELLS[1]: trials_of([1])})
    assert [score.images for score in again.value.result.scores] == [4]


@pytest.mark.parametrize("stop", [None, 3])
def test_ctrl_c_while_answers_are_written_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    write, calls = Keep.write, list[str]()

    def interrupted(self: Keep, name: str, *more: Any) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(self, name, *more)

    monkeypatch.setattr(Keep, "write", interrupted)
    with pytest.raises(fastdc.support.Interrupted) as stopped:
        run(PixelMatcher(stop=stop), tmp_path)
    assert [score.images for score in stopped.value.result.scores] == [stop or 4]
    rest = PixelMatcher()
    run(rest, tmp_path)
    assert len(rest.asked) == 7 - (stop or 4)


KILLED = """
import os, signal, sys
from pathlib import Path
from fastdc.matching import Cell, DiffusionMatcher, Entrant, compose, composition
from helpers.matching_worlds import asked_all, with_prompts

composition._EVERY = 0.0

def told(name, cell, done, every):
    if done >= 100:
        os.kill(os.getpid(), signal.SIGKILL)

matcher = DiffusionMatcher(with_prompts(), rule="full", draws=16)
compose([Entrant.of(matcher, {Cell("t", "val"): asked_all()}, {"x": 1})], out=Path(sys.argv[1]), progress=told)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_is_killed_keeps_its_answers(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    counts = list[int]()

    class Counted(DiffusionMatcher):
        def match(self, trials: Trials, *more: Any, **named: Any) -> Matched:
            counts.append(len(trials))
            return super().match(trials, *more, **named)

    cells = {Cell("t", "val"): asked_all()}
    matcher = Counted(with_prompts(), rule="full", draws=16)
    found, whole = (compose([Entrant.of(matcher, cells, {"x": 1})], out=out) for out in (tmp_path, None))
    assert 16 <= len(asked_all()) - counts[0] <= 112
    one, other = (each.answered[0].matched for each in (found, whole))
    assert one.rows.tolist() == other.rows.tolist()
    assert [scores.tolist() for scores in one.scores] == [scores.tolist() for scores in other.scores]
    assert one.answers.tolist() == other.answers.tolist()


class Failing(DiffusionMatcher):
    """A diffusion model whose network fails after 100 images."""

    def match(self, trials: Trials, progress: OnMatched | None = None, keep: OnFinished | None = None) -> Matched:
        """Fails once."""

        def told(done: int, _: int) -> None:
            if done >= 100:
                raise self.error

        return super().match(trials, told, keep)

    error: Exception = fastdc.support.BackendError("no device")


@pytest.mark.parametrize("error", [fastdc.support.BackendError("no device"), MemoryError()])
def test_an_error_leaves_what_was_finished(tmp_path: Path, error: Exception) -> None:
    cells = {CELLS[0]: asked_all(10), CELLS[1]: asked_all()}
    failing = Failing(with_prompts(), rule="full", draws=16)
    failing.error = error
    with pytest.raises(type(error)) as stopped:
        compose([Entrant.of(failing, cells, {"x": 1})], out=tmp_path)
    assert stopped.value is error
    kept = json.loads((tmp_path / "answers" / failing.name / "single_val_gzsl.json").read_text())
    assert 80 <= len(kept["rows"]) < 150
    if isinstance(error, fastdc.support.BackendError):
        assert [score.images for score in error.result.scores] == [10, len(kept["rows"])]
        assert error.result.notes[0].startswith("failed: ")


def test_ctrl_c_in_a_calibration_keeps_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {Cell(task, "id-val"): asked_all(20) for task in ("one", "two")}
    calibrated, seen = DiffusionMatcher.calibrated, list[int]()

    def stopped(self: DiffusionMatcher, trials: Trials, **more: Any) -> DiffusionMatcher:
        seen.append(len(trials))
        if len(seen) == 2:
            raise fastdc.support.Interrupted("interrupted: 3 of 20 images finished", "a table")
        return calibrated(self, trials, **more)

    def entrant() -> Entrant:
        matcher = DiffusionMatcher(with_prompts(), draws=4, name="m")
        races = TaskRaces(matcher, cells, {"x": 1}, delta=0.1, out=tmp_path)
        return Entrant("m", races.matcher_of, cells, races.facts_of)

    monkeypatch.setattr(DiffusionMatcher, "calibrated", stopped)
    with pytest.raises(fastdc.support.Interrupted) as caught:
        compose([entrant()], out=tmp_path)
    said = "interrupted: the calibration of m on two id-val ZSL, which is not kept; those that were finished are kept"
    assert str(caught.value) == said
    assert [score.images for score in caught.value.result.scores] == [20]
    assert caught.value.result.notes[0].startswith(said)
    assert [score.images for score in compose([entrant()], out=tmp_path).scores] == [20, 20]
    assert seen == [20, 20, 20]


def test_ctrl_c_while_a_calibration_is_written_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("one", "id-val")
    write, calls = Keep.write_race, list[str]()

    def interrupted(self: Keep, name: str, *more: Any) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(self, name, *more)

    monkeypatch.setattr(Keep, "write_race", interrupted)
    matcher = DiffusionMatcher(with_prompts(), draws=4, name="m")
    with pytest.raises(KeyboardInterrupt):
        TaskRaces(matcher, {cell: asked_all(20)}, {}, delta=0.1, out=tmp_path).matcher_of(cell)
    monkeypatch.setattr(DiffusionMatcher, "calibrated", None)
    TaskRaces(matcher, {cell: asked_all(20)}, {}, delta=0.1, out=tmp_path).matcher_of(cell)


def _other_facts(matcher: PixelMatcher) -> dict[Cell, Trials]:
    matcher.facts = {"version": 2}
    return CASES


CHANGED: dict[str, tuple[Callable[[PixelMatcher], dict[Cell, Trials]], int]] = {
    "nothing": (lambda matcher: CASES, 0),
    "model": (_other_facts, 7),
    "pixels": (lambda matcher: {**CASES, CELLS[1]: trials_of([2, 2, 1])}, 3),
    "number": (lambda matcher: {**CASES, CELLS[1]: trials_of([2, 2])}, 2),
    "texts": (
        lambda matcher: {
            **CASES,
            CELLS[0]: Trials.of(np.asarray(CASES[CELLS[0]].images), [TEXTS[::-1]] * 4, CASES[CELLS[0]].truth),
        },
        4,
    ),
}


@pytest.mark.parametrize("case", list(CHANGED))
def test_only_what_is_the_same_is_taken(tmp_path: Path, case: str) -> None:
    run(PixelMatcher(), tmp_path)
    change, asked = CHANGED[case]
    again = PixelMatcher()
    run(again, tmp_path, change(again))
    assert len(again.asked) == asked


@pytest.mark.parametrize("damage", ["cut", "row", "answer", "scores", "part", "huge", "deep", "version", "list"])
def test_a_damaged_file_is_not_taken(tmp_path: Path, damage: str) -> None:
    run(PixelMatcher(), tmp_path)
    path = tmp_path / "answers/pixels/single_val_zsl.json"
    entry = json.loads(path.read_text())
    if damage == "row":
        entry["rows"][1] = 9
    elif damage == "answer":
        entry["answers"][0] = 3
    elif damage == "scores":
        entry["scores"][2] = [0.5]
    elif damage == "part":
        entry["answers"][0] = 0.5
    elif damage == "huge":
        entry["evaluations"][0] = 2**63
    elif damage == "deep":
        entry["facts"] = "[" * 9
    elif damage == "version":
        entry["version"] = 2
    text = json.dumps([entry] if damage == "list" else entry)
    text = text.replace(f'"{"[" * 9}"', "[" * 200_000 + "]" * 200_000)
    path.write_text(text[:-9] if damage == "cut" else text)
    again = PixelMatcher()
    run(again, tmp_path)
    assert len(again.asked) == 4


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    """Another picture under the same name is another question."""
    (tmp_path / "a.png").write_bytes(b"one")

    class Any0(PixelMatcher):
        def match(self, trials: Trials, progress: OnMatched | None = None) -> Matched:
            self.asked.append(0)
            n = len(trials)
            return Matched(self.name, np.arange(n), (np.array([1.0, 0.0]),) * n, np.zeros(n, int), np.ones(n, int), 1.0)

    cells = {CELLS[0]: Trials.of([str(tmp_path / "a.png")], [["x", "y"]])}
    counts = []
    for content in (b"one", b"one", b"two"):
        (tmp_path / "a.png").write_bytes(content)
        matcher = Any0()
        run(matcher, tmp_path / "out", cells)
        counts.append(len(matcher.asked))
    assert counts == [1, 0, 1]


def test_answers_of_a_diffusion_model_are_those_of_its_options(tmp_path: Path) -> None:
    """In the way of the documentation, without facts by hand."""
    cells = {CELLS[0]: Trials.of(unit_images(3), [NAMES[:3]] * 3)}
    made = with_prompts()
    clf = replace(made, model=replace(made.model, identity="one"))
    for draws in (4, 8):
        matcher = DiffusionMatcher(clf, rule="full", draws=draws)
        assert compose([Entrant.of(matcher, cells)], out=tmp_path).scores[0].evaluations == 3 * draws
    again = DiffusionMatcher(clf, rule="full", draws=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionMatcher, "match", None)
        assert compose([Entrant.of(again, cells)], out=tmp_path).scores[0].images == 3
    assert again.facts["options"] == {
        "rule": "'full'", "decision": "'mean'", "seed": "0", "draws": "8", "skip_bad": "False",
    }  # fmt: skip
    for other in (
        DiffusionMatcher(replace(clf, model=replace(made.model, identity="two")), rule="full", draws=8),
        DiffusionMatcher(clf, rule="full", draws=8, seed=1),
        DiffusionMatcher(clf, rule="full", draws=8, rule_options={}),
        DiffusionMatcher(clf, rule="full", draws=8, precision="float16"),
    ):
        assert other.facts != again.facts


def test_models_made_by_hand_are_never_taken_for_each_other() -> None:
    clf = with_prompts()
    noisy: dict[str, Any] = {"rule": "full", "draws": 4, "method": "apndc", "sigma": 0.1}
    named = replace(clf, model=replace(clf.model, identity="one"))
    for matchers in (
        [DiffusionMatcher(clf, rule="full") for _ in range(2)],
        [DiffusionMatcher(named, denoiser=with_null(), **noisy) for _ in range(2)],
    ):
        one, two = (matcher.facts for matcher in matchers)
        assert one != two


def test_names_of_models_and_tasks_are_no_paths(tmp_path: Path) -> None:
    names = ("..", ".", "a" * 300, "a/b", "a_b", "\u00e9", "\u00e8")
    cells = {Cell(task, "val"): trials_of([0]) for task in ("\u00e9", "\u00e8")}
    out = tmp_path / "out"
    compose([Entrant.of(PixelMatcher(name), cells) for name in names], out=out)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parents[1] for path in files} == {out / "answers"}
    assert len(files) == 2 * len(names)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fastdc.InputError, match="different names, got 'pixels' twice"):
        compose([Entrant.of(PixelMatcher(), CASES)] * 2)
    with pytest.raises(fastdc.InputError, match="single val ZSL, 'image 1': expected a right text"):
        compose([Entrant.of(PixelMatcher(), {CELLS[0]: trials_of([0, -1])})])
    unknown = PixelMatcher()
    del unknown.facts
    with pytest.raises(fastdc.InputError, match="pixels: expected facts by which its answers are found again"):
        run(unknown, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert compose([Entrant.of(unknown, CASES)]).scores[0].images == 4
    (tmp_path / "file").touch()
    with pytest.raises(fastdc.InputError, match="file cannot be made"):
        run(PixelMatcher(), tmp_path / "file")
