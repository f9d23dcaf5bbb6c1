"""Confidence from a fixed number of copies, against statsmodels, SciPy, published values, and exact enumeration.

Where coverage is simulated, the limit is four standard errors above the level promised.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.certification.confidence import (
    certified_radius,
    clopper_pearson,
    most_failures,
    radius_to_probability,
)

ALPHA = 0.001


def exact_tail(successes: int, n: int, p: float) -> float:
    """P(X >= successes) of a binomial variable, term by term."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(successes, n + 1))


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (1, 1), (3, 7), (95, 100), (100, 100), (8526, 10_000)])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_clopper_pearson_is_statsmodels(successes: int, n: int, alpha: float) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    low, _ = proportion.proportion_confint(successes, n, alpha=2 * alpha, method="beta")
    assert float(clopper_pearson(successes, n, alpha)) == pytest.approx(low, rel=1e-10, abs=1e-300)


@given(n=st.integers(1, 60), data=st.data(), alpha=st.floats(1e-4, 0.3))
@settings(max_examples=60, deadline=None)
def test_clopper_pearson_is_where_the_tail_is_alpha(n: int, data: st.DataObject, alpha: float) -> None:
    successes = data.draw(st.integers(1, n))
    assert exact_tail(successes, n, float(clopper_pearson(successes, n, alpha))) == pytest.approx(alpha, rel=1e-8)


@given(n=st.integers(2, 3000), alpha=st.floats(1e-6, 0.2), more=st.floats(1.01, 4))
@settings(max_examples=40, deadline=None)
def test_bounds_grow_with_successes_and_alpha_and_stay_below_the_share(n: int, alpha: float, more: float) -> None:
    successes = np.unique(np.linspace(0, n, 12).astype(int))
    low = clopper_pearson(successes, n, alpha)
    assert (np.diff(low) > 0).all()
    assert (low[1:] < clopper_pearson(successes[1:], n, alpha * more)).all()
    assert (low <= successes / n).all()
    assert (clopper_pearson(successes[1:], n, alpha) < clopper_pearson(successes[1:] * 2, 2 * n, alpha)).all()


@pytest.mark.parametrize(("p", "n"), [(0.5, 100), (0.93, 1000), (0.999, 1000), (0.02, 50)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_clopper_pearson_covers_in_a_hundred_thousand_experiments(p: float, n: int, alpha: float) -> None:
    experiments = 100_000
    counts = np.random.default_rng(1).binomial(n, p, experiments)
    possible, which = np.unique(counts, return_inverse=True)
    limit = alpha + 4 * math.sqrt(alpha / experiments)
    assert np.mean(clopper_pearson(possible, n, alpha)[which] > p) <= limit


def test_published_radii_with_all_copies_correct() -> None:
    """Max radius / sigma at alpha 0.001: 1.50, 2.46, 3.20, 3.81 for n = 100 ... 100,000; alpha^(1/n) in closed form."""
    n = np.array([100, 1000, 10_000, 100_000])
    bounds = clopper_pearson(n, n, ALPHA)
    np.testing.assert_allclose(bounds, ALPHA ** (1 / n), rtol=1e-12)
    np.testing.assert_allclose(certified_radius(bounds, 1.0), [1.50, 2.46, 3.20, 3.81], atol=0.005)


@pytest.mark.parametrize(
    ("sigma", "radius", "correct"),
    [(0.25, 0.25, 8526), (0.25, 0.5, 9818), (0.25, 0.75, 9997), (0.5, 0.75, 9409), (1.0, 2.0, 9818), (0.5, 0.0, 5156)],
)
def test_published_minimum_correct_counts(sigma: float, radius: float, correct: int) -> None:
    """Of 10,000 at alpha 0.001; the last, the fewest that do not abstain, is SciPy's binomial quantile."""
    p0 = float(radius_to_probability(radius, sigma))
    assert most_failures(10_000, p0, ALPHA) == 10_000 - correct
    if radius == 0:
        assert stats.binom.sf(correct - 1, 10_000, 0.5) < ALPHA <= stats.binom.sf(correct - 2, 10_000, 0.5)


@given(n=st.integers(1, 120), p0=st.floats(0.05, 0.99), alpha=st.floats(1e-4, 0.4))
@settings(max_examples=60, deadline=None)
def test_most_failures_is_that_of_brute_force(n: int, p0: float, alpha: float) -> None:
    bounds = clopper_pearson(n - np.arange(n + 1), n, alpha)
    assert most_failures(n, p0, alpha) == max(np.flatnonzero(bounds > p0), default=-1)


@given(radius=st.floats(0, 3), sigma=st.floats(0.05, 2))
def test_radius_and_probability_are_inverse(radius: float, sigma: float) -> None:
    p = float(radius_to_probability(radius, sigma))
    assert p == pytest.approx(0.5 * math.erfc(-radius / sigma / math.sqrt(2)), rel=1e-12)
    if p < 1 - 1e-9:
        assert float(certified_radius(p, sigma)) == pytest.approx(radius, rel=1e-5, abs=1e-12)


def test_no_radius_without_a_majority() -> None:
    np.testing.assert_array_equal(certified_radius([0.0, 0.3, 0.5], 0.25), 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: clopper_pearson(5, 4, 0.1),
            "successes must be whole numbers from 0 to the number of copies, got 5 of 4",
        ),
        (lambda: clopper_pearson(0.5, 4, 0.1), "got 0.5 of 4"),
        (lambda: clopper_pearson(0, 0, 0.1), "the number of copies must be at least 1, got 0"),
        (lambda: clopper_pearson(1, 4, 1.0), "alpha must lie strictly between 0 and 1, got 1.0"),
        (lambda: certified_radius(1.0, 0.25), r"p_lower must be in \[0, 1\), got 1.0"),
        (lambda: certified_radius(0.9, 0.0), "sigma must be positive and finite, got 0.0"),
        (lambda: radius_to_probability(-1, 0.25), "radius must not be negative, got -1.0"),
        (lambda: most_failures(0, 0.5, 0.1), "n must be a whole number of at least 1, got 0"),
        (lambda: most_failures(5, 1.0, 0.1), "p0 must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_an_impossible_argument_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
