"""Weighted measures against scikit-learn on real resamples, intervals against SciPy's bootstrap, and their coverage."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdc.scoring import score
from fastdc.scoring.bootstrap import (
    RESAMPLES,
    Ranked,
    auprc,
    auroc,
    f1_of,
    first_reaching,
    intervals_of,
    resampled,
    resamples_for,
    specificity_at,
)
from fastdc.scoring.intervals import bootstrap_intervals
from fastdc.support import Float64, Mask

metrics = pytest.importorskip("sklearn.metrics")

Case = tuple[Mask, Float64]


def scored(n: int, seed: int, *, share: float = 0.3, apart: float = 1.0, ties: bool = False) -> Case:
    """Images, some of the class, whose scores are larger by `apart` on average."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < share
    positive[:2] = (True, False)
    scores = rng.normal(apart * positive, 1)
    return positive, np.round(scores) if ties else scores


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 10**6), st.booleans(), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_weights_stand_for_repeated_images(n: int, seed: int, ties: bool, wanted: float) -> None:
    positive, scores = scored(n, seed, ties=ties)
    weights = next(resampled(positive.astype(np.int64), 4))
    counts = Ranked.of(positive, scores).counts(weights)
    found = [auroc(*counts), auprc(*counts), specificity_at(*counts, wanted)]
    for b, row in enumerate(weights.astype(int)):
        truth, values = np.repeat(positive, row), np.repeat(scores, row)
        false_positives, tpr, _ = metrics.roc_curve(truth, values, drop_intermediate=False)
        best = float((1 - false_positives[tpr >= wanted - 1e-9]).max())
        expected = [metrics.roc_auc_score(truth, values), metrics.average_precision_score(truth, values), best]
        assert [of[b] for of in found] == pytest.approx(expected, abs=1e-9)


def test_resamples_keep_the_number_of_each_class_and_repeat() -> None:
    labels = np.random.default_rng(1).integers(0, 3, 50)
    first, second = (np.concatenate(list(resampled(labels, 300))) for _ in range(2))
    assert first.shape == (300, 50)
    assert np.array_equal(first, second)
    for k in range(3):
        assert (first[:, labels == k].sum(axis=1) == (labels == k).sum()).all()
    assert first.mean(axis=0) == pytest.approx(np.ones(50), abs=0.3)  # each image is drawn once on average
    assert first.var(axis=0).mean() == pytest.approx(1, abs=0.15)


def by_scipy(case: Case, statistic: Callable[..., float]) -> tuple[float, float]:
    """The percentile interval of SciPy, whose resamples are of the two classes apart: stratified as well."""
    positive, scores = case

    def measured(own: Any, others: Any) -> float:
        return statistic(np.append(np.ones(len(own)), np.zeros(len(others))), np.append(own, others))

    found = stats.bootstrap(
        (scores[positive], scores[~positive]),
        measured,
        method="percentile",
        vectorized=False,
        n_resamples=400,
        rng=np.random.default_rng(5),
    )
    return found.confidence_interval.low, found.confidence_interval.high


@pytest.mark.parametrize("name", ["auroc", "auprc"])
def test_intervals_are_those_of_scipy(name: str) -> None:
    """Both are random: the ends of 400 resamples differ by some percent of the interval's width."""
    case = scored(120, 3)
    measure, reference = {
        "auroc": (auroc, metrics.roc_auc_score),
        "auprc": (auprc, metrics.average_precision_score),
    }[name]
    ranked = Ranked.of(*case)
    low, high = intervals_of(case[0].astype(np.int64), 400, lambda w: measure(*ranked.counts(w)))[0]
    expected = by_scipy(case, reference)
    assert (low, high) == pytest.approx(expected, abs=0.2 * (expected[1] - expected[0]))


def interval_of_area(case: Case) -> Float64:
    """The interval of the AUROC from 200 resamples."""
    ranked = Ranked.of(*case)
    return intervals_of(case[0].astype(np.int64), 200, lambda weights: auroc(*ranked.counts(weights)))[0]


def test_intervals_cover_the_true_area() -> None:
    """Normal scores one apart have the AUROC Phi(1 / sqrt 2). Of 300 intervals from 100 images, 95 % should cover it.

    The bounds are 90 and 99 %: the percentile bootstrap is known to cover a little less than promised on small sets,
    and 300 trials have a standard error of 1.3 %.
    """
    true, covered = stats.norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(300):
        case = scored(100, seed)
        low, high = interval_of_area(case)
        covered += bool(low <= true <= high)
    assert 270 <= covered <= 297


def test_intervals_of_all_classes_hold_their_values() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 150)
    p = rng.dirichlet([0.5] * 4, 150) + 0.3 * np.eye(4)[truth]
    p /= p.sum(axis=1, keepdims=True)
    answers = p.argmax(axis=1)
    found = bootstrap_intervals(truth, answers, p)
    assert found.resamples == RESAMPLES
    f1 = metrics.f1_score(truth, answers, labels=range(4), average=None, zero_division=0)
    for k in range(3):
        own = {"f1": f1[k], "auroc": metrics.roc_auc_score(truth == k, p[:, k])}
        own["auprc"] = metrics.average_precision_score(truth == k, p[:, k])
        for name, value in own.items():
            low, high = found.classes[name][:, k]
            assert 0 < low < value < high < 1
            assert 0.02 < high - low < 0.5
    assert np.isnan([ends[:, 3] for ends in found.classes.values()]).all()  # no images of class 3
    low, high = found.totals["balanced_accuracy"]
    assert low < metrics.recall_score(truth, answers, labels=range(3), average="macro") < high
    assert low < np.mean(f1[:3]) < high
    none = bootstrap_intervals(truth, answers, p, wanted=False)
    assert none.resamples == 0
    assert np.isnan([*none.totals["auroc"], *none.classes["f1"].ravel()]).all()
    assert none.total("auroc") == {"ci95_low": None, "ci95_high": None}


def test_large_sets_have_fewer_resamples_or_none() -> None:
    assert resamples_for(400, 10) == RESAMPLES
    assert 200 <= resamples_for(10**5, 10) < RESAMPLES
    assert resamples_for(10**6, 1000) == 0


def test_f1_and_thresholds_by_hand() -> None:
    values = f1_of(np.array([3.0, 0]), np.array([4.0, 0]), np.array([5.0, 0]))
    assert values[0] == 6 / 9
    assert np.isnan(values[1])
    ranked = Ranked.of(np.array([True, False, True, True]), np.array([0.9, 0.8, 0.7, 0.7]))
    counts = ranked.counts(np.ones((1, 4), np.float32))
    assert ranked.scores.tolist() == [0.9, 0.8, 0.7]
    assert [first_reaching(counts[0], s)[0] for s in (0.1, 1 / 3, 0.34, 1.0)] == [0, 0, 2, 2]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("apart", [-6.0, -2.0, 0.0, 6.0])
def test_every_interval_holds_its_measure(apart: float, *, ties: bool) -> None:
    positive, scores = scored(40, 1, apart=apart, ties=ties)
    p = 1 / (1 + np.exp(-np.stack([-scores, scores], axis=1)))
    found = score(positive.astype(int), p / p.sum(axis=1, keepdims=True), ["no", "yes"], positive="yes")
    for name in ("balanced_accuracy", "macro_f1", "auroc", "auprc"):
        low, high = found.intervals.totals[name]
        assert low - 1e-12 <= getattr(found, name) <= high + 1e-12, name
    for name in ("f1", "auroc", "auprc"):
        low, high = found.intervals.classes[name]
        values = getattr(found.classes, name)
        assert (low - 1e-12 <= values).all(), name
        assert (values <= high + 1e-12).all(), name
    assert found.positive is not None
    for name, of in found.positive.estimates().items():
        assert np.isnan(of.low) or of.low <= of.value <= of.high, name


def test_exchanged_classes_have_a_remark() -> None:
    positive, scores = scored(40, 1, apart=2.0)
    p = 1 / (1 + np.exp(-np.stack([-scores, scores], axis=1)))
    right, wrong = (score(of.astype(int), p, ["no", "yes"]) for of in (positive, ~positive))
    assert right.below_chance == []
    assert wrong.below_chance == [0, 1]
    assert "AUROC of no, yes: below 0.5 by more than chance" in " ".join(str(wrong).split())
    assert "more than chance" not in str(right)


def test_a_few_wrong_images_are_no_sign_of_exchanged_classes() -> None:
    assert score([0, 0, 1, 1], [[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.8, 0.2]]).below_chance == []
    chance = np.random.default_rng(2)
    p = chance.random((2000, 1))
    found = [score(chance.integers(0, 2, 100), np.hstack([p, 1 - p])[k : k + 100]) for k in range(0, 2000, 100)]
    assert sum(bool(one.below_chance) for one in found) <= 1
