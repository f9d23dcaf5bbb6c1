"""Splits of a data set: which folders are splits, and which one is taken."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import check_class_folders, find_splits, load_images, load_labelled, load_with_labels, prepare
from fastdc.support import InputError

SHAPE = (1, 4, 4)
LEVELS = {"train": 10, "val": 20, "test": 30}


def place(root: Path, *splits: str, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """A folder with splits, in which the level of an image names its split and its class."""
    for number, split in enumerate(splits):
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (4, 4), LEVELS.get(split, 40 + 10 * number) + k).save(root / split / name / "0.png")
    return root


def levels(images: np.ndarray) -> list[int]:
    return [int(level) for level in images[:, 0, 0, 0]]


def test_each_loader_takes_its_natural_split(tmp_path: Path) -> None:
    root = place(tmp_path, "train", "val", "test")
    assert find_splits(root) == ("test", "train", "val")
    loaded = load_images(root, SHAPE, classes=["b", "a"])
    assert levels(loaded.images) == [30, 31]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [1, 0]
    assert loaded.notes == (f"split test of {root} used; it has test, train, val",)
    assert levels(load_labelled(root, natural="val").images) == [20, 21]
    assert levels(load_labelled(root, split="train").images) == [10, 11]
    assert levels(load_with_labels(root, SHAPE, classes=["a", "b"])[0].images) == [30, 31]
    assert levels(load_with_labels(root, SHAPE, classes=["a", "b"], split="val")[0].images) == [20, 21]
    assert levels(prepare(root, SHAPE, split="train")) == [10, 11]
    assert levels(prepare([root, root / "val"], SHAPE)) == [30, 31, 20, 21]
    with pytest.raises(InputError, match=r"has the splits test, train, val: name one with --split NAME"):
        load_labelled(root)
    with pytest.raises(InputError, match=r"has no split 'tset', its splits are test, train, val"):
        load_images(root, SHAPE, split="tset")
    check_class_folders(root, natural="train")
    with pytest.raises(InputError, match="has the splits"):
        check_class_folders(root)


def test_other_names_of_the_same_split(tmp_path: Path) -> None:
    root = place(tmp_path, "Training", "validation")
    for name in ("val", "valid", "validation", "dev"):
        assert levels(load_labelled(root, split=name).images) == [50, 51]
    assert levels(load_labelled(root, natural="train").images) == [40, 41]
    with pytest.raises(InputError, match=r"has the splits Training, validation and none for test: name one with"):
        load_images(root, SHAPE)


def test_what_is_no_split(tmp_path: Path) -> None:
    """Classes that have names of splits beside others, a lone class "train", and splits with images beside them."""
    others = place(tmp_path / "others", "train", "lorry")
    assert find_splits(others) == ()
    lone = tmp_path / "lone" / "train"
    lone.mkdir(parents=True)
    Image.new("L", (4, 4)).save(lone / "0.png")
    assert load_labelled(lone.parent).class_names == ("train",)
    beside = place(tmp_path / "beside", "train", "test")
    Image.new("L", (4, 4)).save(beside / "0.png")
    assert len(load_images(beside, SHAPE)) == 5
    for source in (others, lone.parent, beside):
        with pytest.raises(InputError, match="has no splits, but 'val' was asked for"):
            load_images(source, SHAPE, split="val")


def test_splits_without_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("L", (4, 4), LEVELS[split]).save(tmp_path / split / "0.png")
    assert levels(load_images(tmp_path, SHAPE).images) == [30]
