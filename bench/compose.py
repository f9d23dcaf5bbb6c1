"""Does it bind? A diffusion model, CLIP and ViLT on rendered scenes, and what the race saves.

    python models/make_scenes.py scenes
    python models/train_clip.py scenes clip && python models/train_vilt.py scenes vilt
    python bench/compose.py scenes --clip clip --vilt vilt [--model shapes] [--images 300] [--released 60] [--seeds 3]

For each task, levels and first draw are chosen on one half of ID_val, and the race is calibrated on the other half;
all other splits are only measured.

1. The table of the paper: accuracy and kinds of errors of each model in each task, split and setting.
2. The race against the released procedure (Li et al.'s stages, 75 draws of all texts and 200 of five, whose first stage
   sees the steps up to 747 alone), with both losses, on the same images: evaluations and accuracy.
3. The same under further noise seeds, for the diffusion model.
4. Which noise levels tell right texts from wrong ones, by kind.
5. Similarity of captions to CLIP; pairs in the manner of Winoground; retrieval.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common import parser, print_table, save
from fastdc.certification import mcnemar, paired_difference
from fastdc.matching import (
    Cell,
    ClipMatcher,
    Comparison,
    DiffusionMatcher,
    Entrant,
    Trials,
    ViltMatcher,
    compose,
    level_analysis,
    read_layout,
)

RELEASED = {"n_samples": (75, 200), "to_keep": (5, 1), "compat": "li"}
SCAN_DRAWS = 64  # of the runs that choose a plan
DRAWS = 16  # of the race


class Races:
    """The calibrated race of each task and setting, under any noise seed.

    Args:
        model: Name or folder of the model.
        validation: The trials of ID_val: every other image chooses the plan of its task, the others calibrate.
        options: Options of the network.
    """

    def __init__(self, model: str, validation: Mapping[Cell, Trials], options: Mapping[str, Any]) -> None:
        self.facts: dict[str, Any] = {}
        self._made: dict[tuple[str, bool], DiffusionMatcher] = {}
        self._model, self._options = model, options
        self._plans: dict[str, dict[str, Any]] = {}
        for cell, trials in validation.items():
            if cell.generalised:  # the harder setting chooses for both
                half = trials.take(slice(0, None, 2))
                found = DiffusionMatcher(model, **options).planned(half, draws=SCAN_DRAWS, seeds=1)[1].options
                self._plans[cell.task] = {**found, "draws": DRAWS}
        for cell, trials in validation.items():
            half = trials.take(slice(1, None, 2))
            delta = max(0.01, math.ceil(1000 / (len(half) + 1)) / 1000)
            made = self._with(cell.task).calibrated(half, delta=delta, seeds=2)
            assert made.calibration is not None
            self._made[cell.task, cell.generalised] = made
            self.facts[str(cell)] = {"plan": self._plans[cell.task], "calibration": made.calibration.to_dict()}
            print(f"{cell}: {self._plans[cell.task]}, limit {made.calibration.limit:.3g}, delta {delta:g}", flush=True)

    def _with(self, task: str, **more: Any) -> DiffusionMatcher:
        return DiffusionMatcher(self._model, **self._plans[task], **self._options, **more)

    def of(self, cell: Cell, seed: int = 0) -> DiffusionMatcher:
        """The race in a cell."""
        made = self._made[cell.task, cell.generalised]
        if not seed:
            return made
        return self._with(cell.task, seed=seed, rule="calibrated", calibration=made.calibration)


def whole_table(entrants: Iterable[Entrant], out: str | None) -> Comparison:
    """The paper's table."""
    seen: list[str] = []

    def progress(name: str, cell: Cell, done: int, images: int) -> None:
        if done == images and f"{name} {cell}" not in seen:
            seen.append(f"{name} {cell}")
            print(f"done: {name} in {cell}", flush=True)

    return compose(list(entrants), out=out, progress=progress)


def against_released(
    model: str, race: DiffusionMatcher, trials: Trials, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Evaluations and accuracy of the race and of the released procedure on the same images, with both losses."""
    ours, rows = race.match(trials), []
    for loss in ("l1", "l2"):
        staged = DiffusionMatcher(
            model, rule="staged", rule_options=RELEASED, weighting="uniform", loss=loss, first=(), **options
        )
        theirs = staged.match(trials)
        right, other = ours.right(trials), theirs.right(trials)
        b, c = int((right & ~other).sum()), int((other & ~right).sum())
        rows.append(
            {
                "loss": loss,
                "images": len(trials),
                "race": {"accuracy": float(right.mean()), "evaluations": float(ours.evaluations.mean())},
                "released": {"accuracy": float(other.mean()), "evaluations": float(theirs.evaluations.mean())},
                "ratio": float(theirs.evaluations.mean() / ours.evaluations.mean()),
                "difference": paired_difference(b, c, len(trials)).to_dict(),
                "p_value": mcnemar(b, c),
            }
        )
    return rows


def under_seeds(races: Races, cells: Mapping[Cell, Trials], first: Comparison, name: str, seeds: int) -> Any:
    """Accuracy and evaluations of the race in each cell under each noise seed; the first is the comparison's."""
    found = []
    for cell, trials in cells.items():
        known = first.score(name, cell)
        assert known is not None
        runs = [races.of(cell, seed).match(trials) for seed in range(1, seeds)]
        found.append(
            {
                "task": cell.task,
                "split": cell.split,
                "setting": cell.setting,
                "accuracy": [known.accuracy.value, *(float(run.right(trials).mean()) for run in runs)],
                "evaluations": [known.evaluations, *(float(run.evaluations.mean()) for run in runs)],
            }
        )
    return found


def main() -> None:
    options = parser(__doc__, "compose")
    options.add_argument("data", help="folder of models/make_scenes.py")
    options.add_argument("--model", default="shapes")
    options.add_argument("--clip")
    options.add_argument("--vilt")
    options.add_argument("--images", type=int, default=300, help="most images per task and split")
    options.add_argument("--released", type=int, default=60, help="images per task for the released procedure")
    options.add_argument("--seeds", type=int, default=3, help="noise seeds of the diffusion model")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--keep", help="folder that keeps answers, to go on from there")
    arguments = options.parse_args()
    own: dict[str, Any] = {"threads": arguments.threads}
    cells = read_layout(arguments.data, images=arguments.images)
    validation = {cell: trials for cell, trials in cells.items() if cell.split == "id-val"}
    rest = {cell: trials for cell, trials in cells.items() if cell.split != "id-val"}
    races = Races(arguments.model, validation, own)
    name = Path(arguments.model).name
    entrants = [Entrant(name, races.of, rest, lambda cell: races.facts[str(replace(cell, split="id-val"))])]
    if arguments.clip:
        entrants.append(Entrant.of(ClipMatcher(arguments.clip, name="CLIP"), rest))
    if arguments.vilt:
        entrants.append(Entrant.of(ViltMatcher(arguments.vilt, name="ViLT"), rest))
    comparison = whole_table(entrants, arguments.keep)
    print(comparison.to_text())

    released = {}
    for cell, trials in rest.items():
        if cell.split in ("id-test", "test") and cell.generalised:
            few = trials.take(np.linspace(0, len(trials) - 1, min(arguments.released, len(trials))).astype(int))
            released[str(cell)] = against_released(arguments.model, races.of(cell), few, own)
    print_table(
        "The race and the released procedure",
        ["", "loss", "race, %", "evaluations", "released, %", "evaluations", "ratio"],
        [
            [
                cell,
                row["loss"],
                f"{100 * row['race']['accuracy']:.1f}",
                f"{row['race']['evaluations']:.1f}",
                f"{100 * row['released']['accuracy']:.1f}",
                f"{row['released']['evaluations']:.0f}",
                f"{row['ratio']:.1f}",
            ]
            for cell, rows in released.items()
            for row in rows
        ],
    )
    levels = {}
    for cell, trials in validation.items():
        if cell.generalised:
            few = trials.take(slice(0, None, 2))
            table = DiffusionMatcher(arguments.model, levels=(0.1, 10.0), first=(), draws=SCAN_DRAWS, **own).errors(few)
            levels[cell.task] = level_analysis(table, few).to_dict()
    save(
        arguments.out,
        {
            "images": arguments.images,
            "races": races.facts,
            "comparison": comparison.to_dict(),
            "seeds": under_seeds(races, rest, comparison, name, arguments.seeds),
            "released": released,
            "levels": levels,
        },
    )


if __name__ == "__main__":
    main()
