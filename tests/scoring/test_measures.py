"""Measures against scikit-learn's own functions, a definition by pairs, and hand-made cases."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdc.scoring.measures import brier_score, class_measures, confusion_of, log_loss, reliability_of

metrics = pytest.importorskip("sklearn.metrics")
calibration = pytest.importorskip("sklearn.calibration")

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Answers = tuple[Int64, Int64, Float64]


def answers(n: int, k: int, seed: int, *, ties: bool = False) -> Answers:
    """True classes, answers and probabilities of n images, some of them right."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    p = rng.dirichlet(np.full(k, 0.5), n) + 0.3 * np.eye(k)[truth]
    p = np.round(p, 1) + 0.05 if ties else p
    p /= p.sum(axis=1, keepdims=True)
    return truth, p.argmax(axis=1), p


@st.composite
def some_answers(draw: st.DrawFn) -> Answers:
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 7))
    return answers(n, k, draw(st.integers(0, 10**6)), ties=draw(st.booleans()))


def area(truth: Int64, p: Float64, k: int) -> float:
    """The AUROC by its definition: the share of pairs in the right order, ties by half."""
    own, other = p[truth == k, k], p[truth != k, k]
    if not len(own) or not len(other):
        return math.nan
    return float(np.mean((own[:, None] > other) + 0.5 * (own[:, None] == other)))


@settings(deadline=None, max_examples=60)
@given(some_answers())
def test_classes_have_their_measures(case: Answers) -> None:
    truth, answer, p = case
    k = p.shape[1]
    found = class_measures(truth, answer, p)
    for one in range(k):
        images, named = truth == one, answer == one
        right = int((images & named).sum())
        assert (found.support[one], found.predicted[one], found.right[one]) == (images.sum(), named.sum(), right)
        recall = right / images.sum() if images.any() else math.nan
        precision = right / named.sum() if named.any() else math.nan
        f1 = 2 * right / (images.sum() + named.sum()) if images.any() else math.nan
        told = (found.recall[one], found.precision[one], found.f1[one], found.auroc[one])
        assert told == pytest.approx((recall, precision, f1, area(truth, p, one)), abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(some_answers())
def test_confusions_are_counted_once(case: Answers) -> None:
    truth, answer, p = case
    k = p.shape[1]
    found = confusion_of(truth, answer, k)
    expected = np.zeros((k, k), np.int64)
    for true, named in zip(truth, answer, strict=True):
        expected[true, named] += 1
    assert (found == expected).all()
    if k > 1:  # of one class, scikit-learn warns
        assert (found == metrics.confusion_matrix(truth, answer, labels=np.arange(k))).all()
    assert found.dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(some_answers(), st.integers(1, 20))
def test_ece_is_the_weighted_gap_of_the_bins(case: Answers, bins: int) -> None:
    truth, answer, p = case
    right, confidence = (truth == answer).astype(np.int64), p[np.arange(len(p)), answer]
    found = reliability_of(right, confidence, bins)
    expected = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        inside |= (confidence == 0) if i == 0 else False
        assert found.counts[i] == inside.sum()
        if inside.any():
            assert found.confidence[i] == pytest.approx(confidence[inside].mean())
            assert found.accuracy[i] == pytest.approx(right[inside].mean())
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert np.isnan([found.confidence[i], found.accuracy[i]]).all()
    assert found.ece == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.ece <= 1


def test_bins_are_those_of_scikit_learn() -> None:
    truth, answer, p = answers(500, 4, 3)
    right, confidence = truth == answer, p.max(axis=1)
    shares, means = calibration.calibration_curve(right, confidence, n_bins=15)
    found = reliability_of(right.astype(np.int64), confidence)
    filled = found.counts > 0
    assert found.accuracy[filled] == pytest.approx(shares)
    assert found.confidence[filled] == pytest.approx(means)


def test_an_ece_by_hand() -> None:
    """Two sure answers of 0.95, one wrong; two unsure ones of 0.5 and 0.4, one wrong."""
    right, confidence = np.array([1, 0, 1, 0]), np.array([0.95, 0.95, 0.5, 0.4])
    assert reliability_of(right, confidence, 2).ece == pytest.approx(0.5 * (0.95 - 0.5) + 0.5 * (0.5 - 0.45))


@pytest.mark.parametrize("k", [2, 3, 10])
def test_losses_are_those_of_scikit_learn(k: int) -> None:
    truth, _, p = answers(200, k, k)
    assert log_loss(truth, p) == pytest.approx(metrics.log_loss(truth, p, labels=np.arange(k)))
    each = [metrics.brier_score_loss(truth == one, p[:, one]) for one in range(k)]
    assert brier_score(truth, p) == pytest.approx(sum(each))


def test_losses_at_their_ends() -> None:
    truth, sure = np.array([0, 1]), np.eye(2)
    assert (brier_score(truth, sure), brier_score(1 - truth, sure)) == (0.0, 2.0)
    assert log_loss(truth, sure) == 0.0
    assert math.isnan(log_loss(1 - truth, sure))  # it is infinite, which no clipped number tells
    tiny = np.array([[1e-300, 1.0]])
    assert log_loss(truth[:1], tiny) == pytest.approx(300 * math.log(10))  # scikit-learn would say 36
    assert log_loss(np.zeros(3, np.int64), np.ones((3, 1))) == 0.0
