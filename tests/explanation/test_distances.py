"""Distances of images and maps, compared with scikit-image and with closed forms."""

import numpy as np
import pytest
from scipy import stats

from fastdc.explanation import flipped, l1_distance, map_similarity, ssim
from fastdc.support import Float32, Float64, InputError, Int64

RNG = np.random.default_rng(1)
FIRST = RNG.uniform(0, 1, (4, 3, 20, 24)).astype(np.float32)
SECOND = np.clip(FIRST + RNG.normal(0, 0.2, FIRST.shape), 0, 1).astype(np.float32)


def windowed(a: Float64, b: Float64, sigma: float, radius: int) -> float:
    """SSIM by its formula, position by position, of images (h, w)."""
    ticks = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    weights = np.outer(ticks, ticks) / ticks.sum() ** 2
    found = []
    for row in range(radius, a.shape[0] - radius):
        for column in range(radius, a.shape[1] - radius):
            u, v = (x[row - radius : row + radius + 1, column - radius : column + radius + 1] for x in (a, b))
            mu, mv = (weights * u).sum(), (weights * v).sum()
            su, sv = (weights * (u - mu) ** 2).sum(), (weights * (v - mv) ** 2).sum()
            suv = (weights * (u - mu) * (v - mv)).sum()
            found.append((2 * mu * mv + 1e-4) * (2 * suv + 9e-4) / ((mu**2 + mv**2 + 1e-4) * (su + sv + 9e-4)))
    return float(np.mean(found))


def test_ssim_is_the_formula_at_every_position() -> None:
    for found, a, b in zip(ssim(FIRST, SECOND), FIRST.astype(float), SECOND.astype(float), strict=True):
        assert found == pytest.approx(np.mean([windowed(a[c], b[c], 1.5, 5) for c in range(3)]), abs=1e-9)
    small = ssim(FIRST[:1, :1, :8, :8], SECOND[:1, :1, :8, :8], sigma=0.8)
    want = windowed(FIRST[0, 0, :8, :8].astype(float), SECOND[0, 0, :8, :8].astype(float), 0.8, 3)
    assert small == pytest.approx(want, abs=1e-9)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for found, a, b in zip(ssim(FIRST, SECOND), FIRST.astype(float), SECOND.astype(float), strict=True):
        assert found == pytest.approx(metrics.structural_similarity(a, b, channel_axis=0, **options), abs=1e-9)


def test_l1_is_in_units_of_pixels_from_0_to_1_for_levels_too() -> None:
    assert l1_distance(FIRST, SECOND) == pytest.approx(np.abs(FIRST - SECOND).mean((1, 2, 3)), abs=1e-6)
    levels = np.full((2, 1, 3, 3), 51, np.uint8)
    assert l1_distance(levels, np.zeros_like(levels)) == pytest.approx(0.2)


def test_flipped_asks_the_classifier() -> None:
    def brighter(x: Float32) -> Int64:
        return np.asarray(x.mean((1, 2, 3)) > 0.5, dtype=np.int64)

    images = np.array([0.1, 0.9, 0.8, 0.2]).reshape(4, 1, 1, 1) * np.ones((4, 1, 2, 2))
    assert flipped(images, [0, 1, 0, 1], brighter).tolist() == [1, 1, 0, 0]


def test_similar_maps_have_rank_correlation_and_ssim_1_and_unrelated_ones_0() -> None:
    first = RNG.normal(size=(3, 20, 24))
    same = map_similarity(first, 3 * first + 1)
    assert same.rank == pytest.approx(1)
    assert same.ssim == pytest.approx(1)
    assert map_similarity(first, -first).rank == pytest.approx(-1)
    assert map_similarity(first, -first).rank_absolute == pytest.approx(1)
    other = RNG.normal(size=first.shape)
    found = map_similarity(first, other)
    assert found.rank == pytest.approx(
        [stats.spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(first, other, strict=True)]
    )
    assert np.abs(found.rank).max() < 4 / np.sqrt(480)
    assert np.abs(found.ssim).max() < 0.2
    assert map_similarity(first, np.zeros_like(first)).rank == pytest.approx(0)
    for side in (1, 2, 8, 9):
        assert map_similarity(first[:, :side, :side], first[:, :side, :side]).ssim == pytest.approx(1)


BAD = [
    (lambda: l1_distance(FIRST, SECOND[:2]), "second must have the shape of first, (4, 3, 20, 24), got (2, 3, 20, 24)"),
    (
        lambda: ssim(FIRST[:, :, :8], SECOND[:, :, :8]),
        "SSIM with sigma 1.5 needs images of 11 pixels a side, got 8: give a smaller sigma",
    ),
    (lambda: ssim(FIRST, SECOND, sigma=0), "sigma must be "),
    (lambda: flipped(FIRST, [0, 1], len), "targets must be 4 classes, one for each image, got shape (2,)"),
    (
        lambda: flipped(FIRST, ["0"] * 4, lambda x: np.zeros(len(x), int)),
        "targets and predicted classes must both be numbers or both names, got '0' and 0",
    ),
    (lambda: flipped(FIRST, [0] * 4, lambda x: x), "predict must return 4 classes, one for each image, got shape"),
    (lambda: map_similarity(FIRST[:, 0], FIRST[:2, 0]), "second must have the shape of first, (4, 20, 24), got"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_errors_say_what_was_expected(call: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert str(caught.value).startswith(message)
