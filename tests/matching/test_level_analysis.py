"""What noise levels tell, by hand, by plain loops, and in a world whose levels are known to differ."""

from dataclasses import replace

import numpy as np
import pytest

from fastdc import ErrorTable, InputError
from fastdc.certification import share
from fastdc.matching import DiffusionMatcher, Trials, level_analysis
from helpers.matching_worlds import asked, with_prompts

DRAWS, BINS = 7, 3
SIGMA = np.array([3.0, 0.1, 1.0, 0.3, 10.0, 0.2, 5.0])
KINDS = ("right", "colour", "colour", "shape")


def given(n: int = 30) -> tuple[ErrorTable, Trials]:
    """Errors in eighths, so that ties are ties, of images with 2 to 4 candidates, the right one anywhere."""
    rng = np.random.default_rng(0)
    lists, kinds, truth, values = [], [], [], []
    for _ in range(n):
        order = [0, *rng.permutation(3)[: rng.integers(1, 4)] + 1]
        order = [order[k] for k in rng.permutation(len(order))]
        lists.append([f"text {k}" for k in order])
        kinds.append([KINDS[k] for k in order])
        truth.append(order.index(0))
        values.append(rng.integers(0, 9, (len(order), DRAWS)) / 8)
    counts = np.zeros((n, 4), np.int32)
    for i, own in enumerate(lists):
        counts[i, : len(own)] = DRAWS
    truth[3] = -1  # not known
    table = ErrorTable(
        counts=counts,
        values=np.concatenate([one.ravel() for one in values]).astype(np.float32),
        sigma=SIGMA,
        weights=np.ones(DRAWS, np.float32),
        streams=np.arange(n),
        seed=0,
        class_names=tuple("abcd"),
        plan={},
        model="m",
        identity="",
    )
    return table, Trials.of(np.zeros((n, 1, 2, 2)), lists, truth, kinds=kinds)


def test_bins_and_kinds_by_plain_loops() -> None:
    table, trials = given()
    found = level_analysis(table, trials, bins=BINS)
    assert found.levels.tolist() == [[0.1, 0.3], [1.0, 3.0], [5.0, 10.0]]
    assert found.draws == (3, 2, 2)
    assert set(found.kinds) == {"colour", "shape", "any wrong text"}
    assert found.kinds[-1] == "any wrong text"
    errors = table.errors.astype(np.float64)
    for kind, count in zip(found.kinds, found.images, strict=True):
        for b, draws in enumerate([[1, 5, 3], [2, 0], [6, 4]]):
            shares, all_ahead = [], []
            for i in range(len(trials)):
                t = int(trials.truth[i])
                places = [a for a, name in enumerate(trials.kinds[i]) if name == kind or (kind[:3] == "any" and a != t)]
                if t < 0 or not places:
                    continue
                ahead = [[errors[i, a, j] - errors[i, t, j] for j in draws] for a in places]
                shares.append(np.mean([[1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in row] for row in ahead]))
                all_ahead.append(all(np.mean(row) > 0 for row in ahead))
            assert found.single[kind][b].value == pytest.approx(np.mean(shares))
            assert found.together[kind][b].value == pytest.approx(np.mean(all_ahead))
            assert count == len(shares)
            assert 0 <= found.single[kind][b].low <= found.single[kind][b].high <= 1
    lines = str(found).splitlines()
    assert len(lines) == BINS + 4
    assert lines[1].split() == ["one", "draw", "whole", "bin"] * 3
    assert len(lines[0]) == len(lines[1]) == len(lines[2])
    assert found.to_dict()["bins"][1] == {"low": 1.0, "high": 3.0, "draws": 2}


def test_a_tie_is_no_success_together_and_a_half_alone() -> None:
    table, trials = given()
    flat = replace(table, values=np.full_like(table.values, 0.5))
    found = level_analysis(flat, trials, bins=1)
    assert {one[0].value for one in found.single.values()} == {0.5}
    assert {one[0].value for one in found.together.values()} == {0.0}


def test_a_right_text_that_is_always_ahead_has_an_interval_that_few_images_allow() -> None:
    errors = np.repeat([[0.0], [1.0]], DRAWS, axis=1)[None].repeat(5, axis=0)
    table, _ = given(5)
    trials = Trials.of(np.zeros((5, 1, 2, 2)), [["a", "b"]] * 5)
    counts = np.pad(np.full((5, 2), DRAWS, np.int32), ((0, 0), (0, 2)))
    sure = replace(table, counts=counts, values=errors.ravel().astype(np.float32))
    found = level_analysis(sure, trials, bins=1)
    assert found.single["any wrong text"] == found.together["any wrong text"] == (share(5, 5),)
    wrong = level_analysis(sure, Trials.of(np.zeros((5, 1, 2, 2)), [["a", "b"]] * 5, 1), bins=1)
    assert wrong.single["any wrong text"] == (share(0, 5),)


def test_a_real_run_is_analysed_and_the_last_column_without_a_text_left_out() -> None:
    trials = asked(12)
    right = Trials.of(np.asarray(trials.images), [trials.texts_of(i) for i in range(12)])
    table = DiffusionMatcher(with_prompts(), draws=9).errors(right)
    wide = replace(
        table,
        counts=np.pad(table.counts, ((0, 0), (0, 1))),
        class_names=(*table.class_names, "(no text)"),
    )
    want, found = level_analysis(table, right), level_analysis(wide, right)
    assert want.single == found.single
    assert want.kinds == ("any wrong text",)
    assert want.best("any wrong text") in range(8)


def test_kinds_may_be_missing_or_named_as_all_are() -> None:
    trials = asked(12)
    lists = [trials.texts_of(i) for i in range(12)]
    few = Trials.of(np.asarray(trials.images), lists, kinds=[["right", *[""] * (len(one) - 1)] for one in lists])
    table = DiffusionMatcher(with_prompts(), draws=4).errors(few)
    with pytest.raises(InputError, match="no wrong text has a kind"):
        level_analysis(table, few)
    kinds = [["right", *["any wrong text", "colour"] * 3][: len(one)] for one in lists]
    found = level_analysis(table, replace(few, kinds=tuple(map(tuple, kinds))), bins=1)
    assert found.kinds == ("colour", "any wrong text")
    assert (
        found.single["any wrong text"] == level_analysis(table, replace(few, kinds=()), bins=1).single[found.kinds[1]]
    )


def test_what_does_not_fit_is_refused() -> None:
    table, trials = given()
    for call, told in (
        (lambda: level_analysis(table.rows(0, 3), trials), "table of the 30 trials, got one of 3"),
        (lambda: level_analysis(table, trials, bins=8), "at most the 7 draws"),
        (lambda: level_analysis(table, replace(trials, truth=np.full(30, -1))), "no right text is known"),
        (lambda: level_analysis(replace(table, sigma=np.append(SIGMA, 1.0), weights=np.ones(8, np.float32)), trials),
         "image 0: expected the errors of a full run"),
        (lambda: level_analysis(table, trials).best("size"), "kind must be one of"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=told):
            call()
