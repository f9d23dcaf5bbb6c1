"""Votes, the race and refusals on labelled images: measurements of docs/medical.md.

    python bench/medical.py --model digits-mlp [--train FILE --val FILE --test FILE] [--parts votes refusal]
                            [--images N] [--sigma S] [--quick]

votes: accuracy of votes and of means at 1, 11, 25, 51, 251 and 501 draws, all from one table of all errors, whose
prefixes they are, under two plans: the model's own, and that of Favero et al. (arXiv 2502.03687): noise levels drawn
at random from the whole schedule, no weights. The race is calibrated on the validation images and replayed on the same
table: how many evaluations it takes for the answers of means at 501 draws, and which share of them it gives. With three
classes or more, pruning by votes as well.

refusal: accuracy of the rest when the least certain answers are refused, by shares of votes and by the posterior.

Without files, the digits that models/make_digits.py makes. With --sigma, Gaussian noise of that standard deviation, in
pixels in [0, 1], is added to validation and test images and clipped. Needs scikit-learn.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc.calibration import calibrate_errors
from fastdc.certification import mcnemar, paired_difference, share
from fastdc.data import LabelledImages, load_labelled
from fastdc.inference import Decision, decide
from fastdc.rules import Votes
from fastdc.scoring import score
from fastdc.testing import replay
from tables import MAKE_DIGITS, announced, supported

PARTS = ("train", "val", "test")
DRAWS = (1, 11, 25, 51, 251, 501)
DELTA = 0.01
REFUSED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
PLANS: dict[str, dict[str, Any]] = {
    "own": {},
    "paper": {"levels": "all", "first": (), "order": "random", "weighting": "uniform", "loss": "l2"},
}

Data = dict[str, LabelledImages]
Errors = npt.NDArray[np.float32]


def data_of(arguments: argparse.Namespace) -> Data:
    """The three parts of the data."""
    given = {part: getattr(arguments, part) for part in PARTS}
    if None in given.values():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, str(MAKE_DIGITS), folder], check=True, capture_output=True)
            data = {part: load_labelled(Path(folder) / f"digits-{part}.npz") for part in PARTS}
    else:
        data = {part: load_labelled(path) for part, path in given.items()}
    if arguments.images:
        data |= {part: drawn(data[part], arguments.images) for part in ("val", "test")}
    if arguments.sigma:
        data = {part: one if part == "train" else noisy(one, arguments.sigma) for part, one in data.items()}
    return {part: drawn(one, 60) for part, one in data.items()} if arguments.quick else data


def drawn(given: LabelledImages, count: int) -> LabelledImages:
    """Some images of a set, at random, but the same ones in every run."""
    return given.take(np.random.default_rng(0).permutation(len(given))[:count])


def noisy(given: LabelledImages, sigma: float) -> LabelledImages:
    """The images with Gaussian noise, clipped and rounded to 8 bits."""
    values = given.images / 255 + np.random.default_rng(1).normal(0, sigma, given.images.shape)
    return replace(given, images=np.round(255 * np.clip(values, 0, 1)).astype(np.uint8))


def votes(classifier: fastdc.DiffusionClassifier, data: Data, plan: dict[str, Any], draws: Sequence[int]) -> Any:
    """The part votes under one plan, and the errors of the test images."""
    val, test = data["val"].with_classes(classifier.class_names), data["test"].with_classes(classifier.class_names)
    most = max(draws)
    start = time.perf_counter()
    errors = classifier.errors(test.images, draws=most, **plan).errors
    seconds = time.perf_counter() - start
    records = []
    for m in draws:
        of = {name: decide(errors[:, :, :m], decision=name).labels for name in ("vote", "mean")}
        right = {name: labels == test.labels for name, labels in of.items()}
        b, c = int((right["vote"] & ~right["mean"]).sum()), int((right["mean"] & ~right["vote"]).sum())
        records.append(
            {
                "draws": m,
                "evaluations": m * errors.shape[1],
                **{name: share(int(one.sum()), len(test)).to_dict() for name, one in right.items()},
                "vote_minus_mean": paired_difference(b, c, len(test)).to_dict(),
                "mcnemar_p_value": mcnemar(b, c),
            }
        )
    full = decide(errors).labels
    races = [race(classifier, val, test, errors, full, plan)]
    if errors.shape[1] > 2:
        races += staged(errors, full, test.labels, most)
    found = {"images": len(test), "seconds": seconds, "draws": records, "rules": races}
    return found, errors, test.labels


def race(
    classifier: fastdc.DiffusionClassifier,
    val: LabelledImages,
    test: LabelledImages,
    errors: Errors,
    full: npt.NDArray[np.int64],
    plan: dict[str, Any],
) -> dict[str, Any]:
    """The race, calibrated on the validation images, on the errors of the test images."""
    runs = classifier.validation_runs(val.images, draws=errors.shape[2], **plan)
    (delta,) = supported((DELTA,), len(val))
    rule = calibrate_errors([runs.table(0).errors], runs.config, delta=delta).rule
    return outcome(f"race, delta {delta:g}", rule, errors, full, test.labels, "mean")


def staged(errors: Errors, full: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], most: int) -> list[Any]:
    """Pruning by votes, counted anew, and the answers of the released code."""
    keep = max(2, errors.shape[1] // 3)
    options: dict[str, Any] = {"n_samples": (11, most), "to_keep": (keep, 1)}
    if most <= 11:
        return []
    found = [outcome(f"votes, 11 draws to {keep} classes", Votes(**options), errors, full, labels, "vote")]
    counted = Votes(**options, compat="favero")
    answers = decide(errors, decision="vote", votes=counted.votes_of(errors)).labels
    cost = errors.shape[1] * 11 + keep * (most - 11)
    found.append(of_answers("the same, released count", answers, full, labels, cost))
    return found


def outcome(
    name: str,
    rule: Any,
    errors: Errors,
    full: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    decision: str,
) -> dict[str, Any]:
    """Accuracy, agreement and cost of a rule."""
    run = replay(rule, errors)
    return of_answers(name, run.labels(decision), full, labels, float(run.evaluations.mean()))


def of_answers(
    name: str, answers: npt.NDArray[np.int64], full: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], cost: float
) -> dict[str, Any]:
    """What is kept of a rule."""
    n = len(labels)
    agreed, right = int((answers == full).sum()), int((answers == labels).sum())
    return {
        "rule": name,
        "evaluations": cost,
        "accuracy": share(right, n).to_dict(),
        "agreement": share(agreed, n).to_dict(),
    }


def refusal(classifier: fastdc.DiffusionClassifier, errors: Errors, labels: Any, draws: Sequence[int]) -> list[Any]:
    """The refusal curves of votes and of means at some numbers of draws."""
    temperature = classifier.model.defaults.temperature
    records = []
    for m in draws:
        for name in ("vote", "mean"):
            decided: Decision = decide(errors[:, :, :m], decision=name, temperature=temperature)
            found = score(labels, decided.probabilities, predicted=decided.labels, intervals=False).refusal
            falls = float(np.maximum(0, found.accuracy[:-1] - found.accuracy[1:]).max(initial=0))
            records.append(
                {
                    "draws": m,
                    "by": name,
                    **{f"without {part:g}": found.at(part) for part in REFUSED},
                    "area": found.area,
                    "largest_fall": falls,
                    **({"curve": found.to_dict()} if m == max(draws) else {}),
                }
            )
    return records


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "medical")
    made.add_argument("--model", default="digits-mlp", help="shipped model or a bundle's folder [%(default)s]")
    for part in PARTS:
        made.add_argument(f"--{part}", type=Path, help="labelled images [the digits]")
    made.add_argument("--parts", nargs="+", choices=("votes", "refusal"), default=("votes", "refusal"))
    made.add_argument("--images", type=int, help="validation and test images, drawn at random [all]")
    made.add_argument("--sigma", type=float, default=0.0, help="noise added to the images [%(default)s]")
    made.add_argument("--draws", type=int, nargs="+", default=DRAWS, help="numbers of draws [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images, as a trial")
    arguments = made.parse_args()
    data = data_of(arguments)
    result: dict[str, Any] = {"model": arguments.model, "sigma": arguments.sigma}
    if {"votes", "refusal"} & set(arguments.parts):
        classifier = fastdc.load(arguments.model)
        for name, plan in PLANS.items():
            with announced(f"votes, plan {name}"):
                found, errors, labels = votes(classifier, data, plan, arguments.draws)
            result.setdefault("votes", {})[name] = found
            print_votes(name, found)
            if "refusal" in arguments.parts:
                few = [m for m in arguments.draws if m > 1]
                result.setdefault("refusal", {})[name] = refusal(classifier, errors, labels, few)
                print_refusal(name, result["refusal"][name])
    save(arguments.out, result)


def percent(measured: dict[str, Any]) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * measured[name] for name in ("value", "ci95_low", "ci95_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def print_votes(plan: str, found: dict[str, Any]) -> None:
    """Prints the tables of the part votes."""
    rows = [
        [
            str(one["draws"]),
            str(one["evaluations"]),
            percent(one["vote"]),
            percent(one["mean"]),
            percent(one["vote_minus_mean"]),
            f"{one['mcnemar_p_value']:.2g}",
        ]
        for one in found["draws"]
    ]
    columns = ["draws", "NFE/image", "votes, accuracy, %", "means, accuracy, %", "votes minus means, points", "p"]
    print_table(f"{found['images']} images, plan {plan}", columns, rows)
    rows = [
        [one["rule"], f"{one['evaluations']:.1f}", percent(one["accuracy"]), percent(one["agreement"])]
        for one in found["rules"]
    ]
    print_table(f"rules, plan {plan}", ["rule", "NFE/image", "accuracy, %", "answers of the full mean, %"], rows)


def print_refusal(plan: str, records: Sequence[dict[str, Any]]) -> None:
    """Prints the table of the part refusal."""
    rows = [
        [
            str(one["draws"]),
            one["by"],
            *(f"{100 * one[f'without {part:g}']:.2f}" for part in REFUSED),
            f"{100 * one['area']:.2f}",
            f"{100 * one['largest_fall']:.2f}",
        ]
        for one in records
    ]
    parts = [f"without {100 * part:g} %" for part in REFUSED]
    print_table(f"accuracy of the rest, %, plan {plan}", ["draws", "by", *parts, "area", "largest fall"], rows)


if __name__ == "__main__":
    main()
