"""The images of each step: which, how often, and how they are changed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError
from fastdc.train import RunFolder, TrainConfig, train

pytest.importorskip("torch")

import torch

from fastdc.train.augment import Augmentation, augmentation, resampled
from fastdc.train.config import AUGMENTATIONS
from fastdc.train.order import Balanced, Epochs


@pytest.fixture(autouse=True)
def _own_generator() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_epochs_hold_every_image_once_and_depend_on_the_step_alone() -> None:
    steps = [Epochs(10, seed=1).batch(step, 4) for step in range(5)]
    seen = np.concatenate(steps)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    order = Epochs(10, seed=1)
    assert all(np.array_equal(order.batch(step, 4), steps[step]) for step in (3, 0, 4))


def test_balanced_batches_hold_all_classes_equally_often_and_all_their_images() -> None:
    labels = np.repeat([0, 1, 2], [40, 5, 2])
    order = Balanced(labels, seed=1)
    batches = [order.batch(step, 6) for step in range(60)]
    for batch in batches:
        assert np.array_equal(np.bincount(labels[batch]), [2, 2, 2])
    seen = np.bincount(np.concatenate(batches), minlength=47)
    assert np.array_equal(seen, np.repeat([3, 24, 60], [40, 5, 2]))  # 120 draws of each class, in whole epochs
    again = Balanced(labels, seed=1)
    assert all(np.array_equal(again.batch(step, 6), batches[step]) for step in (30, 2, 59))
    # Places of a batch have noise levels of their own: no class may always have the same ones.
    places = np.array([labels[batch] for batch in batches])
    assert all(len(np.unique(column)) == 3 for column in places.T)
    assert not np.array_equal(Balanced(labels, seed=2).batch(0, 6), batches[0])


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 12)])
def test_the_geometry_is_that_of_scipy(shape: tuple[int, int, int]) -> None:
    """x'(p) = x(c + s R (p - c) + t), bilinear, with the pixels of the edge beyond it."""
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (5, *shape)).astype(np.float32)
    angle, scale = rng.uniform(-0.6, 0.6, 5), rng.uniform(0.7, 1.2, 5)
    across, down = rng.integers(-3, 4, (2, 5)).astype(float)
    got = resampled(*(torch.tensor(part, dtype=torch.float32) for part in (x, angle, scale, across, down))).numpy()
    centre = (np.array(shape[1:]) - 1) / 2
    for i in range(5):
        cos, sin = math.cos(angle[i]), math.sin(angle[i])
        matrix = scale[i] * np.array([[cos, sin], [-sin, cos]])  # of (down, across)
        offset = centre + np.array([down[i], across[i]]) - matrix @ centre
        for channel in range(shape[0]):
            want = ndimage.affine_transform(x[i, channel], matrix, offset, order=1, mode="nearest")
            assert np.abs(got[i, channel] - want).max() < 1e-5


def test_a_shift_moves_whole_pixels_and_keeps_every_value() -> None:
    x = torch.rand(64, 1, 10, 10) * 2 - 1
    moved = augmentation("shift", flip=False)(x)
    offsets = set()
    for before, after in zip(x[:, 0], moved[:, 0], strict=True):
        padded = torch.nn.functional.pad(before[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
        found = [
            (dy, dx)
            for dy in range(3)
            for dx in range(3)
            if torch.allclose(padded[dy : dy + 10, dx : dx + 10], after, atol=1e-5)
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) == 9


def test_a_crop_lies_inside_the_image() -> None:
    """The edge is never repeated: the extremes of a ramp stay within those of the image, and the crops reach them."""
    ramp = torch.linspace(-1, 1, 40)[None, None, None, :].expand(500, 3, 40, 40).contiguous()
    crops = Augmentation(crop=0.8)(ramp)
    steps = crops[:, 0, 0].diff(dim=1)
    # At least 0.8 of a step everywhere, less the part of a pixel by which its centre is inside the image.
    assert float(steps.min()) > 0.69 * 2 / 39
    assert float(steps.max()) < 1.05 * 2 / 39


def test_jitter_changes_contrast_brightness_and_saturation_by_at_most_its_share() -> None:
    x = torch.rand(400, 3, 6, 6) - 0.5
    found = Augmentation(jitter=0.1)(x)
    contrast = found.std((1, 2, 3)) / x.std((1, 2, 3))
    brightness = found.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert 0.2 >= float(brightness.max()) > 0.18
    assert -0.2 <= float(brightness.min()) < -0.18
    assert 1.21 > float(contrast.max()) > 1.1  # with the saturation
    grey = torch.rand(400, 1, 6, 6) - 0.5
    contrast = Augmentation(jitter=0.1)(grey).std((1, 2, 3)) / grey.std((1, 2, 3))
    assert 1.1001 > float(contrast.max()) > 1.09
    assert 0.8999 < float(contrast.min()) < 0.91
    assert float(Augmentation(jitter=0.5)(torch.ones(50, 1, 2, 2)).max()) == 1.0


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_set_does_what_it_says(name: str) -> None:
    x = torch.rand(32, 3, 16, 16) * 2 - 1
    found = augmentation(name, flip=False)(x)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert float(found.abs().max()) <= 1.0
    same = (found == x).all(dim=(1, 2, 3)).float().mean()
    assert (name == "none") == (same == 1.0)
    mirrored = augmentation(name, flip=True)
    assert mirrored.flip
    assert mirrored == augmentation(name, flip=True)


def test_a_run_that_is_balanced_and_augmented_is_resumed_to_the_bit(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.repeat([0, 1], [30, 10]))
    said: list[str] = []

    def run(name: str, steps: int, *, resume: bool = False, **changes: Any) -> Any:
        recipe: dict[str, Any] = {"augment": "photo", "balance": True, "batch": 8, "width": 16, "val": "0"}
        recipe |= {"model": "mlp", "steps": steps, "threads": 1, "data": str(tmp_path / "data.npz")} | changes
        train(TrainConfig(out=str(tmp_path / name), **recipe), resume=resume, notify=said.append)
        checkpoint = RunFolder(tmp_path / name).load_checkpoint()
        assert checkpoint is not None
        return checkpoint.tensors

    whole = run("whole", 8)
    assert not any("--balance" in line for line in said)
    # A schedule of one length: the first run is cut off by its last checkpoint, not by its number of steps.
    run("cut", 8, checkpoint_every=4)
    folder = RunFolder(tmp_path / "cut")
    assert folder.info().class_counts == (30, 10)
    again = run("cut", 8, resume=True, checkpoint_every=4)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    plain = run("plain", 8, balance=False, augment="none")
    assert not torch.equal(whole["ema.linear_out.weight"], plain["ema.linear_out.weight"])
    for changes in ({"augment": "none"}, {"balance": False}):
        with pytest.raises(InputError, match=f"started with {next(iter(changes))} = "):
            run("whole", 8, resume=True, **changes)


def test_classes_of_very_different_size_are_noted(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (44, 4, 4), dtype=np.uint8)
    labels = np.repeat([0, 1, 2], [31, 3, 10])
    np.savez(tmp_path / "data.npz", images=images, labels=labels, class_names=["cat", "lynx", "dog"])
    recipe: dict[str, Any] = {"model": "mlp", "width": 16, "steps": 1, "data": str(tmp_path / "data.npz"), "val": "0"}
    said: list[str] = []
    train(TrainConfig(out=str(tmp_path / "a"), **recipe), notify=said.append)
    assert said[1].startswith("note: class 'lynx' has 3 images and 'cat' has 31: --balance trains all classes equally")
    train(TrainConfig(out=str(tmp_path / "b"), balance=True, **recipe), notify=said.append)
    assert len([line for line in said if "lynx" in line]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "rotate"}, "augment must be one of none, flip, shift, photo, medical, got 'rotate'"),
        ({"balance": 1}, "balance must be True or False, got 1"),
        ({"flip": "yes"}, "flip must be True or False"),
    ],
)
def test_other_words_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(data="x", out="y", **changes)
