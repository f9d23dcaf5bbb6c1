"""The Gaussian world: the engine's errors against the closed form, and the closed form against sampling.

Tolerances come from the known distribution of an error. The residual of pixel p is A e_p + B_p with
A = s^2 sigma / (s^2 + sigma^2) and B = sigma^2 (mu_k - x) / (s^2 + sigma^2), so its mean square over d pixels has
variance (2 d A^4 + 4 A^2 |B|^2) / d^2. Limits are six standard errors: one false alarm per 10^8 numbers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import InputError, load
from fastdc.backends import NetworkOptions
from fastdc.diffusion import EDMSchedule
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import SHAPE, Float64, classifier, fails_with, gaussian, unit_images

WORLD = gaussian(4)
SIGMAS = 6


def moments(world: GaussianWorld, x: Float64, sigma: float) -> tuple[Float64, Float64]:
    """Mean and variance (n, K) of the unweighted error of one draw."""
    pixels = x[0].size
    total = world.spread**2 + sigma**2
    a, b = world.spread**2 * sigma / total, sigma**2 / total
    distance = (b**2) * ((world.means[None] - x[:, None]) ** 2).sum(axis=(2, 3, 4))
    return a**2 + distance / pixels, (2 * pixels * a**4 + 4 * a**2 * distance) / pixels**2


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 5.0])
def test_the_closed_form_is_the_mean_of_the_squared_residual(sigma: float) -> None:
    x = 2 * unit_images(5).astype(np.float64) - 1
    np.testing.assert_allclose(WORLD.expected_error(x, sigma), moments(WORLD, x, sigma)[0], rtol=1e-12)


def test_the_engines_errors_have_the_closed_forms_mean_and_variance_at_every_level() -> None:
    """The errors of 4,000 streams of one image are a sample of the known distribution at each of 8 levels."""
    n, draws = 4000, 8
    image = unit_images(1, seed=3)
    table = classifier(WORLD).errors(np.repeat(image, n, axis=0), draws=draws, weighting="edm", streams=np.arange(n))
    x = 2.0 * image.astype(np.float64) - 1
    for j, sigma in enumerate(table.sigma):
        mean, variance = moments(WORLD, x, float(sigma))
        errors = table.errors[:, :, j].astype(np.float64) / float(table.weights[j])
        standard_error = np.sqrt(variance[0] / n)
        assert (np.abs(errors.mean(axis=0) - mean[0]) < SIGMAS * standard_error + 1e-6 * mean[0]).all()
        # The sample variance of a nearly normal error has a relative standard error of about sqrt(2/n); the chi-squared
        # part, whose excess kurtosis is at most 12/d < 1, adds a little.
        np.testing.assert_allclose(errors.var(axis=0), variance[0], rtol=SIGMAS * np.sqrt(3 / n))


def test_classes_see_the_same_noise() -> None:
    """The difference of two classes is then linear in e, and its variance is exactly 4 A^2 |B_k - B_l|^2 / d^2."""
    n = 4000
    image = unit_images(1, seed=3)
    table = classifier(WORLD).errors(np.repeat(image, n, axis=0), draws=1, weighting="edm", streams=np.arange(n))
    sigma, pixels = float(table.sigma[0]), 16
    total = WORLD.spread**2 + sigma**2
    a, b = WORLD.spread**2 * sigma / total, sigma**2 / total
    paired = (table.errors[:, 0, 0] - table.errors[:, 1, 0]).astype(np.float64) / float(table.weights[0])
    apart = b**2 * ((WORLD.means[0] - WORLD.means[1]) ** 2).sum()
    np.testing.assert_allclose(paired.var(), 4 * a**2 * apart / pixels**2, rtol=SIGMAS * np.sqrt(2 / n))


@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_labels_are_the_nearest_means(decision: str) -> None:
    world = GaussianWorld.random(5, SHAPE, scale=0.6, seed=2)
    truth = np.arange(60) % 5
    x = world.sample(truth, seed=1)
    images = ((x + 1) / 2).astype(np.float32)
    result = classifier(world).classify(images, rule="full", draws=64, decision=decision)
    nearest = world.nearest(2.0 * images.astype(np.float64) - 1)
    np.testing.assert_array_equal(result.labels, nearest)
    assert np.mean(nearest == truth) > 0.9
    if decision == "vote":
        np.testing.assert_array_equal(result.votes.argmax(axis=1), nearest)
        assert (result.votes.sum(axis=1) == 64).all()


def test_the_denoiser_is_optimal() -> None:
    """D is the posterior mean: in two pixels, the mean of 400,000 samples of the prior weighted by p(x_t | x)."""
    world = GaussianWorld(means=np.array([[[[0.3, -0.2]]]]), spread=0.25)
    x_t, sigma = np.array([[[[0.5, 0.1]]]]), 0.4
    prior = world.means[0] + world.spread * np.random.default_rng(0).standard_normal((400_000, 1, 1, 2))
    weight = np.exp(-((prior - x_t) ** 2).sum(axis=(1, 2, 3)) / (2 * sigma**2))
    weight /= weight.sum()
    got = world.denoise(x_t, np.array([sigma]), np.array([0]))
    posterior_std = world.spread * sigma / np.hypot(world.spread, sigma)
    standard_error = posterior_std * np.sqrt((weight**2).sum())  # one over the effective number of samples
    assert np.abs((weight[:, None, None, None] * prior).sum(axis=0) - got[0]).max() < SIGMAS * standard_error


def test_samples_follow_their_class() -> None:
    labels = np.repeat(np.arange(4), 500)
    world = GaussianWorld(means=WORLD.means, spread=0.1)  # means within 0.5: clipping at 1 does not matter
    x = world.sample(labels, seed=1)
    np.testing.assert_array_equal(x, world.sample(labels, seed=1))
    means = np.stack([x[labels == k].mean(axis=0) for k in range(4)])
    assert np.abs(means - world.means).max() < SIGMAS * world.spread / np.sqrt(500)
    np.testing.assert_allclose((x - world.means[labels]).std(), world.spread, rtol=SIGMAS / np.sqrt(2 * x.size))
    wide = GaussianWorld(means=WORLD.means, spread=2.0).sample(labels, seed=1)
    assert (wide.min(), wide.max()) == (-1, 1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"means": np.zeros((0, 1, 2, 2))}, "means"),
        ({"means": np.zeros((2, 4, 4))}, "means"),
        ({"means": np.full((1, 1, 2, 2), np.nan)}, "means"),
        ({"means": np.zeros((1, 1, 2, 2)), "spread": 0.0}, "spread"),
        ({"means": np.zeros((1, 1, 2, 2)), "spread": np.nan}, "spread"),
        ({"means": np.zeros((1, 1, 2, 2)), "spread": np.inf}, "spread"),
    ],
)
def test_an_invalid_world_is_refused(options: dict[str, Any], named: str) -> None:
    fails_with(lambda: GaussianWorld(**options), named, kind=InputError)


@pytest.mark.parametrize("scale", [0.25, 100.0])
def test_the_bundle_gives_the_numbers_of_the_function(tmp_path: Path, scale: float) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    world = GaussianWorld(means=WORLD.means, schedule=EDMSchedule(0.05, 5.0, timestep_scale=scale))
    world.write(tmp_path / "gaussian")
    images = unit_images(6)
    got = load(tmp_path / "gaussian", backend="onnx", threads=2).errors(images, draws=8)
    want = classifier(world).errors(images, draws=8)
    np.testing.assert_array_equal(got.streams, want.streams)
    np.testing.assert_array_equal(got.weights, want.weights)
    # float32 against float64: sigma^2 = exp(2 t / scale) with |2 t / scale| < 6 has a relative error of at most 7 eps.
    # The other operations add about 5 roundings, and squaring doubles the error. If D - x cancels, the error is
    # relative to x^2 <= 1.
    eps = float(np.finfo(np.float32).eps)
    unweighted, expected = (table.errors.astype(np.float64) / want.weights for table in (got, want))
    np.testing.assert_allclose(unweighted, expected, rtol=32 * eps, atol=32 * eps)


def test_the_worlds_own_network_is_the_denoiser() -> None:
    from fastdc import DiffusionClassifier

    images = unit_images(3)
    own = DiffusionClassifier(WORLD.model, WORLD.network(NetworkOptions(batch=5)))
    assert own.network.batch == 5
    np.testing.assert_array_equal(own.errors(images).errors, classifier(WORLD).errors(images).errors)
