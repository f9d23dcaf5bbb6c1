"""The layout of rendered scenes on disk: folders, tables in the columns of the paper, and arrays for training."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fastdc.bundle import read_prompts
from fastdc.data import load_labelled
from fastdc.testing import SCENE_CLASSES, SCENE_SPLITS, scene_candidates, scene_groups, scenes
from helpers.paths import ROOT


@pytest.fixture(scope="module")
def make_scenes() -> ModuleType:
    return importlib.import_module("make_scenes")


@pytest.fixture(scope="module")
def data(make_scenes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image per group, of 8 pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes.write(folder, size=8, scale=0.001)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1)


def test_folders_are_those_of_the_paper(data: Path) -> None:
    assert {path.parent.name for path in (data / "single_object/ood_val").glob("*/*.png")} == {
        "brown sphere",
        "cyan cone",
        "gray cylinder",
        "yellow cube",
    }
    for task in ("two_object", "relational", "counting", "negation"):
        for split in SCENE_SPLITS:
            found = {path.relative_to(data / task / split).parts[:-1] for path in data.glob(f"{task}/{split}/**/*.png")}
            flat = (task, split) == ("relational", "train")
            groups = scene_groups(task, split)
            assert found == {(one.folder,) if flat else (one.name, one.folder) for one in groups}
    assert (data / "two_object/train/blue_cube_red_sphere/blue cube/0000.png").exists()
    assert (data / "relational/train/cone left cube/0000.png").exists()


def test_pictures_are_the_scenes(data: Path) -> None:
    world = scenes("relational", "ood_test", 8, size=8)
    for image, group in zip(world.images, world.groups, strict=True):
        folder = data / "relational/ood_test" / group.name / group.folder
        assert np.array_equal(pixels(folder / "0000.png"), image)


def test_every_folder_has_its_tables(data: Path) -> None:
    """Tables are read by their own rules: an index without a name, the truth first, numbers without gaps."""
    tables = {"two_object": "two_object_prompts/two_obj", "relational": "rel_prompts/rel"}
    tables |= {"counting": "count_prompts/count", "negation": "negation_prompts/negation"}
    for task, stem in tables.items():
        for split, short in (("train", "train"), ("ID_test", "train"), ("ood_val", "val"), ("ood_test", "test")):
            for general, ending in ((False, ""), (True, "_gen")):
                names = {path.stem for path in (data / f"{stem}_{short}{ending}").iterdir()}
                assert names == {group.name for group in scene_groups(task, split)}
                group = scene_groups(task, split)[-1]
                with (data / f"{stem}_{short}{ending}/{group.name}.csv").open(newline="", encoding="utf-8") as file:
                    rows = list(csv.reader(file))
                assert rows[0] == ["", "prompt", "class_name", "classidx"]
                expected = scene_candidates(task, split, group.name, general=general)
                assert rows[1:] == [[str(k), text, name, str(k)] for k, (text, name) in enumerate(expected)]
                assert rows[1][2] == group.folder


def test_fastdc_reads_classes_and_arrays(data: Path) -> None:
    prompts = read_prompts(data / "single_prompts.csv")
    assert prompts.class_names == SCENE_CLASSES
    assert prompts.texts == tuple(f"a photo of a {name}" for name in SCENE_CLASSES)
    assert (
        read_prompts(data / "rel_prompts/rel_test/cone_left_sphere.csv")
        .texts[0]
        .endswith("cone to the left of a sphere")
    )
    found = load_labelled(data / "single-ood_test.npz")
    assert found.class_names == SCENE_CLASSES
    assert sorted(set(found.labels.tolist())) == [0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30]


def test_training_arrays_hold_all_tasks(data: Path) -> None:
    with np.load(data / "scenes-train.npz") as arrays:
        images, captions, tasks = arrays["images"], arrays["captions"], arrays["tasks"]
        others, groups = arrays["other_captions"], arrays["groups"]
    assert images.shape == (17 + 186 + 12 + 8 + 119, 3, 8, 8)
    for row in range(0, len(images), 7):
        group = next(g for g in scene_groups(str(tasks[row]), "train") if g.name == groups[row])
        assert (captions[row], *filter(None, others[row].split("\n"))) == group.captions


def test_numbers_of_images(make_scenes: ModuleType) -> None:
    """All groups have as many; the full set has 200 per class and some 300 images per task and split."""
    assert make_scenes.count("single", "train", 1.0) == 17 * 200
    assert make_scenes.count("relational", "train", 1.0) == 12 * 250
    for task in ("single", "two_object", "relational", "counting", "negation"):
        for split in SCENE_SPLITS:
            full = make_scenes.count(task, split, 1.0)
            assert full % len(scene_groups(task, split)) == 0
            assert split == "train" or 290 <= full <= 380
            assert make_scenes.count(task, split, 0.001) == len(scene_groups(task, split))


def test_it_is_a_command() -> None:
    script = ROOT / "models" / "make_scenes.py"
    run = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "folder for the files" in run.stdout


def test_images_of_another_set_do_not_stay(make_scenes: ModuleType, data: Path) -> None:
    with pytest.raises(SystemExit, match="is not empty"):
        make_scenes.write(data, size=8, scale=0.001)
