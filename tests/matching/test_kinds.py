"""Kinds of errors, against cases written by hand from the definitions of the compositional evaluation."""

import pytest

import fastdc
from fastdc.matching import RIGHT, kinds_of

SINGLE = [
    ("red cube", "right"),
    ("red sphere", "same colour"),
    ("blue cube", "same shape"),
    ("blue sphere", "neither"),
    ("red cylinder", "same colour"),
    ("gray cone", "neither"),
]
TWO = [  # a red cube beside a blue sphere
    ("red cube", "right"),
    ("blue cube", "second's colour"),
    ("red sphere", "second's shape"),
    ("blue sphere", "also true"),
    ("green cube", "other"),
    ("red cone", "other"),
    ("green cone", "other"),
]
RELATIONAL = [  # a cone to the left of a cube
    ("cone left cube", "right"),
    ("cone right cube", "flipped"),
    ("cube left cone", "swapped"),
    ("cube right cone", "also true"),
    ("cone left sphere", "other"),
    ("sphere right cone", "other"),
]


@pytest.mark.parametrize(
    ("task", "group", "cases"),
    [("single", "", SINGLE), ("two_object", "red_cube_blue_sphere", TWO), ("relational", "cone_left_cube", RELATIONAL)],
)
def test_kinds_are_those_written_by_hand(task: str, group: str, cases: list[tuple[str, str]]) -> None:
    names, expected = zip(*cases, strict=True)
    assert kinds_of(task, names, 0, group) == expected
    turned = (*names[2:], *names[:2])  # the place of the truth does not matter
    assert kinds_of(task, turned, len(names) - 2, group) == (*expected[2:], *expected[:2])


def test_names_of_any_case_and_with_underscores_are_the_same() -> None:
    assert kinds_of("single", ["Red Cube", "red_cone", "BLUE cube"], 0) == (RIGHT, "same colour", "same shape")


def test_other_relations_have_opposites_too() -> None:
    names = ["cone above cube", "cone below cube", "cube above cone", "cube below cone"]
    assert kinds_of("relational", names, 0) == (RIGHT, "flipped", "swapped", "also true")
    assert kinds_of("relational", ["cone near cube", "cube near cone"], 0) == (RIGHT, "swapped")


def test_other_tasks_have_right_and_wrong() -> None:
    assert kinds_of("counting", ["two cubes", "three cubes"], 1) == ("wrong", RIGHT)


def test_a_pair_of_one_colour_has_no_error_of_colour() -> None:
    names = ["red cube", "red sphere", "blue cube"]
    assert kinds_of("two_object", names, 0, "red_cube_red_sphere") == (RIGHT, "also true", "other")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("single", ["red cube", "cube"], 0), "of the form COLOUR SHAPE.*got 'cube'"),
        (("relational", ["red cube", "cone left cube"], 0), "SHAPE RELATION SHAPE.*got 'red cube'"),
        (("two_object", ["red cube", "red cone"], 0, "red_cube"), "colour_shape_colour_shape, got 'red_cube'"),
        (("single", ["red cube", "Red cube"], 0), "the right name once, got 'red cube' twice"),
    ],
)
def test_names_that_say_too_little_are_refused(arguments: tuple[str, list[str], int], told: str) -> None:
    with pytest.raises(fastdc.InputError, match=told):
        kinds_of(*arguments)
