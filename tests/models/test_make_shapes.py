"""The shapes data sets: deterministic, labelled by visible colour and shape, and without held-out pairs in training.

The hue of the coloured pixels gives the colour, and the growth of the silhouette's width from top to bottom gives the
shape. Both are independent of the formulas that drew the images.
"""

import colorsys
import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from fastdc.data import load_labelled
from helpers.paths import ROOT

SCRIPT = ROOT / "models" / "make_shapes.py"
# Hues in degrees and ranges of the largest channel; brown is a dark orange.
HUES = {
    "red": (340, 12),
    "brown": (15, 45),
    "yellow": (46, 70),
    "green": (100, 150),
    "cyan": (165, 195),
    "blue": (220, 245),
    "purple": (260, 295),
    "pink": (310, 339),
}


@pytest.fixture(scope="module")
def shapes() -> ModuleType:
    return importlib.import_module("make_shapes")


@pytest.fixture(scope="module")
def val(shapes: ModuleType) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = shapes.make_set("val", shapes.COUNTS["val"])
    return images, labels


def coloured(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels that are not grey, (h, w)."""
    levels = image.astype(int)
    found: NDArray[np.bool_] = levels.max(axis=0) - levels.min(axis=0) > 40
    return found


def test_images_are_the_same_every_time(shapes: ModuleType) -> None:
    first, second = (shapes.make_set("val", 1)[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.uint8
    assert first.shape == (32, 3, 32, 32)


def test_splits_share_no_image(shapes: ModuleType) -> None:
    """No split repeats an image either."""
    images = np.concatenate([shapes.make_set(split, 2)[0] for split in ("train", "val", "test")])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images) == 2 * (24 + 32 + 32)


def test_training_never_sees_held_out_pairs(shapes: ModuleType) -> None:
    """Every colour and every shape stays known: one shape per colour is held out, and two colours per shape."""
    labels = shapes.make_set("train", 1)[1]
    held_out = set(shapes.HELD_OUT)
    assert set(labels.tolist()) == set(range(32)) - held_out
    pairs = [shapes.CLASS_NAMES[label].split() for label in held_out]
    assert sorted(colour for colour, _ in pairs) == sorted(shapes.COLOURS)
    assert sorted(shape for _, shape in pairs) == sorted([*shapes.SHAPES, *shapes.SHAPES])


def test_the_colour_is_the_label_s(shapes: ModuleType, val: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    for image, label in zip(*val, strict=True):
        rgb = np.median(image[:, coloured(image)], axis=1) / 255
        hue = 360 * colorsys.rgb_to_hsv(*rgb)[0]
        found = [name for name, (low, high) in HUES.items() if (hue - low) % 360 <= (high - low) % 360]
        assert found == [shapes.CLASS_NAMES[label].split()[0]], f"hue {hue:.0f}"


def test_the_shape_is_the_label_s(shapes: ModuleType, val: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    """Class means of two numbers of the silhouette: height over width, and the width at 1/6 over the width at 5/6."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for image, label in zip(*val, strict=True):
        mask = coloured(image)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        upper, lower = (mask[rows[0] + int(height * share)].sum() for share in (1 / 6, 5 / 6))
        seen.setdefault(shapes.CLASS_NAMES[label].split()[1], []).append((height / width, upper / max(lower, 1)))
    mean = {shape: np.mean(numbers, axis=0) for shape, numbers in seen.items()}
    assert {shape: len(numbers) for shape, numbers in seen.items()} == dict.fromkeys(shapes.SHAPES, 80)
    assert mean["cylinder"][0] > 1.3  # (0.7 + 0.22) / 0.62 = 1.48, and less if it is tilted
    assert abs(mean["sphere"][0] - 1) < 0.05
    assert abs(mean["cube"][0] - 1) < 0.1
    assert mean["cone"][1] < 0.5
    assert min(mean[shape][1] for shape in ("sphere", "cube", "cylinder")) > 0.75


def test_objects_lie_inside_on_grey(val: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    masks = np.stack([coloured(image) for image in val[0]])
    share = masks.mean(axis=(1, 2))
    assert 0.03 < share.min() < 0.1
    assert 0.3 < share.max() < 0.5
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()


def test_fastdc_reads_the_files(shapes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 1, "val": 1, "test": 2})
    monkeypatch.setattr(sys, "argv", ["make_shapes.py", str(tmp_path)])
    shapes.main()
    test = load_labelled(tmp_path / "shapes-test.npz")
    assert test.images.shape == (64, 3, 32, 32)
    assert test.class_names == shapes.CLASS_NAMES
    assert np.bincount(test.labels).tolist() == [2] * 32
    with (tmp_path / "shapes-prompts.csv").open(newline="", encoding="utf-8") as file:
        prompts = list(csv.DictReader(file))
    assert prompts[5] == {"prompt": "a photo of a yellow cube", "classname": "yellow cube", "classidx": "5"}
    assert [row["classname"] for row in prompts] == list(shapes.CLASS_NAMES)
    with (tmp_path / "shapes-split.csv").open(newline="", encoding="utf-8") as file:
        split = {int(row["classidx"]): row["split"] for row in csv.DictReader(file)}
    train = set(load_labelled(tmp_path / "shapes-train.npz").labels.tolist())
    assert {label for label, name in split.items() if name == "seen"} == train


def test_it_is_a_command() -> None:
    run = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "folder for the files" in run.stdout
