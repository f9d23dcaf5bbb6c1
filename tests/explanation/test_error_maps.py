"""Error maps against the error table that decides, and against the world whose differences are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastdc import DiffusionClassifier
from fastdc.bundle import HaarTransform
from fastdc.diffusion import ROW_FIELDS
from fastdc.explanation import error_maps, significant_pixels
from fastdc.explanation.error_maps import ErrorMaps
from fastdc.explanation.paired_pixels import p_values
from fastdc.inference import Images, Progress
from fastdc.support import InputError
from fastdc.testing import GaussianWorld
from helpers import latent_world
from helpers.worlds import ManySlots, classifier, denoiser, gaussian, refusing, unit_images

WORLD = gaussian(4)


def maps_of(clf: DiffusionClassifier, images: Any, pairs: Any, /, **options: Any) -> ErrorMaps:
    own = {name: options.pop(name) for name in ("smooth", "progress") if name in options}
    used = options.pop("used", None)
    return error_maps(clf.settings(rule="full", **options).job, Images.of(images, clf.model), pairs, draws=used, **own)


@pytest.mark.parametrize(
    "options",
    [
        {"draws": 9, "seed": 3},
        {"draws": 8, "loss": "l1", "levels": (0.1, 2.0), "weighting": "uniform"},
        {"draws": 8, "antithetic": True, "loss": "huber"},
        {"draws": 5, "order": "random", "smooth": 1.3},
    ],
)
def test_the_mean_of_a_map_is_the_difference_that_decides(options: dict[str, Any]) -> None:
    world = GaussianWorld.random(4, (3, 4, 6))
    clf, images = classifier(world, batch=11), unit_images(5, (3, 4, 6))
    pairs = np.array([[0, 1], [3, 0], [2, 1], [1, 3], [2, 0]])
    made = maps_of(clf, images, pairs, **options)
    table = clf.errors(images, **{name: value for name, value in options.items() if name != "smooth"})
    errors = np.take_along_axis(table.errors, pairs[:, :, None], axis=1)
    np.testing.assert_allclose(made.errors, errors, rtol=1e-5)
    gap = np.diff(errors.mean(axis=2, dtype=np.float64), axis=1)[:, 0]
    size = errors.max()
    np.testing.assert_allclose(made.mean.mean(axis=(1, 2)), gap, atol=1e-6 * size)
    np.testing.assert_allclose(made.channels.mean(axis=1), made.mean, atol=1e-6 * size)
    np.testing.assert_allclose(made.bands.sum(axis=1), made.mean, atol=1e-6 * size)


def test_a_long_run_comes_near_the_known_expectation() -> None:
    """E d_p = weight a^2 sigma^4 ((mu_b - x)^2 - (mu_a - x)^2) / (s^2 + sigma^2)^2, with r = a (D - x)."""
    clf, images = classifier(WORLD), unit_images(2)
    made = maps_of(clf, images, [[0, 1], [2, 3]], draws=600)
    plan = clf.settings(draws=600).job.plan
    weight, a = (plan.rows[:, ROW_FIELDS.index(name)].astype(np.float64) for name in ("weight", "a"))
    gain = (weight * a**2 * (plan.levels.sigma**2 / (WORLD.spread**2 + plan.levels.sigma**2)) ** 2).mean()
    x = 2 * images.astype(np.float64) - 1
    behind = (WORLD.means[None] - x[:, None]) ** 2
    for i, (own, other) in enumerate([(0, 1), (2, 3)]):
        expected = gain * (behind[i, other] - behind[i, own])[0]
        assert np.abs((made.mean[i] - expected) / made.standard_error[i]).max() < 4.5
        assert np.corrcoef(made.mean[i].ravel(), expected.ravel())[0, 1] > 0.95


def test_pixels_without_evidence_are_rarely_significant() -> None:
    """Half of each image lies between the means of both classes: noise moves its differences, and nothing else."""
    rng = np.random.default_rng(5)
    means = rng.uniform(-0.5, 0.5, (2, 1, 8, 8))
    world, n = GaussianWorld(means=means), 60
    clf = classifier(world)
    between = np.zeros((8, 8), np.bool_)
    between[:, :4] = True
    middle = means.mean(axis=0)
    x = np.where(between, middle, means[0])[None].repeat(n, axis=0)
    job = clf.settings(draws=48).job
    ready = replace(Images.of((x + 1) / 2, clf.model), streams=np.arange(n))
    made = error_maps(job, ready, np.tile([0, 1], (n, 1)))
    p = p_values(made.mean, made.standard_error, made.count)
    assert (p[:, between] < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    found = np.stack([significant_pixels(one, alpha=0.05) for one in p])
    false, true = found[:, between].sum(axis=1), found[:, ~between].sum(axis=1)
    shares = false / np.maximum(false + true, 1)
    assert shares.mean() <= 0.05 + 3 * shares.std() / np.sqrt(n)
    assert true.mean() > 8


def test_parts_and_devices_change_no_map() -> None:
    images, pairs = unit_images(7), np.array([[0, 1]] * 7)
    network = [ManySlots(denoiser(WORLD), WORLD.model.image_shape, batch=b, slots=s) for b, s in ((128, 1), (3, 2))]
    seen: list[Progress] = []
    one = maps_of(DiffusionClassifier(WORLD.model, network[0]), images, pairs, draws=6)
    two = maps_of(
        DiffusionClassifier(WORLD.model, network[0], None, (network[1],)), images, pairs, draws=6, progress=seen.append
    )
    for name in ("mean", "standard_error", "bands", "errors"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-5, atol=1e-8)
    assert seen[-1] == Progress(7, 7, 84, 84)
    first = maps_of(DiffusionClassifier(WORLD.model, network[0]), images, pairs, draws=6, used=4)
    np.testing.assert_array_equal(first.errors, one.errors[:, :, :4])
    longer = maps_of(DiffusionClassifier(WORLD.model, network[0]), images, pairs, draws=4, used=6)
    np.testing.assert_array_equal(longer.mean, one.mean)


def test_latents_have_maps_of_their_own_size() -> None:
    network = ManySlots(latent_world.network, latent_world.MODEL.sample_shape)
    clf = DiffusionClassifier(latent_world.MODEL, network, latent_world.Encoder())
    images = unit_images(3)
    made = maps_of(clf, images, [[0, 2], [3, 1], [4, 0]])
    assert made.mean.shape == (3, 2, 2)
    means = clf.errors(images).mean()
    expected = [means[0, 2] - means[0, 0], means[1, 1] - means[1, 3], means[2, 0] - means[2, 4]]
    np.testing.assert_allclose(made.mean.mean(axis=(1, 2)), expected, rtol=1e-4)


@pytest.mark.parametrize("options", [{"loss": "l2"}, {"loss": "l1"}, {"loss": "huber", "weighting": "uniform"}])
def test_wavelets_are_mapped_back_to_pixels(options: dict[str, Any]) -> None:
    """The world on coefficients is the world on pixels in other axes: its l2 maps are those of pixels, up to noise."""
    transform = HaarTransform(factor=0.5)
    world = GaussianWorld(means=transform.forward(WORLD.means), spread=WORLD.spread / 2)
    model = replace(world.model, image_shape=WORLD.model.image_shape, transform=transform)
    clf = DiffusionClassifier(model, ManySlots(denoiser(world), model.sample_shape))
    images, pairs = unit_images(2), [[0, 1], [2, 3]]
    made = maps_of(clf, images, pairs, draws=400, **options)
    table = clf.errors(images, draws=400, **options)
    np.testing.assert_allclose(made.errors, [table.errors[0, :2], table.errors[1, 2:]], rtol=1e-4, atol=1e-8)
    assert made.mean.shape == (2, 4, 4)
    if options["loss"] == "l2":
        gap = np.diff(made.errors.mean(axis=2), axis=1)[:, 0]
        np.testing.assert_allclose(made.mean.mean(axis=(1, 2)), gap, atol=1e-6 * made.errors.max())
    x = 2 * images.astype(np.float64) - 1
    behind = (WORLD.means[None] - x[:, None]) ** 2
    for i, (own, other) in enumerate(pairs):
        assert np.corrcoef(made.mean[i].ravel(), (behind[i, other] - behind[i, own]).ravel())[0, 1] > 0.9


def test_one_draw_has_a_map_and_no_statistics() -> None:
    made = maps_of(classifier(WORLD), unit_images(1), [[0, 1]], draws=1)
    assert made.bands.shape[1] == 1
    assert np.isnan(made.standard_error).all()


def test_what_cannot_be_mapped_is_refused_before_any_work() -> None:
    clf, images = refusing(WORLD.model), unit_images(2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"method": "epndc", "sigma": 0.5}, "method dc, got epndc"),
        ({"used": 0, "draws": 4}, "map_draws must be"),
        ({"smooth": -1.0}, "smooth must be"),
        ({"smooth": 1e12}, r"smooth must be a number in \[0, 1000\], got"),
        ({"antithetic": True, "draws": 8, "used": 3}, "whole antithetic pairs"),
    ]
    for options, words in refused:
        with pytest.raises(InputError, match=words):
            maps_of(clf, images, [[0, 1], [1, 0]], **options)
    with pytest.raises(InputError, match="conditions must be"):
        maps_of(clf, images, [[0, 4], [1, 0]])
