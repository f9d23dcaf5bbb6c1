"""Trials hold every text once, keep each image's order, and refuse what does not fit."""

from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc.matching import Trials, last_best

TEXTS = (("a red cube", "a blue cube", "a cone"), ("a cone", "a red cube"))


def test_each_text_is_held_once() -> None:
    trials = Trials.of(["a.png", "b.png"], TEXTS, [0, 1])
    assert trials.texts == ("a red cube", "a blue cube", "a cone")
    assert [trials.texts_of(i) for i in range(len(trials))] == list(TEXTS)
    assert trials.ids == trials.images == ("a.png", "b.png")


def test_arrays_may_come_in_a_list() -> None:
    images = [np.full((3, 2, 2), value, np.uint8) for value in (1, 2)]
    trials = Trials.of(images, TEXTS)
    assert np.array_equal(trials.images, np.stack(images))
    assert trials.ids == ("image 0", "image 1")


def test_images_that_share_a_list_share_its_places() -> None:
    """30,000 images of 5,000 texts, as for rankings, then take the memory of one list."""
    both = ["a red cube", "a cone"]
    trials = Trials.of(["a.png", "b.png", "c.png"], [both, both, list(both)])
    assert trials.candidates[0] is trials.candidates[1]
    assert [own.tolist() for own in trials.candidates] == [[0, 1]] * 3


def test_a_part_keeps_what_it_needs() -> None:
    trials = Trials.of(
        np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2), TEXTS, [2, 1], groups=("g", "h"), kinds=(("a", "b", "c"), "de")
    )
    part = trials.take([1])
    assert part.texts == ("a cone", "a red cube")
    assert part.texts_of(0) == TEXTS[1]
    assert np.asarray(part.images).shape == (1, 3, 2, 2)
    assert (part.truth.tolist(), part.groups, part.kinds, part.ids) == ([1], ("h",), (("d", "e"),), ("image 1",))
    assert [trials.take([False, True]).texts_of(0)] == [TEXTS[1]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"texts": TEXTS[:1]}, "each of 2 images, got 1"),
        ({"texts": ("a red cube", TEXTS[1])}, "image 0: expected a list of texts"),
        ({"texts": (TEXTS[0], [])}, "image 1: expected a list of texts"),
        ({"texts": (TEXTS[0], ["a", "a"])}, "image 1: expected different texts"),
        ({"truth": [0, 2]}, "image 1: truth must be a place in its 2 texts, got 2"),
        ({"texts": (TEXTS[0], None)}, "image 1: expected a list of texts"),
        ({"truth": [0.5, 1.0]}, "truth must be whole numbers"),
        ({"truth": [[0], [1, 0]]}, "truth must be whole numbers"),
        ({"images": "ab"}, "images must be paths of files, or arrays of one shape, got 'ab'"),
        ({"images": [np.zeros((3, 2, 2)), np.zeros((3, 2, 1))]}, "images must be paths"),
        ({"images": ["a.png", None]}, "images must be paths"),
        ({"images": np.array(["a.png", "b.png"])}, "images must be paths"),
        ({"ids": ["a"]}, "ids must have an entry"),
        ({"kinds": [["a"], ["b"]]}, "image 0: kinds must have an entry for each text, 3, got 1"),
        ({"kinds": [["a"]]}, "kinds must have an entry for each of 2 images, got 1"),
        ({"kinds": np.array([["right", "a", "right"]] * 2, object)}, "image 0: expected another kind than 'right'"),
        ({"groups": np.array(["a"])}, "groups must have an entry for each of 2 images, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {"images": ["a.png", "b.png"], "texts": TEXTS, "truth": 0} | given
    with pytest.raises(fastdc.InputError, match=told):
        Trials.of(**arguments)


def test_a_tie_gains_the_first_place_nothing() -> None:
    assert last_best(np.array([1.0, 1.0])) == 1
    assert last_best(np.array([2.0, 1.0])) == 0
