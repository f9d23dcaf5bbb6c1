"""Calibration: scores against races that are run, the limit against its formula and its promise against simulation."""

import json
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import DiffusionClassifier, InputError
from fastdc.calibration.race import (
    calibrate_errors,
    check_level,
    controlled_limit,
    needed_limits,
    race_evaluations,
    supported_delta,
)
from fastdc.diffusion.level_weights import LevelWeights
from fastdc.diffusion.plan import PlanConfig
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.calibration import Calibration, calibration_from_dict, plan_without_draws
from helpers.rule_runs import run
from helpers.worlds import Float64, classifier, fails_with, gaussian, refusing, unit_images

PLAN = PlanConfig(draws=16, levels=(0.5, 2.0), weighting="edm", first=(1.0,))


def runs(n: int, n_classes: int, draws: int, *, seed: int, rounding: bool = False) -> Float64:
    """Errors (n, K, J) whose best class changes over draws; rounded ones have ties and zeros."""
    rng = np.random.default_rng(seed)
    errors = rng.exponential(1, (n, 1, draws)) + rng.exponential(1, (n, n_classes, draws)) * rng.random((n, 1, 1))
    errors += rng.exponential(0.2, (n, n_classes, 1))
    return np.round(errors) if rounding else errors


# --- scores ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_the_score_is_the_largest_lead_over_the_winner_at_any_look_but_the_last(
    seed: int, n_classes: int, draws: int, rounding: bool
) -> None:
    errors = runs(5, n_classes, draws, seed=seed, rounding=rounding)
    for image, score in zip(errors, needed_limits(errors), strict=True):
        totals = [math.fsum(row) for row in image]
        winner = totals.index(min(totals))
        leads = [0.0]
        for m in (1, 2, 3, 4, 8, 16, 32):
            if m < draws:
                means = [math.fsum(row[:m]) / m for row in image]
                ahead = means[winner] - min(means)
                if ahead > 1e-12:  # equal sums, summed in another order
                    leads.append(m * ahead / min(means) if min(means) > 0 else math.inf)
        assert score == pytest.approx(max(leads), rel=1e-9, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 40), st.sampled_from([0.0, 0.5, 2.0, 10.0]))
def test_replayed_evaluations_are_those_of_the_race(seed: int, n_classes: int, draws: int, limit: float) -> None:
    errors = runs(5, n_classes, draws, seed=seed)
    raced = run(Calibrated(limit), errors)
    np.testing.assert_array_equal(race_evaluations(errors.astype(np.float32), limit), raced.evaluations)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 40))
def test_the_race_keeps_the_full_runs_class_with_its_score_as_limit(seed: int, n_classes: int, draws: int) -> None:
    errors = runs(1, n_classes, draws, seed=seed).astype(np.float32)
    winner = int(errors.sum(axis=2, dtype=np.float64).argmin())
    (score,) = needed_limits(errors).tolist()
    for limit in (score * (1 + 1e-9), 2 * score, score + 1):
        assert run(Calibrated(limit), errors).alive[0, winner]


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_with_a_smaller_limit_the_race_loses_the_full_runs_class_unless_its_rival_goes_first(
    seed: int, draws: int
) -> None:
    """Of two classes, the best of all is the best alive: the score is the limit that matters, to rounding."""
    errors = runs(1, 2, draws, seed=seed).astype(np.float32)
    winner = int(errors.sum(axis=2, dtype=np.float64).argmin())
    (score,) = needed_limits(errors).tolist()
    if score == 0:
        return
    limit = score * (1 - 1e-9)
    dropped: set[int] = set()
    for m in Calibrated(limit).looks(draws)[:-1]:
        totals = [math.fsum(row[:m]) for row in errors[0].astype(np.float64).tolist()]
        if not dropped and m * abs(totals[0] - totals[1]) / min(totals) > limit:
            dropped.add(totals.index(max(totals)))
    assert dropped, "at the look that made the score"
    assert set(np.flatnonzero(~run(Calibrated(limit), errors).alive[0]).tolist()) == dropped
    assert run(Calibrated(score * (1 + 1e-9)), errors).alive[0, winner]


def test_both_endings_of_a_race_with_too_small_a_limit() -> None:
    """Class 0 wins the full run by its last draw; before, it trails by 1 of 4, in the second case after a lead of 2."""
    trails = np.array([[[5.0, 1.0, 1.0, 1.0, 0.0], [4.0, 1.0, 1.0, 1.0, 9.0]]])
    assert needed_limits(trails).tolist() == [4 / 7]  # after 4 draws: 4 (8 - 7) / 7
    assert run(Calibrated(0.57), trails).alive.tolist() == [[False, True]]
    leads = np.array([[[1.0, 4.0, 1.0, 1.0, 0.0], [3.0, 1.0, 1.0, 1.0, 9.0]]])
    assert needed_limits(leads).tolist() == [4 / 6]  # after 4 draws: 4 (7 - 6) / 6
    assert run(Calibrated(0.6), leads).alive.tolist() == [[True, False]]


def test_scores_of_special_images() -> None:
    zero = [[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    assert needed_limits(np.array([zero])).tolist() == [math.inf]  # nothing keeps class 0 at the first look
    equal = np.ones((1, 3, 8))
    assert needed_limits(equal).tolist() == [0]
    assert needed_limits(np.zeros((1, 3, 8))).tolist() == [0]
    assert needed_limits(np.ones((2, 1, 8))).tolist() == [0, 0]
    assert needed_limits(np.array([[[3.0], [1.0]]])).tolist() == [0]  # one draw: nothing is ever dropped
    late = np.array([[[2.0, 2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 5.0]]])
    assert needed_limits(late).tolist() == [4.0]


# --- the limit -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),
    st.integers(1, 3),
    st.floats(0.02, 0.98),
    st.integers(0, 1000),
)
def test_the_limit_is_the_smallest_that_the_formula_allows(
    values: list[int], seeds: int, delta: float, shuffle: int
) -> None:
    """By brute force over all limits that could matter; scores have ties."""
    n = len(values)
    rng = np.random.default_rng(shuffle)
    scores = np.stack([rng.permutation(values) for _ in range(seeds)], axis=1).astype(np.float64)

    def allowed(limit: float) -> bool:
        return n / (n + 1) * float(np.mean(scores > limit)) + 1 / (n + 1) <= delta + 1e-12

    if 1 / (n + 1) > delta:
        need = next(m for m in range(1, 10_000) if 1 / (m + 1) <= delta)
        fails_with(partial(controlled_limit, scores, delta), f"at least {need} ", f"got {n}", kind=InputError)
        return
    limit = controlled_limit(scores, delta)
    assert limit in scores
    assert allowed(limit)
    assert not any(allowed(smaller) for smaller in np.unique(scores).tolist() if smaller < limit)


def test_levels_at_the_edge_of_what_the_images_support() -> None:
    scores = np.arange(1000.0)[:, None]
    for n, delta in ((99, 0.01), (19, 0.05), (9, 0.1), (6, 1 / 7), (1, 0.5), (999, 0.001), (48, 1 / 49)):
        assert controlled_limit(scores[:n], delta) == n - 1  # none may be lost
        assert controlled_limit(np.repeat(scores[:n], 1000, axis=1), delta) == n - 1
        check_level(delta, n)
        if n > 1:
            says = f"delta = {delta:g} needs at least {n} validation images, got {n - 1}"
            fails_with(partial(check_level, delta, n - 1), says, kind=InputError)
            fails_with(partial(controlled_limit, scores[: n - 1], delta), says, kind=InputError)
    assert controlled_limit(scores[:199], 0.01) == 197  # of 199 images one
    wrong: list[Any] = [0, 1, -0.1, 1.5, math.nan, "0.1", None, True]
    for delta in wrong:
        fails_with(partial(check_level, delta, 1000), "delta must lie strictly between 0 and 1", kind=InputError)
    nothing = np.full((99, 1), math.inf)
    fails_with(lambda: controlled_limit(nothing, 0.5), "no finite limit is enough", kind=InputError)


@pytest.mark.parametrize(("n", "delta"), [(99, 0.01), (150, 0.01), (197, 0.05), (40, 0.2)])
@pytest.mark.parametrize("seeds", [1, 8])
def test_a_fresh_image_is_lost_with_probability_delta_at_most(n: int, delta: float, seeds: int) -> None:
    """Heavy-tailed scores whose seeds are nearly copies of one another, 4000 calibrations with a fresh image each."""
    rng = np.random.default_rng(n * seeds)
    losses = []
    for _ in range(4000):
        images = rng.standard_cauchy((n + 1, 1)) ** 2 * np.exp(0.3 * rng.standard_normal((n + 1, seeds)))
        limit = controlled_limit(images[:n], delta)
        losses.append(float(np.mean(images[n] > limit)))
    mean, deviation = float(np.mean(losses)), float(np.std(losses)) / math.sqrt(len(losses))
    assert mean <= delta + 4 * deviation
    # Conformal risk control gives away at most 2 / (n + 1), and one image is the finest step without more seeds.
    assert mean >= delta - 2 / (n + 1) - 4 * deviation


# --- whole calibrations ----------------------------------------------------------------------------------------------


def test_a_calibration_says_what_it_is_of() -> None:
    tables = [runs(60, 4, 16, seed=seed) for seed in range(3)]
    made = calibrate_errors(tables, PLAN, delta=0.1)
    scores = np.stack([needed_limits(table) for table in tables], axis=1)
    assert made.limit == controlled_limit(scores, 0.1)
    assert made.risk == np.mean(scores > made.limit)
    assert 0 < made.risk <= 0.1
    assert (made.delta, made.draws, made.images, made.seeds) == (0.1, 16, 60, 3)
    assert made.bound == max(
        abs(table[:, k] - table[:, other]).max() for table in tables for k in range(4) for other in range(k)
    )
    assert made.plan == plan_without_draws(PLAN)
    assert "draws" not in made.plan
    assert made.rule == Calibrated(made.limit, draws=16)
    assert calibrate_errors(iter(tables), PLAN, delta=0.1) == made


def test_a_stored_calibration_is_the_same() -> None:
    plan = replace(PLAN, level_weights=LevelWeights((0.1, 1.0), (1.0, 2.0)), antithetic=True)
    made = calibrate_errors([runs(20, 3, 16, seed=0).astype(np.float32)], plan, delta=0.1)
    told = json.loads(json.dumps(made.to_dict()))
    assert calibration_from_dict(told) == made
    assert calibration_from_dict(told).fits(plan)


def test_it_fits_its_plan_at_any_number_of_draws_and_no_other() -> None:
    made = calibrate_errors([runs(20, 3, 16, seed=0)], PLAN, delta=0.1)
    for draws in (1, 16, 128):
        assert made.fits(replace(PLAN, draws=draws))
    changes: list[dict[str, Any]] = [
        {"levels": None},
        {"levels": (0.5, 2.1)},
        {"weighting": "vlb"},
        {"loss": "l1"},
        {"delta": 0.5},
        {"first": ()},
        {"order": "random"},
        {"antithetic": True},
        {"level_weights": LevelWeights((0.1, 1.0), (1.0, 2.0))},
    ]
    for change in changes:
        assert not made.fits(replace(PLAN, **change)), change
    assert not replace(made, plan={"speed": 1}).fits(PLAN)  # of a version with other options
    assert not replace(made, plan={"weighting": 3}).fits(PLAN)
    assert not replace(made, plan={"level_weights": 3}).fits(PLAN)


NO_AMOUNTS: list[Any] = [-1, math.inf, math.nan, "1", None, True]
NO_SHARES: list[Any] = [-0.1, 1, 2, math.nan, "1", None, False]
NO_OBJECTS: list[Any] = [None, [], "x", 3]
NO_COUNTS: list[Any] = [0, -1, 1.5, "8", None, True]
STORED: dict[str, Any] = {
    "limit": 1.5,
    "delta": 0.01,
    "risk": 0.005,
    "draws": 64,
    "images": 200,
    "seeds": 8,
    "bound": 2.5,
    "plan": plan_without_draws(PLAN),
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({name: value}, name) for name in ("limit", "bound") for value in NO_AMOUNTS),
        *(({name: value}, name) for name in ("delta", "risk") for value in NO_SHARES),
        *(({name: value}, name) for name in ("draws", "images", "seeds") for value in NO_COUNTS),
        *(({"plan": value}, "plan") for value in NO_OBJECTS),
        ({"speed": 1}, "has an unknown field 'speed'"),
    ],
)
def test_what_is_no_calibration_is_refused(change: dict[str, Any], says: str) -> None:
    assert calibration_from_dict(STORED) == Calibration(**STORED)
    fails_with(lambda: calibration_from_dict({**STORED, **change}), "calibration", says, kind=InputError)


def test_a_calibration_without_a_field_is_refused() -> None:
    for name in STORED:
        entry = {key: value for key, value in STORED.items() if key != name}
        fails_with(partial(calibration_from_dict, entry), f"calibration lacks field '{name}'", kind=InputError)
    for other in NO_OBJECTS:
        fails_with(partial(calibration_from_dict, other), "calibration must be an object", kind=InputError)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([], "one run or more, got none"),
        ([np.ones((3, 4))], "runs of one shape (n, K, J)"),
        ([np.ones((3, 4, 16)), np.ones((2, 4, 16))], "got (3, 4, 16) and (2, 4, 16)"),
        ([np.ones((0, 4, 16))], "runs of one shape"),
        ([np.ones((3, 0, 16))], "runs of one shape"),
        ([np.ones((3, 4, 15))], "finite at all 16 draws, got shape (3, 4, 15)"),
        ([np.ones((3, 4, 16)), np.full((3, 4, 16), np.nan)], "finite at all 16 draws"),
        ([np.full((3, 4, 16), np.inf)], "finite at all 16 draws"),
    ],
)
def test_errors_that_cannot_be_calibrated_on_are_refused(tables: Any, says: str) -> None:
    fails_with(lambda: calibrate_errors(tables, PLAN, delta=0.5), says, kind=InputError)


# --- by the classifier, in the Gaussian world ------------------------------------------------------------------------

WORLD = gaussian(6)


def samples(n: int, *, seed: int) -> Any:
    """Images of the world's classes, in [0, 1]."""
    labels = np.random.default_rng(seed).integers(0, 6, n)
    return ((WORLD.sample(labels, seed=seed) + 1) / 2).astype(np.float32)


def test_the_race_gives_the_full_runs_labels_but_for_delta_at_a_fraction_of_the_cost() -> None:
    delta, draws, n = 0.05, 32, 400
    clf = classifier(WORLD, batch=1024)
    made = clf.calibrate(samples(200, seed=1), delta=delta, seeds=2, draws=draws)
    assert (made.images, made.seeds, made.draws, made.delta) == (200, 2, draws, delta)
    fresh = samples(n, seed=2)
    full = clf.classify(fresh, rule="full", draws=draws)
    race = clf.classify(fresh, rule=made.rule, draws=draws)
    wrong = float(np.mean(race.labels != full.labels))
    assert wrong <= delta + 3 * math.sqrt(delta * (1 - delta) / n)
    assert race.evaluations.mean() < 0.5 * full.evaluations.mean()
    assert race.provenance["rule"] == {"name": "calibrated", "limit": made.limit, "draws": draws}

    held = DiffusionClassifier(replace(clf.model, calibration=made), clf.network)
    same = held.classify(fresh[:50], draws=draws)  # "race" is the default
    np.testing.assert_array_equal(same.errors, race.errors[:50])
    other = held.classify(fresh[:5], draws=draws, loss="l1")  # a plan that it was not calibrated for
    assert other.provenance["rule"]["name"] == "paired"
    betting = held.classify(fresh[:5], draws=draws, rule="betting", rule_options={"alpha": 0.1})
    assert betting.provenance["rule"]["bound"] == made.bound


def test_what_the_classifier_cannot_calibrate_is_refused_before_any_work() -> None:
    clf = refusing(WORLD.model)
    images = samples(40, seed=0)
    too_few = "delta = 0.01 needs at least 99 validation images, got 40"
    fails_with(lambda: clf.calibrate(images), too_few, kind=InputError)
    wrong: list[Any] = [0, -1, 1.5, "2", None, True]
    for seeds in wrong:
        fails_with(partial(clf.calibrate, images, delta=0.1, seeds=seeds), "seeds must be", kind=InputError)
    fails_with(lambda: clf.calibrate(images, delta=2), "delta must lie", kind=InputError)
    fails_with(lambda: clf.calibrate(images, delta=0.1, draws=0), "draws", kind=InputError)
    fails_with(lambda: clf.calibrate(images[:, :, :2], delta=0.1), "images", kind=InputError)


def test_seeds_are_those_of_the_errors() -> None:
    clf = classifier(gaussian(3))
    images = unit_images(20)
    made = clf.calibrate(images, delta=0.1, seeds=3, draws=16)
    tables = [clf.errors(images, seed=seed, draws=16).errors for seed in range(3)]
    assert made == calibrate_errors(tables, PlanConfig(16, weighting="edm"), delta=0.1)
    assert clf.calibrate(images, delta=0.2, seeds=1).draws == 128


@pytest.mark.parametrize(
    ("images", "delta"), [(19, 0.05), (24, 0.04), (33, 0.03), (49, 0.02), (99, 0.01), (5000, 0.01)]
)
def test_the_level_is_what_as_many_images_support(images: int, delta: float) -> None:
    assert supported_delta(images) == delta
    assert 1 / (images + 1) <= delta + 1e-12  # the finite-sample bound of conformal risk control


def test_too_few_images_support_no_level() -> None:
    with pytest.raises(InputError, match="18 images support no level below"):
        supported_delta(18)


def test_a_class_that_is_no_candidate_of_an_image_does_not_compete_there() -> None:
    errors = runs(30, 5, 16, seed=2)
    partial_errors = errors.copy()
    partial_errors[10:, 3:] = np.nan
    partial_errors[20:, 1] = np.nan
    made = calibrate_errors([partial_errors], PLAN, delta=0.1)
    parts = (errors[:10], errors[10:20, :3], errors[20:][:, [0, 2]])
    assert made.limit == controlled_limit(np.concatenate([needed_limits(part) for part in parts])[:, None], 0.1)
    assert made.bound == max(float(np.ptp(part, axis=1).max()) for part in parts)
