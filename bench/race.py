"""Cost and loss of stopping rules: NFE, agreement with the full run, and accuracy, on clean and noisy digits.

    python bench/race.py [--val digits-val.npz] [--parts accuracy speed scheduler] [--first 0.81] [--levels 0.2 2]

accuracy: for every condition (no noise, Gaussian noise of std 0.25 and 0.5 in pixels in [0, 1], not clipped) and every
noise seed, the benchmark makes one full run of 128 draws on the 400 test images. It then replays every rule and budget
on its errors (``fastdc.testing.replay``); once per command, replays are compared with real runs for equality. The race
is calibrated on the 197 validation images of the same condition, under several noise seeds. Noisy images get their own
levels, chosen on noisy validation images (NOISY_PLANS); they are also classified by the race that is calibrated on
clean images, whose guarantee does not cover them. Agreement is with the full run of the same seed, decided by the mean.
The agreement of two full runs of the same images under different noise is printed as well: no rule can exceed it.
Intervals are 95 % t-intervals over noise seeds for these 400 images; another 400 would add about 0.3 points.

speed: images/s of real runs on clean images against the plain PyTorch loop of the paper, full and staged, in turns on
the same threads (``race_speed.py``). scheduler: how full steps are, and what the bookkeeping costs.

The benchmark writes the tables, a JSON file and a plot beside it.
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
from fastdc.data import LabelledImages, digits_test
from fastdc.inference import CALIBRATION_DRAWS, PlanOptions, plan_config
from fastdc.rules import AbstractRule, Betting, Calibration, Full, Paired, Sift, Staged, TTest
from fastdc.testing import Replay, replay, verify
from race_plot import plot
from race_speed import Speed, measure_scheduler, measure_speed
from tables import (
    announced,
    calibrations,
    first_images,
    full_run,
    model_images,
    note,
    plus_minus,
    run_job,
    supported,
    validation_images,
)

Errors = npt.NDArray[np.float32]

PARTS = ("accuracy", "speed", "scheduler")
DELTAS = (0.0055, 0.006, 0.01, 0.015, 0.02, 0.05)  # the shipped models have 0.006 and 0.01
NOISY_PLANS: dict[float, PlanOptions] = {  # per noise in pixels: the cheapest at equal accuracy on validation images
    0.25: {"levels": (0.2, 2.0), "first": (1.6,)},
    0.5: {"levels": (1.0, 4.0), "first": (2.5,)},
}
STAGES = (
    ((1, 4, 8), (5, 2, 1)),
    ((2, 8), (5, 1)),
    ((2, 8, 16), (5, 2, 1)),
    ((4, 16, 64), (5, 2, 1)),
    ((8, 32, 128), (5, 2, 1)),
)
SPEED_STAGED = Staged((4, 16, 64), (5, 2, 1))
COLUMNS = ["rule", "NFE/image", "agreement, %", "accuracy, %", "accuracy of full, %"]


@dataclass(frozen=True)
class Entry:
    """A rule at a budget.

    Attributes:
        name: Name in tables.
        family: Family in the plot.
        rule: The rule with all of its options.
        draws: Number of draws, J.
        decision: Decision, "mean" or "vote".
    """

    name: str
    family: str
    rule: AbstractRule
    draws: int
    decision: str = "mean"


def fixed_entries(draws: int) -> list[Entry]:
    """Rules that need no model: the full run at budgets up to `draws`, and staged pruning."""
    budgets = [2**i for i in range(draws.bit_length()) if 2**i < draws]
    entries = [Entry(f"full, {count}", "full", Full(), count) for count in (*budgets, draws)]
    entries.append(Entry(f"full, {draws}, vote", "vote", Full(), draws, "vote"))
    for n_samples, to_keep in STAGES:
        if n_samples[-1] <= draws:
            name = f"staged {n_samples} {to_keep}"
            entries.append(Entry(name, "staged", Staged(n_samples, to_keep), n_samples[-1]))
    return entries


def test_entries(draws: int, rivals: int, bound: float) -> list[Entry]:
    """Rules that test at every look. `bound` limits the differences of errors, in their units."""
    entries = []
    for cutoff in (0.05, 0.01, 0.002):
        entries.append(Entry(f"ttest, from 3, {cutoff:g}", "ttest", TTest(3, cutoff), draws))
    entries.append(Entry("ttest, from 20, 0.002 (paper)", "ttest", TTest(), draws))
    for alpha in (0.05, 0.01):
        entries.append(Entry(f"paired, alpha {alpha:g}", "paired", Paired(alpha, rivals=rivals), draws))
    for alpha in (0.05, 0.01):
        rule = Betting(alpha, bound, rivals=rivals)
        entries.append(Entry(f"betting, alpha {alpha:g}", "betting", rule, draws))
    for share in (0.03, 0.1, 0.3):
        rule_sift = Sift(share * bound, min(8, draws), keep_at_most=2)
        entries.append(Entry(f"sift, 8 draws, {share:g} bound, to 2", "sift", rule_sift, draws))
    return entries


def race_entries(name: str, family: str, found: dict[float, Calibration]) -> list[Entry]:
    """The calibrated race at each level."""
    return [Entry(f"{name}, delta {delta:g}", family, made.rule, made.draws) for delta, made in found.items()]


def score(entries: Sequence[Entry], runs: Sequence[Errors], truth: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """NFE, agreement and accuracy of every entry on every seed's full run (n, K, J)."""
    full = [replay(Full(), errors).labels() for errors in runs]
    return [
        record(entry, [replay(entry.rule, errors[:, :, : entry.draws]) for errors in runs], full, truth)
        for entry in entries
    ]


def record(
    entry: Entry, made: Sequence[Replay], full: Sequence[npt.NDArray[np.int64]], truth: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """The results of an entry for every seed, and those of the full runs."""
    labels = [one.labels(entry.decision) for one in made]
    return {
        "rule": entry.name,
        "family": entry.family,
        "draws": entry.draws,
        "decision": entry.decision,
        "options": repr(entry.rule),
        "nfe": [float(one.evaluations.mean()) for one in made],
        "agreement": [100 * float(np.mean(a == b)) for a, b in zip(labels, full, strict=True)],
        "accuracy": [100 * float(np.mean(a == truth)) for a in labels],
        "accuracy_of_full": [100 * float(np.mean(a == truth)) for a in full],
    }


@dataclass(frozen=True)
class Study:
    """The models, images and seeds that all conditions share.

    Attributes:
        classifier: The classifier.
        plan: Options of the plan, with the number of draws.
        test: Images for the scores of rules.
        val: Images for the calibration of the race.
        seeds: Noise seeds of the test images.
        calibration_seeds: Noise seeds of the validation images, clean and noisy.
    """

    classifier: fastdc.DiffusionClassifier
    plan: PlanOptions
    test: LabelledImages
    val: LabelledImages
    seeds: int
    calibration_seeds: tuple[int, int]

    @property
    def main_delta(self) -> float:
        """The level of the main rows of the race: the model's, or the smallest that few images can guarantee."""
        shipped = self.classifier.model.calibration
        return supported([0.01 if shipped is None else shipped.delta], len(self.val))[0]

    def plan_of(self, sigma: float) -> PlanOptions:
        """The plan for a condition: that of clean images, or that of the nearest noise."""
        if sigma == 0:
            return self.plan
        return {**self.plan, **NOISY_PLANS[min(NOISY_PLANS, key=lambda known: abs(known - sigma))]}

    def runs(self, sigma: float) -> list[Errors]:
        """Full runs on the test images, one per seed."""
        found = []
        for seed in range(self.seeds):
            with announced(f"noise {sigma:g}: full run over {len(self.test)} images, seed {seed}"):
                x = self.test_images(sigma, seed)
                found.append(full_run(self.classifier, x, seed=seed, plan=self.plan_of(sigma)).errors)
        return found

    def repeated(self, sigma: float) -> npt.NDArray[np.int64]:
        """Labels of a full run on the images of the first seed, under another seed of diffusion noise."""
        with announced(f"noise {sigma:g}: a second full run"):
            ran = full_run(self.classifier, self.test_images(sigma, 0), seed=self.seeds, plan=self.plan_of(sigma))
        return replay(Full(), ran.errors).labels()

    def races(self, sigma: float, rule: AbstractRule) -> list[Replay]:
        """Real runs of a rule with the plan for clean images, one per seed."""
        found = []
        for seed in range(self.seeds):
            ran = run_job(self.classifier, self.test_images(sigma, seed), rule, seed=seed, plan=self.plan)
            found.append(Replay(ran.counts, ran.errors))
        return found

    def test_images(self, sigma: float, seed: int) -> npt.NDArray[np.float32]:
        """The test images of a condition, in the model's value range."""
        return model_images(self.test.images, self.classifier.model, sigma=sigma, seed=seed)

    def calibrate(self, sigma: float) -> dict[float, Calibration]:
        """Calibrations of the race on the validation images of a condition."""
        found, config = [], None
        seeds = self.calibration_seeds[0 if sigma == 0 else 1]
        for seed in range(seeds):
            with announced(f"noise {sigma:g}: calibration on {len(self.val)} images, seed {seed} of {seeds}"):
                x = model_images(self.val.images, self.classifier.model, sigma=sigma, seed=1000 + seed)
                ran = full_run(self.classifier, x, seed=seed, plan=self.plan_of(sigma))
                found.append(ran.errors)
                config = ran.config
        assert config is not None
        return calibrations(found, config, (*DELTAS, self.main_delta))


def measure_accuracy(
    study: Study, conditions: Sequence[float], clean: dict[float, Calibration]
) -> list[dict[str, Any]]:
    """Measures every rule in every condition; prints a table per condition."""
    results = []
    for sigma in conditions:
        own = clean if sigma == 0 else study.calibrate(sigma)
        main = own[study.main_delta]
        entries = fixed_entries(CALIBRATION_DRAWS)
        entries += test_entries(CALIBRATION_DRAWS, study.classifier.model.num_classes - 1, main.bound)
        entries += race_entries("race", "race", own)
        entries.append(Entry("race, vote", "vote", main.rule, CALIBRATION_DRAWS, "vote"))
        runs = study.runs(sigma)
        result: dict[str, Any] = {"sigma": sigma, "calibrations": [made.to_dict() for made in own.values()]}
        if sigma == 0:
            result["largest_difference_of_an_error"] = check_replays(study, main, runs[0])
        result["records"] = score(entries, runs, study.test.labels)
        full = [replay(Full(), errors).labels() for errors in runs]
        if sigma:
            rule = clean[study.main_delta].rule
            entry = Entry("race, calibrated on clean images", "race, clean calibration", rule, CALIBRATION_DRAWS)
            result["records"].append(record(entry, study.races(sigma, rule), full, study.test.labels))
        result["agreement_of_full_runs"] = 100 * float(np.mean(study.repeated(sigma) == full[0]))
        note(f"two full runs agree on {result['agreement_of_full_runs']:.2f} % of images")
        title = "clean" if sigma == 0 else f"Gaussian noise {sigma:g}"
        print_table(f"{title}, {len(study.test)} images, {study.seeds} seeds", COLUMNS, table(result["records"]))
        results.append(result)
    return results


def clean_calibrations(study: Study, parts: Sequence[str]) -> dict[float, Calibration]:
    """Calibrations of the race for clean images; without the part "accuracy", the model's own one if it fits."""
    model = study.classifier.model
    shipped = model.calibration
    if "accuracy" not in parts and shipped is not None and shipped.fits(plan_config(model, study.plan)):
        return {shipped.delta: shipped}
    return study.calibrate(0.0)


def check_replays(study: Study, main: Calibration, errors: Errors) -> float:
    """Checks that replays equal real runs on 100 images; returns the largest relative difference of an error."""
    rivals = study.classifier.model.num_classes - 1
    rules = (SPEED_STAGED, TTest(3, 0.01), Paired(rivals=rivals), Betting(0.05, main.bound, rivals=rivals), main.rule)
    images, errors = study.test.images[:100], errors[:100]
    with announced("replays compared with real runs"):
        largest = max(
            verify(
                study.classifier,
                images,
                rule,
                errors[:, :, : rule.draws or CALIBRATION_DRAWS],
                seed=0,
                plan=study.plan,
            )
            for rule in rules
        )
    note(f"replays equal real runs; errors differ by at most {largest:.1e} of their size")
    return largest


def table(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows of the printed table."""
    percents = ("agreement", "accuracy", "accuracy_of_full")
    return [
        [record["rule"], plus_minus(record["nfe"], 1), *(plus_minus(record[name]) for name in percents)]
        for record in records
    ]


def arguments_of_command_line() -> argparse.Namespace:
    made = parser(__doc__, "race")
    made.add_argument("--model", default="digits", help="shipped model [%(default)s]")
    made.add_argument("--val", type=Path, help="validation images, digits-val.npz [made with scikit-learn]")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure [%(default)s]")
    made.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5],
        help="standard deviations of the noise [%(default)s]",
    )
    made.add_argument("--images", type=int, default=400, help="number of test images [%(default)s]")
    made.add_argument("--seeds", type=int, default=5, help="noise seeds of the test images [%(default)s]")
    made.add_argument(
        "--calibration-seeds",
        type=int,
        nargs=2,
        default=[8, 4],
        help="noise seeds of clean and noisy validation images [%(default)s]",
    )
    made.add_argument("--first", type=float, nargs="*", help="noise-to-signal ratios of the first draws [the model's]")
    made.add_argument("--levels", type=float, nargs=2, help="band of the levels [the model's]")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads [%(default)s]")
    made.add_argument("--rounds", type=int, default=5, help="rounds of the part speed [%(default)s]")
    made.add_argument("--loop-images", type=int, default=8, help="images timed by the plain loop [%(default)s]")
    made.add_argument("--full-images", type=int, default=40, help="images timed by fastdc's full run [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images and seeds, as a trial")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.images, arguments.seeds, arguments.calibration_seeds = 12, 2, [1, 1]
        arguments.rounds, arguments.loop_images, arguments.full_images = 1, 1, 2
    return arguments


def main() -> None:
    arguments = arguments_of_command_line()
    classifier = fastdc.load(arguments.model, backend="onnx", threads=arguments.threads)
    plan: PlanOptions = {"draws": CALIBRATION_DRAWS}
    if arguments.levels is not None:
        plan["levels"] = (arguments.levels[0], arguments.levels[1])
    if arguments.first is not None:
        plan["first"] = tuple(arguments.first)
    test, val = digits_test(), validation_images(arguments.val)
    study = Study(
        classifier,
        plan,
        first_images(test, arguments.images),
        first_images(val, 12 if arguments.quick else len(val)),
        arguments.seeds,
        (arguments.calibration_seeds[0], arguments.calibration_seeds[1]),
    )
    clean = clean_calibrations(study, arguments.parts)
    rule = clean[min(clean, key=lambda delta: abs(delta - study.main_delta))].rule
    result: dict[str, Any] = {
        "question": "what stopping rules cost and lose",
        "model": arguments.model,
        "images": len(study.test),
        "seeds": arguments.seeds,
        "clean_calibrations": [made.to_dict() for made in clean.values()],
    }
    if "accuracy" in arguments.parts:
        result["conditions"] = measure_accuracy(study, arguments.noise, clean)
        save(arguments.out, result)
        plot(result, arguments.out.with_suffix(".png"))
    if "speed" in arguments.parts:
        sizes = {"loop": arguments.loop_images, "full": arguments.full_images}
        speed = Speed(arguments.model, plan, study.test, arguments.threads, arguments.rounds, sizes)
        result["speed"] = measure_speed(speed, rule, SPEED_STAGED)
    if "scheduler" in arguments.parts:
        result["scheduler"] = measure_scheduler(
            arguments.model, study.test.images, rule, plan, seeds=arguments.seeds, threads=arguments.threads
        )
    save(arguments.out, result)


if __name__ == "__main__":
    main()
