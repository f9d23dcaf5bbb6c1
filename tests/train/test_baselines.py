"""Baselines: what is learned, chosen and repeated, networks of timm by their names, and refusals."""

import importlib
import sys
import types
from typing import Any

import numpy as np
import pytest

from fastdc import InputError, MissingDependencyError
from fastdc.data import digits_test
from fastdc.train import Baseline, baselines, check_baseline, train_baseline

torch = pytest.importorskip("torch")

TEST = digits_test()
KNOWN = TEST.labels < 3
IMAGES, LABELS = TEST.images[KNOWN], TEST.labels[KNOWN]  # 120 digits 0, 1 and 2
TRAIN, VAL = slice(0, 64), slice(64, None)


def trained(name: str = "cnn", **options: Any) -> Baseline:
    given: dict[str, Any] = {"val_images": IMAGES[VAL], "val_labels": LABELS[VAL], "n_classes": 3, "threads": 1}
    return train_baseline(name, IMAGES[TRAIN], LABELS[TRAIN], **given | options)


def test_three_digits_are_learned_and_one_seed_gives_one_network() -> None:
    state, threads, seen = torch.get_rng_state(), torch.get_num_threads(), []
    made = trained(epochs=30, progress=lambda *done: seen.append(done))
    assert seen == [(epoch, 30) for epoch in range(1, 31)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    p = made.probabilities(IMAGES[VAL])
    assert p.shape == (len(IMAGES[VAL]), 3)
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))
    assert made.val_accuracy == (p.argmax(axis=1) == LABELS[VAL]).mean() > 0.9
    assert 1 <= made.epoch <= 30
    first, again, other = (trained(epochs=2, seed=seed).probabilities(IMAGES[VAL]) for seed in (0, 0, 1))
    assert np.array_equal(again, first)
    assert not np.array_equal(other, first)
    floats = made.probabilities((IMAGES[VAL] / 255).astype(np.float32))
    assert floats == pytest.approx(p, abs=1e-5)
    assert made.describe()["epochs"] == 30


def test_the_epoch_and_the_temperature_are_those_of_the_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies of 0.5, 0.75, 0.75 (smaller loss) and 0.25: the third epoch is kept, with the weights that it had."""
    labels = np.array([0, 1, 0, 1])

    def logits(right: int, size: float) -> Any:
        signs = np.where(np.arange(4) < right, 1.0, -1.0) * size
        own = np.eye(2)[labels] * 2 - 1
        return own * signs[:, None]

    found = [logits(2, 1), logits(3, 4), logits(3, 1), logits(1, 1)]
    weights: list[float] = []

    def epochs(network: Any, *_: Any) -> Any:
        for k in range(4):
            with torch.no_grad():
                network[-1].bias.fill_(k)
            yield k + 1

    def measured(network: Any, _: Any) -> Any:
        weights.append(float(network[-1].bias[0].detach()))
        return found[round(weights[-1])]

    monkeypatch.setattr(baselines, "_epochs", epochs)
    monkeypatch.setattr(baselines, "_logits", measured)
    images = np.zeros((4, 1, 8, 8), np.uint8)
    made = train_baseline("cnn", images, labels, val_images=images, val_labels=labels, n_classes=2, epochs=4)
    assert (made.epoch, made.val_accuracy) == (3, 0.75)
    assert weights == [0, 1, 2, 3, 2]  # the kept weights are back
    odds = np.log(3)  # of 4 equal margins 3 are right: the best temperature gives them the probability 3/4
    assert made.temperature == pytest.approx(2 / odds, rel=1e-3)


def test_images_of_any_size_and_channels_are_taken() -> None:
    for shape in ((3, 40, 70), (1, 9, 5)):
        images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
        labels = np.arange(6) % 2
        given: dict[str, Any] = {"val_images": images, "val_labels": labels, "n_classes": 2, "threads": 1}
        made = train_baseline("cnn", images, labels, **given, epochs=1)
        assert made.probabilities(images).shape == (6, 2)


def test_shifted_images_are_windows_of_the_image() -> None:
    samples = torch.arange(2 * 64, dtype=torch.float32).reshape(2, 1, 8, 8)
    torch.manual_seed(0)
    several = [baselines._shifted(samples) for _ in range(40)]
    found = {tuple(one[0, 0, 3:5, 3:5].flatten().tolist()) for one in several}
    expected = {
        tuple(samples[0, 0, 3 + i : 5 + i, 3 + j : 5 + j].flatten().tolist()) for i in (-1, 0, 1) for j in (-1, 0, 1)
    }
    assert found == expected


def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A package timm of two networks: one of any size, and one that must be told the size. Returns what was asked."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> Any:
        if name == "any" and "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        asked.append({"name": name, **options})
        height, width = options.get("img_size", (8, 8))
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(height * width, options["num_classes"]))

    module = types.SimpleNamespace(create_model=create_model, is_model=lambda name: name in ("any", "fixed"))
    monkeypatch.setitem(sys.modules, "timm", module)
    return asked


def test_networks_of_timm_are_made_for_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_timm(monkeypatch)
    for name in ("any", "fixed"):
        made = trained(f"timm:{name}", epochs=2)
        assert made.name == f"timm:{name}"
        assert made.probabilities(IMAGES[:2]).shape == (2, 3)
    common = {"pretrained": False, "num_classes": 3, "in_chans": 1}
    assert asked == [{"name": "any", **common}, {"name": "fixed", "img_size": (8, 8), **common}]
    with pytest.raises(InputError, match="'timm:other': timm has no such network"):
        check_baseline("timm:other")
    wide = np.zeros((4, 1, 9, 9), np.uint8)
    with pytest.raises(InputError, match="baseline timm:any cannot be used on images of 1x9x9"):
        train_baseline("timm:any", wide, LABELS[:4], val_images=wide, val_labels=LABELS[:4], n_classes=3)


def test_a_real_network_of_timm_is_trained() -> None:
    try:
        timm = importlib.import_module("timm")
    except Exception:
        pytest.skip("timm cannot be imported")
    assert timm.is_model("resnet18")
    made = trained("timm:resnet18", epochs=1)
    assert made.probabilities(IMAGES[:2]).shape == (2, 3)


def test_other_names_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="baseline must be cnn or timm:NAME, got 'cnm'"):
        check_baseline("cnm")
    with pytest.raises(InputError, match="2 training images or more and 1 to validate, got 64 and 0"):
        trained(val_images=IMAGES[:0], val_labels=LABELS[:0])
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="timm is needed here and not installed: it comes with"):
        check_baseline("timm:resnet18")
