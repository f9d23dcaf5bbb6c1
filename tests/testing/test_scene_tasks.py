"""Questions about scenes: of a group's candidates the first is true of its images, and no other.

Texts are understood here by regular expressions, independently of the code that writes them, and compared with the
objects that are drawn.
"""

import re

import numpy as np
import pytest

from fastdc.support import InputError
from fastdc.testing import (
    SCENE_CLASSES,
    SCENE_SPLITS,
    SCENE_TASKS,
    Scene,
    scene_candidates,
    scene_groups,
    scenes,
)

COLOURS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
SHAPES = ("cone", "cube", "cylinder", "sphere")
ID = {1, 3, 4, 5, 10, 11, 13, 15, 18, 19, 20, 22, 23, 26, 27, 28, 31}
OOD = {"ood_val": {7, 8, 14, 29}, "ood_test": {0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30}}
SEEN_PAIRS = ({"cone", "cube"}, {"cylinder", "sphere"}, {"cone", "cylinder"})
NEW_PAIRS = {"ood_val": ({"cube", "sphere"},), "ood_test": ({"cone", "sphere"}, {"cube", "cylinder"})}


def is_true(text: str, scene: Scene) -> bool:
    """Whether a text describes a scene."""
    things = scene.objects
    if found := re.fullmatch(r"a photo of a (\w+) to the (left|right) of a (\w+)", text):
        first, relation, second = found.groups()
        return any(
            a.shape == first and b.shape == second and ((a.x < b.x) == (relation == "left"))
            for a in things
            for b in things
            if a is not b
        )
    if found := re.fullmatch(r"a photo of a (\w+) that is not (\w+)", text):
        shape, colour = found.groups()
        return any(thing.shape == shape and thing.colour != colour for thing in things)
    if found := re.fullmatch(r"a photo of (one|two|three) (cone|cube|cylinder|sphere)(s?)", text):
        word, shape, many = found.groups()
        number = ("one", "two", "three").index(word) + 1
        assert bool(many) == (number > 1)
        return number == sum(thing.shape == shape for thing in things)
    found = re.fullmatch(r"a photo of a (\w+) (\w+)", text)
    assert found, text
    colour, shape = found.groups()
    assert colour in COLOURS
    assert shape in SHAPES
    return any((thing.colour, thing.shape) == (colour, shape) for thing in things)


@pytest.mark.parametrize("split", SCENE_SPLITS)
@pytest.mark.parametrize("task", SCENE_TASKS)
def test_the_first_candidate_is_true_and_no_other(task: str, split: str) -> None:
    world = scenes(task, split, 40, size=1)  # pixels do not matter here
    for scene, group in zip(world.scenes, world.groups, strict=True):
        assert all(is_true(text, scene) for text in group.captions)
        for general in (False, True):
            found = scene_candidates(task, split, group.name, general=general)
            texts, names = (list(column) for column in zip(*found, strict=True))
            assert [is_true(text, scene) for text in texts] == [True] + [False] * (len(texts) - 1)
            assert (texts[0], names[0]) == (group.captions[0], group.folder)
            assert len(set(texts)) == len(set(names)) == len(texts) >= (4 if task == "single" else 5)


def test_classes_are_numbered_and_divided_as_in_the_paper() -> None:
    assert tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES) == SCENE_CLASSES
    for split in SCENE_SPLITS:
        numbers = OOD.get(split, ID)
        assert {SCENE_CLASSES.index(group.folder) for group in scene_groups("single", split)} == numbers
        assert [c[1] for c in scene_candidates("single", split, SCENE_CLASSES[min(numbers)], general=True)[1:]] == [
            name for number, name in enumerate(SCENE_CLASSES) if number != min(numbers)
        ]


@pytest.mark.parametrize("split", SCENE_SPLITS)
def test_two_objects(split: str) -> None:
    """Both orders of all pairs that differ in colour and shape; candidates lack the second; mixtures come first."""
    numbers, side = OOD.get(split, ID), ID if split not in OOD else set(range(32)) - ID
    groups = {group.name: group for group in scene_groups("two_object", split)}
    expected = {(a, b) for a in numbers for b in numbers if a // 4 != b // 4 and a % 4 != b % 4}
    assert set(groups) == {f"{SCENE_CLASSES[a]}_{SCENE_CLASSES[b]}".replace(" ", "_") for a, b in expected}
    for a, b in expected:
        name = f"{SCENE_CLASSES[a]}_{SCENE_CLASSES[b]}".replace(" ", "_")
        assert groups[name].folder == SCENE_CLASSES[a]
        mixed = [4 * (b // 4) + a % 4, 4 * (a // 4) + b % 4]
        for general in (False, True):
            allowed = set(range(32)) if general else side
            found = [SCENE_CLASSES.index(n) for _, n in scene_candidates("two_object", split, name, general=general)]
            assert set(found) == allowed - {b}
            near = [k for k in mixed if k in allowed]
            assert found[: 1 + len(near)] == [a, *near]


@pytest.mark.parametrize("split", SCENE_SPLITS)
def test_relations(split: str) -> None:
    """Statements about the split's pairs; flipped and swapped ones come first, and the equivalent one is missing."""
    pairs = NEW_PAIRS.get(split, SEEN_PAIRS)
    groups = scene_groups("relational", split)
    assert len(groups) == 4 * len(pairs)
    for group in groups:
        one, relation, two = group.folder.split(" ")
        other = {"left": "right", "right": "left"}[relation]
        assert {one, two} in pairs
        assert group.captions[1] == f"a photo of a {two} to the {other} of a {one}"
        narrow, wide = (
            [name for _, name in scene_candidates("relational", split, group.name, general=general)]
            for general in (False, True)
        )
        assert narrow[:3] == wide[:3] == [group.folder, f"{one} {other} {two}", f"{two} {relation} {one}"]
        assert (len(narrow), len(wide)) == (11, 23)
        seen = [{name.split()[0], name.split()[2]} in SEEN_PAIRS for name in narrow]
        assert seen == [split not in OOD] * 11
        assert f"{two} {other} {one}" not in wide


def test_objects_of_statements_are_apart_and_of_seen_classes() -> None:
    for task in ("relational", "counting"):
        for split in ("train", "ood_test"):
            for scene in scenes(task, split, 60, size=1).scenes:
                assert {SCENE_CLASSES.index(f"{thing.colour} {thing.shape}") for thing in scene.objects} <= ID
                if task == "relational":
                    one, two = scene.objects
                    assert abs(one.x - two.x) >= 0.5


def test_counts_have_every_shape_and_number_in_training() -> None:
    """Candidates begin with the other counts of the shape, also in the narrow setting."""
    names = {split: {group.folder for group in scene_groups("counting", split)} for split in SCENE_SPLITS}
    assert (len(names["train"]), len(names["ood_val"]), len(names["ood_test"])) == (8, 2, 2)
    assert len(names["train"] | names["ood_val"] | names["ood_test"]) == 12
    assert {name.split()[0] for name in names["train"]} == {"one", "two", "three"}
    assert {name.split()[1].removesuffix("s") for name in names["train"]} == set(SHAPES)
    assert [n for _, n in scene_candidates("counting", "train", "two_cubes")][:3] == [
        "two cubes",
        "one cube",
        "three cubes",
    ]
    assert len(scene_candidates("counting", "train", "two_cubes", general=True)) == 12


def test_the_size_of_objects_does_not_tell_their_number() -> None:
    radii: list[list[float]] = [[], [], []]
    for scene in scenes("counting", "train", 240, size=1).scenes:
        radii[len(scene.objects) - 1] += [thing.radius for thing in scene.objects]
    means = [float(np.mean(found)) for found in radii]
    assert max(means) - min(means) < 0.02


def test_negations_deny_the_own_colour_first() -> None:
    found = [text for text, _ in scene_candidates("negation", "ID_test", "blue_cube_not_red", general=True)]
    assert found[:3] == [
        f"a photo of a {words}" for words in ("cube that is not red", "cube that is not blue", "cone that is not blue")
    ]
    assert len(found) == 2 + 3 * 8
    assert len(scene_groups("negation", "ood_val")) == 4 * 7
    assert set(scene_groups("negation", "ood_val")[0].captions) == {
        f"a photo of a sphere that is not {colour}" for colour in COLOURS if colour != "brown"
    }


def test_an_image_depends_on_seed_task_split_and_index_alone() -> None:
    few, many = scenes("two_object", "ID_val", 3), scenes("two_object", "ID_val", 5)
    assert np.array_equal(few.images, many.images[:3])
    for other in (scenes("two_object", "ID_test", 3), scenes("two_object", "ID_val", 3, seed=1)):
        assert [group.name for group in other.groups] == [group.name for group in few.groups]
        assert not any(np.array_equal(one, two) for one, two in zip(few.images, other.images, strict=True))


def test_left_and_right_are_as_frequent_for_the_first_object() -> None:
    left = [scene.objects[0].x < scene.objects[1].x for scene in scenes("two_object", "train", 400, size=1).scenes]
    assert abs(np.mean(left) - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_wrong_questions_are_refused() -> None:
    for call in (
        lambda: scenes("colour", "train", 1),
        lambda: scenes("single", "val", 1),
        lambda: scenes("single", "train", 0),
        lambda: scene_candidates("single", "train", "blue cone"),
    ):
        with pytest.raises(InputError):
            call()
