"""bench/mnist.py on 8x8 digits: every part runs, and what it counts is so."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.data import digits_test
from fastdc.scoring import score

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("sklearn")

import mnist


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """As models/make_mnist.py --photos writes them: a folder per part and class."""
    test = digits_test()
    for number, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        folder = tmp_path / ("train", "val", "test")[number % 3] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{number:04d}.png")
    return tmp_path


def test_every_part_runs_and_the_file_has_the_numbers(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = photos / "out.json"
    command = ["mnist.py", "--model", "digits-mlp", "--data", str(photos), "--out", str(out), "--quick"]
    monkeypatch.setattr("sys.argv", [*command, "--draws", "4", "--images", "7"])
    monkeypatch.setattr(mnist, "QUICK", {"train": 120, "val": 40, "test": 30})
    monkeypatch.setattr(mnist, "SEEDS", 2)
    mnist.main()
    made = json.loads(out.read_text(encoding="utf-8"))

    neighbours, machine, cnn, model = made["rivals"]
    assert [one["classifier"] for one in made["rivals"]] == [
        "nearest neighbours", "SVM, RBF kernel", "CNN", "digits-mlp, race"
    ]  # fmt: skip
    assert min(one["accuracy"]["value"] for one in (neighbours, machine)) > 0.7
    assert model["accuracy"]["value"] > 0.95
    assert len(cnn["right"]) == len(model["right"]) == 2
    assert (neighbours["brier"], machine["ece"]) == (None, None)
    assert 0 <= model["brier"] < 0.1
    assert machine["choice"][0].startswith("SVC(C=")

    assert [one["sigma"] for one in made["race"]] == [0, 0.25]  # 40 images support one delta
    for one in made["race"]:
        assert (one["images"], one["validation_images"], one["evaluations_of_full"]) == (7, 40, 40)
        assert len(one["evaluations"]) == 7
        assert 0 <= one["lost_over_splits"]["mean"] <= one["delta"] + 0.02
        assert all(10 <= spent <= 40 for spent in one["evaluations"])
        assert one["evaluations_mean"] == pytest.approx(np.mean(one["evaluations"]))
    assert made["race"][0]["accuracy_of_full"]["value"] == 1
    assert str(photos) not in json.dumps([made["rivals"], made["race"]])


def test_some_images_are_of_all_classes_and_always_the_same() -> None:
    """The images of a folder are sorted by class."""
    test = digits_test()
    by_class = test.take(np.argsort(test.labels, kind="stable"))
    some = mnist.drawn(by_class, 100)
    assert set(some.labels.tolist()) == set(range(10))
    assert np.array_equal(some.images, mnist.drawn(by_class, 100).images)
    assert np.array_equal(np.sort(mnist.drawn(by_class, 400).labels), by_class.labels)


def test_seeds_that_share_their_images_do_not_narrow_an_interval() -> None:
    truth = np.arange(100) % 10
    answers = np.eye(10)[np.where(np.arange(100) < 90, truth, (truth + 1) % 10)]
    one = score(truth, answers, tuple("0123456789"))
    alone, thrice = (mnist.record("x", [(one, "")] * seeds) for seeds in (1, 3))
    assert thrice["right"] == [90, 90, 90]
    assert thrice["accuracy"] == alone["accuracy"]
    assert alone["accuracy"]["ci95_low"] < 0.85
