"""Training data: the validation split and the standard deviation of the pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdc.support import InputError
from fastdc.train import TrainConfig, content_digest, validation_source
from fastdc.train.dataset import held_out, load_training_data, measure_sigma_data
from fastdc.train.remarks import remarks


def test_the_validation_split_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 2])
    kept = held_out(labels, 0.2, seed=0)
    assert [int(kept[labels == k].sum()) for k in range(3)] == [20, 2, 1]
    assert np.array_equal(kept, held_out(labels, 0.2, seed=0))
    assert not np.array_equal(kept, held_out(labels, 0.2, seed=1))


def test_the_digest_covers_pixels_shapes_labels_and_names() -> None:
    images, labels = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4), np.array([0, 1])
    pixels = images.copy()
    pixels[1, 0, 3, 3] ^= 1
    digests = {
        content_digest(images, labels, ("a", "b")),
        content_digest(pixels, labels, ("a", "b")),
        content_digest(images.reshape(2, 1, 2, 8), labels, ("a", "b")),
        content_digest(images, labels[::-1], ("a", "b")),
        content_digest(images, labels, ("a", "c")),
    }
    assert len(digests) == 5
    assert content_digest(images.copy(), labels.copy(), ("a", "b")) in digests


def test_sigma_data_is_the_standard_deviation_of_the_mapped_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 1, 3, 5), dtype=np.uint8)
    assert measure_sigma_data(images) == pytest.approx(np.std(images / 127.5 - 1.0), rel=1e-3)


def test_training_and_validation_images_come_from_the_splits_of_the_data(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        for k, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4), 20 * number + k).save(tmp_path / split / name / "0.png")
    root = str(tmp_path)
    heard: list[str] = []
    data = load_training_data(TrainConfig(data=root, out="run"), heard.append)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1]
    assert data.val_images[:, 0, 0, 0].tolist() == [20, 21]
    assert heard == [
        f"note: split train of {root} used; it has test, train, valid",
        f"note: validation: split valid of {root} used; it has test, train, valid",
    ]
    data = load_training_data(TrainConfig(data=root, out="run", split="test"))  # its validation images are not known
    assert (data.images[:, 0, 0, 0].tolist(), len(data.val_images)) == ([40, 41], 0)
    assert validation_source(TrainConfig(data=root, out="run", val="0.5")) is None
    (tmp_path / "train/b/1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 3 images cannot be used: .*1\.png: is not an image"):
        load_training_data(TrainConfig(data=root, out="run"))
    data = load_training_data(TrainConfig(data=root, out="run", skip_bad=True), heard.append)
    assert len(data.images) == 2
    assert any(line.startswith(f"note: left out: {root}/train/b/1.png: ") for line in heard)


def test_both_halves_of_the_images_kept_aside_have_all_classes(tmp_path: Path) -> None:
    """Also if the classes of the data take turns: every second image of all would then be of one class."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    data = load_training_data(TrainConfig(data=str(tmp_path / "data.npz"), out="run", val="0.2"))
    assert data.val_labels.tolist() == [0] * 4 + [1] * 4
    for half in (data.val_labels[0::2], data.val_labels[1::2]):
        assert half.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("images", "val", "told"),
    [
        (800, "auto", "Give more: --val 0.15 keeps enough aside, and --val FOLDER takes other images"),
        (700, "auto", "Give more: --val 0.15 keeps enough aside, and --val FOLDER takes other images"),
        (800, "0.15", None),
        (160, "auto", "Give more (--val FOLDER)"),  # at most half of the images are kept aside
        (800, "val.npz", "Give more (--val FOLDER)"),
    ],
)
def test_few_validation_images_are_told_with_a_way_to_enough(
    tmp_path: Path, images: int, val: str, told: str | None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8), dtype=np.uint8)
    for name, count in (("data", images), ("val", 90)):
        np.savez(tmp_path / f"{name}.npz", images=pixels[:count], labels=np.arange(count) % 10)
    val = str(tmp_path / val) if val.endswith("npz") else val
    config = TrainConfig(data=str(tmp_path / "data.npz"), out="run", val=val)
    lines = [line for line in remarks(config, load_training_data(config)) if "too few" in line]
    assert [line.partition(": it takes 99. ")[2] for line in lines] == ([] if told is None else [told])
