"""Training data: the validation split and the standard deviation of the pixels."""

import numpy as np
import pytest

from fastdc.train import content_digest
from fastdc.train.dataset import held_out, measure_sigma_data


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
