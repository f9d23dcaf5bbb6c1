"""The released scoring, against a second implementation of its protocol that shares nothing with the first.

The protocol, as otmive/diffusion_classifier_clip has it at fe2dd18. Images of a split are all files below its folder.
Single objects: the folders in alphabetical order have labels from a list; an image is right if the class index of the
best prompt is its label. Pairs: for the folder of each pair, its table's prompts are scored on all images of the split;
an image is right if the class index of the best prompt is 0; all rows of all tables are counted together.
"""

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.matching import AbstractMatcher, Cell, Entrant, Matched, OnMatched, Trials, compose, last_best, read_layout
from helpers.composition_trees import write_pairs, write_pictures, write_relations, write_single, write_table

LABELS = {  # by place of the folder
    "ID_val": [1, 3, 4, 5, 10, 11, 13, 15, 18, 19, 20, 20, 23, 26, 27, 28, 31],
    "ood_val": [7, 8, 14, 29],
    "ood_test": [0, 2, 6, 9, 12, 16, 17, 21, 24, 25, 30],
}


def score_of(file: str, text: str) -> float:
    """A score without ties that is different for each image and text."""
    return int.from_bytes(hashlib.sha256(f"{Path(file).parent}/{Path(file).name}{text}".encode()).digest()[:6]) / 2**48


class HashMatcher:
    """Scores that depend on the image's path and the text alone."""

    name = "hash"

    def match(self, trials: Trials, progress: OnMatched | None = None) -> Matched:
        """Scores all."""
        scores = tuple(
            np.array([score_of(str(trials.images[i]), text) for text in trials.texts_of(i)]) for i in range(len(trials))
        )
        answers = np.array([last_best(one) for one in scores])
        return Matched(self.name, np.arange(len(scores)), scores, answers, np.ones_like(answers), 1.0)


def files_below(folder: Path) -> list[str]:
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def released_single(root: Path, split: str) -> list[tuple[str, str]]:
    """True and predicted class of each image."""
    rows, found = rows_of(root / "single_prompts.csv"), []
    for place, folder in enumerate(sorted(os.listdir(root / "single_object" / split))):
        for file in files_below(root / "single_object" / split / folder):
            best = max(rows, key=lambda row: score_of(file, row["prompt"]))
            found.append((rows[LABELS[split][place]]["class_name"], rows[int(best["classidx"])]["class_name"]))
    return found


def released_pairs(folder: Path, tables: Path) -> list[tuple[str, str, str]]:
    """Pair, true and predicted class of each image of each pair."""
    found = []
    for pair in os.listdir(folder):
        rows = rows_of(tables / f"{pair}.csv")
        for file in files_below(folder):
            best = max(rows, key=lambda row: score_of(file, row["prompt"]))
            found.append((pair, rows[0]["class_name"], rows[int(best["classidx"])]["class_name"]))
    return found


def shares(kinds: list[str]) -> dict[str, float]:
    return {kind: count / len(kinds) for kind, count in Counter(kinds).items()}


def of_single(true: str, predicted: str) -> str:
    a, b = true.split(), predicted.split()
    both = (a[0] == b[0], a[1] == b[1])
    return {(True, True): "right", (True, False): "same colour", (False, True): "same shape"}.get(both, "neither")


def of_pair(pair: str, true: str, predicted: str) -> str:
    c1, s1, c2, s2 = pair.split("_")
    said = {f"{c1} {s1}": "right", f"{c2} {s1}": "second's colour", f"{c1} {s2}": "second's shape"}
    return said.get(predicted, "other")


def of_relation(true: str, predicted: str) -> str:
    s1, relation, s2 = true.split()
    other = {"left": "right", "right": "left"}[relation]
    said = {true: "right", f"{s1} {other} {s2}": "flipped", f"{s2} {relation} {s1}": "swapped"}
    return said.get(predicted, "other")


def measured(root: Path, cell: Cell, **options: object) -> dict[str, float]:
    """Accuracy and shares of errors above 0, as fastdc has them."""
    trials = read_layout(root, compat="otmive", **options)[cell]  # type: ignore[arg-type]
    matcher: AbstractMatcher = HashMatcher()
    (score,) = compose([Entrant.of(matcher, {cell: trials})]).scores
    every = {"right": score.accuracy.value, **score.kinds}
    return {kind: share for kind, share in every.items() if share}


@pytest.mark.parametrize("split", list(LABELS))
def test_single_objects(tmp_path: Path, split: str) -> None:
    write_single(tmp_path, [split], count=7)
    name = {"ID_val": "id-val", "ood_val": "val", "ood_test": "test"}[split]
    expected = released_single(tmp_path, split)
    assert measured(tmp_path, Cell("single", name, True)) == pytest.approx(
        shares([of_single(*one) for one in expected])
    )


def test_the_twelfth_folder_has_another_label(tmp_path: Path) -> None:
    write_single(tmp_path, ["ID_test"])
    ours, theirs = (
        read_layout(tmp_path, compat=compat)[Cell("single", "id-test", True)] for compat in (None, "otmive")
    )
    assert ours.ids == theirs.ids
    changed = np.flatnonzero(ours.truth != theirs.truth).tolist()
    assert [(ours.groups[i], ours.truth[i], theirs.truth[i]) for i in changed] == [("purple cylinder", 22, 20)]


def test_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path, count=40)
    found = released_pairs(tmp_path / "two_object/ID_val", tmp_path / "two_object_prompts/two_obj_train")
    assert len(found) == 2 * 80
    cell = Cell("two_object", "id-val")
    assert measured(tmp_path, cell, settings=["zsl"]) == pytest.approx(shares([of_pair(*one) for one in found]))


def test_relations(tmp_path: Path) -> None:
    write_relations(tmp_path, count=40)
    found = released_pairs(tmp_path / "relational/ID_val", tmp_path / "rel_prompts/rel_train")
    expected = shares([of_relation(*one[1:]) for one in found])
    assert measured(tmp_path, Cell("relational", "id-val"), settings=["zsl"]) == pytest.approx(expected)


def test_fewer_images_meet_all_tables(tmp_path: Path) -> None:
    write_pairs(tmp_path, count=3)
    (trials,) = read_layout(tmp_path, settings=["zsl"], compat="otmive", images=1).values()
    assert len(trials) == 2
    assert len(set(trials.images)) == 1
    assert len(set(trials.ids)) == len(set(trials.groups)) == 2


def test_other_tasks_are_as_they_are(tmp_path: Path) -> None:
    write_pictures(tmp_path / "counting" / "val" / "three_cubes" / "three cubes", 2)
    write_table(tmp_path / "count_prompts" / "count_val" / "three_cubes.csv", ["three cubes", "two cubes"])
    one, other = (read_layout(tmp_path, settings=["zsl"], compat=compat) for compat in (None, "otmive"))
    assert [trials.ids for trials in one.values()] == [trials.ids for trials in other.values()]


def test_other_classes_are_refused(tmp_path: Path) -> None:
    write_single(tmp_path, ["ood_val"])
    (tmp_path / "single_object/ood_val/yellow cube").rename(tmp_path / "single_object/ood_val/yellow cone")
    with pytest.raises(fastdc.InputError, match="the paper's 4 classes; 'yellow cone' is missing or is another"):
        read_layout(tmp_path, compat="otmive")
    with pytest.raises(fastdc.InputError, match="compat must be 'otmive' or None, got 'li'"):
        read_layout(tmp_path, compat="li")
