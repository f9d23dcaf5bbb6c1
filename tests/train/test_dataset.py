"""Training data: the validation split and the standard deviation of the pixels."""

import numpy as np
import pytest

from fastdc.train.dataset import held_out, measure_sigma_data


def test_the_validation_split_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 2])
    kept = held_out(labels, 0.2, seed=0)
    assert [int(kept[labels == k].sum()) for k in range(3)] == [20, 2, 1]
    assert np.array_equal(kept, held_out(labels, 0.2, seed=0))
    assert not np.array_equal(kept, held_out(labels, 0.2, seed=1))


def test_sigma_data_is_the_standard_deviation_of_the_mapped_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 1, 3, 5), dtype=np.uint8)
    assert measure_sigma_data(images) == pytest.approx(np.std(images / 127.5 - 1.0), rel=1e-3)
