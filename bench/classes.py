"""The cost of a decision as the number of classes grows: 10, 100 and 1000 classes in Gaussian worlds.

    python bench/classes.py [--classes 10 100 1000] [--worlds independent clustered]

The world (``fastdc/testing/gaussian_world.py``) has 8x8 images N(mu_k, 0.2^2 I), and its optimal denoiser is the
network. In "independent", every pixel of every mean is uniform in [-0.25, 0.25]. In "clustered", means are sqrt(K)
centres, uniform in [-0.4, 0.4], plus offsets in [-0.2, 0.2]: some classes resemble each other, as a tree of classes
needs. Draws come from sigma in [0.05, 0.2], where one draw says little (the row "full, 1 draw") and a full run nearly
everything. The right answer is the class with the nearest mean, which infinitely many draws would give. Agreement is
with the full run at the draws of the staged rule's last stage, over the first --full-images images.

Staged pruning has the stages of Li et al. for ImageNet (keep 500, 50, 10, 1 of 1000 classes after 50, 100, 500, 1000
draws), scaled down for fewer classes. The race is calibrated on other images of the world, once for 128 draws and once
for the draws of staged pruning. The errors of this world are Gaussian and of one kind, which favours every rule.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from common import parser, print_table, save
from fastdc.backends import NetworkOptions
from fastdc.calibration import controlled_limit, needed_limits
from fastdc.classifier import DiffusionClassifier
from fastdc.inference import CALIBRATION_DRAWS
from fastdc.rules import AbstractRule, Calibrated, ClassTree, Full, Hierarchy, Paired, Staged, TTest
from fastdc.testing import GaussianWorld
from tables import announced, supported

Images = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SHAPE, SPREAD, LEVELS = (1, 8, 8), 0.2, (0.05, 0.2)
SCALE = 0.25  # range of the means of independent classes
CENTRE, OFFSET = 0.4, 0.2  # ranges of the centres and offsets of clustered classes
DELTAS = (0.01, 0.003)
CHUNK_CELLS = 10_000_000  # cells of full runs in memory at once
STAGED = {
    10: Staged((50, 100, 500), (5, 2, 1)),
    100: Staged((50, 100, 500), (50, 10, 1)),
    1000: Staged((50, 100, 500, 1000), (500, 50, 10, 1)),
}


@dataclass(frozen=True, eq=False)
class World:
    """A world, its classifier and its images.

    Attributes:
        gaussian: The world.
        classifier: A classifier with the world's optimal denoiser.
        test: Test images, float64 (n, c, h, w) in [0, 1].
        truth: Class with the nearest mean, int64 (n,).
        calibration: Images for the calibration of the race.
        own: Share of test images whose nearest mean belongs to the class that they were drawn from.
    """

    gaussian: GaussianWorld
    classifier: DiffusionClassifier
    test: Images
    truth: Labels
    calibration: Images
    own: float


def make_world(kind: str, classes: int, images: int, calibration: int) -> World:
    """A world, "independent" or "clustered", with images of random classes."""
    random = np.random.default_rng([classes, kind == "clustered"])
    if kind == "clustered":
        centres = random.uniform(-CENTRE, CENTRE, (int(np.ceil(np.sqrt(classes))), *SHAPE))
        means = centres[np.arange(classes) % len(centres)] + random.uniform(-OFFSET, OFFSET, (classes, *SHAPE))
        gaussian = GaussianWorld(means, SPREAD)
    else:
        gaussian = replace(GaussianWorld.random(classes, SHAPE, scale=SCALE), spread=SPREAD)
    labels = random.integers(0, classes, images + calibration)
    x = gaussian.sample(labels, seed=1)
    nearest = gaussian.nearest(x[:images])
    return World(
        gaussian,
        DiffusionClassifier(gaussian.model, gaussian.network(NetworkOptions(batch=512))),
        (x[:images] + 1) / 2,
        nearest,
        (x[images:] + 1) / 2,
        float(np.mean(nearest == labels[:images])),
    )


def full_labels(world: World, images: Images, draws: int) -> Labels:
    """The labels of the full run, computed for a few images at a time."""
    step = max(1, CHUNK_CELLS // (draws * world.classifier.model.num_classes))
    parts = [images[i : i + step] for i in range(0, len(images), step)]
    return np.concatenate(
        [world.classifier.classify(part, rule="full", draws=draws, levels=LEVELS).labels for part in parts]
    )


def calibrate(world: World, draws: int) -> dict[float, Calibrated]:
    """The race at each level for full runs of `draws` draws, calibrated as by ``DiffusionClassifier.calibrate``."""
    step = max(1, CHUNK_CELLS // (draws * world.classifier.model.num_classes))
    images = world.calibration
    scores = [
        needed_limits(world.classifier.errors(images[i : i + step], draws=draws, levels=LEVELS).errors)
        for i in range(0, len(images), step)
    ]
    table = np.concatenate(scores)[:, None]
    return {delta: Calibrated(controlled_limit(table, delta), draws=draws) for delta in supported(DELTAS, len(images))}


def measure(
    world: World, name: str, rule: AbstractRule, draws: int, reference: Labels, *, images: int | None = None
) -> dict[str, Any]:
    """One row of the table: a rule on the test images, or on the first `images`."""
    start = time.perf_counter()
    result = world.classifier.classify(world.test[:images], rule=rule, draws=draws, levels=LEVELS)
    truth = world.truth[:images]
    common = min(len(reference), len(truth))
    return {
        "rule": name,
        "options": repr(rule)[:400],
        "draws": draws,
        "images": len(truth),
        "nfe": float(result.evaluations.mean()),
        "nfe_deviation": float(result.evaluations.std()),
        "accuracy": float(np.mean(result.labels == truth)),
        "agreement": float(np.mean(result.labels[:common] == reference[:common])),
        "seconds": time.perf_counter() - start,
    }


def rules_of(world: World, races: dict[int, dict[float, Calibrated]], most: int) -> list[tuple[str, AbstractRule, int]]:
    """The rules to compare: name, rule, draws."""
    classes = len(world.gaussian.means)
    rules: list[tuple[str, AbstractRule, int]] = [
        ("ttest, from 3, 0.01", TTest(3, 0.01), most),
        ("ttest, from 20, 0.002 (paper)", TTest(), most),
        ("paired, alpha 0.01", Paired(0.01, rivals=classes - 1), most),
    ]
    for draws, found in races.items():
        rules += [(f"race, {draws} draws, delta {delta:g}", race, draws) for delta, race in found.items()]
    tree = ClassTree.from_embeddings(world.gaussian.means.reshape(classes, -1))
    delta, race = min(races[most].items())
    for margin in (2.0, 3.0):
        rule = Hierarchy(tree, race, margin=margin, first=4)
        rules.append((f"tree, margin {margin:g}, then race, delta {delta:g}", rule, most))
    return rules


def study(kind: str, classes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all rules in one world; prints a table."""
    world = make_world(kind, classes, arguments.images, arguments.calibration_images)
    staged = STAGED[min(STAGED, key=lambda size: abs(np.log(size / classes)))]
    most = staged.n_samples[-1]
    few = arguments.full_images
    label = f"{kind}, {classes} classes"
    with announced(f"{label}: full run of {most} draws over {few} images"):
        reference = full_labels(world, world.test[:few], most)
    records = [
        {"rule": f"full, {most} draws", "draws": most, "images": few, "nfe": float(most * classes)}
        | {"accuracy": float(np.mean(reference == world.truth[:few])), "agreement": 1.0},
        measure(world, "full, 1 draw", Full(), 1, reference),
    ]
    with announced(f"{label}: staged"):
        records.append(measure(world, _stages(staged), staged, most, reference))
    assert records[-1]["nfe"] == staged.evaluations(classes), "staged pruning must cost what its formula says"
    races: dict[int, dict[float, Calibrated]] = {}
    for draws in sorted({CALIBRATION_DRAWS, most}):
        with announced(f"{label}: calibration on {len(world.calibration)} images, {draws} draws"):
            races[draws] = calibrate(world, draws)
    with announced(f"{label}: the other rules"):
        records += [measure(world, name, rule, draws, reference) for name, rule, draws in rules_of(world, races, most)]
    limits = [{"draws": j, "delta": d, "limit": race.limit} for j, found in races.items() for d, race in found.items()]
    title = (
        f"{label}: {arguments.images} images; for {100 * world.own:.1f} % the nearest mean is that of their own class"
    )
    print_table(title, COLUMNS, rows_of(records, staged.evaluations(classes)))
    return {"world": kind, "classes": classes, "limits": limits, "own": world.own, "records": records}


COLUMNS = ["rule", "images", "NFE/image", "of staged", "accuracy, %", "agreement, %"]


def rows_of(records: Sequence[dict[str, Any]], staged: int) -> list[list[str]]:
    """The rows of the printed table."""
    return [
        [
            record["rule"],
            str(record["images"]),
            f"{record['nfe']:,.0f}" if record["nfe"] >= 100 else f"{record['nfe']:.1f}",
            f"{record['nfe'] / staged:.3f}",
            f"{100 * record['accuracy']:.2f}",
            f"{100 * record['agreement']:.2f}",
        ]
        for record in records
    ]


def _stages(staged: Staged) -> str:
    return f"staged, {' '.join(map(str, staged.to_keep))} after {' '.join(map(str, staged.n_samples))}"


def main() -> None:
    made = parser(__doc__, "classes")
    made.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    made.add_argument("--worlds", nargs="+", choices=("independent", "clustered"), default=["independent", "clustered"])
    made.add_argument("--images", type=int, default=400, help="number of test images [%(default)s]")
    made.add_argument(
        "--calibration-images", type=int, default=400, help="number of images for the calibration [%(default)s]"
    )
    made.add_argument("--full-images", type=int, default=50, help="number of images of the full run [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images and two sizes, as a trial")
    arguments = made.parse_args()
    if arguments.quick:
        arguments.images, arguments.calibration_images, arguments.full_images = 10, 20, 4
        arguments.classes = [10, 100]
    results = [study(kind, classes, arguments) for kind in arguments.worlds for classes in arguments.classes]
    settings = {"shape": SHAPE, "spread": SPREAD, "levels": LEVELS, "scale": SCALE, "centre": CENTRE, "offset": OFFSET}
    save(arguments.out, {"question": "what a decision costs as classes grow", "world": settings, "results": results})


if __name__ == "__main__":
    main()
