"""Agreement with the full run, against full runs that are asked for directly."""

from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import DiffusionClassifier, InputError
from fastdc.data import digits_test
from fastdc.inference import Images
from fastdc.scoring import CHECKED, Agreement, agreement, check_count, full_runs, raced_of, sampled

IMAGES = digits_test().images[:60]


@pytest.fixture(scope="module")
def clf() -> DiffusionClassifier:
    pytest.importorskip("onnxruntime")
    return fastdc.load("digits-mlp", threads=1)


HASTY: dict[str, Any] = {"rule": "calibrated", "rule_options": {"limit": 0.01}, "draws": 32, "seed": 5}


@pytest.mark.parametrize("options", [HASTY, {**HASTY, "decision": "vote"}, {**HASTY, "weighting": "velocity"}])
def test_the_full_run_has_the_plan_the_seed_and_the_decision_of_the_race(
    clf: DiffusionClassifier, options: dict[str, Any]
) -> None:
    result = clf.classify(IMAGES, **options)
    full = clf.classify(IMAGES, **{**options, "rule": "full", "rule_options": None})
    differing = np.flatnonzero(result.labels != full.labels)
    assert 0 < len(differing) < 30
    found = agreement(result, IMAGES, clf.settings(**options), count=60)
    assert found.differing == tuple(differing)
    assert (found.agreed, found.compared, found.promised) == (60 - len(differing), 60, None)
    assert found.evaluations == 60 * 10 * 32
    some = agreement(result, IMAGES, clf.settings(**options), count=20, seed=2)
    rows = sampled(np.arange(60), 20, 2)
    assert some.differing == tuple(np.intersect1d(differing, rows))


def test_images_keep_the_noise_and_the_numbers_that_they_had(clf: DiffusionClassifier) -> None:
    streams = np.arange(60) + 7
    result = clf.classify(IMAGES, streams=streams, **HASTY)[10:50]
    full = clf.classify(IMAGES, streams=streams, **{**HASTY, "rule": "full", "rule_options": None})
    found = agreement(result, IMAGES, clf.settings(**HASTY), count=40)
    assert found.differing == tuple(10 + np.flatnonzero(result.labels != full.labels[10:50]))
    assert found.compared == 40


def test_a_promise_is_that_of_a_calibration_that_applies(clf: DiffusionClassifier) -> None:
    images = IMAGES[:2]
    for options, promised in (
        ({}, 0.99),
        ({"decision": "vote"}, None),  # the calibration is about mean errors
        ({"draws": 64}, None),
        ({"rule": "paired"}, None),
        ({"rule": "calibrated", "rule_options": {"limit": 0.1}}, None),
        ({"rule": "calibrated", "rule_options": {"limit": 9.0}, "draws": 128}, 0.99),
        ({"loss": "l1"}, None),
    ):
        settings = clf.settings(**options)
        one = next(full_runs(settings, Images.of(images, clf.model)))
        answers = dict(enumerate(one.labels.tolist()))
        assert Agreement.of(settings, answers, [(one.indices, one)]).promised == promised, options


def test_a_check_takes_a_sample_that_is_paid_for() -> None:
    assert check_count(400, full=1280, spent=4000, flops=None) == 10  # of the fewest that say something
    assert check_count(400, full=1280, spent=40_000, flops=None) == 31
    assert check_count(400, full=1280, spent=200_000, flops=None) == CHECKED
    assert check_count(30, full=1280, spent=40_000, flops=1e6) == 30
    assert check_count(6, full=1280, spent=4000, flops=1e6) == 6
    assert check_count(400, full=1280, spent=10**7, flops=1e15) == CHECKED  # the run took longer
    assert check_count(400, full=1280, spent=4000, flops=1e9) == 7
    assert check_count(400, full=128_000, spent=4000, flops=1e12) == 0
    rows = np.arange(0, 400, 2)
    chosen = sampled(rows, 50, 1)
    assert len(set(chosen.tolist())) == 50
    assert set(chosen.tolist()) <= set(rows.tolist())
    assert (np.diff(chosen) > 0).all()
    assert (chosen == sampled(rows, 50, 1)).all()
    assert (chosen != sampled(rows, 50, 2)).any()
    assert (sampled(rows, 500, 1) == rows).all()


def test_what_cannot_be_compared_is_refused(clf: DiffusionClassifier) -> None:
    result = clf.classify(IMAGES[:3], draws=2)
    with pytest.raises(InputError, match="full run agrees with itself"):
        agreement(result, IMAGES[:3], clf.settings(rule="full"))
    with pytest.raises(InputError, match="count must be"):
        agreement(result, IMAGES[:3], clf.settings(draws=2), count=0)
    with pytest.raises(InputError, match="those that were classified, 3 or more, got 2"):
        agreement(result, IMAGES[:2], clf.settings(draws=2))
    with pytest.raises(InputError, match="no image was run in full"):
        Agreement.of(clf.settings(draws=2), {}, [])


def test_images_that_were_run_in_full_are_not_compared_again(clf: DiffusionClassifier) -> None:
    options: dict[str, Any] = {"self_calibrate": 19, "draws": 16}
    result = clf.classify(IMAGES, **options)
    assert int(raced_of(result).sum()) == 41
    found = agreement(result, IMAGES, clf.settings(**options), count=60)
    full = clf.classify(IMAGES, rule="full", draws=16)
    assert (found.compared, found.promised) == (41, 0.95)
    assert found.differing == tuple(np.flatnonzero(result.labels != full.labels))
    with pytest.raises(InputError, match="full run agrees with itself"):
        agreement(result[~raced_of(result)], IMAGES, clf.settings(**options))
