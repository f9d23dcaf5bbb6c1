"""Confidence while counting, against mpmath, SciPy's distributions, and exact recursions over the counts.

The behaviour of a sequential procedure is computed exactly: the probability of each number of failures after each copy,
with the decided ones taken out (`walk`). Guarantees are then inequalities between numbers, not simulations. Where
coverage is simulated, the limit is four standard errors above the level promised.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.certification.confidence import certified_radius, clopper_pearson
from fastdc.certification.sequential import (
    OPPOSITE_PRIOR,
    PRIOR,
    FixedRadius,
    anytime_lower,
    copies_for,
    log_evidence,
)

ALPHA = 0.001
P0 = float(stats.norm.cdf(2))


def walk(rule: FixedRadius, p: float) -> tuple[float, float, float]:
    """The exact probabilities of "certify" and "refuse", and the expected number of copies, if successes have p."""
    allowed, refused = rule.boundary
    width = int(refused.max()) + 1  # more failures than these are refused at once
    running = np.zeros(width)
    running[0] = 1.0
    certified = stopped = copies = 0.0
    failures = np.arange(width)
    for n in range(rule.n + 1):
        certify, refuse = failures <= allowed[n], failures >= refused[n]
        certified += running[certify].sum()
        stopped += running[refuse].sum()
        running[certify | refuse] = 0.0
        copies += running.sum()
        running[1:], running[0] = running[1:] * p + running[:-1] * (1 - p), running[0] * p
    return certified, stopped, copies


def mpmath_evidence(s: int, f: int, p0: float, prior: tuple[float, float]) -> float:
    """The integrals as hypergeometric functions, with 50 digits."""
    mpmath = pytest.importorskip("mpmath")

    def upper(a: float, b: float) -> object:
        return x**a * (1 - x) ** b / b * mpmath.hyp2f1(a + b, 1, b + 1, 1 - x, maxterms=10**6)

    with mpmath.workdps(50):
        x, a, b = mpmath.mpf(p0), mpmath.mpf(prior[0]), mpmath.mpf(prior[1])
        log = mpmath.log
        return float(log(upper(s + a, f + b)) - log(upper(a, b)) - s * log(x) - f * log(1 - x))


@pytest.mark.parametrize("prior", [PRIOR, OPPOSITE_PRIOR, (0.5, 0.5)])
@pytest.mark.parametrize(
    ("s", "f", "p0", "tolerance"),
    [
        *((10, 0, 0.9, 1e-13), (0, 10, 0.9, 1e-13), (97, 3, 0.97725, 1e-12), (1, 1, 0.0001, 1e-12)),
        *((9900, 100, 0.97725, 1e-9), (5000, 5000, 0.97725, 1e-9), (0, 100_000, 0.5, 1e-9)),
        *((9_700_000, 300_000, 0.97, 1e-6), (9_699_000, 301_000, 0.97, 1e-6), (9_690_000, 310_000, 0.97, 1e-6)),
    ],
)
def test_evidence_is_that_of_50_digits(s: int, f: int, p0: float, tolerance: float, prior: tuple[float, float]) -> None:
    """Tolerances: a rounding of the logarithms of the beta functions, at most 1e9 times 1e-16."""
    expected = mpmath_evidence(s, f, p0, prior)
    assert float(log_evidence(s, f, p0, prior=prior)) == pytest.approx(expected, rel=1e-12, abs=tolerance)


@given(n=st.integers(0, 40), p0=st.floats(0.02, 0.98), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_evidence_is_a_supermartingale_under_the_null(n: int, p0: float, share: float) -> None:
    """E after one more copy is at most E on average, for every p <= p0; exactly E at p = p0."""
    f = np.arange(n + 1)
    now = np.exp(log_evidence(n - f, f, p0))
    up, down = np.exp(log_evidence(n - f + 1, f, p0)), np.exp(log_evidence(n - f, f + 1, p0))
    p = share * p0
    assert (p * up + (1 - p) * down <= now * (1 + 1e-9)).all()
    np.testing.assert_allclose(p0 * up + (1 - p0) * down, now, rtol=1e-9)
    assert (np.diff(now) <= 0).all()


@pytest.mark.parametrize(("p0", "most"), [(0.6, 300), (0.9, 1000), (P0, 3000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_a_wrong_certificate_has_probability_at_most_alpha(p0: float, most: int, alpha: float) -> None:
    rule = FixedRadius(p0, alpha=alpha, beta=1e-9, n=most)  # hardly ever refuses early: the worst case
    wrong = walk(rule, p0)[0]
    assert wrong <= alpha
    assert wrong > alpha / 5  # and alpha is spent, not hoarded
    assert walk(rule, p0 - 0.02)[0] < wrong < walk(rule, p0 + 0.01)[0]


@pytest.mark.parametrize("p0", [0.6, 0.9, P0])
def test_giving_up_too_early_has_probability_at_most_beta(p0: float) -> None:
    """With a table that never certifies, refusals before the end are by evidence of the opposite alone."""
    beta = 0.05
    rule = FixedRadius(p0, alpha=1e-300, beta=beta, n=2000)
    until = rule._refused_until(np.arange(1500))
    assert (until >= 0).any()
    endless = FixedRadius(p0, beta=beta, n=2000)
    refused = np.searchsorted(until, np.arange(2001), side="left")
    endless.__dict__["boundary"] = (np.full(2001, -1), refused)
    assert beta / 5 < walk(endless, p0)[1] <= beta


def test_a_certificate_takes_few_copies() -> None:
    """Radius 2 sigma at alpha 0.001 and 10,000 copies at most, where a fixed number is 10,000."""
    rule = FixedRadius(P0, alpha=ALPHA, n=10_000)
    expected = {1.0: 351, 0.999: 405, 0.99: 1706, 0.95: 526}
    for p, copies in expected.items():
        certified, refused, mean = walk(rule, p)
        assert mean == pytest.approx(copies, abs=1)
        assert certified + refused == pytest.approx(1, abs=1e-9)
        assert (certified if p > P0 else refused) > 0.999


@given(
    p0=st.floats(0.3, 0.98),
    alpha=st.floats(1e-3, 0.2),
    beta=st.floats(1e-3, 0.2),
    most=st.integers(1, 150),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_stopping_table_is_the_definition(
    p0: float, alpha: float, beta: float, most: int, data: st.DataObject
) -> None:
    rule = FixedRadius(p0, alpha=alpha, beta=beta, n=most)
    n = data.draw(st.integers(0, most))
    final = log_evidence(most - np.arange(most + 1), np.arange(most + 1), p0) >= -math.log(alpha)
    for f in range(n + 1):
        hopeless = n == most or not final[f]
        if log_evidence(n - f, f, p0) >= -math.log(alpha):
            expected = "certify"
        elif hopeless or log_evidence(f, n - f, 1 - p0, prior=OPPOSITE_PRIOR) >= -math.log(beta):
            expected = "refuse"
        else:
            expected = None
        assert rule.decide(n - f, f) == expected


def test_a_radius_out_of_reach_is_refused_at_once() -> None:
    assert FixedRadius(P0, n=200).decide(0, 0) == "refuse"


@given(n=st.integers(1, 400), share=st.floats(0, 1), alpha=st.floats(1e-4, 0.35))
@settings(max_examples=80, deadline=None)
def test_the_confidence_sequence_is_the_edge_of_what_is_rejected(n: int, share: float, alpha: float) -> None:
    """No p0 of a fine grid below the bound is kept and none above it is rejected: an interval, as proved."""
    s = round(share * n)
    bound = float(anytime_lower(s, n - s, alpha))
    grid = np.linspace(0.0005, 0.9995, 1999)
    rejected = log_evidence(s, n - s, grid) >= -math.log(alpha)
    np.testing.assert_array_equal(rejected, grid < bound)
    assert bound <= float(clopper_pearson(s, n, alpha))


def test_the_confidence_sequence_grows_with_successes_and_alpha() -> None:
    s = np.arange(0, 1001, 50)
    bounds = anytime_lower(s, 1000 - s, 0.01)
    assert (np.diff(bounds) > 0).all()
    assert bounds[0] == 0
    assert (bounds[1:] < anytime_lower(s[1:], 1000 - s[1:], 0.05)).all()


def test_the_confidence_sequence_covers_at_all_times() -> None:
    """Paths of 1,500 copies, the bound at every 60th copy: ever above p in a share of at most alpha."""
    alpha, p, runs, most = 0.05, 0.8, 5000, 1500
    failures = np.cumsum(np.random.default_rng(2).random((runs, most)) >= p, axis=1)
    copies = np.arange(1, most + 1)
    # The bound exceeds p where p is rejected, which needs a table of few entries only.
    largest = np.array([np.sum(anytime_lower(n - np.arange(n // 5 + 1), np.arange(n // 5 + 1), alpha) > p) - 1
                        for n in copies[::60]])  # fmt: skip
    ever = np.any(failures[:, ::60] <= largest, axis=1)
    assert np.mean(ever) <= alpha + 4 * math.sqrt(alpha / runs)
    assert np.mean(ever) > 0


def test_copies_follow_from_the_pilot() -> None:
    options = {"sigma": 0.25, "alpha": ALPHA, "n": 10_000}
    counts = [copies_for(s, 100, loss=0.02, **options) for s in (100, 99, 95, 80)]  # type: ignore[arg-type]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 2500 < counts[0] < 10_000
    assert copies_for(95, 100, loss=0.0, **options) == 10_000  # type: ignore[arg-type]
    assert copies_for(30, 100, loss=0.02, **options) < 150  # type: ignore[arg-type]
    assert copies_for(100, 100, sigma=0.25, alpha=ALPHA, n=50, loss=0.1) == 50


def test_the_radius_lost_is_what_was_allowed() -> None:
    """Expected radii term by term over all counts; 64 quantiles stand for them within a hundredth of the spread."""
    n = copies_for(90, 100, sigma=0.25, alpha=ALPHA, n=10_000, loss=0.01)
    p = 90.5 / 101

    def expected(copies: int) -> float:
        counts = np.arange(copies + 1)
        return float(
            stats.binom.pmf(counts, copies, p) @ certified_radius(clopper_pearson(counts, copies, ALPHA), 0.25)
        )

    assert expected(10_000) - expected(n) < 0.0105
    assert expected(10_000) - expected(round(n / math.sqrt(2))) > 0.0095


def test_a_choice_from_a_fresh_pilot_keeps_coverage() -> None:
    """Pilot, choice of n, fresh copies: the bound exceeds p with probability at most alpha, summed exactly."""
    p, alpha, wrong = 0.9, 0.05, 0.0
    for s in range(21):
        n = copies_for(s, 20, sigma=0.25, alpha=alpha, n=800, loss=0.03)
        above = clopper_pearson(np.arange(n + 1), n, alpha) > p
        wrong += stats.binom.pmf(s, 20, p) * stats.binom.pmf(np.arange(n + 1), n, p)[above].sum()
    assert 0 < wrong <= alpha


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_evidence(1, 1, 1.0), r"p0 must be in \(0, 1\), got 1.0"),
        (lambda: log_evidence(1, -1, 0.5), "failures must be whole numbers"),
        (lambda: log_evidence(1, 1, 0.5, prior=(0.0, 1.0)), "prior must be two positive numbers"),
        (lambda: anytime_lower(1, 1, 1.0), "alpha must lie strictly between 0 and 1, got 1.0"),
        (lambda: FixedRadius(1.5), "p0 must lie strictly between 0 and 1, got 1.5"),
        (lambda: FixedRadius(0.9, n=0), "n must be a whole number of at least 1, got 0"),
        (lambda: FixedRadius(0.9, n=10).decide(8, 3), "counts must be 0 to 10 together, got 8 and 3"),
        (lambda: copies_for(1, 2, sigma=1, alpha=0.1, n=9, loss=-1), "loss must be 0 or positive"),
        (lambda: copies_for(3, 2, sigma=1, alpha=0.1, n=9, loss=1), "pilot_successes must be whole numbers"),
    ],
)
def test_an_impossible_argument_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
