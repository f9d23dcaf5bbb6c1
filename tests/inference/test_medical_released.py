"""The medical classifier of Favero et al. (arXiv 2502.03687) against numbers that its released code computed.

``tests/golden/medical-released.npz`` was made by the schedule, noising, loss and ``classify`` of
``diffusion/diffusion_classifier.py`` (MIT; Raman1121/med-diffusion-classifier, f03b10d, a copy of the official
repository), run on the CPU in torch 2.13 with the preprocessing of ``dataset/chexpert.py`` and PyWavelets 1.9. The UNet
and its moving average were replaced by :func:`network`, a formula of the same interface, and the embedding by
:data:`TABLE`. There are 3 classes, 4 images of 3 x 8 x 8, and two runs:

* ``own_``: 9 draws with the code's own random numbers, a time per draw and image, which are stored. fastdc's plans have
  one time per draw, so they are compared through the rows of the schedule and the float64 reference.
* ``full_`` and ``staged_``: 31 draws, for which the code was handed fastdc's random numbers: the times of order
  "random", and the noise of (seed, stream, draw). fastdc's own path is compared as a whole. ``staged_`` keeps 2, 2 and
  1 classes after 5, 15 and 31 draws, with an infinite error of a class at the draws of stages that it did not reach.
"""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier, Model
from fastdc.backends import FunctionNetwork
from fastdc.bundle import HaarTransform
from fastdc.diffusion import CosineSchedule, Parameterization
from fastdc.rules import Votes
from fastdc.support import Float32, Int64
from fastdc.testing import reference

QUARTER = log(64 / 256)
TABLE = np.array([[0.5, 0.25, -2.0], [-0.375, 0.375, 0.5], [0.125, -0.5, 2.0], [0.0, 0.0, 0.0]], np.float32)
MODEL = Model(
    name="released",
    image_shape=(3, 8, 8),
    class_names=("a", "b", "c"),
    schedule=CosineSchedule(-15 + QUARTER, 15 + QUARTER, 2 * QUARTER),
    parameterization=Parameterization("v_prediction"),
    null_class=3,
    fit="stretch",
    transform=HaarTransform(0.5),
)

# Both compute in float32. Their alpha and sigma come from a time in float32, ours from one in float64, and small errors
# are differences of noises of size 1: the smallest here is 0.0027 for 192 pixels, so 6e-8 becomes 6e-8 * 2 / 0.0037.
RTOL = 6e-6


def network(sample: Float32, timestep: Float32, labels: Int64) -> Float32:
    e = TABLE[labels]
    turn = e[:, 0] * np.sin(timestep / 2) + e[:, 1] * np.cos(timestep / 2)
    shift = e[:, 2] * sample.mean(axis=(1, 2, 3))
    mean = sample.mean(axis=1, keepdims=True) / 4
    said = turn[:, None, None, None] * sample[:, :, :, ::-1] + shift[:, None, None, None] + mean
    return np.asarray(said, np.float32)


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    with np.load(Path(__file__).parent.parent / "golden" / "medical-released.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def clf() -> DiffusionClassifier:
    return DiffusionClassifier(MODEL, FunctionNetwork(network, MODEL.sample_shape))


def options(released: dict[str, Any]) -> dict[str, Any]:
    """Favero et al.'s protocol: independent uniform times on the whole schedule, errors in eps, a vote."""
    common = {"rule": "full", "decision": "vote", "order": "random", "levels": "all", "weighting": "uniform"}
    draws = released["full_errors"].shape[2]
    return {**common, "draws": draws, "order_seed": int(released["order_seed"]), "seed": int(released["seed"])}


def test_pictures_become_the_released_coefficients(clf: DiffusionClassifier, released: dict[str, Any]) -> None:
    x = (2 * (released["images"] / 255) - 1).astype(np.float32)
    np.testing.assert_allclose(clf.model.samples(x), released["coefficients"], atol=2e-7)


def test_errors_of_its_own_random_numbers_agree(released: dict[str, Any]) -> None:
    x, t, noise = (released[name].astype(np.float64) for name in ("coefficients", "own_t", "own_noise"))
    errors = np.empty(released["own_errors"].shape)
    for (i, k, j), _ in np.ndenumerate(errors):
        row = MODEL.parameterization.rows(MODEL.schedule.levels([t[j, i]]), 1.0, "eps")[0].astype(np.float64)
        u = reference.noisy_image(x[i], row, noise[j, i]).astype(np.float32)
        said = network(u[None], row[7:].astype(np.float32), np.array([k]))[0]
        errors[i, k, j] = (reference.residual(said.astype(np.float64), x[i], row, noise[j, i]) ** 2).sum()
    np.testing.assert_allclose(errors, released["own_errors"], rtol=RTOL)
    votes = np.stack([np.bincount(row, minlength=3) for row in errors.argmin(axis=1)])
    np.testing.assert_array_equal(votes, released["own_votes"])
    np.testing.assert_array_equal(votes.argmax(axis=1), released["own_labels"])


def test_the_whole_path_gives_its_errors_and_votes(clf: DiffusionClassifier, released: dict[str, Any]) -> None:
    found = clf.classify(released["images"], streams=released["streams"], **options(released))
    errors = 192 * found.table.errors  # theirs are sums, ours means over pixels
    np.testing.assert_allclose(errors, released["full_errors"], rtol=RTOL)
    np.testing.assert_array_equal(errors.argmin(axis=1), released["full_errors"].argmin(axis=1))
    votes = np.stack([np.bincount(row, minlength=3) for row in errors.argmin(axis=1)])
    np.testing.assert_array_equal(votes, released["full_votes"])
    np.testing.assert_array_equal(found.labels, released["full_labels"])
    means = clf.classify(
        released["images"], streams=released["streams"], **{**options(released), "decision": "mean"}
    ).labels
    assert (means != found.labels).any()  # so that a mean in place of the vote would be noticed


def test_stages_evaluate_the_same_errors(clf: DiffusionClassifier, released: dict[str, Any]) -> None:
    """What a pruned class was not evaluated at is infinite in the released code, and nothing else differs."""
    staged, full = released["staged_errors"], released["full_errors"]
    reached = np.isfinite(staged)
    np.testing.assert_array_equal(staged[reached], full[reached])
    assert 0 < (~reached).sum() < staged.size / 2


def test_the_stages_of_compat_favero_give_its_votes_and_labels(
    clf: DiffusionClassifier, released: dict[str, Any]
) -> None:
    """A class that was pruned keeps the votes that it had won, which a full run counts differently."""
    stages = [tuple(map(int, released[name])) for name in ("stages", "keep")]
    rule = Votes(*stages, compat="favero")
    chosen = {**options(released), "rule": rule}
    found = clf.classify(released["images"], streams=released["streams"], **chosen)
    np.testing.assert_array_equal(found.labels, released["staged_labels"])
    np.testing.assert_array_equal(rule.votes_of(found.table.errors), released["staged_votes"])
    assert (released["staged_votes"] != released["full_votes"]).any()
