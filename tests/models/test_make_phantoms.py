"""The files of the phantoms: the table, the pictures and the arrays are the same images."""

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import load_labelled
from fastdc.testing import phantoms


def test_the_table_and_the_arrays_hold_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("make_phantoms")
    monkeypatch.setattr(script, "PARTS", {"train": 30, "val": 24, "test": 20})
    monkeypatch.setattr(script, "SHIPPED", 8)
    monkeypatch.setattr("sys.argv", ["make_phantoms.py", str(tmp_path / "out")])
    script.main()
    for split, count in script.PARTS.items():
        world = phantoms(count, split)
        arrays = load_labelled(tmp_path / "out" / f"phantoms-{split}.npz")
        photos = load_labelled(tmp_path / "out" / "phantoms.csv", split=split)
        for found in (arrays, photos):
            assert np.array_equal(found.images, world.images)
            assert np.array_equal(found.labels, world.labels)
            assert found.class_names == world.class_names
        assert photos.columns["group"] == tuple(world.groups)
        for name, mask in zip(photos.columns["mask"], world.masks, strict=True):
            assert bool(name) == mask.any()
            if name:
                assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), 255 * mask.astype(np.uint8))
    with np.load(tmp_path / "out" / "phantoms-test-8.npz") as shipped:
        world = phantoms(8)
        for name in ("images", "labels", "masks", "groups"):
            assert np.array_equal(shipped[name], getattr(world, name))
        assert np.array_equal(shipped["images"] - shipped["added"], world.healthy)
    with (tmp_path / "out" / "phantoms.csv").open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["path", "class", "split", "group", "mask"]
