"""Maps of cells against the float64 world whose denoiser is known, and against the errors of ordinary cells."""

import dataclasses

import numpy as np
import pytest

from fastdc.diffusion import Parameterization
from fastdc.engine import PixelMaps
from fastdc.support import BackendError, InputError
from helpers.worlds import ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(4)
SHAPE = WORLD.model.image_shape


@pytest.mark.parametrize(("slots", "batch", "cells"), [(1, 8, 5), (1, 3, 11), (2, 4, 30), (1, 8, 0)])
def test_residual_maps_are_denoised_images(slots: int, batch: int, cells: int) -> None:
    """More cells than fill the steps of a call, fewer, none; each with a class and a level of its own."""
    levels = WORLD.schedule.levels([0.3, 0.6, 0.9])
    network = ManySlots(denoiser(WORLD), SHAPE, batch=batch, slots=slots)
    maps = PixelMaps(network, SHAPE, Parameterization("sample").denoising_rows(levels), n_classes=4)
    rng = np.random.default_rng(cells)
    x = rng.standard_normal((cells, *SHAPE)).astype(np.float32)
    classes, draws = rng.integers(0, 4, cells).astype(np.int32), rng.integers(0, 3, cells).astype(np.int32)
    expected = WORLD.denoise(x.astype(np.float64), levels.sigma[draws], classes.astype(np.int64))
    for _ in range(2):  # the second call finds the arrays of the first
        np.testing.assert_allclose(maps(x, classes=classes, draws=draws), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"loss": "l1"}, {"antithetic": True}, {"weighting": "edm", "loss": "huber"}])
def test_means_of_error_maps_are_the_errors_of_cells(options: dict[str, object]) -> None:
    clf = classifier(WORLD)
    images = unit_images(3)
    table = clf.errors(images, draws=6, seed=5, **options)  # type: ignore[arg-type]
    plan = clf.settings(rule="full", draws=6, **options).job.plan  # type: ignore[arg-type]
    maps = PixelMaps(
        clf.network,
        SHAPE,
        plan.rows,
        n_classes=4,
        seed=5,
        loss=plan.config.loss,
        delta=plan.config.delta,
        antithetic=plan.antithetic,
    )
    which, classes, draws = (index.ravel() for index in np.indices((3, 4, 6)))
    streams = table.streams[which]
    found = maps(2 * images[which] - 1, classes=classes.astype(np.int32), draws=draws.astype(np.int32), streams=streams)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), table.errors.ravel(), rtol=1e-5)


def test_an_error_that_is_not_finite_is_named() -> None:
    network = ManySlots(lambda sample, *_: np.full_like(sample, np.nan), SHAPE)
    maps = PixelMaps(
        network, SHAPE, Parameterization("sample").denoising_rows(WORLD.schedule.levels([0.5])), n_classes=4
    )
    with pytest.raises(BackendError, match="not finite"):
        maps(np.zeros((2, *SHAPE), np.float32), classes=[0, 3], draws=[0, 0])


def test_levels_without_image_have_no_denoising_row() -> None:
    levels = dataclasses.replace(WORLD.schedule.levels([0.5]), alpha=np.zeros(1))
    with pytest.raises(InputError, match="not finite"):
        Parameterization("epsilon").denoising_rows(levels)
