"""The statistics of paired differences: against NumPy and SciPy, and their promises in simulations."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from fastdc.explanation import p_values, significant_pixels
from fastdc.explanation.paired_pixels import RunningPixels
from fastdc.support import InputError


def p_of(d: Any) -> Any:
    """p-values (m, ...) of observations (m, draws, ...)."""
    errors = d.std(axis=1, ddof=1) / np.sqrt(d.shape[1])
    return p_values(d.mean(axis=1), errors, d.shape[1])


def test_blocks_give_the_statistics_of_all_observations() -> None:
    d = np.random.default_rng(0).normal(1e4, 1e-2, (37, 3, 5))  # a sum of squares would lose the variance
    running = RunningPixels((3, 5))
    for part in (d[:1], d[1:20], d[20:]):
        running.add(part)
    assert running.count == 37
    np.testing.assert_allclose(running.mean, d.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(running.standard_error, stats.sem(d, axis=0), rtol=1e-6)


def test_p_values_are_those_of_the_paired_t_test() -> None:
    own, other = np.random.default_rng(1).normal(size=(2, 12, 4, 4))
    d = own - other
    found = p_values(d.mean(axis=0), stats.sem(d, axis=0), 12)
    np.testing.assert_allclose(found, stats.ttest_rel(own, other).pvalue, rtol=1e-10)


def test_nothing_is_known_of_one_draw_or_of_equal_classes() -> None:
    assert (p_values(np.ones(3), np.full(3, np.nan), 1) == 1).all()
    assert (p_values(np.zeros(3), np.zeros(3), 8) == 1).all()


def test_corrections_are_scipys() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        p = np.concatenate([rng.random(30), rng.random(12) ** 6])
        expected = stats.false_discovery_control(p, method="by") <= 0.05
        np.testing.assert_array_equal(significant_pixels(p, control="fdr"), expected)
        order = np.argsort(p)
        holm = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
        expected[order] = holm <= 0.05
        np.testing.assert_array_equal(significant_pixels(p, control="fwer"), expected)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_unequal_variances_only_make_the_test_safer(spread: float) -> None:
    """Draws have variances of their own, as noise levels do; a common one is the case of equality."""
    rng = np.random.default_rng(3)
    scale = np.exp(spread * rng.standard_normal(16))[None, :]
    p = p_of(scale * rng.standard_normal((200_000, 16)))
    for level in (0.083, 0.05, 0.01, 0.001):
        share, margin = (p <= level).mean(), 4 * np.sqrt(level / 200_000)
        assert share <= level + margin
        if spread == 0:
            assert share >= level - margin


@pytest.mark.parametrize("control", ["fdr", "fwer"])
@pytest.mark.parametrize("kind", ["gaussian", "quadratic"])
def test_false_discoveries_are_within_the_promise(control: str, kind: str) -> None:
    """Pixels that depend on each other, draws of different levels, evidence in a corner of each image only."""
    rng = np.random.default_rng(4)
    n, draws, side = 120, 24, 16
    noise = ndimage.gaussian_filter(rng.standard_normal((2, n, draws, side, side)), (0, 0, 0, 2, 2))
    noise /= noise.std()
    d = noise[0] if kind == "gaussian" else noise[0] ** 2 - noise[1] ** 2
    d *= np.exp(rng.standard_normal((1, draws, 1, 1)))
    d[:, :, :6, :6] += 2.5 * d.std()
    found = np.stack([significant_pixels(p, alpha=0.05, control=control) for p in p_of(d)])
    truly = np.zeros((side, side), np.bool_)
    truly[:6, :6] = True
    assert found[:, truly].mean() > 0.2  # it does find what is there
    false = found[:, ~truly].sum(axis=1)
    if control == "fdr":
        shares = false / np.maximum(found.sum(axis=(1, 2)), 1)
        assert shares.mean() <= 0.05 + 3 * shares.std() / np.sqrt(n)
    else:
        assert (false > 0).mean() <= 0.05 + 3 * np.sqrt(0.05 / n)


def test_which_choices_of_classes_keep_the_promise() -> None:
    """No class is better than another; the answer is the smallest mean error, chosen by the draws of the map."""
    rng, n, classes, draws, pixels = np.random.default_rng(5), 300, 50, 24, 16
    marked = np.zeros((4, n), np.bool_)
    for i in range(n):
        errors = rng.standard_normal((classes, draws, 1)) + rng.standard_normal((classes, draws, pixels))
        first, second = errors.mean(axis=(1, 2)).argsort()[:2]
        best_other = first if first else second
        pairs = ((0, 1), (first, second), (first, 1 if first == 0 else 0), (0, best_other))
        p = p_of(np.stack([errors[other] - errors[own] for own, other in pairs]))
        marked[:, i] = [significant_pixels(one, alpha=0.05, control="fwer").any() for one in p]
    named, runner_up, *one_chosen = marked.mean(axis=1)
    assert max(named, runner_up) <= 0.05 + 3 * np.sqrt(0.05 / n)
    assert min(one_chosen) > 0.1  # docs/explain.md: choose the answer by other noise


def test_a_level_without_promise_is_refused() -> None:
    for alpha in (0.0, 0.1, float("nan")):
        with pytest.raises(InputError, match="alpha must be in"):
            significant_pixels(np.ones(3), alpha=alpha)
    with pytest.raises(InputError, match="control must be one of"):
        significant_pixels(np.ones(3), control="none")
