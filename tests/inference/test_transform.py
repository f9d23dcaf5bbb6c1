"""Models whose network works on Haar coefficients: the errors and certificates are those of the pixels.

Three models are compared. The pixel world has a known denoiser D. On coefficients y = f W x, W orthonormal, the same
classes are Gaussian with means f W mu_k and spread f s, so the network f W D(W^T y / f) is that of another world, given
as a model with a transform, and as a plain model of images that are coefficients already.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier, Session
from fastdc.backends import FunctionNetwork
from fastdc.bundle import HaarTransform
from fastdc.certification import Fixed, certify_table
from fastdc.certification.base_classifiers import Copy, DiffusionBase, Feed, Vote
from fastdc.certification.lipschitz import bounded_errors
from fastdc.diffusion import EDMSchedule
from fastdc.inference import bands
from fastdc.testing import reference
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import Float32, Float64, Int64, classifier, gaussian, unit_images

HAAR = HaarTransform(0.5)
F = HAAR.factor
PIXELS = gaussian(3, scale=0.8)
WAVES = GaussianWorld(HAAR.forward(PIXELS.means), F * PIXELS.spread, EDMSchedule(F * 0.05, F * 5.0))
CLASSES = len(PIXELS.means)
IMAGES = unit_images(6)
NOISY: dict[str, Any] = {"rule": "full", "draws": 4, "sigma": 0.3, "seed": 7, "levels": (F * 0.8, F * 3.0)}
METHODS = ("dc", "epndc", "denoised", "apndc", "apndc-x")


def with_null(world: GaussianWorld) -> Any:
    """The world's network; the label after its classes stands for "no class", the mean of the classes' answers."""

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        sigma, x_t = np.exp(timestep.astype(np.float64) / world.schedule.timestep_scale), sample.astype(np.float64)
        each = np.stack([world.denoise(x_t, sigma, np.full(len(x_t), k)) for k in range(CLASSES)])
        return np.where((labels == CLASSES)[:, None, None, None], each.mean(0), each[labels % CLASSES, range(len(x_t))])

    return function


def opened(world: GaussianWorld, transform: HaarTransform | None = None) -> DiffusionClassifier:
    model = replace(world.model, null_class=CLASSES)
    if transform is not None:
        model = replace(model, image_shape=PIXELS.model.image_shape, transform=transform)
    return DiffusionClassifier(model, FunctionNetwork(with_null(world), world.model.image_shape))


PIXEL, PLAIN, WAVELET = opened(PIXELS), opened(WAVES), opened(WAVES, HAAR)


@pytest.mark.parametrize("method", METHODS)
def test_the_network_is_given_the_coefficients(method: str) -> None:
    """The model with the transform gives the errors of the plain model at the transformed images, to the bit."""
    options = {**NOISY, "method": method}
    x, streams = (2 * IMAGES - 1).astype(np.float32), np.arange(len(IMAGES))
    want = PLAIN.settings(**{**options, "sigma": F * NOISY["sigma"]}).job.table(HAAR.forward(x), streams)
    got = WAVELET.settings(**options).job.table(x, streams)
    np.testing.assert_array_equal(got.errors, want.errors)


def test_errors_are_those_of_the_pixel_model_at_the_same_noise() -> None:
    """A noise e of coefficients is the noise W^T e of pixels; the error in x0 is f^2 times that of the pixels."""
    draws: dict[str, Any] = {"draws": 4, "levels": (F * 0.8, F * 3.0), "weighting": "vlb"}
    job = WAVELET.settings(**draws, rule="full").job
    x = (2 * IMAGES - 1).astype(np.float32)
    errors = job.table(x, np.arange(len(x))).errors
    for i, image in enumerate(x.astype(np.float64)):
        for j, s in enumerate(job.plan.levels.sigma.tolist()):
            e = HaarTransform(1.0).inverse(reference.normal(job.seed, i, j, image.size).reshape(1, 4, 2, 2))[0]
            noisy = np.repeat((image + s / F * e)[None], CLASSES, axis=0)
            said = PIXELS.denoise(noisy, np.full(CLASSES, s / F), np.arange(CLASSES))
            want = F**2 * ((said - image) ** 2).mean(axis=(1, 2, 3)) * job.plan.rows[j, 6]
            np.testing.assert_allclose(errors[i, :, j], want, rtol=2e-5)


@dataclass(frozen=True)
class Wrapping:
    """A base classifier of pixels that wraps one of coefficients."""

    inner: DiffusionBase
    n_classes: int = CLASSES
    value_range: tuple[float, float] = (-1.0, 1.0)

    def votes(self, feed: Feed) -> Iterator[list[Vote]]:
        def transformed(room: int) -> list[Copy]:
            return [replace(copy, image=HAAR.forward(copy.image)) for copy in feed(room)]

        return self.inner.votes(transformed)

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("method", METHODS)
def test_a_certificate_is_that_of_a_pixel_model_that_wraps_the_network(method: str) -> None:
    """Noise is added to pixels and radii are in pixels, with the transform inside the model or inside its wrapper."""
    smoothing = Fixed(NOISY["sigma"], 40, 0.01)
    options = {**NOISY, "rule": "paired", "method": method}
    inner: Any = PLAIN.base(**{**options, "sigma": F * NOISY["sigma"]})
    ours, wrapped = (
        [(made.label, made.radius) for made in clf.certify(IMAGES[:3], smoothing, n0=8, base=base)]
        for clf, base in ((WAVELET, WAVELET.base(**options)), (PIXEL, Wrapping(inner)))
    )
    assert ours == wrapped
    assert any(radius for _, radius in ours)


def test_a_lipschitz_certificate_is_in_pixels() -> None:
    """Scaled levels and equal errors of pixels and of coefficients give equal bounds and equal radii."""
    common: dict[str, Any] = {"draws": 512, "weighting": "uniform", "streams": np.arange(CLASSES)}
    means = ((PIXELS.means + 1) / 2).astype(np.float32)
    pixels = PIXEL.errors(means, levels=(0.5, 1.0), **common)
    waves = WAVELET.errors(means, levels=(F * 0.5, F * 1.0), **common)
    one, other = (bounded_errors(table, clf.model, cap=0.7) for table, clf in ((pixels, PIXEL), (waves, WAVELET)))
    np.testing.assert_allclose(other.sigma, one.sigma, rtol=1e-6)
    np.testing.assert_allclose(other.weights, one.weights, rtol=1e-6)
    same = replace(waves, values=pixels.values)
    tables = ((pixels, PIXEL), (same, WAVELET))
    radii = [certify_table(table, clf.model, cap=0.7, form="plain").radii for table, clf in tables]
    assert radii[0].max() > 0
    np.testing.assert_allclose(radii[1], radii[0], rtol=1e-5)


@pytest.mark.parametrize("method", ["denoised", "apndc", "apndc-x"])
def test_a_denoiser_may_have_a_transform_that_the_classifier_has_not(method: str) -> None:
    options = {**NOISY, "method": method}
    pixel = {**options, "levels": (0.8, 3.0)}
    bare, waves = classifier(PIXELS), classifier(WAVES)
    transformed = DiffusionClassifier(
        replace(WAVES.model, image_shape=PIXELS.model.image_shape, transform=HAAR), waves.network
    )
    for clf, own, other, given in ((bare, PIXEL, WAVELET, pixel), (transformed, WAVELET, PIXEL, options)):
        want = own.classify(IMAGES, **given).table.errors
        got = clf.classify(IMAGES, denoiser=other, **given).table.errors
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_sessions_and_bands_know_the_transform() -> None:
    with Session(WAVELET, draws=4) as session:
        alone = [session.submit(image).result(20).errors[0] for image in IMAGES]
    np.testing.assert_array_equal(np.stack(alone), WAVELET.classify(IMAGES, draws=4).errors)
    np.testing.assert_allclose(bands(WAVELET.model), F * np.array(bands(PIXEL.model)))
