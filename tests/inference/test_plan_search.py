"""The choice of a plan: replays against real runs, a world whose best band is known, and the race's promise."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastdc
from fastdc import DiffusionClassifier, InputError
from fastdc.calibration import beyond_doubt, controlled_limit, needed_limits
from fastdc.data import digits_test
from fastdc.diffusion import LOSSES, WEIGHTINGS, EDMSchedule, FlowSchedule
from fastdc.inference import (
    PlanOptions,
    WideErrors,
    bands,
    choice_size,
    choose_plan,
    declined_note,
    size_note,
    split_images,
    wide_errors,
)
from fastdc.inference.plan_choice import Trial
from fastdc.inference.plan_search import _Search
from fastdc.testing import GaussianWorld
from helpers.worlds import Float32, Float64, Int64, ManySlots, classifier, fails_with, gaussian, unit_images

DIGITS = digits_test()


def banded(levels: tuple[float, float], classes: int = 3) -> tuple[DiffusionClassifier, Float32, Int64]:
    """A classifier that is right in a band of levels only, and outside takes each class for another; with images."""
    world = replace(GaussianWorld.random(classes, scale=0.3), schedule=EDMSchedule(sigma_min=0.05, sigma_max=50.0))

    def function(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        sigma = np.exp(timestep.astype(np.float64) / world.schedule.timestep_scale)
        good = (sigma >= levels[0]) & (sigma <= levels[1])
        return world.denoise(sample.astype(np.float64), sigma, np.where(good, labels, (labels + 1) % classes))

    labels = np.arange(60) % classes
    images = ((world.sample(labels) + 1) / 2).astype(np.float32)
    return DiffusionClassifier(world.model, ManySlots(function)), images, labels


# --- the table that is replayed --------------------------------------------------------------------------------------


def test_the_wide_errors_are_those_of_runs_under_each_weighting_and_loss() -> None:
    clf, images = fastdc.load("digits-mlp", threads=1), DIGITS.images[:2]
    band = (0.1, 10.0)
    wide = wide_errors(clf.validation_runs(images), band, draws=5, seeds=2)
    for loss in LOSSES:
        for name in WEIGHTINGS:
            theirs = clf.errors(images, draws=5, levels=band, weighting=name, loss=loss, seed=1)
            # A residual in one space is rounded to float32 at another scale than in another.
            np.testing.assert_allclose(wide.errors(1, name, loss, range(5)), theirs.errors, rtol=2e-4)
            np.testing.assert_array_equal(wide.ratio, theirs.sigma)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_may_begin_from_any_loss(loss: str) -> None:
    clf, images = classifier(gaussian(3)), unit_images(3)
    wide = wide_errors(clf.validation_runs(images, loss=loss, weighting="vlb"), (0.1, 2.0), draws=4, seeds=1)
    for other in LOSSES:
        theirs = clf.errors(images, draws=4, levels=(0.1, 2.0), weighting="velocity", loss=other).errors
        np.testing.assert_allclose(wide.errors(0, "velocity", other, range(4)), theirs, rtol=1e-3)


def test_a_band_holds_its_draws_in_the_order_of_the_plan() -> None:
    ratio = np.array([1.0, 0.3, 4.0, 0.2, 2.0])
    wide = WideErrors(ratio, (), {})
    assert wide.inside((0.2, 2.0)) == [0, 1, 3, 4]
    assert wide.inside(None) == [0, 1, 2, 3, 4]
    assert [wide.nearest(level) for level in (0.21, 2.7, 100.0)] == [3, 4, 2]


def test_bands_lie_in_the_schedule_and_in_its_units() -> None:
    model = gaussian().model  # 0.05 to 5
    assert bands(model)[:3] == [(0.05, 0.2), (0.05, 0.5), (0.05, 1.0)]
    assert max(high for _, high in bands(model)) == 5.0
    assert all(4 <= high / low < 51 for low, high in bands(model))
    half = replace(model, value_range=(0.0, 1.0), schedule=FlowSchedule())
    assert bands(half)[0] == (0.025, 0.1)
    assert len(bands(half)) == 26


# --- what is chosen --------------------------------------------------------------------------------------------------


def test_a_band_that_is_best_by_construction_is_found_without_further_evaluations() -> None:
    clf, images, labels = banded((0.5, 2.0))
    clf = replace(clf, model=replace(clf.model, defaults=replace(clf.model.defaults, levels=(5.0, 50.0))))
    choice = choose_plan(clf.validation_runs(images), labels, draws=128, seeds=2)
    assert choice.chosen.levels == (0.5, 2.0)
    assert choice.own.levels == (5.0, 50.0)
    assert choice.own.accuracy < 0.1
    assert choice.chosen.accuracy > 0.9
    assert isinstance(clf.network, ManySlots)
    assert sum(clf.network.recorded) == len(images) * 3 * 128 * 2
    assert "levels 0.5 to 2" in str(choice)
    assert "instead of" in str(choice)
    assert sum(" chosen" in line for line in choice.table()) == 1
    assert sum(" before" in line for line in choice.table()) == 1
    head, key = choice.table()[0], choice.table()[-1]
    assert re.split(r" {2,}", head.strip())[-3:] == [f"{choice.compared} draws", "8 draws", "race"]
    assert key.startswith(f"(levels, first: sigma / alpha; {choice.compared} and 8 draws: accuracy ")
    assert key.endswith("; race: evaluations per image)")
    unlabelled = replace(choice, labelled=False).table()[-1]
    assert " 8 draws: agreement with the full run at so many draws of every class; " in unlabelled

    # A real run under the chosen plan, with other noise and draws of its own, is as accurate within noise.
    plan: PlanOptions = {**choice.options, "draws": choice.compared}
    real = clf.classify(images, rule="full", seed=9, **plan)
    right = (real.labels == labels).astype(float)
    assert abs((right - choice.chosen.right).mean()) <= 4 * (right - choice.chosen.right).std() / np.sqrt(60) + 1e-9
    # It becomes the model's default.
    model = replace(clf.model, defaults=choice.applied(clf.model.defaults))
    config, chosen = replace(clf, model=model).settings(rule="full").job.plan.config, choice.chosen
    assert (config.levels, config.draws) == ((0.5, 2.0), choice.draws)
    assert (config.weighting, config.loss, config.first) == (chosen.weighting, chosen.loss, chosen.first)


def test_a_plan_that_is_good_stays() -> None:
    clf, images, labels = banded((0.5, 2.0))
    runs = clf.validation_runs(images, levels=(0.5, 2.0))
    choice = choose_plan(runs, labels, draws=128, seeds=1)
    assert (choice.chosen.levels, choice.chosen.weighting, choice.chosen.loss) == ((0.5, 2.0), "edm", "l2")
    kept = choose_plan(runs, labels, searched=("levels", "weighting", "loss"), draws=128, seeds=1)
    assert kept.chosen is kept.own
    assert str(kept).endswith(", as before")


def test_a_plan_that_is_as_accurate_gives_way_to_a_cheaper_one() -> None:
    clf, images, labels = banded((0.5, 2.0))
    choice = choose_plan(clf.validation_runs(images, levels=(0.4, 2.5)), labels, searched=("levels",), draws=128)
    assert choice.chosen.levels == (0.5, 2.0)
    assert choice.chosen.evaluations < 0.5 * choice.own.evaluations
    assert not beyond_doubt(choice.chosen.right - choice.own.right, 2)
    assert choice.chosen.accuracy >= choice.own.accuracy


def test_a_cheap_race_never_makes_up_for_accuracy() -> None:
    """81 images: the model's plan is right on 74, one band on 80 with a race of 33, another on 76 with a race of 14."""

    def trial(high: float, right: int, spent: float) -> Trial:
        answers = np.zeros(81)
        answers[:right] = 1
        return Trial((1.0, high), "edm", "l2", (), answers, right / 81, np.full(81, spent))

    search = object.__new__(_Search)
    own, best, cheap, equal = trial(2, 74, 79), trial(5, 80, 33), trial(50, 76, 14), trial(10, 80, 20)
    assert search._better(own, [cheap, best]) is best
    assert search._better(own, [cheap, best, equal]) is equal


def test_what_is_not_searched_stays() -> None:
    clf, images, labels = banded((0.5, 2.0))
    plan: dict[str, Any] = {"levels": (1.0, 20.0), "first": (3.0,), "loss": "huber", "draws": 11}
    choice = choose_plan(clf.validation_runs(images, **plan), labels, searched=("weighting",), draws=64, seeds=1)
    assert {trial.levels for trial in choice.trials} == {(1.0, 20.0)}
    assert {trial.loss for trial in choice.trials} == {"huber"}
    assert {trial.weighting for trial in choice.trials} == set(WEIGHTINGS)
    assert (choice.chosen.first, choice.draws) == ((3.0,), 11)
    assert set(choice.defaults) == {"weighting"}
    assert isinstance(clf.network, ManySlots)
    assert sum(clf.network.recorded) == len(images) * 3 * 64  # no wider band is needed


def test_a_first_draw_that_is_given_stays_in_every_band() -> None:
    clf, images, labels = banded((0.5, 2.0))
    runs = clf.validation_runs(images, levels=(5.0, 50.0), first=(1.5,))
    choice = choose_plan(runs, labels, searched=("levels", "draws"), draws=64, seeds=1)
    assert {trial.first for trial in choice.trials} == {(1.5,)}


def test_without_labels_only_the_first_draw_is_chosen() -> None:
    clf, images, _ = banded((0.5, 2.0))
    choice = choose_plan(clf.validation_runs(images, levels=(0.2, 5.0)), None, draws=64, seeds=2)
    assert choice.searched == ("first",)
    assert (choice.chosen.levels, choice.chosen.weighting, choice.chosen.loss) == ((0.2, 5.0), "edm", "l2")
    assert set(choice.defaults) == {"first"}
    assert "%" not in str(choice)


def test_a_first_draw_makes_the_race_cheaper() -> None:
    clf, images, labels = banded((0.5, 2.0))
    # The van der Corput order begins in the middle, where every class is taken for another.
    choice = choose_plan(clf.validation_runs(images, levels=(0.5, 8.0)), labels, searched=("first",), seeds=2)
    (first,) = choice.chosen.first
    assert 0.5 <= first <= 2.0
    assert choice.chosen.evaluations < choice.own.evaluations


def test_prompts_are_judged_by_their_classes() -> None:
    clf, images, labels = banded((0.5, 2.0), classes=4)
    model = replace(clf.model, class_names=("a", "b"), prompts=("w", "x", "y", "z"), class_of=(0, 1, 0, 1))
    choice = choose_plan(replace(clf, model=model).validation_runs(images), labels % 2, draws=64, seeds=1)
    assert choice.chosen.accuracy > 0.9


def test_on_the_digits_a_choice_is_as_good_as_what_was_there() -> None:
    clf = fastdc.load("digits-mlp", threads=1)
    kept, rest = split_images(160)  # type: ignore[misc]
    choice = choose_plan(clf.validation_runs(DIGITS.images[kept]), DIGITS.labels[kept], draws=128, seeds=1)
    test, labels = DIGITS.images[rest], DIGITS.labels[rest]
    before = clf.classify(test, rule="full", draws=16).labels == labels
    plan: PlanOptions = {**choice.options, "draws": 16}
    after = clf.classify(test, rule="full", **plan).labels == labels
    difference = after.astype(float) - before
    assert difference.mean() >= -2 * difference.std() / np.sqrt(len(test)) - 1e-9


def test_what_cannot_be_chosen_on_is_refused() -> None:
    clf, images, labels = banded((0.5, 2.0))
    fails_with(lambda: choose_plan(clf.validation_runs(images[:1]), labels[:1]), "2 images", kind=InputError)
    noisy = clf.validation_runs(images, sigma=0.1, method="dc")
    fails_with(lambda: choose_plan(noisy, labels), "clean images", kind=InputError)


# --- which images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [99, 120, 149, 170, 197, 198, 199, 1000])
def test_images_are_halved_and_the_calibrating_part_gets_what_it_needs(n: int) -> None:
    parts = split_images(n)
    assert parts is not None
    kept, rest = parts
    assert sorted([*kept, *rest]) == list(range(n))
    assert set(kept.tolist()) <= set(range(0, n, 2))
    if n // 2 >= 99 or n < 149:  # enough, or never enough
        assert kept.tolist() == list(range(0, n, 2))
    else:
        assert len(rest) == 99
        assert len(kept) >= 50


def test_both_parts_have_all_classes_where_these_alternate() -> None:
    labels = np.arange(240) % 4
    parts = split_images(240, labels=labels)
    assert parts is not None
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[30] * 4] * 2
    assert sorted(np.concatenate(parts)) == list(range(240))


def test_a_level_says_how_many_images_calibrate() -> None:
    assert split_images(98) is None
    assert split_images(140, 0.01) is None
    kept, rest = split_images(150, 0.01)  # type: ignore[misc]
    assert (len(kept), len(rest)) == (51, 99)
    kept, rest = split_images(100, 0.1)  # type: ignore[misc]
    assert (len(kept), len(rest)) == (50, 50)
    kept, rest = split_images(30, 0.1, least=10)  # type: ignore[misc]
    assert (len(kept), len(rest)) == (15, 15)


@pytest.mark.parametrize(("n", "delta"), [(149, None), (170, None), (400, 0.01), (90, 0.05)])
def test_images_that_chose_before_never_calibrate(n: int, delta: float | None) -> None:
    """A run chose its checkpoint on every second image; the part to calibrate on never grows into that half."""
    chose = np.arange(n) % 2 == 0
    kept, rest = split_images(n, delta, least=10, chose=chose)  # type: ignore[misc]
    assert kept.tolist() == chose.nonzero()[0].tolist()
    assert rest.tolist() == (~chose).nonzero()[0].tolist()
    chose = np.arange(n) < n // 3  # others than the choosing half
    kept, rest = split_images(n, delta, least=10, chose=chose)  # type: ignore[misc]
    assert not chose[rest].any()
    assert sorted([*kept, *rest]) == list(range(n))


def test_images_that_chose_before_choose_again_in_place_of_others() -> None:
    """In any order: where they are a half of all images, the other half calibrates, as large as it can be."""
    chose = np.random.default_rng(0).permutation(np.arange(300) % 2 == 0)
    kept, rest = split_images(300, chose=chose)  # type: ignore[misc]
    assert rest.tolist() == (~chose).nonzero()[0].tolist()
    kept, rest = split_images(300, chose=chose & (np.arange(300) < 100))  # type: ignore[misc]
    assert (len(kept), len(rest)) == (150, 150)


@pytest.mark.parametrize("n", [29, 30, 37, 38, 60])
def test_the_fewest_images_that_calibrate_are_kept_from_a_choice(n: int) -> None:
    kept, rest = split_images(n, least=10)  # type: ignore[misc]
    assert (len(kept), len(rest)) == (min((n + 1) // 2, n - 19), max(n // 2, 19))
    assert split_images(28, least=10) is None


def test_too_few_images_that_have_not_chosen_are_refused() -> None:
    assert split_images(200, 0.01, chose=np.arange(200) < 102) is None
    assert split_images(200, chose=np.ones(200, bool)) is None
    assert split_images(120, chose=np.arange(120) % 20 != 19) is None  # 6 are left


def test_choices_of_slow_networks_are_smaller() -> None:
    assert choice_size(0, 1000, 10) == (1000, 256, 2)
    size = choice_size(0, 5000, 1000)
    assert size is not None
    assert math.prod(size) * 1000 <= 2**25  # errors to be held
    assert "on 262 of 5000 images, 128 draws and 1 noise seed," in str(size_note(size, 5000))
    assert size_note((70, 256, 2), 70) is None


@pytest.mark.parametrize("classes", [2, 10, 1000, 20_000])
@pytest.mark.parametrize("images", [10, 60, 98, 500, 5000])
@pytest.mark.parametrize("flops", [0, 1e7, 1e8, 1e9, 1e10, 1e12])
def test_a_choice_that_nobody_asked_for_stays_within_its_bounds(flops: float, images: int, classes: int) -> None:
    size = choice_size(flops, images, classes)
    asked = choice_size(flops, images, classes, asked=True)
    assert asked is not None
    spent = classes * math.prod(asked)
    if flops * spent <= 6e13 and spent <= 2**25:
        assert size == asked
    else:
        assert (size, asked) == (None, (min(images, 50), 64, 1))
        assert f" {spent:,} evaluations" in declined_note(flops, images, classes)


# --- the promise -----------------------------------------------------------------------------------------------------


def _errors(rng: np.random.Generator, n: int, ratio: Float64) -> npt.NDArray[np.float32]:
    """Errors (n, 4, J) whose class 0 leads by as much as the level and the image say; noise decides the rest."""
    lead = np.exp(-(np.log(ratio) ** 2)) * rng.gamma(1.0, 0.2, (n, 1))
    errors = rng.gamma(8.0, 1 / 8, (n, 4, len(ratio)))
    errors[:, 0] -= np.minimum(lead, 0.9 * errors[:, 0])
    return errors.astype(np.float32)


def _risks(count: int) -> Iterator[float]:
    """The share of new images that a race loses which is calibrated on images other than those that chose its plan."""
    rng = np.random.default_rng(0)
    delta = 0.1
    clf = classifier(gaussian(4))
    runs = clf.validation_runs(unit_images(30), levels=(0.1, 0.5))
    ratio = clf.settings(rule="full", draws=96, levels=(0.05, 5.0)).job.plan.levels.ratio
    factors = {("edm", "l2"): (("l2", "x0"), np.ones(96, np.float32))}
    for _ in range(count):
        choosing, calibrating, new = (_errors(rng, n, ratio) for n in (30, 30, 200))
        wide = WideErrors(ratio, ({("l2", "x0"): choosing},), factors)
        search = _Search(clf.model, runs.config, 30, np.zeros(30, np.int64), wide, delta, bands(clf.model))
        search.run(("levels", "first"))
        # The most tempting candidate of all, not only a choice that is beyond doubt.
        best = min(search.trials, key=lambda trial: (-trial.accuracy, trial.evaluations))
        draws = search._head(search._order(best.levels, best.first), 16)
        limit = controlled_limit(needed_limits(calibrating[:, :, draws])[:, None], delta)
        yield float((needed_limits(new[:, :, draws]) > limit).mean())


def test_the_race_keeps_its_promise_whatever_was_chosen_on_the_other_half() -> None:
    risks = np.array(list(_risks(100)))
    error = risks.std() / np.sqrt(len(risks))
    assert risks.mean() <= 0.1 + 3 * error
    assert risks.mean() >= 0.1 - 1 / 31 - 3 * error  # the bound is nearly attained: a smaller limit breaks it
