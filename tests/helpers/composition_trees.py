"""Small folders in the layout of the compositional evaluation; pictures are empty files unless pixels are asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
SHAPES = ("cone", "cube", "cylinder", "sphere")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
ID = (1, 3, 4, 5, 10, 11, 13, 15, 18, 19, 20, 22, 23, 26, 27, 28, 31)
OOD_VAL = (7, 8, 14, 29)
OOD_TEST = (0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30)


def write_table(path: Path, names: Sequence[str], *, index: bool = True, header: str = "class_name") -> None:
    """A table of prompts: "a photo of a NAME", relations in the paper's words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{',' if index else ''}prompt,{header},classidx"]
    for k, name in enumerate(names):
        words = name.split()
        text = f"{words[0]} to the {words[1]} of a {words[2]}" if words[1:2] in (["left"], ["right"]) else name
        lines.append(f"{f'{k},' if index else ''}a photo of a {text},{name},{k}")
    path.write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, count: int, pixels: Iterator[np.ndarray] | None = None) -> None:
    """PNG files in a folder, empty or of arrays (h, w, 3)."""
    folder.mkdir(parents=True)
    for i in range(count):
        path = folder / f"{i:04d}.png"
        if pixels is None:
            path.touch()
        else:
            from PIL import Image

            Image.fromarray(next(pixels)).save(path)


def write_single(
    root: Path, splits: Sequence[str] = ("ID_val", "ood_val"), *, count: int = 1, home: str = "single_object"
) -> None:
    """Single objects with the table of all 32 classes."""
    for split in splits:
        own = OOD_VAL if split == "ood_val" else OOD_TEST if split == "ood_test" else ID
        for k in own:
            write_pictures(root / home / split / CLASSES[k], count)
    write_table(root / "single_prompts.csv", CLASSES, index=False)


PAIRS = {
    "blue_cube_red_sphere": ("blue cube", "red cube", "blue sphere", "cyan cone", "green cube"),
    "gray_cone_cyan_cube": ("gray cone", "cyan cone", "gray cube", "blue cone", "red sphere", "cyan cube"),
}
RELATIONS = {
    "cone_left_cube": ("cone left cube", "cone right cube", "cube left cone", "sphere left cube", "cone left sphere"),
    "cube_right_sphere": (
        "cube right sphere",
        "cube left sphere",
        "sphere right cube",
        "sphere left cube",
        "cone left cube",
    ),
}


def write_pairs(
    root: Path, split: str = "ID_val", folder: str = "two_object_prompts/two_obj_train", count: int = 2
) -> None:
    """Two objects, of which the folder names both."""
    for group, names in PAIRS.items():
        if not (root / "two_object" / split / group).exists():
            write_pictures(root / "two_object" / split / group / names[0], count)
        write_table(root / folder / f"{group}.csv", names)


def write_relations(root: Path, split: str = "ID_val", folder: str = "rel_prompts/rel_train", count: int = 2) -> None:
    """Two objects side by side."""
    for group, names in RELATIONS.items():
        if not (root / "relational" / split / group).exists():
            write_pictures(root / "relational" / split / group / names[0], count)
        write_table(root / folder / f"{group}.csv", names)
