"""Scores: what they say when something is missing, groups, pages and files."""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fastdc
from fastdc import InputError
from fastdc.data import digits_test
from fastdc.scoring import MOST_GROUPS, Agreement, Score, check_groups, mistakes_of, probability_notes, score, score_of
from fastdc.scoring.html_page import html_page

metrics = pytest.importorskip("sklearn.metrics")

NAMES = ("cat", "dog", "owl")


def three(n: int = 60, seed: int = 0, **options: Any) -> tuple[Any, Score]:
    """True classes of n images, and their score."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    p = rng.dirichlet([0.6] * 3, n) + 0.4 * np.eye(3)[truth]
    p /= p.sum(axis=1, keepdims=True)
    return truth, score(truth, p, NAMES, **options)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 50), st.integers(2, 6), st.integers(0, 10**6))
def test_totals_are_those_of_scikit_learn(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, p = rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)
    answer = p.argmax(axis=1)
    found = score(truth, p)
    right = int((truth == answer).sum())
    interval = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found.accuracy == pytest.approx((right / n, interval.low, interval.high), abs=1e-12)
    present = np.unique(truth)
    recalls = metrics.recall_score(truth, answer, labels=present, average=None, zero_division=0)
    assert found.balanced_accuracy == pytest.approx(recalls.mean())
    f1 = metrics.f1_score(truth, answer, labels=present, average=None, zero_division=0)
    assert found.macro_f1 == pytest.approx(f1.mean())
    if len(present) > 1:
        areas = [metrics.roc_auc_score(truth == one, p[:, one]) for one in present]
        assert found.auroc == pytest.approx(np.mean(areas))
    else:
        assert found.auroc is None
        assert "all images are of the class" in found.undefined["auroc"]
    assert found.confusion.sum() == n
    assert sum(count for *_, count in found.confusions) == n - right
    json.dumps(found.to_dict(), allow_nan=False)
    assert str(found)


def test_what_is_missing_is_none_with_a_reason() -> None:
    p = np.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]])
    found = score([0, 1, 1], p, NAMES)
    owl = found.to_dict()["classes"][2]
    assert owl == {
        "class": "owl",
        "images": 0,
        "predicted": 0,
        "precision": None,
        "recall": None,
        "specificity": {"value": 1.0, "ci95_low": pytest.approx(0.4385, abs=1e-4), "ci95_high": 1.0},
        "f1": None,
        "auroc": None,
        "auprc": None,
        "intervals": {key: {"ci95_low": None, "ci95_high": None} for key in ("f1", "auroc", "auprc")},
    }
    assert found.balanced_accuracy == (1 + 0.5) / 2
    assert found.undefined["balanced_accuracy"] == "mean over the 2 of 3 classes that have images"
    assert found.undefined["recall"] == found.undefined["f1"] == "'owl': no images"
    assert found.undefined["precision"] == "'owl': never the answer"
    assert re.search(r"^owl +0 +- +- +- +100.00 +- +- +- +-$", str(found), re.MULTILINE)
    assert "* recall, F1: 'owl': no images" in str(found)
    lost = score([2, 1, 1], p, NAMES)
    assert lost.log_loss is None
    assert lost.undefined["log_loss"] == "infinite: 1 image with probability 0 for the own class"
    assert "log loss     -" in str(lost)
    alone = score([1, 1, 1], p, NAMES)
    assert (alone.auroc, alone.to_dict()["auroc"]) == (None, None)
    assert alone.undefined["auroc"] == "all images are of the class 'dog'"
    assert alone.balanced_accuracy == alone.accuracy.value == 1 / 3
    never = score([0, 1], np.array([[0.7, 0.3], [0.6, 0.4]]), ("a", "b")).to_dict()["classes"][1]
    assert (never["precision"], never["recall"]["value"], never["f1"]) == (None, 0.0, 0.0)


def test_one_class_alone_has_a_score() -> None:
    found = score([0, 0], np.ones((2, 1)), ["all"])
    assert (found.accuracy.value, found.log_loss, found.auroc) == (1.0, 0.0, None)
    assert "Score(2 images of 1 classes" in repr(found)


def test_no_evaluations_are_a_number() -> None:
    found = score([0, 1], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"], evaluations=[0, 0])
    assert found.table["evaluations"][0] == 0.0


def test_one_image_of_the_positive_class_has_an_f1() -> None:
    found = score([1], [[0.2, 0.8]], ["a", "b"], positive="b")
    assert found.positive is not None
    assert found.positive.f1.value == found.classes.f1[1] == 1
    assert "b against the rest: 1 image and 0 others" in str(found)
    assert "1 image and 0 others;" in html_page(found)


def test_the_confusion_matrix_has_whole_names_where_there_is_room() -> None:
    names = ["No Finding", "Pleural Effusion"]
    assert "Pleural Effusion\nNo Finding " in re.sub(
        r" +", " ", str(score([0, 1], np.eye(2), names)).partition("true ")[2]
    )
    many = [f"{'a name that is long'} {k}" for k in range(12)]
    matrix = str(score(np.arange(12), np.eye(12), many)).partition("true ")[2]
    assert max(map(len, matrix.splitlines())) < 12 * 14 + 16


def test_answers_need_not_be_the_most_probable() -> None:
    found = score(["cat", "dog"], [[0.6, 0.4, 0], [0.6, 0.4, 0]], NAMES, predicted=["cat", "dog"])
    assert found.accuracy.value == 1.0
    assert found.reliability.counts.tolist() == [0] * 5 + [1, 0, 0, 1] + [0] * 6


def test_groups_have_the_score_of_their_images() -> None:
    sites, cost = np.array(["north", "south", ""] * 20), np.arange(60)
    rng = np.random.default_rng(4)
    truth, p = rng.integers(0, 3, 60), rng.dirichlet([1] * 3, 60)
    found = score(truth, p, NAMES, groups={"site": sites.tolist()}, evaluations=cost)
    assert list(found.groups["site"]) == ["", "north", "south"]
    for name, one in found.groups["site"].items():
        rows = sites == name
        alone = score(truth[rows], p[rows], NAMES, evaluations=cost[rows])
        assert one.to_dict() == alone.to_dict()
        assert one.evaluations == cost[rows].mean()
    values = {name: one.accuracy.value for name, one in found.groups["site"].items()}
    worst = found.worst_groups["site"]
    assert values[worst] == min(values.values())
    page = str(found)
    shown = worst or "(empty)"
    others = (truth == p.argmax(axis=1))[sites != worst].mean()
    assert re.search(
        rf"^worst: site {re.escape(shown)}, accuracy .* on 20 images; the others {100 * others:.2f} %$", page, re.M
    )
    told = found.to_dict()
    assert told["worst_groups"] == {"site": worst}
    assert told["groups"]["site"]["north"]["accuracy"]["value"] == values["north"]


def test_equal_groups_have_no_worst() -> None:
    p = np.eye(3)[[0, 1, 2, 0]]
    both, one = (str(score([0, 1, 2, 0], p, NAMES, groups={"sex": list(sexes)})) for sexes in ("fmfm", "ffff"))
    assert "all groups have the same accuracy" in both
    assert "worst: " not in both + one


def test_too_many_groups_are_refused() -> None:
    check_groups({"patient": [str(i) for i in range(MOST_GROUPS)]})
    with pytest.raises(InputError, match=f"column 'patient' has {MOST_GROUPS + 1} values"):
        check_groups({"patient": [str(i) for i in range(MOST_GROUPS + 1)]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0, 1]}, "labels must be one for each of 3 images"),
        ({"labels": [0, 1, 3]}, r"labels must be in \[0, 3\), got 3"),
        ({"labels": ["cat", "dog", "oul"]}, "expected names such as 'cat', 'dog', 'owl'"),
        ({"probabilities": [[0.5, 0.5]]}, "class_names must be 2 names, got 3"),
        ({"probabilities": np.full((3, 3), 0.5)}, "must sum to 1, got 1.5"),
        ({"probabilities": np.full((3, 3), np.nan)}, r"must be in \[0, 1\]"),
        ({"probabilities": [[2, -1, 0]] * 3}, r"must be in \[0, 1\], got -1 to 2"),
        ({"probabilities": np.zeros(3)}, r"shape \(n, K\)"),
        ({"probabilities": [[1], [1, 2]]}, "must be numbers"),
        ({"predicted": [0]}, "predicted must be one for each"),
        ({"groups": {"site": ["a"]}}, "site must be one for each of 3 images"),
        ({"evaluations": [1, 2]}, "evaluations must be one for each"),
    ],
)
def test_arguments_are_checked(change: dict[str, Any], words: str) -> None:
    given = {"labels": [0, 1, 2], "probabilities": np.eye(3), "class_names": NAMES, **change}
    with pytest.raises(InputError, match=words):
        score(given.pop("labels"), given.pop("probabilities"), given.pop("class_names"), **given)


def test_notes_say_what_probabilities_are() -> None:
    assert probability_notes({"decision": "mean", "temperature": 0.02}) == ()
    assert "shares of votes" in probability_notes({"decision": "vote", "temperature": 1.0})[0]
    assert "export --calibrate" in probability_notes({"decision": "mean", "temperature": 1.0})[0]


def test_files_hold_the_score(tmp_path: Path) -> None:
    truth, found = three(groups={"site": ["a", "b"] * 30}, evaluations=np.full(60, 7))
    for suffix in ("csv", "json", "html"):
        found.save(tmp_path / f"s.{suffix}")
    with pytest.raises(InputError, match=r"ends in \.csv, \.json, \.html"):
        found.save(tmp_path / "s.npz")
    assert json.loads((tmp_path / "s.json").read_text()) == found.to_dict()
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["by"], row["group"], row["class"]) for row in rows[:5]] == [
        ("", "", ""),
        ("", "", "cat"),
        ("", "", "dog"),
        ("", "", "owl"),
        ("site", "a", ""),
    ]
    assert len(rows) == 3 * 4
    assert float(rows[0]["accuracy"]) == found.accuracy.value
    assert float(rows[1]["accuracy"]) == found.classes.recall[0]
    assert int(rows[1]["images"]) == (truth == 0).sum()
    assert rows[1]["ece"] == rows[0]["precision"] == ""
    assert {row["evaluations"] for row in rows} == {"7.0", ""}


class Strict(ElementTree.TreeBuilder):
    pass


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a & b", "naïve\n☃")
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    found = score([0, 1, 2], p, names, groups={"<b>": ["<i>", "x", "x"]})
    found.save(tmp_path / "s.html")
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "<i>" not in text
    assert "a &amp; b" in text
    assert re.findall(r"(?:src|href)\s*=|url\(|@import", text) == []
    assert re.findall(r"https?://[^\s\"]+", text) == ["http://www.w3.org/2000/svg"] * 3
    for picture in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(picture)  # well-formed
    assert text.count("<svg") == 3
    assert found._repr_html_() in text


def test_long_lists_show_the_worst(tmp_path: Path) -> None:
    k = 50
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(k), 4)
    p = np.full((len(truth), k), 0.4 / k) + 0.6 * np.eye(k)[truth]
    bad = (truth == 17) | (truth == 31)
    p[bad] = np.full(k, 0.4 / k) + 0.6 * np.eye(k)[(truth[bad] + 1) % k]
    found = score(
        truth,
        p,
        [f"class{i}" for i in range(k)],
        groups={"site": [f"s{i}" for i in rng.permutation(len(truth)) // 4]},
        intervals=False,
    )
    page = str(found)
    assert "the 15 of 50 classes with the smallest F1" in page
    assert "the 15 of 50 groups with the smallest accuracy" in page
    listed = re.findall(r"^class(\d+) ", page, re.MULTILINE)
    assert len(listed) == 15
    assert {"17", "31", "18", "32"} <= set(listed[:4])
    assert "class17 as class18: 4" in page
    assert "true \\ answer" not in page
    html = found._repr_html_()
    assert "The 20 of 50 classes with the most errors." in html
    assert html.count("class49") >= 1  # the table has all
    assert max(map(len, page.splitlines())) < 140


def test_agreement_stands_beside_its_promise() -> None:
    kept = Agreement(100, 100, 0.99, (), 128_000, 3.0)
    assert str(kept) == "100 of 100 images, 100.0 % (95 % interval 96.3 to 100.0 %); promised: at least 99 %"
    assert kept.to_dict()["share"]["value"] == 1.0
    _, found = three()
    broken = Agreement(80, 100, 0.99, tuple(range(20)), 128_000, 3.0)
    for one, told in ((kept, False), (broken, True), (Agreement(80, 100, None, (), 1, 1.0), False)):
        page = str(fastdc.scoring.Score(**{**vars(found), "agreement": one}))
        assert ("fewer answers than promised" in page) == told
        assert "not counted above" in page


def test_a_result_has_a_score() -> None:
    pytest.importorskip("onnxruntime")
    test = digits_test()
    clf = fastdc.load("digits-mlp", threads=1)
    result = clf.classify(test.images[:60], draws=4)
    found = score_of(result, test.labels[:60], columns={"half": ["a", "b"] * 30})
    assert found.accuracy.value == np.mean(result.labels == test.labels[:60])
    assert found.evaluations == result.evaluations.mean()
    assert (found.seconds, found.full) == (result.seconds, 40)
    assert found.provenance == result.provenance
    assert found.groups["half"]["a"].images == 30
    rows = test.labels[:60] != 3
    part = score_of(result[rows], test.labels[:60][rows])
    assert part.seconds is None  # that of all images is not that of a part
    assert part.images == rows.sum()
    assert math.isnan(part.classes.recall[3])
    with pytest.raises(InputError, match="labels must be one for each"):
        score_of(result, test.labels)
    two: list[dict[str, Any]] = [{"candidates": [3, 5]}, {"prior": [0, 0, 0, 1, 0, 2, 0, 0, 0, 0]}]
    for some in two:
        fewer = clf.classify(test.images[:5], draws=4, **some)
        assert score_of(fewer, test.labels[:5]).full == 8


def test_mistakes_have_their_surest_examples(tmp_path: Path) -> None:
    truth, answers = np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 1, 1, 0, 2])
    p = np.full((6, 3), 0.2)
    p[np.arange(6), answers] = [0.5, 0.9, 0.7, 0.8, 0.6, 0.8]
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    first, second = mistakes_of(images, truth, answers, p, ("a", "b", "<c>"), each=2)
    assert (first.truth, first.answer, first.count, first.ids) == ("a", "b", 3, ("image 1", "image 2"))
    np.testing.assert_array_equal(first.images[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(first.probabilities, [0.9, 0.7])
    assert (second.truth, second.answer, second.count) == ("<c>", "a", 1)
    assert mistakes_of(images, truth, truth, p, ("a", "b", "c")) == ()
    with pytest.raises(InputError, match="must be as many, got 5, 6, 6, 6"):
        mistakes_of(images[:5], truth, answers, p, ("a", "b", "c"))
    whole = score(truth, p / p.sum(axis=1, keepdims=True), ("a", "b", "<c>"), predicted=answers)
    whole.save(tmp_path / "s.html", mistakes=(first, second))
    text = (tmp_path / "s.html").read_text()
    assert "a taken for b: 3" in text
    assert "&lt;c&gt; taken for a: 1" in text
    assert text.count("<img ") == 3
