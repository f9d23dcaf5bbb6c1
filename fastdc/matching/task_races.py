"""A diffusion model whose race is calibrated for each task and setting, on validation images of seen classes.

Candidate lists differ from task to task, and so do the leads in error that decide them: one limit for all would be too
careful for some and too bold for others. :meth:`fastdc.matching.DiffusionMatcher.calibrated` states the promise. It
covers new images of the same classes with lists made alike, so the split id-test; the images of id-val have chosen the
limit, and unseen classes (val, test) are of another kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdc.calibration import check_level
from fastdc.matching.cells import Cell
from fastdc.matching.diffusion_matcher import DiffusionMatcher
from fastdc.matching.kept import Keep
from fastdc.matching.trials import Trials
from fastdc.support import InputError, Interrupted

CALIBRATED_ON = "id-val"

OnCalibrating = Callable[[Cell, int, int], None]
"""Called with a cell, and the numbers of its images that were run in full, and of all."""


class TaskRaces:
    """Calibrates when the first cell of a task and setting is asked for, and keeps the calibration.

    Args:
        matcher: The model, with the options of the plan.
        cells: The trials of id-val, for each task and setting that will be asked for.
        facts: What reproduces the model's errors, as JSON values.
        delta: Probability with which the race may lose the answer of the full run.
        seeds: Number of noise seeds per image.
        out: A folder that keeps calibrations; None: they are not kept.
        progress: Called as images are run in full.

    Raises:
        InputError: There are too few images for delta, or the folder cannot be made.
    """

    def __init__(
        self,
        matcher: DiffusionMatcher,
        cells: Mapping[Cell, Trials],
        facts: Mapping[str, Any],
        *,
        delta: float,
        seeds: int = 1,
        out: str | Path | None = None,
        progress: OnCalibrating | None = None,
    ) -> None:
        for cell, trials in cells.items():
            try:
                check_level(delta, len(trials))
            except InputError as error:
                raise InputError(f"{cell}: {error}") from None
        self._matcher, self._cells, self._progress = matcher, cells, progress
        self._facts = {**facts, "delta": delta, "calibration_seeds": seeds}
        self._delta, self._seeds, self._keep = delta, seeds, Keep(None if out is None else Path(out))
        self._made: dict[Cell, DiffusionMatcher] = {}

    def matcher_of(self, cell: Cell) -> DiffusionMatcher:
        """The matcher with the race of a cell's task and setting, which is calibrated now if it was not.

        Args:
            cell: The cell that will be asked for.

        Raises:
            InputError: There are no images of id-val for it, or they cannot be used.
            Interrupted: Ctrl-C; the message names the calibration that begins anew. Those before it are kept.
        """
        own = self._own(cell)
        if own not in self._made:
            self._made[own] = self._calibrated(own)
        return self._made[own]

    def facts_of(self, cell: Cell) -> dict[str, Any]:
        """What reproduces the answers in a cell: the model, and the images on which its race is calibrated.

        Args:
            cell: The cell that will be asked for.
        """
        own = self._own(cell)
        return {**self._facts, "calibrated_on": self._keep.key(own, self._cells[own], self._facts)}

    def _own(self, cell: Cell) -> Cell:
        own = replace(cell, split=CALIBRATED_ON)
        if own not in self._cells:
            raise InputError(f"{cell}: expected images of {own}, on which its race is calibrated")
        return own

    def _calibrated(self, own: Cell) -> DiffusionMatcher:
        trials = self._cells[own]
        key = self._keep.key(own, trials, self._facts)
        known = self._keep.read_race(self._matcher.name, own, key)
        if known is not None:
            return self._matcher.raced(known)

        def told(done: int, every: int) -> None:
            if self._progress is not None:
                self._progress(own, done, every)

        name = self._matcher.name
        try:
            made = self._matcher.calibrated(trials, delta=self._delta, seeds=self._seeds, progress=told)
        except KeyboardInterrupt:
            kept = "; those that were finished are kept" if self._keep.kept and self._made else ""
            lost = f"interrupted: the calibration of {name} on {own}, which is not kept{kept}"
            raise Interrupted(lost) from None
        assert made.calibration is not None
        try:
            self._keep.write_race(name, own, key, made.calibration)
        except KeyboardInterrupt:
            self._keep.write_race(name, own, key, made.calibration)
            self._made[own] = made
            raise
        return made
