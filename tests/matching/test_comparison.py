"""Comparisons of models, against numbers worked out by hand, statsmodels, and a browser."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.matching import Answered, Cell, Comparison, Matched, Trials, holm, kinds_of
from helpers.browser import check_pages

SINGLE = Cell("single", "val", True)
TWO = Cell("two_object", "test")
COLOUR = "second's colour"
NAMES = ("red cube", "red cone", "blue cube", "blue cone")


def single_trials(n: int = 8) -> Trials:
    """Red cubes, each with all four names."""
    kinds = [kinds_of("single", NAMES, 0)] * n
    return Trials.of([f"{i}.png" for i in range(n)], [NAMES] * n, ids=[f"i{i}" for i in range(n)], kinds=kinds)


def answers(
    trials: Trials, name: str, chosen: list[int], rows: list[int] | None = None, seconds: float = 2.0
) -> Matched:
    """A model that gave these answers."""
    where = list(range(len(chosen))) if rows is None else rows
    scores = tuple(np.eye(len(trials.candidates[row]))[answer] for row, answer in zip(where, chosen, strict=True))
    cost = np.arange(len(chosen)) + 3
    return Matched(name, np.array(where), scores, np.array(chosen), cost, 2.0, {"seed": 0})


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Two models in two cells, one of them interrupted."""
    trials = single_trials()
    two = Trials.of(
        ["a.png", "b.png", "c.png"],
        [("red cube", "blue cube", "red cone"), ("blue cone", "red cone", "cyan cone"), ("red cone", "red cube")],
        kinds=[
            ("right", "second's colour", "second's shape"),
            ("right", "second's colour", "other"),
            ("right", "other"),
        ],
        groups=("p", "q", "r"),
    )
    given = [
        Answered(SINGLE, trials, answers(trials, "a_model", [0, 0, 0, 0, 0, 0, 1, 2])),
        Answered(TWO, two, answers(two, "a_model", [1, 0, 0])),
        Answered(SINGLE, trials, answers(trials, "<b> & %", [0, 3, 3, 1, 1, 2], [0, 1, 2, 3, 4, 7])),
        Answered(TWO, two, answers(two, "<b> & %", [2, 2, 1])),
    ]
    return Comparison.of(given, facts={"data": "<i>", "more": {"x": 1, "y": None}}, notes=["a <note>"])


def test_scores_are_those_counted_by_hand(comparison: Comparison) -> None:
    assert comparison.models == ("a_model", "<b> & %")
    assert comparison.cells == (SINGLE, TWO)
    one, two, three, four = comparison.scores
    assert (one.images, one.accuracy.value, dict(one.kinds)) == (
        8, 6 / 8, {"same colour": 1 / 8, "same shape": 1 / 8, "neither": 0},
    )  # fmt: skip
    assert (two.images, two.wanted, two.accuracy.value) == (6, 8, 1 / 6)
    assert dict(two.kinds) == {"same colour": 2 / 6, "same shape": 1 / 6, "neither": 2 / 6}
    assert dict(three.kinds) == {"second's colour": 1 / 3, "second's shape": 0, "other": 0}
    assert dict(four.kinds) == {"second's colour": 0, "second's shape": 1 / 3, "other": 2 / 3}
    assert (one.chance, three.candidates) == (1 / 4, 8 / 3)
    assert three.chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert (one.evaluations, two.evaluations, one.seconds) == (6.5, 5.5, 2.0)
    for score in comparison.scores:
        assert score.accuracy.value + sum(score.kinds.values()) == pytest.approx(1)


def test_intervals_are_wilson_s(comparison: Comparison) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for score, right in zip(comparison.scores, (6, 1, 2, 0), strict=True):
        expected = proportion.proportion_confint(right, score.images, method="wilson")
        np.testing.assert_allclose(score.accuracy[1:], expected, atol=1e-12)


def test_models_are_compared_on_the_images_that_both_answered(comparison: Comparison) -> None:
    single, two = comparison.tests
    # Images 0, 1, 2, 3, 4, 7: the first is right of 0 to 4, the second of 0 alone.
    assert (single.images, single.first_only, single.second_only, single.ties) == (6, 4, 0, 2)
    assert single.p_value == pytest.approx(2 / 2**4)
    assert (two.images, two.first_only, two.second_only, two.ties) == (3, 2, 0, 1)
    assert two.p_value == pytest.approx(2 / 2**2)
    assert [single.corrected, two.corrected] == pytest.approx([0.25, 0.5])
    assert single.difference.value == pytest.approx(4 / 6)


def test_models_that_were_asked_something_else_are_not_compared() -> None:
    trials = single_trials(2)
    other = Trials.of(trials.images, [NAMES[:2]] * 2, ids=trials.ids)
    again = Trials.of(trials.images, [NAMES] * 2, ids=trials.ids)
    given = [
        Answered(SINGLE, of, answers(of, name, [0, 1])) for of, name in ((trials, "a"), (other, "b"), (again, "c"))
    ]
    found = Comparison.of(given)
    assert [(test.first, test.second) for test in found.tests] == [("a", "c")]
    assert "the same, as it is the only comparison." in " ".join(found.to_text().split())


def test_images_that_are_there_twice_are_no_evidence() -> None:
    trials = Trials.of(["a.png", "b.png", "a.png"], [NAMES] * 3)
    given = [
        Answered(SINGLE, trials, answers(trials, name, chosen)) for name, chosen in (("a", [0] * 3), ("b", [1] * 3))
    ]
    found = Comparison.of(given)
    assert found.tests == ()
    assert [score.images for score in found.scores] == [3, 3]


def test_every_question_has_its_row_of_answers(tmp_path: Path) -> None:
    """An image that is there twice, and one of which models were asked something else."""
    trials = Trials.of(["a.png", "a.png"], [NAMES] * 2)
    other = Trials.of(["a.png"], [NAMES], truth=1)
    given = [
        Answered(SINGLE, trials, answers(trials, "a", [0, 1])),
        Answered(SINGLE, trials, answers(trials, "b", [2], rows=[1])),
        Answered(SINGLE, other, answers(other, "c", [1])),
    ]
    Comparison.of(given).save_answers(tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [[row[name] for name in ("image", "truth", "a answer", "b answer", "c answer")] for row in rows] == [
        ["a.png", "red cube", "red cube", "", ""],
        ["a.png", "red cube", "red cone", "blue cube", ""],
        ["a.png", "red cone", "", "", "red cone"],
    ]


def test_right_answers_are_right_whatever_their_kind_is_called() -> None:
    trials = Trials.of(["a.png"], [NAMES[:2]], kinds=[["mine", "near"]])
    (score,) = Comparison.of([Answered(TWO, trials, answers(trials, "a", [0]))]).scores
    assert score.accuracy.value + sum(score.kinds.values()) == 1


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.5], [0.001, 0.001, 0.9, 0.02], [1.0, 1.0], []])
def test_holm_is_statsmodels(p: list[float]) -> None:
    found = holm(p)
    assert len(found) == len(p)
    if p:
        multitest = pytest.importorskip("statsmodels.stats.multitest")
        np.testing.assert_allclose(found, multitest.multipletests(p, method="holm")[1], rtol=1e-14)


def test_holm_keeps_its_promise() -> None:
    """Among 20 true hypotheses, any is rejected with probability at most alpha (here close to it)."""
    p = np.random.default_rng(0).random((4000, 20))
    rejected = np.mean([holm(row).min() <= 0.05 for row in p])
    assert 0.035 < rejected < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_files(comparison: Comparison, tmp_path: Path) -> None:
    comparison.save(tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["task"], row["setting"], row["model"], row["images"]) for row in rows] == [
        ("single", "GZSL", "a_model", "8"), ("single", "GZSL", "<b> & %", "6"),
        ("two_object", "ZSL", "a_model", "3"), ("two_object", "ZSL", "<b> & %", "3"),
    ]  # fmt: skip
    assert (rows[0]["same colour"], rows[0]["other"], rows[2]["same colour"]) == ("0.125", "", "")
    comparison.save(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text()) == comparison.to_dict()
    assert comparison.to_dict()["tests"][0]["ties"] == 2
    comparison.save_tests(tmp_path / "t.csv")
    (first, second) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert (first["first_only"], second["p_value_corrected"], float(first["difference"])) == ("4", "0.5", 4 / 6)
    with pytest.raises(fastdc.InputError, match="ends in"):
        comparison.save(tmp_path / "s.xls")


def test_answers_of_each_image(comparison: Comparison, tmp_path: Path) -> None:
    comparison.save_answers(tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert len(rows) == 8 + 3
    assert list(rows[7].values()) == [
        "single", "val", "GZSL", "i7", "", "red cube", "blue cube", "same shape", "blue cube", "same shape",
    ]  # fmt: skip
    assert rows[6]["<b> & % answer"] == rows[6]["<b> & % kind"] == ""  # not answered
    assert (rows[8]["group"], rows[8]["a_model kind"]) == ("p", "second's colour")


def test_text_has_every_number(comparison: Comparison) -> None:
    text = comparison.to_text()
    for part in ("Single object", "val GZSL", "75.00", "40.93-92.85", "6 of 8", "+66.67", "* a <note>", "all 2 compar"):
        assert part in text
    assert max(map(len, text.splitlines())) < 160
    assert "second's shape, %" in text


def test_latex_escapes_names(comparison: Comparison) -> None:
    text = comparison.to_latex()
    assert r"a\_model & 75.0 (40.9-92.9)" in text
    assert r"<b> \& \%" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5
    for table in text.split(r"\begin{tabular}{")[1:]:
        columns = len(table.split("}")[0])
        lines = [line for line in table.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert all(line.replace(r"\&", "").count("&") == columns - 1 for line in lines)


def test_page_fits_and_escapes(comparison: Comparison) -> None:
    text = comparison.to_html()
    assert "<b>" not in text
    assert "a &lt;note&gt;" in text
    check_pages({"comparison": text})


def test_what_cannot_be_compared_is_refused() -> None:
    trials = single_trials(2)
    one = Answered(SINGLE, trials, answers(trials, "a", [0, 1]))
    with pytest.raises(fastdc.InputError, match="single val GZSL: expected models with different names, got 'a' twice"):
        Comparison.of([one, one])
    unknown = Trials.of(["a.png"], [NAMES], truth=-1)
    with pytest.raises(fastdc.InputError, match=r"single val GZSL, 'a\.png': expected a right text"):
        Comparison.of([Answered(SINGLE, unknown, answers(unknown, "a", [0]))])
    with pytest.raises(fastdc.InputError, match="got none"):
        Comparison.of([Answered(SINGLE, trials, answers(trials, "a", []))])
