"""Votes, the race and refusals on labelled images, and few labels: the measurements of docs/medical.md.

    python bench/medical.py --model digits-mlp [--train FILE --val FILE --test FILE] [--parts votes refusal labels]
                            [--positive CLASS] [--labels 100 1000 all] [--images N] [--sigma S] [--quick]

votes: accuracy of votes and of means at 1, 11, 25, 51, 251 and 501 draws, all from one table of all errors, whose
prefixes they are, under two plans: the model's own, and that of Favero et al. (arXiv 2502.03687): noise levels drawn
at random from the whole schedule, no weights. The race is calibrated on the validation images and replayed on the same
table: how many evaluations it takes for the answers of means at 501 draws, and which share of them it gives. With three
classes or more, pruning by votes as well.

refusal: accuracy of the rest when the least certain answers are refused, by shares of votes and by the posterior.

labels: AUROC on the test images of diffusion models that are trained on few of the training images, and of the CNN of
`fastdc score --baseline cnn` on the same ones. Epochs of the CNN and checkpoints of the models are chosen on the
validation images. The training of each model is that of `fastdc train` with --preset and --steps.

Without files, the digits that models/make_digits.py makes. With --sigma, Gaussian noise of that standard deviation, in
pixels in [0, 1], is added to validation and test images and clipped. Needs scikit-learn, and torch for the part labels.
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
from fastdc.scoring import Score, rival_of, score
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
        data["test"] = drawn(data["test"], arguments.images)
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


def few_labels(data: Data, counts: Sequence[str], recipe: dict[str, Any], asked: Any) -> list[Any]:
    """AUROC of diffusion models and of the CNN, trained on few images of each class."""
    from fastdc.train import train_baseline

    train, val, test = (data[part] for part in PARTS)
    records = []
    for count in counts:
        rows = chosen(train.labels, len(train) if count == "all" else int(count))
        with announced(f"diffusion model, {len(rows)} images"):
            own, cost, p = diffusion_score(train.take(rows), val, test, recipe, asked)
        with announced(f"CNN, {len(rows)} images"):
            made = train_baseline(
                "cnn",
                train.images[rows],
                train.labels[rows],
                val_images=val.images,
                val_labels=val.labels,
                n_classes=len(train.class_names),
            )
        beside = made.probabilities(test.images)
        other = score(test.labels, beside, test.class_names, positive=asked)
        sides = [(one.argmax(axis=1), one) for one in (p, beside)]
        compared = rival_of("cnn", test.labels, sides[0], sides[1], other, made.describe())
        records.append(
            {
                "images": len(rows),
                "diffusion": {**kept(own), "evaluations": cost},
                "cnn": {**kept(other), **made.describe()},
                "auroc_difference": compared.auroc_difference.to_dict(),
                "accuracy_difference": compared.difference.to_dict(),
                "mcnemar_p_value": compared.p_value,
            }
        )
    return records


def chosen(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The first images of a random order that keeps the shares of the classes, at least two of each."""
    rng = np.random.default_rng(0)
    rows = []
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        rows.append(members[: max(2, round(count * len(members) / len(labels)))])
    return np.sort(np.concatenate(rows))


def diffusion_score(
    train: LabelledImages, val: LabelledImages, test: LabelledImages, recipe: dict[str, Any], asked: Any
) -> tuple[Score, float, npt.NDArray[np.float64]]:
    """The score of a model trained on some images, whose race is calibrated on the validation images."""
    from fastdc.export import export_source
    from fastdc.train import TrainConfig, run_source
    from fastdc.train import train as run_training

    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", train), ("val", val)):
            path = Path(folder) / f"{name}.npz"
            np.savez(path, images=part.images, labels=part.labels, class_names=np.array(part.class_names))
        config = TrainConfig(data=f"{folder}/train.npz", val=f"{folder}/val.npz", out=f"{folder}/run", **recipe)
        run_training(config, progress=False)
        source = run_source(f"{folder}/run")[0]
        export_source(source, f"{folder}/bundle", images=val)
        classifier = fastdc.load(f"{folder}/bundle")
        result = classifier.classify(test.images)
    ready = test.with_classes(result.class_names)
    return (
        score(ready.labels, result.probabilities, result.class_names, predicted=result.labels, positive=asked),
        float(result.evaluations.mean()),
        result.probabilities,
    )


def kept(found: Score) -> dict[str, Any]:
    """What is kept of a score."""
    told = found.to_dict()
    names = ("accuracy", "balanced_accuracy", "auroc", "auprc", "intervals", "ece", "positive")
    return {name: told[name] for name in names}


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "medical")
    made.add_argument("--model", default="digits-mlp", help="shipped model or a bundle's folder [%(default)s]")
    for part in PARTS:
        made.add_argument(f"--{part}", type=Path, help="labelled images [the digits]")
    made.add_argument("--parts", nargs="+", choices=("votes", "refusal", "labels"), default=("votes", "refusal"))
    made.add_argument("--images", type=int, help="test images, drawn at random [all]")
    made.add_argument("--sigma", type=float, default=0.0, help="noise added to the images [%(default)s]")
    made.add_argument("--draws", type=int, nargs="+", default=DRAWS, help="numbers of draws [%(default)s]")
    made.add_argument("--positive", help="class whose sensitivity and areas are measured, of the part labels")
    made.add_argument("--labels", nargs="+", default=("100", "1000", "all"), help="training images [%(default)s]")
    made.add_argument("--preset", default="unet", help="model of fastdc train, of the part labels [%(default)s]")
    made.add_argument("--steps", type=int, default=4000, help="its steps [%(default)s]")
    made.add_argument("--width", type=int, help="its width [that of the preset]")
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
    if "labels" in arguments.parts:
        recipe = {"model": arguments.preset, "steps": arguments.steps}
        recipe |= {} if arguments.width is None else {"width": arguments.width}
        result["labels"] = few_labels(data, arguments.labels, recipe, arguments.positive)
        print_labels(result["labels"])
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


def print_labels(records: Sequence[dict[str, Any]]) -> None:
    """Prints the table of the part labels."""

    def area(one: dict[str, Any]) -> str:
        ends = one["intervals"]["auroc"]
        return f"{one['auroc']:.4f} ({ends['ci95_low']:.4f} to {ends['ci95_high']:.4f})"

    def difference(one: dict[str, Any]) -> str:
        value, low, high = (one["auroc_difference"][name] for name in ("value", "ci95_low", "ci95_high"))
        return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"

    rows = [
        [
            str(one["images"]),
            area(one["diffusion"]),
            area(one["cnn"]),
            difference(one),
            percent(one["diffusion"]["accuracy"]),
            percent(one["cnn"]["accuracy"]),
        ]
        for one in records
    ]
    columns = ["training images", "AUROC, diffusion", "AUROC, CNN", "difference", "accuracy, %", "CNN, %"]
    print_table("few labels", columns, rows)


if __name__ == "__main__":
    main()
