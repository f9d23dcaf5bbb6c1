"""Elimination by betting: the wealth, that it is a martingale under the null, and the rate of wrong eliminations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.rules.betting import Betting, wealth
from fastdc.rules.protocol import geometric_looks
from fastdc.support import Float64
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.rule_runs import Request, assert_rate_below, batches, check_alone, kept, pack, run, single, ties
from helpers.worlds import fails_with


def slow_wealth(differences: list[float], bound: float) -> list[float]:
    """The gambler's book: consider the past, place the bet, see the difference."""
    purse, book = 1.0, []
    for j, difference in enumerate(differences):
        past = [bound / 2, *(max(-bound, min(d, bound)) for d in differences[:j])]
        bet = sum(past) / sum(d * d for d in past)
        bet = min(max(bet, 0.0), 0.95 / bound)
        purse *= 1 + bet * max(-bound, min(difference, bound))
        book.append(purse)
    return book


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(0.01, 10))
def test_wealth_is_that_of_the_gamblers_book(differences: list[float], bound: float) -> None:
    np.testing.assert_allclose(wealth(np.array(differences), bound), slow_wealth(differences, bound), rtol=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 3))
def test_bets_see_the_past_only_and_never_ruin(seed: int, bound: float) -> None:
    """Changing a difference changes no wealth before it, and wealth always stays positive."""
    rng = np.random.default_rng(seed)
    differences = rng.uniform(-4, 4, (3, 25))
    changed = differences.copy()
    changed[:, 12] += 1
    np.testing.assert_array_equal(wealth(changed, bound)[:, :12], wealth(differences, bound)[:, :12])
    assert (wealth(differences, bound) > 0).all()


def _feedback(rng: np.random.Generator, shape: tuple[int, int]) -> Float64:
    """Draws whose spread depends on the sum so far: dependent, but with mean 0 given the past."""
    signs = rng.choice([-1.0, 1.0], shape)
    result = np.zeros(shape)
    for j in range(shape[1]):
        result[:, j] = signs[:, j] * np.where(result[:, :j].sum(axis=1) > 0, 1.0, 0.1)
    return result


NULLS = {  # differences in [-1, 1] whose mean is 0 at every draw: the hardest case that the hypothesis allows
    "coin": lambda rng, shape: rng.choice([-1.0, 1.0], shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "small": lambda rng, shape: rng.uniform(-0.01, 0.01, shape),
    "rare loss": lambda rng, shape: np.where(rng.random(shape) < 0.05, -1.0, 0.05 / 0.95),
    "rare gain": lambda rng, shape: np.where(rng.random(shape) < 0.05, 1.0, -0.05 / 0.95),
    "levels": lambda rng, shape: rng.uniform(-1, 1, shape) / (1 + np.arange(shape[-1]) % 4),
    "feedback": _feedback,
}


@pytest.mark.parametrize("null", NULLS)
def test_wealth_does_not_grow_in_expectation(null: str) -> None:
    """E W_m = 1: with few draws, the mean of 200000 runs is within five standard errors of 1."""
    paths = wealth(NULLS[null](np.random.default_rng(5), (200_000, 8)), 1.0)
    error = paths.std(axis=0) / len(paths) ** 0.5
    assert (np.abs(paths.mean(axis=0) - 1) <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_wealth_rarely_ever_reaches_much(null: str, alpha: float) -> None:
    """Ville: the probability that wealth is ever 1 / alpha is at most alpha, over all draws at once."""
    paths = wealth(NULLS[null](np.random.default_rng(6), (8000, 200)), 1.0)
    assert_rate_below(paths.max(axis=1) >= 1 / alpha, alpha)


def test_wealth_grows_where_a_class_is_worse() -> None:
    """Wealth grows from 1 to 900 in few draws if the difference is half the bound, and fastest if it is the bound."""
    assert int(np.argmax(wealth(np.full(40, 1.0), 1.0) >= 900)) + 1 == 11  # 1.95^10 < 900 < 1.95^11
    noisy = 0.5 + np.random.default_rng(0).uniform(-0.5, 0.5, (500, 60))
    assert (wealth(noisy, 1.0).max(axis=1) >= 900).all()


def test_long_runs_leave_the_range_of_floats_in_silence() -> None:
    with np.errstate(all="raise"):
        assert wealth(np.full(3000, 1.0), 1.0)[-1] == np.inf
    lost = wealth(np.full(3000, -1.0), 1.0)
    assert 0 <= lost[-1] < 1
    assert kept(Betting(0.01, 1.0, rivals=1), single([np.zeros(3000), np.ones(3000)])) == [[0]]


@given(batches(), st.sampled_from([0.05, 0.5]), st.sampled_from([0.3, 2.0]))
def test_drops_the_classes_against_which_the_book_has_ever_won(
    requests: list[Request], alpha: float, bound: float
) -> None:
    for (classes, errors), stays in zip(requests, kept(Betting(alpha, bound, rivals=8), pack(requests)), strict=True):
        values = errors.astype(np.float64)
        leader = int(values.mean(axis=1).argmin())
        for k, name in enumerate(classes.tolist()):
            book = slow_wealth((values[k] - values[leader]).tolist(), bound)
            if abs(max(book) * alpha / 8 - 1) > 1e-9:  # else rounding decides
                assert (name in stays) is (max(book) < 8 / alpha)


@given(batches(), st.integers(0, 4))
def test_a_request_is_decided_as_if_alone(requests: list[Request], padding: int) -> None:
    check_alone(Betting(0.4, 0.5, rivals=8), requests, 0, padding)


def bounded_ties(n: int, n_classes: int, draws: int, *, seed: int) -> Float64:
    """Classes with equal expectations at every draw, far from normal, with spreads that depend on the level."""
    rng = np.random.default_rng(seed)
    own = np.where(rng.random((n, n_classes, draws)) < 0.1, 0.9, -0.1) / (1 + np.arange(draws) % 3)
    return rng.gamma(2, 1, (n, 1, draws)) + 2 + own


@pytest.mark.parametrize("every", [None, 1])
def test_equal_classes_are_dropped_with_probability_at_most_alpha(every: int | None) -> None:
    """Over all looks, geometric or at every draw. All classes are best, so it must hold for each of them."""
    alpha, n_classes = 0.3, 3
    rule = Betting(alpha, 1.0, rivals=n_classes - 1, every=every)
    result = run(rule, bounded_ties(3000, n_classes, 96, seed=2))
    for k in range(n_classes):
        assert_rate_below(~result.alive[:, k], alpha)
    assert result.alive.mean() < 0.999  # and not because nothing is ever dropped


def test_near_ties_and_clear_losers() -> None:
    errors = np.clip(ties(3000, 5, 96, seed=3) / 10, 0, 1) + np.array([0, 0.001, 0.005, 0.3, 0.5])[:, None]
    alpha = 0.1
    result = run(Betting(alpha, 1.5, rivals=4), errors)
    assert_rate_below(~result.alive[:, 0], alpha)
    assert not result.alive[:, 3:].any()
    assert result.evaluations.mean() < 0.8 * 5 * 96


def gaussian_errors(world: GaussianWorld, x: Float64, draws: int, *, seed: int) -> Float64:
    """Errors (n, K, J) of the world's optimal denoiser for images (n, c, h, w), at levels drawn at random."""
    rng = np.random.default_rng(seed)
    n, n_classes = len(x), len(world.means)
    sigma = np.exp(rng.uniform(-1.5, 1.0, draws))
    noise = rng.standard_normal((n, draws, *x.shape[1:]))
    noised = (x[:, None] + sigma[:, None, None, None] * noise).reshape(-1, *x.shape[1:])
    errors = np.empty((n, n_classes, draws))
    for k in range(n_classes):
        denoised = world.denoise(noised, np.tile(sigma, n), np.full(len(noised), k))
        errors[:, k] = ((denoised - np.repeat(x, draws, axis=0)) ** 2).mean(axis=(1, 2, 3)).reshape(n, draws)
    return errors


def test_in_the_gaussian_world_the_nearest_class_stays() -> None:
    """The nearest mean has the smallest expected error at every level; the bound comes from other images."""
    world = GaussianWorld.random(4, scale=0.3, seed=1)
    x = world.sample(np.arange(300) % 4, seed=5)
    errors = gaussian_errors(world, x, 64, seed=4)
    others = gaussian_errors(world, world.sample(np.arange(300) % 4, seed=6), 64, seed=7)
    bound = 1.25 * float((others.max(axis=1) - others.min(axis=1)).max())
    assert (errors.max(axis=1) - errors.min(axis=1) <= bound).all()
    result = run(Betting(0.1, bound, rivals=3), errors)
    assert_rate_below(~result.alive[np.arange(300), world.nearest(x)], 0.1)
    assert result.evaluations.mean() < 0.8 * 4 * 64


def test_a_difference_below_the_bound_counts_as_the_bound() -> None:
    np.testing.assert_array_equal(wealth(np.array([-7.0, 9.0, 0.5]), 2.0), wealth(np.array([-2.0, 2.0, 0.5]), 2.0))


def test_looks() -> None:
    assert Betting(bound=1, rivals=9).looks(40) == geometric_looks(40)
    assert Betting(bound=1, rivals=9, every=1).looks(4) == (1, 2, 3, 4)
    assert Betting(bound=1, rivals=9, every=3).looks(7) == (3, 6, 7)
    assert Betting(bound=1, rivals=9, every=9).looks(7) == (7,)
    fails_with(lambda: Betting(bound=1, rivals=9).looks(0), "at least one draw", kind=InputError)


def test_the_bound_and_the_number_of_rivals_must_be_known() -> None:
    look = single(np.zeros((4, 6)))
    fails_with(
        lambda: Betting(rivals=9).looks(8),
        "rule betting needs bound=..., the largest difference between two classes' errors at a draw; "
        "fastdc calibrate stores one",
        kind=InputError,
    )
    fails_with(lambda: Betting(rivals=9).keep(look), "rule betting needs bound=...", kind=InputError)
    fails_with(lambda: Betting(bound=1).looks(8), "rule betting needs rivals=...", kind=InputError)
    fails_with(lambda: Betting(bound=1, rivals=2).keep(look), "up to 3 classes, got 4", kind=InputError)
    assert kept(Betting(bound=1, rivals=3), look) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": 1}, "alpha must lie strictly between 0 and 1, got 1"),
        ({"bound": 0}, "bound must be positive and finite, got 0"),
        ({"bound": float("nan")}, "nan"),
        ({"bound": float("inf")}, "inf"),
        ({"bound": "1"}, "'1'"),
        ({"rivals": 0}, "rivals"),
        ({"every": 0}, "every"),
        ({"every": 1.5}, "1.5"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], says: str) -> None:
    fails_with(lambda: Betting(**options), "rule betting", says, kind=InputError)
