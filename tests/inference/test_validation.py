"""Runs over validation images, prepared once: the errors of separate runs, clean and of noisy copies."""

import hashlib

import numpy as np
import pytest

from fastdc import InputError
from fastdc.rules.calibrated import Calibrated
from fastdc.testing import reference
from helpers.worlds import classifier, fails_with, gaussian, unit_images

CLASSIFIER = classifier(gaussian(3))
IMAGES = unit_images(4)
SIGMA = 0.25  # on [0, 1]; 0.5 on the model's [-1, 1]


def test_a_run_of_clean_images_is_that_of_its_seed() -> None:
    runs = CLASSIFIER.validation_runs(IMAGES, draws=5)
    for seed, table in enumerate(runs.tables(3)):
        np.testing.assert_array_equal(table.errors, CLASSIFIER.errors(IMAGES, draws=5, seed=seed).errors)
        assert table.seed == seed
    assert runs.config.draws == 5


def copies(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimation copy `number` of each image and its stream, written from the words of ``diffusion.noisy_copies``."""
    x = CLASSIFIER.validation_runs(IMAGES).images
    noisy, streams = [], []
    for image, stream in zip(x.x, x.streams.tolist(), strict=True):
        noise = reference.normal(0, stream, number, image.size, purpose=2).reshape(image.shape)
        noisy.append(image + 2 * SIGMA * noise)
        name = stream.to_bytes(8, "little") + b"\2" + number.to_bytes(8, "little")
        streams.append(int.from_bytes(hashlib.blake2b(name, digest_size=7, person=b"fastdc copy").digest(), "little"))
    return np.asarray(noisy, np.float32), np.array(streams)


@pytest.mark.parametrize("method", ["dc", "epndc"])
def test_a_run_of_noisy_images_sees_their_copy(method: str) -> None:
    runs = CLASSIFIER.validation_runs(IMAGES, draws=4, sigma=SIGMA, method=method)
    job = CLASSIFIER.settings(rule="full", draws=4, sigma=SIGMA, method=method).job
    for number, table in enumerate(runs.tables(2)):
        x, streams = copies(number)
        np.testing.assert_allclose(table.errors, job.table(x, streams).errors, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(table.streams, streams)


def test_a_race_costs_what_it_costs_alone() -> None:
    runs = CLASSIFIER.validation_runs(IMAGES, draws=16)
    rule = Calibrated(0.6)
    alone = CLASSIFIER.classify(IMAGES, rule=rule, draws=16, seed=7)
    assert runs.race(rule, 7) == alone.evaluations.mean() < 3 * 16


def test_numbers_that_name_no_run_are_refused() -> None:
    runs = CLASSIFIER.validation_runs(IMAGES, draws=2)
    fails_with(lambda: runs.table(-1), "number must be a whole number of at least 0, got -1", kind=InputError)
    fails_with(lambda: list(runs.tables(0)), "seeds must be a whole number of at least 1, got 0", kind=InputError)
