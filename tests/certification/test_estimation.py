"""Estimations: what they conclude from counts, by enumeration, exact recursions over counts, and simulation."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fastdc import InputError
from fastdc.certification.estimation import AbstractCounting, Anytime, Fixed, Pilot, Predict, Target, Verdict
from fastdc.certification.sequential import anytime_lower, copies_for
from fastdc.certification.smoothing import Smoothing
from helpers.worlds import fails_with

ALL: tuple[AbstractCounting, ...] = (
    Fixed(0.25, 1000, 0.001),
    Target(0.25, 0.5, 2000, 0.01),
    Anytime(0.25, 1000, 0.01),
)


def points(estimation: AbstractCounting) -> Iterator[int]:
    copies = 0
    while copies < estimation.n:
        copies = estimation.next_point(copies)
        yield copies


@pytest.mark.parametrize("estimation", ALL, ids=lambda estimation: estimation.name)
def test_points_grow_by_an_eighth_and_end_at_the_last_copy(estimation: AbstractCounting) -> None:
    seen = [0, *points(estimation)]
    steps = np.diff(seen)
    assert seen[-1] == estimation.n
    assert (steps > 0).all()
    assert all(step <= max(32, copies / 8) for step, copies in zip(steps, seen, strict=False))


@pytest.mark.parametrize("estimation", ALL, ids=lambda estimation: estimation.name)
def test_there_is_a_verdict_at_the_last_copy(estimation: AbstractCounting) -> None:
    for successes in range(0, estimation.n + 1, 50):
        verdict = estimation.verdict(successes, estimation.n)
        assert verdict is not None
        assert (verdict.radius is None) == (verdict.p_lower == 0) or verdict.radius == 0


def final(n: int, successes: int, sigma: float, alpha: float) -> float | None:
    """Cohen's CERTIFY by the beta quantile itself."""
    p = stats.beta.ppf(alpha, successes, n - successes + 1) if successes else 0.0
    return float(sigma * stats.norm.ppf(p)) if p > 0.5 else None


def test_fixed_is_cohens_bound() -> None:
    for n, alpha in ((100, 0.001), (57, 0.05), (1, 0.6)):
        estimation = Fixed(0.5, n, alpha)
        for successes in range(n + 1):
            verdict, expected = estimation.verdict(successes, n), final(n, successes, 0.5, alpha)
            assert verdict is not None
            assert (verdict.radius is None) == (expected is None)
            if expected is not None:
                assert verdict.radius == pytest.approx(expected, rel=1e-9)


def test_fixed_stops_early_only_if_the_end_is_known() -> None:
    """At every point and count: it abstains if and only if all ways to go on end in abstaining."""
    n, alpha = 200, 0.01
    estimation = Fixed(0.5, n, alpha)
    for copies in points(estimation):
        for successes in range(copies + 1):
            verdict = estimation.verdict(successes, copies)
            best = final(n, successes + n - copies, 0.5, alpha)
            if copies < n:
                assert verdict == (Verdict(None, 0.0) if best is None else None)


def chance(estimation: AbstractCounting, p: float) -> float:
    """The probability of a certificate when a copy succeeds with probability p, by recursion over the counts."""
    mass = np.ones(1)  # of 0, 1, ... successes, still counting
    certified, copies = 0.0, 0
    for point in points(estimation):
        more = point - copies
        mass = np.convolve(mass, stats.binom.pmf(np.arange(more + 1), more, p))
        copies = point
        for successes in np.flatnonzero(mass):
            verdict = estimation.verdict(int(successes), copies)
            if verdict is not None:
                certified += mass[successes] * (verdict.radius is not None)
                mass[successes] = 0
    assert mass.sum() == pytest.approx(0, abs=1e-12)
    return certified


def test_target_certifies_falsely_with_probability_alpha_at_most() -> None:
    for alpha in (0.05, 0.01):
        estimation = Target(0.25, 0.3, 1000, alpha)
        p0 = float(stats.norm.cdf(0.3 / 0.25))
        assert 0 < chance(estimation, p0) <= alpha
        assert chance(estimation, p0 - 0.02) < chance(estimation, p0)
        assert chance(estimation, 0.99) > 0.99


def test_target_certifies_the_radius_asked_about() -> None:
    estimation = Target(0.5, 0.5, 5000, 0.001)
    assert estimation.verdict(200, 200) == Verdict(0.5, float(stats.norm.cdf(1)))
    assert estimation.verdict(100, 200) == Verdict(None, 0.0)
    assert estimation.verdict(170, 200) is None  # 0.85 is near 0.841


def test_anytime_bounds_hold_at_all_points_at_once() -> None:
    p, alpha, runs = 0.9, 0.1, 2000
    estimation = Anytime(1.0, 300, alpha, gain=1e-9)
    rng = np.random.default_rng(0)
    wins = rng.random((runs, 300)) < p
    counted = np.cumsum(wins, axis=1)
    known: dict[tuple[int, int], float] = {}

    def bound(successes: int, copies: int) -> float:
        key = (successes, copies)
        if key not in known:
            known[key] = float(anytime_lower(successes, copies - successes, alpha))
        return known[key]

    wrong = [any(bound(int(row[m - 1]), m) > p for m in points(estimation)) for row in counted]
    assert stats.binomtest(sum(wrong), runs, alpha, alternative="greater").pvalue > 1e-3
    for successes, copies in ((32, 32), (300, 300), (280, 300)):
        verdict = estimation.verdict(successes, copies)
        if verdict is not None and verdict.radius is not None:
            assert verdict.radius == pytest.approx(stats.norm.ppf(bound(successes, copies)), rel=1e-6)


def test_anytime_stops_when_more_copies_gain_little_or_nothing_can_come() -> None:
    loose, tight = Anytime(0.25, 100_000, 0.001, gain=0.5), Anytime(0.25, 100_000, 0.001, gain=0.01)
    assert loose.verdict(1000, 1000) is not None
    assert tight.verdict(1000, 1000) is None
    assert Anytime(0.25, 1000, 0.001).verdict(100, 700) == Verdict(None, 0.0)


def test_pilot_takes_fewer_copies_if_they_lose_little() -> None:
    estimation = Pilot(0.25, 10_000, 0.001, loss=0.05)
    for top in (100, 99, 90, 60):
        begun = estimation.begin(np.array([100 - top, top, 0]))
        expected = copies_for(top, 100, sigma=0.25, alpha=0.001, n=10_000, loss=0.05)
        assert begun == Fixed(0.25, expected, 0.001)
    assert Pilot(0.25, 10_000, 0.001, loss=1e-6).begin(np.array([0, 100])) == Fixed(0.25, 10_000, 0.001)


def test_predict_is_the_binomial_test() -> None:
    """Against a sum of binomial coefficients."""
    estimation = Predict(0.25, 0.01)
    answered = []
    for counts in ([90, 10, 0], [60, 40, 0], [50, 50], [10], [3, 2, 1], [64, 36], [7, 0], [8, 0], [0, 63, 0, 37]):
        second, top = sorted([*counts, 0])[-2:]
        n = top + second
        p = min(Fraction(1), 2 * sum(Fraction(math.comb(n, i), 2**n) for i in range(second + 1)))
        answered.append(p <= Fraction(1, 100))
        assert estimation.begin(np.array(counts)) == Verdict(0.0 if answered[-1] else None, 0.0)
    assert answered == [True, False, False, True, False, True, False, True, False]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.45, 0.55), (0.2, 0.39, 0.41), (0.33, 0.33, 0.34)])
def test_predict_answers_wrongly_with_probability_alpha_at_most(shares: tuple[float, ...]) -> None:
    """Over all counts of 24 copies. Wrong is every class but the most probable one, which stands last."""
    alpha, n = 0.1, 24
    estimation = Predict(0.25, alpha)
    law = stats.multinomial(n, shares)
    wrong = 0.0
    for counts in product(range(n + 1), repeat=len(shares)):
        if sum(counts) == n and np.argmax(counts) != len(shares) - 1:
            wrong += law.pmf(counts) * (estimation.begin(np.array(counts)).radius is not None)
    assert 0 < wrong <= alpha


def test_others_go_on_after_selection() -> None:
    for estimation in ALL:
        assert estimation.begin(np.array([5, 95])) is estimation
        told = estimation.describe()
        assert told["estimation"] == estimation.name
        assert not any(name.startswith("_") for name in told)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (Fixed, {"sigma": 0}, "sigma"),
        (Fixed, {"sigma": float("nan")}, "sigma"),
        (Fixed, {"alpha": 0}, "alpha"),
        (Fixed, {"alpha": 1}, "alpha"),
        (Fixed, {"alpha": True}, "alpha"),
        (Predict, {"sigma": -1}, "sigma"),
        (Predict, {"alpha": 1}, "alpha"),
        (Fixed, {"n": 0}, "n must"),
        (Fixed, {"n": 1.5}, "n must"),
        (Target, {"radius": 0}, "radius"),
        (Target, {"radius": 2.5}, "8 sigma"),
        (Target, {"radius": "1"}, "radius"),
        (Anytime, {"gain": 0}, "gain"),
        (Pilot, {"loss": -1}, "loss"),
    ],
)
def test_bad_options_are_one_line(kind: Any, options: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {"sigma": 0.25, "n": 100, "alpha": 0.01}
    if kind is Target:
        good["radius"] = 0.5
    if kind is Predict:
        del good["n"]
    fails_with(lambda: kind(**{**good, **options}), named, kind=InputError)


def test_numbers_are_stored_as_pythons_own() -> None:
    """So that they can be written to a manifest, whatever type they came in."""
    told = Fixed(np.float32(0.25), np.int64(100), np.float64(0.01)).describe()  # type: ignore[arg-type]
    assert told == {"estimation": "fixed", "sigma": 0.25, "n": 100, "alpha": 0.01}
    assert [type(value) for value in told.values()] == [str, float, int, float]


# --- numbers of copies that certify nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5, 2.0**-7, 1e-40])
def test_a_fixed_number_must_suffice_if_every_copy_is_won(alpha: float) -> None:
    """alpha^(1/n) is the bound after n successes in n copies; SciPy states it independently."""
    least = next(n for n in range(1, 1000) if stats.beta.ppf(alpha, n, 1) > 0.5)
    for kind in (Fixed, Pilot):
        kind(0.25, least, alpha)
        if least > 1:
            with pytest.raises(
                InputError, match=f"n must be at least {least} to certify any radius .* got {least - 1}"
            ):
                kind(0.25, least - 1, alpha)
    won = Fixed(0.25, least, alpha).verdict(least, least)
    assert won is not None
    assert won.radius
    begun = Pilot(0.25, 10_000, alpha, loss=10.0).begin(np.array([99, 1]))
    assert begun.verdict(begun.n, begun.n) is not None


@pytest.mark.parametrize("radius", [0.1, 0.5, 0.75])
def test_a_radius_must_be_within_reach(radius: float) -> None:
    with pytest.raises(InputError, match=r"to certify radius .* at sigma 0\.25") as caught:
        Target(0.25, radius, 10, 0.001)
    least = int(re.search(r"at least (\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    won = Target(0.25, radius, least, 0.001).verdict(least, least)
    assert won is not None
    assert won.radius == radius
    with pytest.raises(InputError, match=f"at least {least}"):
        Target(0.25, radius, least - 1, 0.001)
    with pytest.raises(InputError, match=r"no n up to 10000000 certifies radius 1\.9"):
        Target(0.25, 1.9, 1000, 0.001)


def test_a_sequence_must_reach_a_half() -> None:
    with pytest.raises(InputError, match="any radius") as caught:
        Anytime(0.25, 3, 0.001)
    least = int(re.search(r"at least (\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    won = Anytime(0.25, least, 0.001).verdict(least, least)
    assert won is not None
    assert won.radius


def test_predictions_need_a_selection_that_can_decide() -> None:
    for alpha in (0.001, 0.05, 0.4):
        least = next(n for n in range(1, 100) if stats.binomtest(n, n).pvalue <= alpha)
        smoothing = Smoothing(Predict(0.25, alpha), n0=least)
        assert smoothing.estimation.begin(np.array([least, 0])).radius is not None  # type: ignore[union-attr]
        if least > 1:
            with pytest.raises(InputError, match=f"n0 must be at least {least} .* got {least - 1}"):
                Smoothing(Predict(0.25, alpha), n0=least - 1)
