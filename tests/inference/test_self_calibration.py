"""Runs that calibrate themselves: what is run in full, what races, and what both theorems say in simulations."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc import Classification, DiffusionClassifier, ErrorTable, InputError, Interrupted, Options, Progress, Session
from fastdc.calibration import calibrate_errors, controlled_limit, needed_limits
from fastdc.inference import FULL, SelfCalibration, streams_of
from fastdc.rules import Calibrated
from fastdc.testing import replay
from helpers.races import tables
from helpers.worlds import CALIBRATION, Float32, Float64, classifier, fails_with, gaussian, refusing, unit_images

WORLD = gaussian(6)
DRAWS = 16


def samples(n: int, *, seed: int = 1) -> Float32:
    """Images of the world's classes, in [0, 1]."""
    labels = np.random.default_rng(seed).integers(0, 6, n)
    return ((WORLD.sample(labels, seed=seed) + 1) / 2).astype(np.float32)


IMAGES = samples(60)
CLF = classifier(WORLD, batch=1024)
RUN: dict[str, Any] = {"self_calibrate": 25, "draws": DRAWS, "seed": 3}


def in_full(result: Classification) -> Any:
    assert result.promises is not None
    return np.array([promise == FULL for promise in result.promises])


def same(one: Classification, other: Classification) -> None:
    for name in ("indices", "labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.promises == other.promises


# --- the run ---------------------------------------------------------------------------------------------------------


def test_some_images_are_run_in_full_and_the_others_race_under_the_limit_that_those_give() -> None:
    made = CLF.classify(IMAGES, **RUN)
    full = in_full(made)
    assert full.sum() == 25
    errors = CLF.errors(IMAGES, draws=DRAWS, seed=3)
    found = calibrate_errors([errors.errors[full]], CLF.settings(draws=DRAWS).job.plan.config, delta=0.04)
    assert set(np.array(made.promises)[~full]) == {"race, delta=0.04, calibrated on 25 images of this run"}
    reference = CLF.classify(IMAGES, rule="full", draws=DRAWS, seed=3)
    race = CLF.classify(IMAGES, rule=found.rule, draws=DRAWS, seed=3)
    assert race.evaluations.sum() < 0.7 * reference.evaluations.sum()
    for name in ("labels", "probabilities", "errors", "evaluations", "votes"):
        each, want, raced = (getattr(result, name) for result in (made, reference, race))
        np.testing.assert_array_equal(each[full], want[full])
        np.testing.assert_array_equal(each[~full], raced[~full])
    assert made.indices.tolist() == list(range(60))
    assert made.provenance["rule"] == {"name": "calibrated", "limit": found.limit, "draws": DRAWS}
    assert made.provenance["self_calibration"] == {
        "images": 25, "chosen": "random", "delta": 0.04, "limit": found.limit, "risk": found.risk
    }  # fmt: skip
    assert made.table.rule == "calibrated"


def test_other_runs_promise_nothing_of_their_own() -> None:
    pytest.importorskip("pandas")
    made = CLF.classify(IMAGES[:3], draws=4)
    assert made.promises is None
    assert "self_calibration" not in made.provenance
    assert "promise" not in made.to_dicts()[0]
    assert "promise" not in made.to_pandas().columns


def test_order_chunks_and_batches_change_nothing() -> None:
    made = CLF.classify(IMAGES, **RUN)
    parts = list(classifier(WORLD, batch=7).stream(IMAGES, chunk=8, **RUN))
    assert [len(part) for part in parts] == [8] * 7 + [4]
    for name in ("indices", "labels", "evaluations"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(made, name))
    assert sum((part.promises or () for part in parts), ()) == made.promises
    assert all(part.provenance["self_calibration"] == made.provenance["self_calibration"] for part in parts)
    assert len(ErrorTable.concatenate([part.table for part in parts])) == 60
    order = np.random.default_rng(0).permutation(60)
    turned = CLF.classify(IMAGES[order], **RUN)
    np.testing.assert_array_equal(turned.evaluations, made.evaluations[order])
    assert turned.promises == tuple(np.array(made.promises)[order])


def test_progress_is_that_of_one_run() -> None:
    seen: list[Progress] = []
    made = classifier(WORLD, batch=32).classify(IMAGES, progress=seen.append, **RUN)
    assert {now.images for now in seen} == {60}
    assert seen[-1].finished == 60
    assert seen[-1].evaluations == seen[-1].at_most == made.evaluations.sum()
    assert seen[0].at_most == 60 * 6 * DRAWS
    for name, sign in (("finished", 1), ("evaluations", 1), ("at_most", -1)):
        assert (np.diff([getattr(now, name) for now in seen]) * sign >= 0).all(), name


def test_candidates_race_among_themselves() -> None:
    lists = [[k % 6, (k + 1) % 6, (k + 2) % 6][: 1 + k % 3] for k in range(60)]
    made = CLF.classify(IMAGES, candidates=lists, **RUN)
    want = CLF.classify(IMAGES, candidates=lists, rule="full", draws=DRAWS, seed=3)
    full = in_full(made)
    np.testing.assert_array_equal(made.errors[full], want.errors[full])
    assert all(label in classes for label, classes in zip(made.labels, lists, strict=True))
    assert np.mean(made.labels != want.labels) <= 0.1


def test_a_noisy_plan_calibrates_itself() -> None:
    noisy: dict[str, Any] = {"method": "epndc", "sigma": 0.2, "draws": DRAWS}
    made = CLF.classify(IMAGES, self_calibrate=30, **noisy)
    want = CLF.classify(IMAGES, rule="full", **noisy)
    np.testing.assert_array_equal(made.labels[in_full(made)], want.labels[in_full(made)])
    assert made.provenance["plan"] == want.provenance["plan"]
    assert made.evaluations.sum() < want.evaluations.sum()


def test_the_full_runs_are_those_of_the_models_own_race() -> None:
    plan = {**CALIBRATION.plan, **CLF.settings().job.plan.config.to_dict()}
    del plan["draws"]
    model = replace(CLF.model, calibration=replace(CALIBRATION, draws=8, plan=plan))
    made = DiffusionClassifier(model, CLF.network).classify(IMAGES, self_calibrate=30)
    assert made.evaluations[in_full(made)].tolist() == [6 * 8] * 30


@pytest.mark.parametrize("count", [60, 61, 1000])
def test_if_no_image_is_left_everything_is_run_in_full(count: int) -> None:
    made = CLF.classify(IMAGES, draws=4, self_calibrate=count)
    want = CLF.classify(IMAGES, draws=4, rule="full")
    same(replace(made, promises=None), want)
    assert made.promises == (FULL,) * 60
    assert made.provenance["self_calibration"]["limit"] is None
    assert [len(part) for part in CLF.stream(IMAGES, chunk=30, draws=4, self_calibrate=count)] == [30, 30]


def test_without_a_finite_limit_nothing_races() -> None:
    """A class whose error is 0 at the first draw, and that loses: no multiple of its error keeps the winner."""
    settings = CLF.settings(draws=4, self_calibrate=19)
    table = CLF.errors(IMAGES[:19], draws=4)
    values = table.values.reshape(19, 6, 4).copy()
    values[:, :, 0], values[:, 0] = 1, [0, 9, 9, 9]
    after = settings.calibrated(replace(table, values=values.ravel()))
    assert after.in_full
    assert after.job.rule.name == "full"
    assert not settings.calibrated(table).in_full


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"self_calibrate": 0}, "self_calibrate must be a whole number of at least 1"),
    ({"self_calibrate": True}, "self_calibrate must be a whole number"),
    ({"self_calibrate": 0.5}, "self_calibrate must be a whole number"),
    ({"self_calibrate": 18}, "self_calibrate=18 cannot be used: 18 images support no level below 5.3 %"),
    ({"self_calibrate": 98, "rule_options": {"delta": 0.01}}, "delta = 0.01 needs at least 99 validation images"),
    ({"self_calibrate": 99, "rule_options": {"delta": 2}}, "delta must lie strictly between 0 and 1"),
    ({"self_calibrate": 99, "rule_options": {"limit": 2}}, "rule race has no option 'limit'"),
    ({"self_calibrate": 99, "rule_options": [1]}, "rule race has no option [1]"),
    ({"self_calibrate": 99, "rule": "full"}, "for the race: expected no other rule, got 'full'"),
    ({"self_calibrate": 99, "rule": Calibrated(1.0)}, "expected no other rule"),
    ({"self_calibrate": 99, "decision": "vote"}, "expected decision mean, got 'vote'"),
    ({"self_calibrate": 99, "levels": (2, 1)}, "levels"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_what_cannot_be_used_is_refused_before_any_work(options: dict[str, Any], says: str) -> None:
    clf = refusing(WORLD.model)
    fails_with(partial(clf.classify, IMAGES, **options), says, kind=InputError)
    fails_with(partial(Session, clf, **options), says, kind=InputError)


def test_what_is_no_run_over_images_refuses_it() -> None:
    clf = refusing(WORLD.model)
    for call in (partial(clf.base, sigma=0.1), partial(clf.errors, IMAGES), partial(clf.calibrate, IMAGES)):
        fails_with(partial(call, self_calibrate=99), "self_calibrate is for runs over images", kind=InputError)


# --- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raced", [False, True])
def test_an_interrupted_run_promises_what_was_done(raced: bool) -> None:
    whole = CLF.classify(IMAGES, **RUN)
    limit = 25 * 6 * DRAWS + 100 if raced else 1000

    def stop(now: Progress) -> None:
        if now.evaluations > limit:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        classifier(WORLD, batch=32).classify(IMAGES, progress=stop, **RUN)
    part = caught.value.result
    assert isinstance(part, Classification)
    assert 0 < len(part) < 60
    rows = part.indices
    np.testing.assert_array_equal(part.labels, whole.labels[rows])
    np.testing.assert_array_equal(part.evaluations, whole.evaluations[rows])
    assert part.promises == tuple(np.array(whole.promises)[rows])
    if not raced:  # while images were run in full: nothing races, and no limit is known
        assert set(part.promises) == {FULL}
        assert part.provenance["rule"] == {"name": "full"}
        assert part.provenance["self_calibration"]["limit"] is None
        assert str(caught.value) == f"interrupted: {len(part)} of 60 images finished"
    else:
        assert len(set(part.promises)) == 2
        races = sum(one != FULL for one in whole.promises or ())
        assert races > len(part) - 25  # some of those that were to race had not begun
        assert f"an average over all {races} that were to race: {0.04 * races:.3g} of their" in str(caught.value)


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_keep_the_promises(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    made = CLF.classify(IMAGES, **RUN)
    made.save(tmp_path / "r.npz")
    again = Classification.load(tmp_path / "r.npz")
    same(again, made)
    assert again.provenance == made.provenance
    assert made.promises is not None
    assert made[5].promise == made.promises[5] == made.to_dicts()[5]["promise"]
    part = made[np.array([7, 3])]
    assert part.promises == (made.promises[7], made.promises[3])
    made.save(tmp_path / "r.csv")
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert lines[0] == "index,label,name,probability,evaluations,promise"
    assert made.to_pandas()["promise"].tolist() == list(made.promises)


def test_a_score_is_that_of_the_run() -> None:
    truth = CLF.predict(IMAGES, rule="full", draws=DRAWS, seed=3)
    assert CLF.score(IMAGES, truth, **RUN) == np.mean(CLF.predict(IMAGES, **RUN) == truth)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_every_image_is_chosen_equally_often_also_among_equal_ones() -> None:
    own = SelfCalibration(images=20, delta=0.05)
    streams = np.concatenate([np.arange(40), np.full(20, 7)])
    counts = np.sum([own.chosen(streams, seed) for seed in range(3000)], axis=0)
    assert counts.sum() == 20 * 3000
    spread = math.sqrt(3000 * (1 / 3) * (2 / 3))
    assert np.abs(counts - 1000).max() < 4.5 * spread
    assert 0.7 * spread < counts.std() < 1.3 * spread


def test_the_choice_is_of_pixels_and_seed() -> None:
    own = SelfCalibration(images=20, delta=0.05)
    streams = streams_of(unit_images(50))
    chosen = own.chosen(streams, 0)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(own.chosen(streams[order], 0), chosen[order])
    assert (own.chosen(streams, 1) != chosen).any()
    assert replace(own, first=True).chosen(streams, 0).tolist() == [True] * 20 + [False] * 30


# --- the theorems, simulated -----------------------------------------------------------------------------------------


def sorted_folder() -> Float64:
    """Limits that the 600 images of a folder need: 300 of an easy class, then 300 of a hard one. Fixed for ever."""
    rng = np.random.default_rng(11)
    return np.concatenate([rng.exponential(0.2, 300), rng.standard_cauchy(300) ** 2])


def share_lost(scores: Float64, full: Any, delta: float) -> float:
    """The share of the other images that the race loses, if those in `full` give its limit."""
    return float(np.mean(scores[~full] > controlled_limit(scores[full][:, None], delta)))


@pytest.mark.parametrize(("images", "delta"), [(19, 0.05), (99, 0.01), (150, 0.02)])
def test_a_random_choice_keeps_its_promise_in_a_sorted_folder_and_the_first_images_do_not(
    images: int, delta: float
) -> None:
    scores, streams = sorted_folder(), np.arange(600)
    own = SelfCalibration(images, delta)
    lost = [share_lost(scores, own.chosen(streams, seed), delta) for seed in range(700)]
    error = float(np.std(lost)) / math.sqrt(len(lost))
    assert np.mean(lost) <= delta + 4 * error
    assert np.mean(lost) >= delta - 2 / (images + 1) - 4 * error
    assert share_lost(scores, replace(own, first=True).chosen(streams, 0), delta) > 0.2


@pytest.mark.parametrize(("images", "delta"), [(19, 0.05), (99, 0.01)])
def test_the_first_images_of_an_exchangeable_stream_keep_the_promise_for_a_later_one(images: int, delta: float) -> None:
    """The same images, but they come in a random order: the later one is the next."""
    scores, rng = sorted_folder(), np.random.default_rng(0)
    losses = []
    for _ in range(4000):
        come = rng.choice(scores, images + 1, replace=False)
        losses.append(come[-1] > controlled_limit(come[:-1, None], delta))
    error = math.sqrt(delta * (1 - delta) / len(losses))
    assert np.mean(losses) <= delta + 4 * error


def test_the_promise_is_an_average_over_images_and_not_one_for_each_class() -> None:
    """What the theorem does not say: the hard class pays for the easy one."""
    scores, streams, delta = sorted_folder(), np.arange(600), 0.05
    hard = np.arange(600) >= 300
    lost = []
    for seed in range(300):
        full = SelfCalibration(59, delta).chosen(streams, seed)
        lost.append(np.mean(scores[~full & hard] > controlled_limit(scores[full][:, None], delta)))
    assert np.mean(lost) > 1.2 * delta


def test_races_of_whole_runs_keep_the_promise() -> None:
    """Replays of error tables: answers of the race against those of the full run, over many choices."""
    errors = tables(300, 5, DRAWS, seed=4)
    labels = errors.mean(axis=2, dtype=np.float64).argmin(axis=1)
    scores, own = needed_limits(errors), SelfCalibration(49, 0.02)
    lost, cost = [], []
    for seed in range(60):
        full = own.chosen(np.arange(300), seed)
        race = replay(Calibrated(controlled_limit(scores[full][:, None], own.delta)), errors[~full])
        lost.append(float(np.mean(race.labels() != labels[~full])))
        cost.append(race.evaluations.mean())
    assert np.mean(lost) <= own.delta + 4 * float(np.std(lost)) / math.sqrt(len(lost))
    assert np.mean(lost) > 0
    assert np.mean(cost) < 5 * DRAWS


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["throughput", "latency"])
def test_a_session_runs_the_first_images_in_full_and_then_races(mode: str) -> None:
    clf = classifier(WORLD, batch=64)
    with Session(clf, self_calibrate=25, draws=DRAWS, mode=mode) as session:
        early = [session.submit(image) for image in IMAGES[:10]]
        assert [answer.result().promises for answer in early] == [(FULL,)] * 10  # before the others are known
        results = [answer.result() for answer in [*early, *(session.submit(image) for image in IMAGES[10:])]]
        if mode == "throughput":
            assert session.evaluated == sum(int(each.evaluations[0]) for each in results)
    table = CLF.errors(IMAGES[:25], draws=DRAWS)
    found = calibrate_errors([table.errors], CLF.settings(draws=DRAWS).job.plan.config, delta=0.04)
    full = CLF.classify(IMAGES[:25], rule="full", draws=DRAWS)
    race = CLF.classify(IMAGES[25:], rule=found.rule, draws=DRAWS)
    assert [int(each.labels[0]) for each in results] == [*full.labels, *race.labels]
    assert [int(each.evaluations[0]) for each in results] == [*full.evaluations, *race.evaluations]
    raced = ("race, delta=0.04, calibrated on 25 images of this run",)
    assert [each.promises for each in results] == [(FULL,)] * 25 + [raced] * 35
    known = results[-1].provenance["self_calibration"]
    assert (known["chosen"], known["limit"]) == ("first", found.limit)
    assert results[0].provenance["rule"] == {"name": "full"}


def test_a_session_that_ends_early_leaves_nobody_waiting() -> None:
    with Session(classifier(WORLD, batch=64), Options(self_calibrate=25, draws=4)) as session:
        answers = [session.submit(image) for image in IMAGES[:30]]
    assert [answer.result(0).promises == (FULL,) for answer in answers] == [True] * 25 + [False] * 5
