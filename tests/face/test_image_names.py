"""The names of images in results: those that the command line prints, wherever the images came from files."""

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdc import Classification, DiffusionClassifier, InputError, Session
from fastdc.data import load_images
from helpers.worlds import SHAPE, classifier, fails_with, gaussian, unit_images

CLASSIFIER = classifier(gaussian(3))
QUICK: dict[str, Any] = {"rule": "full", "draws": 4}
CERTIFY: dict[str, Any] = {"n0": 4, "n": 20, "alpha": 0.1, **QUICK}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of them in a folder of its own."""
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("b.png", "a.png", "in/c.png", "d.png")):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_results_of_files_say_which_file(folder: Path) -> None:
    want = load_images([folder], SHAPE).ids
    assert [Path(name).relative_to(folder).as_posix() for name in want] == ["a.png", "b.png", "d.png", "in/c.png"]
    files = list(map(Path, want))
    np.save(folder / "two.npy", unit_images(2))
    arrays = (f"{folder / 'two.npy'}[0]", f"{folder / 'two.npy'}[1]")
    given: list[tuple[Any, tuple[str, ...] | None]] = [
        (files, want),
        (str(files[0]), want[:1]),
        ([files[2], folder / "two.npy"], (want[2], *arrays)),
        (((path, 7) for path in files), want),  # an iterable of (image, label)
        (unit_images(2), None),
        ([path.read_bytes() for path in files], None),
        ([files[0], unit_images(1)[0]], None),  # one of them has no name
    ]
    for images, names in given:
        result = CLASSIFIER(images, **QUICK)
        assert result.ids == names
        assert [one.image for one in result] == list(names or [None] * len(result))
    parts = list(CLASSIFIER.stream(files, chunk=3, **QUICK))
    assert [part.ids for part in parts] == [want[:3], want[3:]]
    with Session(classifier(gaussian(3)), **QUICK) as session:
        assert session.submit(files[1]).result(10).ids == want[1:2]
        assert session.submit(unit_images(1)[0]).result(10).ids is None
    assert CLASSIFIER.certify(files, 0.1, **CERTIFY).ids == want
    assert CLASSIFIER.certify(unit_images(1), 0.1, **CERTIFY).ids is None


@pytest.mark.parametrize(
    "run", [lambda clf, x: clf(x, **QUICK), lambda clf, x: clf.certify(x, 0.1, **CERTIFY)], ids=["classify", "certify"]
)
def test_names_stay_with_their_images(run: Callable[[DiffusionClassifier, Any], Any], folder: Path) -> None:
    names = load_images([folder], SHAPE).ids
    made = run(CLASSIFIER, folder)
    assert made[1:3].ids == names[1:3]
    assert made[[3, 0]].ids == (names[3], names[0])
    assert made[np.array([False, True, False, False])].ids == names[1:2]
    assert pickle.loads(pickle.dumps(made)).ids == names
    assert [row["image"] for row in made.to_dicts()] == list(names)
    for end in ("csv", "jsonl", "json", "npz"):
        made.save(folder / f"r.{end}")
    with (folder / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["index", "image", "label", "name"]
    assert [row["image"] for row in rows] == list(names)
    lines = (folder / "r.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == list(names)
    assert [row["image"] for row in json.loads((folder / "r.json").read_text())["images"]] == list(names)
    assert names[0][-20:] in made._repr_html_()
    nameless = run(CLASSIFIER, unit_images(2))
    assert "image" not in nameless.to_dicts()[0]
    nameless.save(folder / "n.csv")
    assert (folder / "n.csv").read_text().startswith("index,label,")


def test_a_frame_has_the_names(folder: Path) -> None:
    pytest.importorskip("pandas")
    names = list(load_images([folder], SHAPE).ids)
    assert list(CLASSIFIER(folder, **QUICK).to_pandas()["image"]) == names
    assert list(CLASSIFIER.certify(folder, 0.1, **CERTIFY).to_pandas()["image"]) == names


def test_a_saved_result_keeps_the_names(folder: Path) -> None:
    result, names = CLASSIFIER(folder, **QUICK), load_images([folder], SHAPE).ids
    result.save(folder / "r.npz")
    loaded = Classification.load(folder / "r.npz")
    assert loaded.ids == names
    assert loaded[1].image == names[1]
    assert loaded[1].to_dict() == result[1].to_dict()
    CLASSIFIER(unit_images(2), **QUICK).save(folder / "n.npz")
    assert Classification.load(folder / "n.npz").ids is None
    CLASSIFIER.certify(folder, 0.1, **CERTIFY).save(folder / "c.npz")
    with np.load(folder / "c.npz") as arrays:
        assert arrays["image"].tolist() == list(names)


@pytest.mark.parametrize(("ids", "message"), [(["a"], "ids must be 2 strings, got 1"), ([1, 2], "ids must be strings")])
def test_a_file_with_other_names_is_refused(ids: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    CLASSIFIER(unit_images(2), **QUICK).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["result"] = np.array(json.dumps({**json.loads(str(arrays["result"])), "ids": ids}))
    np.savez(path, **arrays)
    fails_with(lambda: Classification.load(path), message, kind=InputError)
