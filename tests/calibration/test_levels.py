"""Fits over noise levels against worlds with known informative levels, brute force and finite differences."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize

from fastdc import InputError
from fastdc.calibration.levels import (
    LevelAccuracy,
    _bins,
    _objective,
    fit_level_weights,
    informative_band,
    informative_levels,
    most_informative,
)
from fastdc.support import Float64, Int64

RATIO = np.exp(np.random.default_rng(0).permutation(np.linspace(math.log(0.01), math.log(100), 200)))


def world(n: int, signal: Float64, noise: Float64, seed: int = 1) -> tuple[Float64, Int64]:
    """Errors (n, 6, J) of n images, and their labels: the true class is better by `signal`, apart from `noise`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    errors = 3 + rng.standard_normal((n, 1, len(signal))) + noise * rng.standard_normal((n, 6, len(signal)))
    errors[np.arange(n), labels] -= signal
    return errors, labels


def likelihood(errors: Float64, labels: Int64) -> float:
    """Mean log-likelihood at the best temperature."""
    mean = errors.mean(axis=2)
    gaps = mean[np.arange(len(labels)), labels][:, None] - mean

    def loss(log_scale: Float64) -> float:
        return float(np.mean(np.log(np.exp(gaps * math.exp(log_scale[0])).sum(axis=1))))

    return -float(minimize(loss, np.zeros(1)).fun)


# --- bins ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=200).filter(lambda values: len(set(values)) > 1),
    st.integers(2, 60),
)
def test_bins_part_the_draws_along_the_ratio(values: list[int], bins: int) -> None:
    ratio = np.array(values) / 8
    found = _bins(ratio, bins)
    count = len(found.centre)
    assert 2 <= count <= min(bins, len(set(values)))
    assert sorted(set(found.of.tolist())) == list(range(count))
    assert (np.diff(found.edges) > 0).all()
    for b in range(count):
        inside = ratio[found.of == b]
        assert found.centre[b] == pytest.approx(math.exp(sum(math.log(value) for value in inside) / len(inside)))
        assert found.edges[b] <= inside.min()
        assert inside.max() <= found.edges[b + 1]
    assert (found.edges[0], found.edges[-1]) == (ratio.min(), ratio.max())


@given(st.integers(2, 300), st.integers(2, 30))
def test_bins_of_distinct_levels_are_of_equal_size(draws: int, bins: int) -> None:
    sizes = np.bincount(_bins(np.random.default_rng(draws).permutation(np.arange(1.0, draws + 1)), bins).of)
    assert len(sizes) == min(draws, bins)
    assert sizes.max() - sizes.min() <= 1


# --- weights ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_the_gradient_is_that_of_finite_differences(seed: int, smoothness: float, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    features, labels = rng.standard_normal((30, 4, 7)), rng.integers(0, 4, 30)
    theta = rng.uniform(0, 3, 7)

    def value(at: Float64) -> float:
        return _objective(at, features, labels, smoothness, ridge)[0]

    def gradient(at: Float64) -> Float64:
        return _objective(at, features, labels, smoothness, ridge)[1]

    assert check_grad(value, gradient, theta) < 1e-5


def test_the_objective_is_the_penalised_likelihood() -> None:
    rng = np.random.default_rng(3)
    features, labels, theta = 3 * rng.standard_normal((8, 4, 5)), rng.integers(0, 4, 8), rng.uniform(0, 3, 5)
    expected = 0.3 * sum((theta[b + 1] - theta[b]) ** 2 for b in range(4)) + 0.2 * sum(theta**2)
    for image, label in zip(features, labels, strict=True):
        shares = [math.exp(-sum(row * theta)) for row in image]
        expected -= math.log(shares[label] / sum(shares)) / 8
    assert _objective(theta, features, labels, 0.3, 0.2)[0] == pytest.approx(expected, rel=1e-12)


def test_informative_levels_get_the_weight() -> None:
    """Only levels around 1 separate the classes. The curve finds them, and is better on new images."""
    signal = np.where(np.abs(np.log(RATIO)) < 1, 0.4, 0.0)
    errors, labels = world(200, signal, np.ones_like(RATIO))
    curve = fit_level_weights(errors, RATIO, labels)
    assert len(curve.ratio) == 20
    assert np.mean(curve.weight) == pytest.approx(1)
    inside = np.abs(np.log(curve.ratio)) < 1
    weight = np.array(curve.weight)
    assert weight[inside].min() > 2 * weight[~inside].max()
    other, truth = world(2000, signal, np.ones_like(RATIO), seed=2)
    assert likelihood(other * curve.at(RATIO), truth) > likelihood(other, truth) + 0.1


def test_the_weights_are_those_of_the_best_linear_score() -> None:
    """With Gaussian errors the log-posterior is linear in them, with weights signal / noise^2."""
    rise = np.linspace(0, 1, 200)[np.argsort(np.argsort(RATIO))]
    signal, noise = 0.3 * np.ones(200), 0.7 + 1.3 * rise
    errors, labels = world(4000, signal, noise)
    curve = fit_level_weights(errors, RATIO, labels, bins=5, smoothness=0, ridge=1e-6)
    bins = _bins(RATIO, 5)
    best = np.array([np.mean(signal[bins.of == b]) / np.mean(noise[bins.of == b] ** 2) for b in range(5)])
    np.testing.assert_allclose(curve.weight, best / best.mean(), rtol=0.15)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 7.0, 1e6])
def test_the_scale_of_errors_does_not_matter(scale: float) -> None:
    errors, labels = world(100, 0.3 / (1 + RATIO), np.ones_like(RATIO))
    curve, scaled = (fit_level_weights(factor * errors, RATIO, labels) for factor in (1.0, scale))
    np.testing.assert_allclose(scaled.ratio, curve.ratio)
    np.testing.assert_allclose(scaled.weight, curve.weight, rtol=1e-4, atol=1e-4)


def test_the_curve_takes_the_factor_of_a_level_back() -> None:
    errors, labels = world(100, 0.3 / (1 + RATIO), np.ones_like(RATIO))
    factor = np.random.default_rng(4).uniform(0.1, 10, 10)
    curve = fit_level_weights(errors, RATIO, labels, bins=10)
    other = fit_level_weights(errors * factor[_bins(RATIO, 10).of], RATIO, labels, bins=10)
    product = np.array(other.weight) * factor
    np.testing.assert_allclose(product / product.mean(), curve.weight, rtol=1e-4, atol=1e-4)


def test_smoothness_makes_neighbours_alike() -> None:
    errors, labels = world(60, np.full_like(RATIO, 0.1), np.ones_like(RATIO))
    rough, smooth = (fit_level_weights(errors, RATIO, labels, smoothness=value).weight for value in (0.0, 10.0))
    assert np.abs(np.diff(smooth)).max() < 0.2 * np.abs(np.diff(rough)).max()


def test_levels_that_mislead_or_say_nothing_get_no_weight() -> None:
    signal = np.where(RATIO > 1, 0.4, -0.4)
    errors, labels = world(200, signal, np.ones_like(RATIO))
    errors[:, :, RATIO < 0.05] = 2.0
    curve = fit_level_weights(errors, RATIO, labels, smoothness=0)
    assert (curve.at(RATIO[RATIO < 0.8]) == 0).all()
    assert min(curve.at(RATIO[RATIO > 1.5])) > 0
    with pytest.raises(InputError, match=r"^the errors do not tell the labels apart at any noise level"):
        fit_level_weights(world(200, -np.ones_like(RATIO), np.ones_like(RATIO))[0], RATIO, labels)


# --- informative levels ----------------------------------------------------------------------------------------------


def test_accuracies_are_counts_of_single_draws() -> None:
    rng = np.random.default_rng(5)
    errors = rng.integers(0, 4, (7, 5, 30)).astype(np.float32)  # with ties
    ratio, winners = rng.uniform(0.1, 3, 30), rng.integers(0, 5, 7)
    levels = informative_levels(errors, ratio, winners, bins=4)
    bins = _bins(ratio, 4)
    assert levels.ratio == tuple(bins.centre)
    assert levels.edges == tuple(bins.edges)
    for b in range(4):
        credit = []
        for j in np.flatnonzero(bins.of == b):
            for image in range(7):
                smallest = [k for k in range(5) if errors[image, k, j] == min(errors[image, :, j])]
                credit.append((winners[image] in smallest) / len(smallest))
        assert levels.draws[b] == len(credit) / 7
        assert levels.accuracy[b] == pytest.approx(sum(credit) / len(credit))


def test_the_smoothed_accuracy_of_each_bin_counts_its_neighbours_half() -> None:
    levels = LevelAccuracy((1.0, 2.0, 3.0), (0.5, 1.5, 2.5, 3.5), (0.9, 0.3, 0.6), (10, 20, 10))
    expected = [(2 * 9 + 6) / (2 * 10 + 20), (9 + 2 * 6 + 6) / (10 + 2 * 20 + 10), (6 + 2 * 6) / (20 + 2 * 10)]
    np.testing.assert_allclose(levels.smoothed, expected)


def test_the_best_level_and_band_of_a_known_world() -> None:
    """The signal is highest at 1 and falls off to both sides; the band grows with the tolerance."""
    errors, labels = world(500, 3 * np.exp(-(np.log(RATIO) ** 2)), np.ones_like(RATIO))
    levels = informative_levels(errors, RATIO, labels)
    assert 0.6 < most_informative(levels) < 1.6
    bands = [informative_band(levels, tolerance=tolerance) for tolerance in (0.0, 0.1, 0.4, 1.0)]
    for inner, outer in pairwise(bands):
        assert outer[0] <= inner[0] < most_informative(levels) < inner[1] <= outer[1]
    assert bands[-1] == (RATIO.min(), RATIO.max())
    chance = informative_levels(errors, RATIO, np.roll(labels, 1))
    assert max(chance.accuracy) < 0.3


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_the_band_is_the_longest_run_around_the_best_bin(accuracy: list[float], tolerance: float) -> None:
    count = len(accuracy)
    levels = LevelAccuracy(
        tuple(map(float, range(count))), tuple(map(float, range(count + 1))), tuple(accuracy), (3,) * count
    )
    smoothed = levels.smoothed
    best = int(most_informative(levels))
    assert smoothed[best] == smoothed.max()
    runs = [
        (high - low, low, high)
        for low in range(best + 1)
        for high in range(best + 1, count + 1)
        if all(smoothed[low:high] >= smoothed[best] - tolerance)
    ]
    assert informative_band(levels, tolerance=tolerance) == max(runs)[1:]


# --- refusing --------------------------------------------------------------------------------------------------------

ERRORS, LABELS = world(10, np.ones(200), np.ones(200))
NAN = np.where(np.arange(200) == 7, np.nan, ERRORS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"errors": NAN}, "errors must be finite: expected every class at every draw"),
        ({"errors": ERRORS * np.inf}, "errors must be finite"),
        ({"errors": ERRORS[0]}, "errors must be floats of shape (n, K, J), got float64 of shape (6, 200)"),
        ({"errors": ERRORS.astype(int)}, "errors must be floats of shape (n, K, J), got int64"),
        ({"errors": ERRORS[:0]}, "errors must be floats of shape (n, K, J)"),
        ({"errors": ERRORS[:, :1]}, "errors must have at least 2 classes, got 1"),
        ({"ratio": RATIO[1:]}, "ratio must be 200 positive numbers, one per draw, got shape (199,)"),
        ({"ratio": -RATIO}, "ratio must be 200 positive numbers"),
        ({"ratio": RATIO * np.nan}, "ratio must be 200 positive numbers"),
        ({"ratio": np.ones(200)}, "draws must be at two noise levels or more, got only 1"),
        ({"labels": LABELS[1:]}, "labels must be 10 whole numbers, got int64 of shape (9,)"),
        ({"labels": LABELS.astype(float)}, "labels must be 10 whole numbers, got float64"),
        ({"labels": LABELS - 6}, "labels must be in [0, 6), got"),
        ({"labels": LABELS + 6}, "labels must be in [0, 6), got"),
        ({"bins": 1}, "bins must be a whole number of at least 2, got 1"),
        ({"bins": 4.0}, "bins must be a whole number of at least 2, got 4.0"),
        ({"bins": True}, "bins must be a whole number of at least 2, got True"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    given = {"errors": ERRORS, "ratio": RATIO, "labels": LABELS, "bins": 20, **changed}
    for fit in (fit_level_weights, informative_levels):
        with pytest.raises(InputError) as caught:
            fit(given["errors"], given["ratio"], given["labels"], bins=given["bins"])
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_penalties_are_refused(value: float) -> None:
    for name in ("smoothness", "ridge"):
        with pytest.raises(InputError, match=rf"^{name} must be 0 or positive and finite, got "):
            fit_level_weights(ERRORS, RATIO, LABELS, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_a_bad_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match=r"^tolerance must be 0 or positive and finite, got "):
        informative_band(informative_levels(ERRORS, RATIO, LABELS), tolerance=tolerance)
