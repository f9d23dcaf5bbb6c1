"""One class against the rest, and the refusal curve, against scikit-learn, loops and cases by hand."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdc import InputError
from fastdc.scoring import Operating, operating, score
from fastdc.scoring.positive import positive_measures
from fastdc.scoring.refusal import refusal_of

metrics = pytest.importorskip("sklearn.metrics")

NAMES = ("benign", "melanoma", "other")


def test_measures_of_a_class_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 200)
    p = rng.dirichlet([0.7] * 3, 200) + 0.2 * np.eye(3)[truth]
    p /= p.sum(axis=1, keepdims=True)
    answers = p.argmax(axis=1)
    found = positive_measures("melanoma", truth, answers, p, Operating(1, 0.9))
    own, named = truth == 1, answers == 1
    assert found.sensitivity.value == metrics.recall_score(own, named)
    assert found.specificity.value == metrics.recall_score(own, named, pos_label=0)
    assert found.precision.value == metrics.precision_score(own, named)
    assert found.f1.value == pytest.approx(metrics.f1_score(own, named))
    assert found.auroc.value == pytest.approx(metrics.roc_auc_score(own, p[:, 1]))
    assert found.auprc.value == pytest.approx(metrics.average_precision_score(own, p[:, 1]))
    wilson = stats.binomtest(int((own & named).sum()), int(own.sum())).proportion_ci(0.95, method="wilson")
    assert found.sensitivity[1:] == pytest.approx((wilson.low, wilson.high))
    false_positives, tpr, thresholds = metrics.roc_curve(own, p[:, 1], drop_intermediate=False)
    first = int(np.flatnonzero(tpr >= 0.9)[0])
    assert (found.threshold, found.specificity_at.value) == pytest.approx(
        (thresholds[first], 1 - false_positives[first])
    )
    assert found.sensitivity_at.value == pytest.approx(tpr[first])
    for one in (found.f1, found.auroc, found.auprc, found.specificity_at):
        assert one.low < one.value < one.high
    assert np.isnan(found.sensitivity_at.low)  # it was chosen
    other = positive_measures("melanoma", truth, answers, p, Operating(1, 0.9, 0.4))
    assert other.fixed
    assert other.threshold == 0.4
    assert other.sensitivity_at.value == (p[own, 1] >= 0.4).mean()
    assert other.specificity_at.value == (p[~own, 1] < 0.4).mean()
    assert other.sensitivity_at.low < other.sensitivity_at.value < other.sensitivity_at.high


def test_a_threshold_of_these_images_is_optimistic_and_one_of_others_is_not() -> None:
    """Thresholds for a sensitivity of 0.95 from 40 images reach less on 2000 others, on average."""
    rng = np.random.default_rng(0)

    def images(n: int) -> tuple[np.ndarray, np.ndarray]:
        own = np.arange(n) % 2
        p = 1 / (1 + np.exp(-rng.normal(2 * own - 1, 1)))
        return own, np.stack([1 - p, p], axis=1)

    own, many = images(4000)
    reached = []
    for _ in range(100):
        few_own, few = images(40)
        threshold = positive_measures("a", few_own, few.argmax(1), few, Operating(1)).threshold
        reached.append((many[own == 1, 1] >= threshold).mean())
    assert 0.88 < np.mean(reached) < 0.95  # of n images of the class, ceil(0.95 n) / (n + 1) in expectation: 0.905


def test_what_is_not_defined_is_left_out() -> None:
    p = np.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0]])
    found = score([0, 0], p, NAMES, positive="melanoma")
    assert found.positive is not None
    told = found.to_dict()["positive"]
    assert (told["images"], told["threshold"], told["auroc"]["value"]) == (0, None, None)
    assert told["specificity"]["value"] == 1.0
    assert re.search(r"^sensitivity +-$", str(found), re.MULTILINE)
    alone = score([1, 1], p, NAMES, positive=1).positive
    assert alone is not None
    assert (alone.others, alone.threshold) == (0, 0.3)
    assert np.isnan([alone.specificity.value, alone.specificity_at.value, alone.auroc.value]).all()
    some = score([0, 0, 0], [[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]], ["a", "b"], positive="a")
    assert some.positive is not None
    assert some.positive.f1.value == some.classes.f1[0] == 0.8  # that of the table of classes
    assert some.positive.f1.low < 0.8 < some.positive.f1.high


def test_the_threshold_that_is_printed_finds_what_it_was_found_for() -> None:
    sure = np.array([1 - 3e-7, 1 - 2e-7, 1 - 1e-7, 0.2])
    p = np.stack([1 - sure, sure], axis=1)
    found = score([1, 1, 1, 0], p, ["a", "b"], positive="b", sensitivity=1.0)
    printed = re.search(r"threshold ([0-9.e-]+), found on these", str(found))
    assert printed
    again = score([1, 1, 1, 0], p, ["a", "b"], positive="b", threshold=float(printed[1]))
    assert again.positive is not None
    assert again.positive.sensitivity_at.value == 1.0
    assert re.search(rf"^at {printed[1]} +sensitivity 100.00 %", str(again), re.MULTILINE)


def test_groups_have_the_positive_class_too() -> None:
    rng = np.random.default_rng(3)
    truth, p = rng.integers(0, 3, 90), rng.dirichlet([1] * 3, 90)
    sites = np.array(["north", "south", "west"] * 30)
    found = score(truth, p, NAMES, positive="melanoma", groups={"site": sites.tolist()})
    rows = sites == "south"
    alone = score(truth[rows], p[rows], NAMES, positive="melanoma")
    assert found.positive is not None
    assert found.groups["site"]["south"].to_dict()["positive"] == alone.to_dict()["positive"]
    page = str(found)
    assert re.search(r"^melanoma against the rest: \d+ images and \d+ others$", page, re.MULTILINE)
    assert re.search(r"^site +positive +sensitivity, % .* specificity at 95 % sens\., %$", page, re.MULTILINE)
    assert "found on these images: optimistic for others" in page
    assert "found on these images" not in str(score(truth, p, NAMES, positive="melanoma", threshold=0.4))
    html = found._repr_html_()
    assert "melanoma against the rest" in html
    table = found.table
    place = table["class"].index("melanoma")
    assert table["specificity_at"][place] == found.positive.specificity_at.value
    assert np.isnan(table["specificity_at"][0])
    json.dumps(found.to_dict(), allow_nan=False)


def test_wrong_requests_are_refused() -> None:
    assert operating(NAMES, None) is None
    assert operating(NAMES, "other", 0.8) == Operating(2, 0.8)
    for sensitivity in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"sensitivity must be in \(0, 1\]"):
            operating(NAMES, 1, sensitivity)
    with pytest.raises(InputError, match="threshold must be a probability"):
        operating(NAMES, 1, 0.9, 2.0)
    with pytest.raises(InputError, match="positive"):
        operating(NAMES, "melanom")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_refusal_is_the_mean_over_orders_of_equal_images(n: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    right, confidence = rng.integers(0, 2, n), rng.random(n)
    confidence = np.round(confidence, 1) if ties else confidence
    found = refusal_of(right, confidence)
    orders = [np.lexsort((rng.permutation(n), confidence)) for _ in range(400 if ties else 1)]
    curves = np.mean([[right[order[m:]].mean() for m in range(n)] for order in orders], axis=0)
    chosen = np.round(found.refused * n).astype(int)
    assert chosen[0] == 0
    assert chosen.tolist() == list(range(n))  # few images: every number of refused ones
    assert found.accuracy == pytest.approx(curves, abs=0.15 if ties else 1e-12)
    assert found.accuracy[0] == pytest.approx(right.mean())
    assert found.area == pytest.approx(found.accuracy.mean())


def test_refusal_by_hand() -> None:
    found = refusal_of(np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.4, 0.8, 0.6, 0.6]))
    assert found.refused.tolist() == [0, 0.2, 0.4, 0.6, 0.8]
    assert found.accuracy == pytest.approx([3 / 5, 3 / 4, 2.5 / 3, 1, 1])
    assert [found.at(share) for share in (0, 0.1, 0.2, 0.39, 0.9)] == pytest.approx([0.6, 0.6, 0.75, 0.75, 1])
    many = refusal_of(np.ones(5000, np.int64), np.linspace(0, 1, 5000))
    assert (len(many.refused), many.area) == (100, 1.0)
    each = refusal_of(np.arange(100) % 2, np.linspace(1, 0, 100))
    assert each.refused == pytest.approx(np.arange(100) / 100)  # every number of images, whatever a float rounds to
