"""How much a diffusion classifier and a CNN make of few labels: AUROC on phantoms, 15 % of which have a lesion.

    python models/make_phantoms.py DATA && python bench/few_labels.py DATA --work RUNS [--labels 100 1000 all] [--quick]

For each number of labels the diffusion model is trained on that many of the 4,000 training images, by the recipe of
the shipped model phantoms (models/reproduce.sh) with fewer steps for fewer images, and the CNN of `fastdc score
--baseline cnn` on the same ones, with --seeds seeds. The 800 validation images choose the checkpoint of the diffusion
model (best or last, by AUROC), and the epoch and the temperature of the CNN; all else is fixed. Both are scored on the
1,500 test images: the diffusion model by both classes at the 16 draws of the shipped model. Its noise levels are those
of the shipped model, which validation images chose for the model of all labels.

Runs are kept in RUNS and used again by the next call. "all" is the shipped model unless RUNS has a run "all".
Takes an hour of one core.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdc
from common import parser, print_table, save
from fastdc.data import LabelledImages, load_labelled
from fastdc.scoring import Score, rival_of, score
from tables import announced

PARTS = ("train", "val", "test")
STEPS = {"100": 3000, "1000": 6000, "all": 8000}
RECIPE: dict[str, Any] = {
    "model": "unet",
    "width": 16,
    "batch": 32,
    "balance": True,
    "augment": "medical",
    "p_mean": -1.2,
    "p_std": 1.0,
    "threads": 1,
}
PLAN: dict[str, Any] = {"rule": "full", "levels": (0.15, 0.4), "first": (0.25,), "draws": 16, "weighting": "edm"}
POSITIVE = "lesion"

Data = dict[str, LabelledImages]
Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


def chosen(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The first images of a random order that keeps the shares of the classes, at least two of each."""
    rng = np.random.default_rng(0)
    rows = []
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        rows.append(members[: max(2, round(count * len(members) / len(labels)))])
    return np.sort(np.concatenate(rows))


def trained(run: Path, train: LabelledImages, val: LabelledImages, steps: int) -> None:
    """Trains the model of a run folder, unless that was done before."""
    from fastdc.train import TrainConfig
    from fastdc.train import train as run_training

    run.parent.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("val", val)):
        path = run.parent / f"{run.name}-{name}.npz"
        np.savez(path, images=part.images, labels=part.labels, class_names=np.array(part.class_names))
    every = max(1, steps // 6)
    config = TrainConfig(
        data=str(run.parent / f"{run.name}-train.npz"),
        val=str(run.parent / f"{run.name}-val.npz"),
        out=str(run),
        steps=steps,
        checkpoint_every=every,
        **RECIPE,
    )
    run_training(config, resume=(run / "config.json").exists())


def opened(run: Path, checkpoint: str) -> fastdc.DiffusionClassifier:
    """The classifier of a checkpoint, in torch."""
    from fastdc.backends import NetworkOptions
    from fastdc.backends.torch import TorchNetwork
    from fastdc.train import run_source

    source = run_source(run, checkpoint)[0]
    network = TorchNetwork(source.denoiser, source.model.sample_shape, NetworkOptions(batch=128))
    return fastdc.DiffusionClassifier(source.model, network)


def answers(classifier: fastdc.DiffusionClassifier, images: LabelledImages, names: Sequence[str]) -> Found:
    """Labels and probabilities of the full run, in the order of the data's classes.

    The temperature is the median error's difference over images, as AUROC knows no scale and most bundles have none.
    """
    order = [classifier.class_names.index(name) for name in names]
    errors = classifier.classify(images.images, **PLAN).errors[:, order].astype(np.float64)
    scale = np.median(np.abs(errors[:, 1] - errors[:, 0]))
    p = 1 / (1 + np.exp((errors[:, 1] - errors[:, 0]) / scale))
    return errors.argmin(axis=1), np.stack([1 - p, p], axis=1)


def scored(found: Found, data: LabelledImages) -> Score:
    """The score of answers."""
    return score(data.labels, found[1], data.class_names, predicted=found[0], positive=POSITIVE)


def diffusion(count: str, data: Data, work: Path, quick: bool) -> tuple[Found, str]:
    """Answers of the diffusion model to the test images, and which checkpoint they are of."""
    train, val, test = (data[part] for part in PARTS)
    run = work / f"run-{count}"
    if count == "all" and not run.exists() and not quick:
        return answers(fastdc.load("phantoms"), test, test.class_names), "last, as shipped"
    few = train if count == "all" else train.take(chosen(train.labels, int(count)))
    trained(run, few, val, 6 if quick else STEPS.get(count, 6000))
    areas = {}
    for checkpoint in ("best", "last"):
        areas[checkpoint] = scored(answers(opened(run, checkpoint), val, val.class_names), val).auroc or 0.0
        print(f"  {count} labels, {checkpoint} checkpoint: AUROC {areas[checkpoint]:.4f} on validation images")
    best = max(areas, key=lambda name: areas[name])
    return answers(opened(run, best), test, test.class_names), best


def compared(count: str, data: Data, own: Found, seeds: int) -> dict[str, Any]:
    """The CNN on the same images, for each seed, beside the diffusion model."""
    from fastdc.train import train_baseline

    train, val, test = (data[part] for part in PARTS)
    rows = np.arange(len(train)) if count == "all" else chosen(train.labels, int(count))
    ours, rivals = scored(own, test), []
    for seed in range(seeds):
        made = train_baseline(
            "cnn",
            train.images[rows],
            train.labels[rows],
            val_images=val.images,
            val_labels=val.labels,
            n_classes=len(train.class_names),
            seed=seed,
            threads=1,
        )
        p = made.probabilities(test.images)
        other = (p.argmax(axis=1), p)
        beside = rival_of("cnn", test.labels, own, other, scored(other, test), made.describe())
        difference = beside.auroc_difference
        assert difference is not None
        rivals.append({**kept(scored(other, test)), "seed": seed, "auroc_difference": difference.to_dict()})
    return {"images": len(rows), "diffusion": kept(ours), "cnn": rivals}


def kept(found: Score) -> dict[str, Any]:
    """What is kept of a score."""
    told = found.to_dict()
    return {name: told[name] for name in ("balanced_accuracy", "auroc", "auprc", "intervals", "positive")}


def main() -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "few_labels")
    made.add_argument("data", type=Path, help="folder that models/make_phantoms.py wrote")
    made.add_argument("--work", type=Path, required=True, help="folder for the runs")
    made.add_argument("--labels", nargs="+", default=("100", "1000", "all"), help="training images [%(default)s]")
    made.add_argument("--seeds", type=int, default=3, help="seeds of the CNN [%(default)s]")
    made.add_argument("--quick", action="store_true", help="few images and steps, as a trial")
    arguments = made.parse_args()
    data = {part: load_labelled(arguments.data / f"phantoms-{part}.npz") for part in PARTS}
    if arguments.quick:
        data = {part: one.take(np.arange(60)) for part, one in data.items()}
    records = []
    for count in arguments.labels:
        with announced(f"{count} labels"):
            own, checkpoint = diffusion(count, data, arguments.work, arguments.quick)
            records.append({**compared(count, data, own, arguments.seeds), "checkpoint": checkpoint})
            save(arguments.out, {"labels": records})  # an hour is long
    rows = []
    for one in records:
        ends = one["diffusion"]["intervals"]["auroc"]
        areas = [rival["auroc"] for rival in one["cnn"]]
        rows.append(
            [
                str(one["images"]),
                f"{one['diffusion']['auroc']:.3f} ({ends['ci95_low']:.3f} to {ends['ci95_high']:.3f})",
                f"{np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f})",
                f"{one['diffusion']['auprc']:.3f}",
                f"{np.mean([rival['auprc'] for rival in one['cnn']]):.3f}",
            ]
        )
    columns = ["labels", "AUROC, diffusion (95 %)", "CNN (range over seeds)", "AUPRC, diffusion", "CNN"]
    print_table("AUROC by number of labels", columns, rows)


if __name__ == "__main__":
    main()
