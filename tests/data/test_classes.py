"""Which class of a model a label is: one rule, whatever the data set is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import digits_test, load_images, load_labelled, match_classes
from fastdc.support import InputError

SHAPE = (1, 8, 8)
PETS = ("cat", "cow", "dog")


@pytest.mark.parametrize(
    ("names", "known", "found"),
    [
        (PETS, PETS, (0, 1, 2)),
        (("dog", "cat"), PETS, (2, 0)),  # by name, in any order, and a part of them
        (("0", "2"), PETS, (0, 2)),  # by number
        (("00", "02"), PETS, (0, 2)),
        (("0", "1", "10", "2"), tuple(map(str, range(11))), (0, 1, 10, 2)),  # folders, as they are sorted
        (("2", "1"), ("2", "1", "0"), (0, 1)),  # a name goes before a number
        (("crane", "crane"), ("crane", "crane"), (0, 1)),  # the model's own list
    ],
)
def test_the_rule(names: tuple[str, ...], known: tuple[str, ...], found: tuple[int, ...]) -> None:
    assert match_classes(names, known) == found


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (("dog", "owl"), PETS, r"set: has a class 'owl' that .* numbers of 'cat', 'cow', 'dog'; got 'dog', 'owl'$"),
        (("Dog",), PETS, "has a class 'Dog' .*; did you mean 'dog'[?]$"),  # spelled the same
        (("dog ",), PETS, "has a class 'dog '"),
        (("0", "3"), PETS, "has a class '0'"),  # there is no class 3
        (("0", "dog"), PETS, "has a class '0'"),
        (("0", "00"), PETS, "two of its classes are the same"),
        (("²",), PETS, "has a class"),
        (("crane",), ("crane", "crane"), "'crane' is the name of the model's classes 0 and 1"),
        (tuple(f"n{k}" for k in range(900)), PETS, r"got 'n0', 'n1', 'n2', 'n3', 'n4', \.\.\. \(900 in all\)$"),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], known: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        match_classes(names, known, "set")
    assert "\n" not in str(caught.value)


def test_labels_become_the_models(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1])
    np.savez(tmp_path / "named.npz", images=images, labels=labels, class_names=["dog", "cat"])
    np.savez(tmp_path / "bare.npz", images=images, labels=labels)
    for name in ("dog", "cat"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(images[0]).save(tmp_path / "set" / name / "1.PNG")
    for source, want in (("named.npz", [2, 0, 0]), ("bare.npz", [0, 1, 1]), ("set", [0, 2])):
        read = load_images([tmp_path / source], SHAPE, classes=PETS)
        assert read.labels is not None
        assert (read.labels.tolist(), read.class_names) == (want, PETS)
        held = load_labelled(tmp_path / source, classes=PETS)
        assert (held.labels.tolist(), held.class_names, held.notes) == (want, PETS, ())
    both = load_images([tmp_path / "named.npz", tmp_path / "set"], SHAPE, classes=PETS)
    assert both.labels is not None
    assert both.labels.tolist() == [2, 0, 0, 0, 2]
    assert load_images([tmp_path / "set"], SHAPE, classes=("x", "y")).labels is None  # folders may mean anything


def test_labels_that_are_not_the_models(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 3])
    with pytest.raises(InputError, match=r"a\.npz: has label 3, but the model has classes 0 to 2: 'cat', 'cow', 'dog'"):
        load_images([tmp_path / "a.npz"], SHAPE, classes=PETS)
    read = load_images([tmp_path / "a.npz"], SHAPE, classes=PETS, strict=False)
    assert read.labels is None
    assert read.notes[0].startswith("2 labels not used: ")
    assert "has label 3" in read.notes[0]


def test_names_read_as_numbers_are_noted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1], class_names=["2", "0"])
    held = load_labelled(tmp_path / "a.npz", classes=PETS)
    assert held.labels.tolist() == [2, 0]
    assert held.notes == (f"2 names of {tmp_path}/a.npz read as numbers of classes: 2 is 'dog', 0 is 'cat'",)


def test_labelled_images_take_the_classes_of_a_model() -> None:
    test = digits_test()
    turned = test.with_classes([str(k) for k in reversed(range(10))])
    assert turned.labels.tolist() == (9 - test.labels).tolist()
    assert test.with_classes(test.class_names) is test
    with pytest.raises(InputError, match="the images: has a class '0'"):
        test.with_classes(["a", "b"])


def test_a_folder_of_other_classes_is_said_to_have_no_labels(tmp_path: Path) -> None:
    for name in ("cat", "cow"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "set" / name / "a.png")
    note = "1 folder without labels: not sorted into the model's classes alone"
    read = load_images([tmp_path / "set"], (1, 8, 8), classes=("cat", "dog"), strict=False)
    assert (read.labels, read.notes) == (None, (note,))
    known = load_images([tmp_path / "set"], (1, 8, 8), classes=("cat", "cow"), strict=False)
    assert known.labels is not None
    assert known.notes == ()
    plain = load_images([tmp_path / "set" / "cat"], (1, 8, 8), classes=("cat", "dog"), strict=False)
    assert plain.notes == ()
