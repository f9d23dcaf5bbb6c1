"""The layout of the compositional evaluation is read under all its names, and what is wrong is named in one line."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.matching import RIGHT, Cell, read_layout
from helpers.composition_trees import (
    CLASSES,
    ID,
    OOD_VAL,
    PAIRS,
    RELATIONS,
    write_pairs,
    write_pictures,
    write_relations,
    write_single,
    write_table,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One split of each task, in the plain setting."""
    write_single(tmp_path)
    write_pairs(tmp_path)
    write_relations(tmp_path)
    return tmp_path


def test_single_objects(root: Path) -> None:
    cells = read_layout(root, tasks=["single"])
    assert list(cells) == [Cell("single", split, gen) for split in ("id-val", "val") for gen in (False, True)]
    for split, own in (("id-val", ID), ("val", OOD_VAL)):
        plain, generalised = cells[Cell("single", split)], cells[Cell("single", split, True)]
        names = [CLASSES[k] for k in own]
        assert plain.groups == generalised.groups == tuple(sorted(names))
        assert plain.texts == tuple(f"a photo of a {name}" for name in names)
        assert generalised.texts == tuple(f"a photo of a {name}" for name in CLASSES)
        for trials in (plain, generalised):
            for i, name in enumerate(trials.groups):
                assert trials.texts_of(i)[trials.truth[i]] == f"a photo of a {name}"
                assert trials.kinds[i][trials.truth[i]] == RIGHT
                assert trials.kinds[i].count(RIGHT) == 1
    folder = "ID_val" if (root / "single_object" / "ID_val").exists() else ""
    assert cells[Cell("single", "id-val")].ids[0] == f"single_object/{folder}/blue cube/0000.png"


def test_tasks_and_splits_are_chosen_by_the_names_of_their_folders(root: Path) -> None:
    for tasks, splits in ((["single_object"], ["ID_val"]), (["Single-Objects"], ["idval"]), (["single"], ["id-val"])):
        assert list(read_layout(root, tasks=tasks, splits=splits)) == [
            Cell("single", "id-val"),
            Cell("single", "id-val", True),
        ]
    assert {cell.split for cell in read_layout(root, tasks=["single"], splits=["ood_val"])} == {"val"}
    with pytest.raises(fastdc.InputError, match="did you mean 'single'"):
        read_layout(root, tasks=["singlet"])


def test_folders_that_are_no_splits_are_named(root: Path) -> None:
    write_pictures(root / "single_object" / "tset" / "blue cube", 1)
    (root / "single_object" / "prompts").mkdir()
    (root / "relational" / "ID_val").rename(root / "relational" / "ID val 2")
    with pytest.warns(
        UserWarning, match="no split by name, so not read: single_object/tset, relational; a split is"
    ) as told:
        read_layout(root, settings=["zsl"])
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_layout(root, tasks=["two_object"], settings=["zsl"])


def test_pairs_have_the_candidates_of_their_table(root: Path) -> None:
    given: list[tuple[str, Mapping[str, tuple[str, ...]]]] = [("two_object", PAIRS), ("relational", RELATIONS)]
    for task, tables in given:
        (cell,) = read_layout(root, tasks=[task], settings=["zsl"])
        trials = read_layout(root, tasks=[task], settings=["zsl"])[cell]
        assert cell == Cell(task, "id-val")
        assert trials.groups == tuple(group for group in tables for _ in range(2))
        assert trials.truth.tolist() == [0] * 4
        assert [len(one) for one in trials.candidates] == [len(names) for names in tables.values() for _ in range(2)]
    assert trials.texts_of(0)[:3] == (
        "a photo of a cone to the left of a cube",
        "a photo of a cone to the right of a cube",
        "a photo of a cube to the left of a cone",
    )
    assert trials.kinds[0] == (RIGHT, "flipped", "swapped", "other", "other")
    assert trials.kinds[2] == (RIGHT, "flipped", "swapped", "also true", "other")


NAMES: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {
    "two_object": {
        ("ID_test", "train"): ("two_obj_train", "train_two_obj_prompts"),
        ("ID_test", "train_gen"): ("two_obj_train_gen", "train_two_obj_prompts_gen"),
        ("ood_val", "val"): ("two_obj_val", "beth_two_obj_prompts", "Two-Obj-Val"),
        ("ood_val", "val_gen"): ("two_obj_val_gen", "gen_two_obj_prompts"),
        ("test", "test"): ("two_obj_test", "test_two_obj_prompts"),
        ("test", "test_gen"): ("two_obj_test_gen", "test_two_obj_prompts_gen"),
    },
    "relational": {
        ("idval", "train"): ("rel_train", "train_rel_prompts"),
        ("idval", "train_gen"): ("rel_train_gen", "train_rel_prompts_gen"),
        ("val", "val"): ("rel_val", "beth_rel_prompts_val"),
        ("val", "val_gen"): ("rel_val_gen", "beth_rel_prompts_val_gen"),
        ("ood_test", "test"): ("rel_test", "test_rel_prompts"),
        ("ood_test", "test_gen"): ("relational_test_gen", "test_rel_prompts_gen"),
    },
}


@pytest.mark.parametrize("task", list(NAMES))
@pytest.mark.parametrize("which", [0, 1, -1])
def test_folders_are_found_under_the_names_of_data_and_code(tmp_path: Path, task: str, which: int) -> None:
    write, parent = (write_pairs, "two_object_prompts") if task == "two_object" else (write_relations, "rel_prompts")
    if which == 1:
        parent = f"prompts/{parent}"
    for (split, _), folders in NAMES[task].items():
        write(tmp_path, split, f"{parent}/{folders[which]}")
    cells = read_layout(tmp_path)
    assert len(cells) == 6
    assert {(cell.split, cell.setting) for cell in cells} == {
        (split.lower().replace("ood_", "").replace("id", "id-").replace("_", ""), setting)
        for split, _ in NAMES[task]
        for setting in ("ZSL", "GZSL")
    }


def test_the_paper_s_folder_may_lie_beside_the_prompts(tmp_path: Path) -> None:
    write_pairs(tmp_path / "cobi2_datasets", folder="../prompts/two_object_prompts/train_two_obj_prompts")
    (trials,) = read_layout(tmp_path, settings=["zsl"]).values()
    assert trials.ids[0] == "cobi2_datasets/two_object/ID_val/blue_cube_red_sphere/blue cube/0000.png"


def test_prompts_of_other_names_are_given(root: Path, tmp_path: Path) -> None:
    (root / "rel_prompts").rename(root / "texts")
    found = [
        read_layout(root, tasks=["relational"], settings=["zsl"], prompts=prompts)[Cell("relational", "id-val")].texts
        for prompts in ({"relational": root / "texts"}, {"relational/train": root / "texts" / "rel_train"})
    ]
    assert found[0] == found[1]
    (root / "single_prompts.csv").rename(root / "s.csv")
    assert len(read_layout(root, tasks=["single"], prompts={"single": root / "s.csv"})) == 4


def test_one_folder_level_will_do(tmp_path: Path) -> None:
    for group, names in RELATIONS.items():
        write_pictures(tmp_path / "relational" / "train" / names[0], 1)
        write_table(tmp_path / "rel_prompts" / "rel_train" / f"{group}.csv", names, index=False, header="classname")
    (trials,) = read_layout(tmp_path, splits=["train"], settings=["zsl"]).values()
    assert trials.groups == tuple(RELATIONS)
    with pytest.raises(fastdc.InputError, match="has no split to evaluate"):
        read_layout(tmp_path)


def test_further_tasks(tmp_path: Path) -> None:
    write_pictures(tmp_path / "counting" / "val" / "three_cubes" / "three cubes", 2)
    table = tmp_path / "count_prompts" / "count_val" / "three_cubes.csv"
    write_table(table, ["three cubes", "two cubes", "four cubes"])
    (trials,) = read_layout(tmp_path, settings=["zsl"]).values()
    assert trials.kinds == ((RIGHT, "wrong", "wrong"),) * 2
    lines = table.read_text().splitlines()
    kinds = ["kind", "right", "fewer", ""]
    table.write_text("\n".join(f"{line},{kind}" for line, kind in zip(lines, kinds, strict=True)))
    (trials,) = read_layout(tmp_path, settings=["zsl"]).values()
    assert trials.kinds == ((RIGHT, "fewer", "wrong"),) * 2


def test_fewer_images_are_taken_evenly_and_alike_in_both_settings(tmp_path: Path) -> None:
    write_single(tmp_path, ["ID_val"], count=5)
    cells = read_layout(tmp_path, images=40)
    plain, generalised = cells.values()
    assert plain.ids == generalised.ids
    assert len(plain) == 40
    assert set(np.unique(plain.groups, return_counts=True)[1].tolist()) == {2, 3}
    few = read_layout(tmp_path, images=3)[Cell("single", "id-val")]
    assert len(few) == 3
    assert len(few.texts) == 17  # candidates do not depend on the images that are taken
    assert set(few.ids) < set(plain.ids)


Change = Callable[[Path], object]


def _replace(path: str, old: str, new: str) -> Change:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return change


def _move(old: str, new: str) -> Change:
    return lambda root: shutil.move(root / old, root / new)


PAIR = "two_object_prompts/two_obj_train/blue_cube_red_sphere.csv"
IMAGES = "two_object/ID_val/blue_cube_red_sphere"
WRONG: dict[str, tuple[Change, str]] = {
    "no table": (lambda root: (root / PAIR).unlink(), r"blue_cube_red_sphere\.csv is missing: .*/blue cube$"),
    "truth": (
        _replace(PAIR, "red cube,red cube,1", "red cone,blue cube,1"),
        r"sphere\.csv, line 3: expected another class than on line 2, got 'blue cube'",
    ),
    "truth not first": (
        _replace(PAIR, "blue cube,blue cube,0", "brown cube,brown cube,0"),
        r"sphere\.csv, line 2: expected the right text, 'blue cube', got 'brown cube'",
    ),
    "text twice": (
        _replace(PAIR, "a red cube,", "a blue cube,"),
        r"sphere\.csv, line 3: expected another text than on line 2, got 'a photo of a blue cube'",
    ),
    "text twice below an empty line": (
        _replace(PAIR, "1,a photo of a red cube,", "\n1,a photo of a blue cube,"),
        r"sphere\.csv, line 4: expected another text than on line 2, got 'a photo of a blue cube'",
    ),
    "gap": (_replace(PAIR, ",green cube,4", ",green cube,5"), r"sphere\.csv: classidx must run from 0 without gaps"),
    "header": (
        _replace(PAIR, "class_name", "label"),
        r"sphere\.csv must start with a header that names .*class_name ",
    ),
    "one row": (lambda root: write_table(root / PAIR, ["blue cube"]), "has one row: expected 2 candidates or more"),
    "words": (_replace(PAIR, "cyan cone,3", "cone,3"), r"sphere\.csv: expected names of the form COLOUR SHAPE"),
    "folder": (
        _move(IMAGES, "two_object/ID_val/blue_cube"),
        "two_object/ID_val/blue_cube: expected a folder's name of",
    ),
    "other folder": (
        _move(IMAGES, "two_object/ID_val/red_cube_blue_sphere"),
        "red_cube_blue_sphere: expected images of 'red cube' in it, got the folder 'blue cube'",
    ),
    "two folders": (lambda root: (root / IMAGES / "more").mkdir(), "blue_cube_red_sphere has 2 folders: expected one"),
    "no pictures": (
        lambda root: [one.rename(one.with_suffix(".jpg")) for one in (root / IMAGES / "blue cube").iterdir()],
        "blue_cube_red_sphere/blue cube holds no .png file",
    ),
    "empty split": (lambda root: (root / "two_object/ood_val").mkdir(), "two_object/ood_val has no folders"),
    "no prompts": (
        lambda root: shutil.rmtree(root / "two_object_prompts"),
        r"no prompts of two_object id-val ZSL: expected a table per group in .*/two_object_prompts/two_obj_train$",
    ),
    "two of one name": (
        lambda root: (root / "two_object_prompts/train_two_obj_prompts").mkdir(),
        "both have the prompts of two_object, train",
    ),
    "two splits": (lambda root: (root / "two_object/id-val").mkdir(), "are both the split id-val"),
    "two tasks": (lambda root: (root / "two_objects/val").mkdir(parents=True), "are both the task two_object"),
    "relation": (
        _move("relational/ID_val/cone_left_cube/cone left cube", "relational/ID_val/cone_left_cube/cone right cube"),
        "cone_left_cube: expected images of 'cone left cube' in it, got the folder 'cone right cube'",
    ),
    "class": (
        _move("single_object/ID_val/blue cube", "single_object/ID_val/pink cube"),
        "pink cube: expected a class of .*single_prompts.csv, such as 'blue cone', got 'pink cube'",
    ),
    "no single table": (lambda root: (root / "single_prompts.csv").unlink(), "has no single_prompts.csv"),
    "one class": (
        lambda root: [(root / "single_object/ood_val" / CLASSES[k]).rename(root / f"{k}") for k in OOD_VAL[1:]],
        "ood_val: expected folders of at least 2 classes, got one",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_layout_is_named_in_one_line(root: Path, case: str) -> None:
    change, told = WRONG[case]
    change(root)
    with pytest.raises(fastdc.InputError, match=told) as error:
        read_layout(root, settings=["zsl"])
    assert "\n" not in str(error.value)


def test_images_that_are_not_read_are_counted(root: Path) -> None:
    whole = read_layout(root, settings=["zsl"])
    inner = root / IMAGES / "blue cube"
    for path in (
        inner / "photo.JPG",  # beside .png files
        root / IMAGES / "loose.png",  # beside the folder of a text
        root / "single_object/ID_val/loose.png",
        inner / "deeper/0000.png",
    ):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for hidden in (inner / "._0000.png", inner / "notes.txt"):
        hidden.touch()
    with pytest.warns(UserWarning, match=r"4 image files, such as single_object/ID_val/loose.png, not read") as told:
        found = read_layout(root, settings=["zsl"])
    assert len(told) == 1
    assert {cell: trials.ids for cell, trials in found.items()} == {cell: one.ids for cell, one in whole.items()}
    with pytest.warns(UserWarning, match="1 image file, such as"):
        read_layout(root, settings=["zsl"], tasks=["single"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"tasks": ["doubles"]}, "has the tasks single, two_object, relational, got task 'doubles'"),
        ({"splits": ["tets"], "tasks": ["single"]}, "has the splits id-val, val, got split 'tets'"),
        ({"settings": ["gsl"]}, "setting 'gsl'; did you mean 'gzsl'"),
        ({"images": 0}, "images must be a whole number"),
        ({"settings": ["gzsl"]}, "two_obj_train_gen"),
        ({"prompts": {"other/val": "x"}}, "prompts for 'other/val'"),
        ({"prompts": {"single/val": "x"}}, "prompts for 'single/val': expected single, whose prompts are one table"),
        ({"prompts": {"relational/id-val": "x"}}, "expected relational/ and one of train, train_gen, val, "),
        ({"prompts": {"relational": "/none"}, "settings": ["zsl"]}, "/none cannot be read"),
    ],
)
def test_what_is_not_there_is_named(root: Path, arguments: dict[str, object], told: str) -> None:
    with pytest.raises(fastdc.InputError, match=told):
        read_layout(root, **arguments)  # type: ignore[arg-type]


def test_other_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(fastdc.InputError, match="is not a folder"):
        read_layout(tmp_path / "none")
    with pytest.raises(fastdc.InputError, match="has no tasks: expected folders such as single_object"):
        read_layout(tmp_path)
