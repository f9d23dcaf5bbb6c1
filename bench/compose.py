"""Does it bind? A diffusion model, CLIP and ViLT on rendered scenes, and what the race saves.

    python models/make_scenes.py scenes
    python models/train_clip.py scenes clip && python models/train_vilt.py scenes vilt
    python bench/compose.py scenes --clip clip --vilt vilt [--model shapes] [--images 200] [--released 30] [--seeds 2]

For each task, levels and first draw are chosen on one half of ID_val, and the race is calibrated on the other half;
all other splits are only measured.

1. The table of the paper: accuracy and kinds of errors of each model in each task, split and setting.
2. The race against the released procedure (Li et al.'s stages, 75 draws of all texts and 200 of five, whose first stage
   sees the steps up to 747 alone), with both losses, on the same images: evaluations and accuracy.
3. The same under further noise seeds, for the diffusion model.
4. Which noise levels tell right texts from wrong ones, by kind.
5. Similarity of captions to CLIP; pairs in the manner of Winoground; retrieval.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import parser, print_table, save
from fastdc.bundle import find_model, load_bundle
from fastdc.certification import mcnemar, paired_difference
from fastdc.figures import level_sheet
from fastdc.matching import (
    Cell,
    ClipMatcher,
    Comparison,
    DiffusionMatcher,
    Entrant,
    Trials,
    ViltMatcher,
    caption_similarity,
    compose,
    level_analysis,
    pair_trials,
    read_layout,
    retrieve,
    score_pairs,
)
from fastdc.support import plain

RELEASED = {"n_samples": (75, 200), "to_keep": (5, 1), "compat": "li"}
SCAN_DRAWS = 64  # of the runs that choose a plan
DRAWS = 16  # of the race
COMPARED = (
    (0.0, 16),
    (0.05, 16),
    (0.05, 8),
)  # levels, 0 for the least, and draws of races beside the released procedure

PAPERS = ("single", "two_object", "relational")


def halves(trials: Trials) -> tuple[list[int], list[int]]:
    """Images that choose and images that calibrate, at random."""
    order = np.random.default_rng(0).permutation(len(trials)).tolist()
    return order[: len(order) // 2], order[len(order) // 2 :]


class Races:
    """The calibrated race of each task and setting, under any noise seed.

    Args:
        model: Name or folder of the model.
        validation: The trials of ID_val: a random half chooses the plan of its task, the other calibrates.
        options: Options of the network.
    """

    def __init__(
        self, model: str, validation: Mapping[Cell, Trials], options: Mapping[str, Any], keep: str | None
    ) -> None:
        self.facts: dict[str, Any] = {}
        self._made: dict[tuple[str, bool, float, int], DiffusionMatcher] = {}
        self._model, self._options, self._validation = model, options, validation
        identity = load_bundle(find_model(model)).model.identity  # plans are of one model
        kept = None if keep is None else Path(keep) / f"plans-{identity[:12]}.json"
        self.plans: dict[str, dict[str, Any]] = {}
        if kept is not None and kept.exists():
            self.plans = json.loads(kept.read_text(encoding="utf-8"))
        for cell, trials in validation.items():
            if cell.generalised and cell.task not in self.plans:  # the harder setting chooses for both
                half = trials.take(halves(trials)[0])
                found = DiffusionMatcher(model, **options).planned(half, draws=SCAN_DRAWS, seeds=1)[1].options
                self.plans[cell.task] = {**plain(found), "draws": DRAWS}
                print(f"{cell.task}: {self.plans[cell.task]}", flush=True)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(self.plans), encoding="utf-8")

    def _with(self, task: str, **more: Any) -> DiffusionMatcher:
        return DiffusionMatcher(self._model, **self.plans[task], **self._options, **more)

    def of(self, cell: Cell, seed: int = 0, delta: float = 0.0, draws: int = DRAWS) -> DiffusionMatcher:
        """The race in a cell, at a level or the least that its images support, and of so many draws."""
        made = self._calibrated(replace(cell, split="id-val"), delta, draws)
        if not seed:
            return made
        return self._with(cell.task, seed=seed, rule="calibrated", calibration=made.calibration)

    def facts_of(self, cell: Cell) -> Any:
        """Plan and calibration of the race in a cell."""
        made = self.of(cell)
        assert made.calibration is not None
        return {"plan": self.plans[cell.task], "calibration": made.calibration.to_dict()}

    def _calibrated(self, cell: Cell, delta: float, draws: int) -> DiffusionMatcher:
        key = cell.task, cell.generalised, delta, draws
        if key not in self._made:
            half = self._validation[cell].take(halves(self._validation[cell])[1])
            level = delta or max(0.01, math.ceil(1000 / (len(half) + 1)) / 1000)
            plain_race = DiffusionMatcher(self._model, **{**self.plans[cell.task], "draws": draws}, **self._options)
            self._made[key] = made = plain_race.calibrated(half, delta=level, seeds=2)
            assert made.calibration is not None
            called = f"{cell}, {draws} draws, delta {level:g}"
            self.facts[called] = self.plans[cell.task] | {"draws": draws, "limit": made.calibration.limit}
            print(f"{called}: limit {made.calibration.limit:.3g}", flush=True)
        return self._made[key]


def whole_table(entrants: Iterable[Entrant], out: str | None) -> Comparison:
    """The paper's table."""
    seen: list[str] = []

    def progress(name: str, cell: Cell, done: int, images: int) -> None:
        if done == images and f"{name} {cell}" not in seen:
            seen.append(f"{name} {cell}")
            print(f"done: {name} in {cell}", flush=True)

    return compose(list(entrants), out=out, progress=progress)


def against_released(
    model: str, races: Sequence[DiffusionMatcher], trials: Trials, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Evaluations and accuracy of races and of the released procedure, with both losses, on the same images."""
    rows = []
    released = {
        loss: DiffusionMatcher(
            model, rule="staged", rule_options=RELEASED, weighting="uniform", loss=loss, **options
        ).match(trials)
        for loss in ("l1", "l2")
    }
    for race in races:
        assert race.calibration is not None
        ours = race.match(trials)
        for loss, theirs in released.items():
            right, other = ours.right(trials), theirs.right(trials)
            b, c = int((right & ~other).sum()), int((other & ~right).sum())
            rows.append(
                {
                    "delta": race.calibration.delta,
                    "draws": race.calibration.draws,
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


def released_rows(arguments: Any, races: Races, rest: Mapping[Cell, Trials], own: Mapping[str, Any]) -> dict[str, Any]:
    """The race and the released procedure on some images of each task of the paper."""
    found = {}
    for cell, trials in rest.items():
        if cell.task in PAPERS and cell.split in ("id-test", "test") and cell.generalised:
            few = trials.take(np.linspace(0, len(trials) - 1, min(arguments.released, len(trials))).astype(int))
            several = [races.of(cell, delta=delta, draws=draws) for delta, draws in COMPARED]
            found[str(cell)] = against_released(arguments.model, several, few, own)
    rows = [
        [
            cell,
            f"{row['delta']:g}",
            str(row["draws"]),
            row["loss"],
            str(row["images"]),
            f"{100 * row['race']['accuracy']:.1f}",
            f"{row['race']['evaluations']:.1f}",
            f"{100 * row['released']['accuracy']:.1f}",
            f"{row['released']['evaluations']:.0f}",
            f"{row['ratio']:.1f}",
        ]
        for cell, both in found.items()
        for row in both
    ]
    columns = ["", "delta", "draws", "loss", "images", "race, %", "evaluations", "released, %", "evaluations", "ratio"]
    print_table("The race and the released procedure", columns, rows)
    return found


def levels_of(
    model: str, validation: Mapping[Cell, Trials], own: Mapping[str, Any], figures: str | None
) -> dict[str, Any]:
    """Which noise levels tell the right text from wrong ones, in each task; with a folder, plots it."""
    found = {}
    for cell, trials in validation.items():
        if cell.generalised:
            few = trials.take(halves(trials)[0][:48])
            table = DiffusionMatcher(model, levels=(0.1, 10.0), first=(), draws=SCAN_DRAWS, **own).errors(few)
            made = level_analysis(table, few)
            print(f"\n{cell}\n{made}", flush=True)
            found[cell.task] = made.to_dict()
            if figures is not None:
                level_sheet(Path(figures) / f"levels-{cell.task.replace('_', '-')}.png", made)
    return found


def relation_pairs(trials: Trials, count: int) -> Trials:
    """Pairs in the manner of Winoground: "a to the left of b" and "b to the left of a", an image of each."""
    first: dict[str, list[int]] = {}
    for row, group in enumerate(trials.groups):
        first.setdefault(Path(group).name.replace(" ", "_"), []).append(row)
    images, captions = [], []
    for name, rows in first.items():
        one, relation, other = name.split("_")
        if one < other:  # each pair once
            for a, b in zip(rows, first.get(f"{other}_{relation}_{one}", []), strict=False):
                images += [trials.images[a], trials.images[b]]
                captions.append(tuple(trials.texts_of(row)[int(trials.truth[row])] for row in (a, b)))
    kept = np.linspace(0, len(captions) - 1, min(count, len(captions))).astype(int).tolist()
    return pair_trials([images[2 * e + a] for e in kept for a in range(2)], [captions[e] for e in kept])


def beyond(arguments: Any, races: Races, cells: Mapping[Cell, Trials], own: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs of relations, retrieval of single objects, and the similarity of captions."""
    relational, single = Cell("relational", "id-test", True), Cell("single", "test", True)
    pairs = relation_pairs(cells[relational], 48)
    names = single_names(cells[single])
    plans = {task: {**races.plans[task], "draws": DRAWS} for task in ("relational", "single")}
    models: dict[str, dict[str, Any]] = {
        "diffusion": {task: DiffusionMatcher(arguments.model, **plan, **own) for task, plan in plans.items()}
    }
    found: dict[str, Any] = {"pairs": {}, "retrieval": {}}
    if arguments.clip:
        clip = ClipMatcher(arguments.clip, name="CLIP")
        models["CLIP"] = dict.fromkeys(plans, clip)
        texts = [*cells[relational].texts, *cells[single].texts]
        found["similarity"] = {kind: asdict(one) for kind, one in caption_similarity(clip, texts).items()}
        print(*(f"{kind}: {one}" for kind, one in caption_similarity(clip, texts).items()), sep="\n", flush=True)
    if arguments.vilt:
        models["ViLT"] = dict.fromkeys(plans, ViltMatcher(arguments.vilt, name="ViLT"))
    for name, of_task in models.items():
        scores = score_pairs(of_task["relational"], pairs)
        ranked = retrieve(of_task["single"], *names)
        print(f"\n{name}\n{scores}\n{ranked}", flush=True)
        found["pairs"][name], found["retrieval"][name] = scores.to_dict(), ranked.to_dict()
    return found


def single_names(trials: Trials) -> tuple[list[str], list[str], list[str]]:
    """Images of single objects, four of each class, the texts of the classes, and the text of each image."""
    texts = [trials.texts_of(row)[int(trials.truth[row])] for row in range(len(trials))]
    rows = [row for text in dict.fromkeys(texts) for row in [r for r, own in enumerate(texts) if own == text][:4]]
    return [str(trials.images[row]) for row in rows], list(dict.fromkeys(texts)), [texts[row] for row in rows]


def main() -> None:
    options = parser(__doc__, "compose")
    options.add_argument("data", help="folder of models/make_scenes.py")
    options.add_argument("--model", default="shapes")
    options.add_argument("--clip")
    options.add_argument("--vilt")
    options.add_argument("--images", type=int, default=200, help="most images per task and split")
    options.add_argument("--released", type=int, default=30, help="images per task for the released procedure")
    options.add_argument("--seeds", type=int, default=2, help="noise seeds of the diffusion model")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--keep", help="folder that keeps answers, to go on from there")
    options.add_argument("--figures", help="folder for plots of noise levels")
    options.add_argument("--only", choices=("released", "beyond", "levels"), help="one part, without the table")
    arguments = options.parse_args()
    own: dict[str, Any] = {"threads": arguments.threads}
    cells = read_layout(arguments.data, images=arguments.images)
    validation = {cell: trials for cell, trials in cells.items() if cell.split == "id-val"}
    rest = {cell: trials for cell, trials in cells.items() if cell.split != "id-val"}
    races = Races(arguments.model, validation, own, arguments.keep)
    name = Path(arguments.model).name
    entrants = [Entrant(name, races.of, rest, races.facts_of)]
    if arguments.clip:
        entrants.append(Entrant.of(ClipMatcher(arguments.clip, name="CLIP"), rest))
    if arguments.vilt:
        entrants.append(Entrant.of(ViltMatcher(arguments.vilt, name="ViLT"), rest))
    result: dict[str, Any] = {"images": arguments.images, "races": races.facts}
    if arguments.only is None:
        comparison = whole_table(entrants, arguments.keep)
        print(comparison.to_text(), flush=True)
        result["comparison"] = comparison.to_dict()
    parts: dict[str, Callable[[], Any]] = {
        "released": lambda: released_rows(arguments, races, rest, own),
        "beyond": lambda: beyond(arguments, races, rest, own),
        "levels": lambda: levels_of(arguments.model, validation, own, arguments.figures),
        "seeds": lambda: under_seeds(races, rest, comparison, name, arguments.seeds),
    }
    for part, work in parts.items():
        if arguments.only not in (None, part):
            continue
        save(arguments.out, result)  # nothing is lost if the next part is stopped
        result[part] = work()
    save(arguments.out, result)


if __name__ == "__main__":
    main()
