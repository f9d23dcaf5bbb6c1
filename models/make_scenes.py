"""Writes rendered scenes in the layout of Pearson et al. (arXiv 2508.20783): folders of images, tables of candidates.

    python models/make_scenes.py OUTDIR [--size 32] [--scale 1.0] [--seed 0]

    OUTDIR/TASK/SPLIT/GROUP/NAME/NUMBER.png    single_object and relational/train have no folder GROUP
    OUTDIR/single_prompts.csv                  the 32 classes
    OUTDIR/*_prompts/*_SPLIT[_gen]/GROUP.csv   the candidates of a group; the right text is the first
    OUTDIR/scenes-train.npz                    the training images of all tasks, with their texts
    OUTDIR/single-SPLIT.npz                    single objects with their classes, as `fastdc score` reads them

Scenes and candidates are those of fastdc.testing.scenes. ID_val and ID_test share the tables "train". In
scenes-train.npz, `captions` holds the text that the folder names; `other_captions` holds further true texts, divided by
line breaks.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fastdc.testing import (
    SCENE_CLASSES,
    SCENE_SPLITS,
    SCENE_TASKS,
    SceneGroup,
    Scenes,
    scene_candidates,
    scene_groups,
    scenes,
)

FOLDERS = {"single": "single_object"}  # of tasks; the others have their own names
TABLES = {
    "two_object": ("two_object_prompts", "two_obj"),
    "relational": ("rel_prompts", "rel"),
    "counting": ("count_prompts", "count"),
    "negation": ("negation_prompts", "negation"),
}
TABLE_SPLITS = {"train": "train", "ood_val": "val", "ood_test": "test"}
TRAIN = {"single": 3400, "two_object": 4092, "relational": 3000, "counting": 1504, "negation": 1547}  # images
EVALUATION = 300  # images per task and split, at least one per group
FLAT = {("single", split) for split in SCENE_SPLITS} | {("relational", "train")}


def count(task: str, split: str, scale: float) -> int:
    """Number of images of a split: the same for every group."""
    groups = len(scene_groups(task, split))
    wanted = scale * (TRAIN[task] if split == "train" else EVALUATION)
    return groups * max(round(wanted / groups), 1)


def write_images(out: Path, task: str, split: str, world: Scenes) -> None:
    """Writes each image into its group's folder, numbered within it."""
    numbers: dict[str, int] = {}
    for image, group in zip(world.images, world.groups, strict=True):
        inner = group.folder if (task, split) in FLAT else f"{group.name}/{group.folder}"
        folder = out / FOLDERS.get(task, task) / split / inner
        number = numbers[group.name] = numbers.get(group.name, -1) + 1
        if not number:
            folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:04d}.png")


def write_tables(out: Path) -> None:
    """Writes the classes, and the candidates of every group of the other tasks."""
    with (out / "single_prompts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("prompt", "class_name", "classidx"))
        table.writerows((f"a photo of a {name}", name, index) for index, name in enumerate(SCENE_CLASSES))
    for task, (folder, stem) in TABLES.items():
        for split, general in ((split, general) for split in TABLE_SPLITS for general in (False, True)):
            place = out / folder / f"{stem}_{TABLE_SPLITS[split]}{'_gen' if general else ''}"
            place.mkdir(parents=True, exist_ok=True)
            for group in scene_groups(task, split):
                write_candidates(place / f"{group.name}.csv", task, split, group, general)


def write_candidates(path: Path, task: str, split: str, group: SceneGroup, general: bool) -> None:
    """Writes the table of a group: an index without a name, then the text, its short name and its number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("", "prompt", "class_name", "classidx"))
        found = scene_candidates(task, split, group.name, general=general)
        table.writerows((index, text, name, index) for index, (text, name) in enumerate(found))


def write_arrays(out: Path, split: str, world: Scenes) -> None:
    """Writes single objects as an .npz file with classes."""
    labels = np.array([SCENE_CLASSES.index(group.folder) for group in world.groups], dtype=np.int64)
    np.savez(out / f"single-{split}.npz", images=world.images, labels=labels, class_names=np.array(SCENE_CLASSES))


def write_training(out: Path, worlds: dict[str, Scenes]) -> None:
    """Writes the training images of all tasks with their texts as one .npz file."""
    groups = [(task, group) for task, world in worlds.items() for group in world.groups]
    np.savez(
        out / "scenes-train.npz",
        images=np.concatenate([world.images for world in worlds.values()]),
        captions=np.array([group.captions[0] for _, group in groups]),
        other_captions=np.array(["\n".join(group.captions[1:]) for _, group in groups]),
        tasks=np.array([task for task, _ in groups]),
        groups=np.array([group.name for _, group in groups]),
    )


def write(out: Path, size: int = 32, scale: float = 1.0, seed: int = 0) -> None:
    """Writes everything below a folder, which must be empty: images of other numbers and seeds would stay.

    Raises:
        SystemExit: It is not empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: expected a new folder, in which no other images are")
    write_tables(out)
    training = {}
    for task in SCENE_TASKS:
        for split in SCENE_SPLITS:
            world = scenes(task, split, count(task, split, scale), size=size, seed=seed)
            write_images(out, task, split, world)
            if task == "single":
                write_arrays(out, split, world)
            if split == "train":
                training[task] = world
            print(f"{task}, {split}: {len(world.groups)} images in {len(set(world.groups))} groups", flush=True)
    write_training(out, training)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write rendered scenes: images, and tables of candidate texts.")
    parser.add_argument("out", type=Path, help="folder for the files, new or empty")
    parser.add_argument("--size", type=int, default=32, help="pixels per side (default: 32)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual numbers of images (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    arguments = parser.parse_args()
    write(arguments.out, arguments.size, arguments.scale, arguments.seed)


if __name__ == "__main__":
    main()
