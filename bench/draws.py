"""Better draws: the effect of noise levels, noise and weights on the accuracy and on the race.

    python bench/draws.py [--val digits-val.npz] [--models digits digits-mlp]

The benchmark first measures, for each noise level, how often a single draw gives the right label on the validation
images. This yields the most informative level and the informative band (the sub-interval of DMIS, chosen by
measurement). Then, for each choice of draws, it measures the accuracy on the test images after 1, 2, 4, ... draws, and
the race calibrated on the validation images with the same choice: its NFE, its agreement with the full run of 128 draws
of that choice, and its accuracy. All numbers are means over noise seeds.

Levels and weights are fitted on the same validation images as the race's limit, whose guarantee strictly needs other
images. One level and a smooth curve of 20 knots can hardly overfit; the agreement on the test images checks that.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc.calibration import fit_level_weights, informative_levels, most_informative
from fastdc.calibration.levels import LevelAccuracy, informative_band
from fastdc.classifier import DiffusionClassifier
from fastdc.data import LabelledImages, digits_test
from fastdc.diffusion import LevelWeights
from fastdc.inference import CALIBRATION_DRAWS, PlanOptions
from fastdc.rules import Full
from fastdc.testing import replay
from tables import (
    Ran,
    announced,
    calibrations,
    first_images,
    full_run,
    interval,
    model_images,
    plus_minus,
    supported,
    validation_images,
)

Errors = npt.NDArray[np.float32]

BUDGETS = (1, 2, 4, 8, 16, 32)
DELTA = 0.01
ORDER_SEED = 10_000


@dataclass(frozen=True)
class Choice:
    """A way to make draws.

    Attributes:
        name: Name in the table.
        plan: Options of the plan, without the number of draws.
        weights: Curve that multiplies the errors afterwards; a plan with this curve gives the same errors.
        random: Whether every seed draws its own levels.
    """

    name: str
    plan: PlanOptions
    weights: LevelWeights | None = None
    random: bool = False

    def at(self, seed: int) -> PlanOptions:
        """The plan's options for a noise seed."""
        wanted: PlanOptions = {**self.plan, "draws": CALIBRATION_DRAWS}
        if self.random:
            wanted["order_seed"] = ORDER_SEED + seed
        return wanted


@dataclass(frozen=True)
class Study:
    """One model's images and seeds; `cache` holds full runs, which choices that differ only in weights share."""

    classifier: DiffusionClassifier
    test: LabelledImages
    val: LabelledImages
    seeds: int
    calibration_seeds: int
    cache: dict[str, tuple[list[Ran], list[Ran]]]

    def runs(self, choice: Choice) -> tuple[list[Ran], list[Ran]]:
        """Full runs on the test images and on the validation images."""
        key = repr((choice.plan, choice.random))
        if key not in self.cache:
            with announced(f"{self.classifier.model.name}: {choice.name}"):
                # Validation runs have their own noise seeds and random levels.
                self.cache[key] = (
                    [self.run(self.test, choice, seed) for seed in range(self.seeds)],
                    [self.run(self.val, choice, 1000 + seed) for seed in range(self.calibration_seeds)],
                )
        return self.cache[key]

    def run(self, images: LabelledImages, choice: Choice, seed: int) -> Ran:
        x = model_images(images.images, self.classifier.model)
        return full_run(self.classifier, x, seed=seed, plan=choice.at(seed))


def levels_table(study: Study, band: tuple[float, float]) -> LevelAccuracy:
    """How often one draw gives the right label, per level of a wide band; prints a table."""
    wide: PlanOptions = {"levels": band, "first": ()}
    with announced(f"{study.classifier.model.name}: single draws over the levels {band[0]:g} to {band[1]:g}"):
        ran = [study.run(study.val, Choice("wide", wide), seed) for seed in range(study.calibration_seeds)]
    errors = np.concatenate([one.errors for one in ran])
    found = informative_levels(errors, ran[0].ratio, np.tile(study.val.labels, len(ran)))
    rows = [
        [f"{ratio:.3f}", f"{100 * accuracy:.1f}", f"{100 * smooth:.1f}"]
        for ratio, accuracy, smooth in zip(found.ratio, found.accuracy, found.smoothed.tolist(), strict=True)
    ]
    title = f"{study.classifier.model.name}: a single draw, {len(study.val)} validation images"
    print_table(title, ["sigma", "accuracy, %", "smoothed, %"], rows)
    return found


def choices(study: Study, found: LevelAccuracy) -> list[Choice]:
    """The choices to compare. Each changes one thing in the plan that has no chosen levels."""
    defaults = study.classifier.model.defaults
    base: PlanOptions = {"levels": "all" if defaults.levels is None else defaults.levels, "first": ()}
    best, band = most_informative(found), informative_band(found)
    plain = Choice("van der Corput order", base)
    _, val = study.runs(plain)
    labels = np.tile(study.val.labels, len(val))
    weights = fit_level_weights(np.concatenate([one.errors for one in val]), val[0].ratio, labels)
    first: PlanOptions = {**base, "first": (best,)}
    made = [
        plain,
        Choice(f"first draw at {best:.2f}", first),
        Choice("antithetic", {**base, "antithetic": True}),
        Choice(f"levels {band[0]:.2f} to {band[1]:.2f}", {**base, "levels": band}),
        Choice("fitted level weights", base, weights),
        Choice(f"first draw at {best:.2f}, fitted weights", first, weights),
        Choice("random order", {**base, "order": "random"}, random=True),
    ]
    if defaults.first:
        name = ", ".join(f"{ratio:.2f}" for ratio in defaults.first)
        made.insert(0, Choice(f"the model's default: first at {name}", {**base, "first": defaults.first}))
    return made


def weighted(ran: Ran, curve: LevelWeights | None) -> Errors:
    """The errors of a plan with this curve."""
    return ran.errors if curve is None else (ran.errors * curve.at(ran.ratio)).astype(np.float32)


def measure(study: Study, choice: Choice) -> dict[str, Any]:
    """Accuracy of the full run after a few draws and after all draws, and the race."""
    test, val = study.runs(choice)
    delta = supported([DELTA], len(study.val))[0]
    rule = calibrations([weighted(one, choice.weights) for one in val], val[0].config, [delta])[delta].rule
    record: dict[str, Any] = {"choice": choice.name, "limit": rule.limit, "delta": delta}
    errors = [weighted(one, choice.weights) for one in test]
    truth = study.test.labels
    full = [replay(Full(), one).labels() for one in errors]
    for draws in BUDGETS:
        labels = [replay(Full(), one[:, :, :draws]).labels() for one in errors]
        record[f"accuracy_{draws}"] = [100 * float(np.mean(one == truth)) for one in labels]
    raced = [replay(rule, one) for one in errors]
    record["nfe"] = [float(one.evaluations.mean()) for one in raced]
    record["agreement"] = [100 * float(np.mean(one.labels() == other)) for one, other in zip(raced, full, strict=True)]
    record["accuracy"] = [100 * float(np.mean(one.labels() == truth)) for one in raced]
    record["accuracy_of_full"] = [100 * float(np.mean(one == truth)) for one in full]
    return record


def print_records(study: Study, records: Sequence[dict[str, Any]]) -> None:
    """Prints two tables: accuracy by number of draws, and the race."""
    name = f"{study.classifier.model.name}, {len(study.test)} test images, {study.seeds} seeds"
    columns = ["draws", *(f"T={draws}" for draws in BUDGETS), f"T={CALIBRATION_DRAWS}"]
    keys = [*(f"accuracy_{draws}" for draws in BUDGETS), "accuracy_of_full"]
    rows = [[record["choice"], *(f"{interval(record[key])[0]:.2f}" for key in keys)] for record in records]
    print_table(f"{name}: accuracy of the full run, %", columns, rows)
    columns = ["draws", "limit", "NFE/image", "agreement, %", "accuracy, %", "full, %"]
    percents = ("agreement", "accuracy", "accuracy_of_full")
    rows = [
        [
            record["choice"],
            f"{record['limit']:.2f}",
            plus_minus(record["nfe"], 1),
            *(plus_minus(record[key]) for key in percents),
        ]
        for record in records
    ]
    print_table(f"{name}: the race at delta {records[0]['delta']:g}", columns, rows)


def arguments_of_command_line() -> argparse.Namespace:
    made = parser(__doc__, "draws")
    made.add_argument("--models", nargs="+", default=["digits", "digits-mlp"], help="shipped models [%(default)s]")
    made.add_argument("--val", type=Path, help="validation images, digits-val.npz [made with scikit-learn]")
    made.add_argument("--images", type=int, default=400, help="number of test images [%(default)s]")
    made.add_argument("--seeds", type=int, default=3, help="noise seeds of the test images [%(default)s]")
    made.add_argument(
        "--calibration-seeds", type=int, default=4, help="noise seeds of the validation images [%(default)s]"
    )
    made.add_argument(
        "--wide", type=float, nargs=2, default=[0.05, 10.0], help="band of the table of levels [%(default)s]"
    )
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images and seeds, as a trial")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.images, arguments.seeds, arguments.calibration_seeds = 12, 2, 1
    return arguments


def main() -> None:
    arguments = arguments_of_command_line()
    test, val = digits_test(), validation_images(arguments.val)
    results = []
    for name in arguments.models:
        classifier = fastdc.load(name, backend="onnx", threads=arguments.threads)
        study = Study(
            classifier,
            first_images(test, arguments.images),
            first_images(val, 24 if arguments.quick else len(val)),
            arguments.seeds,
            arguments.calibration_seeds,
            {},
        )
        found = levels_table(study, (arguments.wide[0], arguments.wide[1]))
        records = [measure(study, choice) for choice in choices(study, found)]
        print_records(study, records)
        results.append(
            {
                "model": name,
                "levels": {"ratio": found.ratio, "accuracy": found.accuracy, "draws": found.draws},
                "most_informative": most_informative(found),
                "informative_band": informative_band(found),
                "records": records,
            }
        )
    settings = {"images": arguments.images, "seeds": arguments.seeds, "calibration_seeds": arguments.calibration_seeds}
    save(arguments.out, {"question": "what better draws are worth", **settings, "models": results})


if __name__ == "__main__":
    main()
