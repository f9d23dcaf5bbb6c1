"""Statistics of records against counting by hand, identities between the numbers, and SciPy."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fastdc.certification.records import OWN, Records
from fastdc.certification.summary import (
    certified_curve,
    compare,
    comparison_table,
    default_radii,
    mcnemar,
    names_of,
    summarize,
    summary_table,
)
from fastdc.support.exceptions import InputError

# (idx, label, predict, radius): one wrong with a radius, one abstention, two of the same radius.
ROWS = [(0, 1, 1, 0.5), (1, 2, 2, 0.25), (2, 2, 0, 0.75), (3, 0, -1, 0.0), (4, 0, 0, 0.5)]

RUNS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-1, 2), st.integers(0, 8).map(lambda eighths: eighths / 8)),
    min_size=1,
    max_size=30,
).map(lambda rows: [(i, label, predict, radius) for i, (label, predict, radius) in enumerate(rows)])


def records(rows: list[tuple[int, int, int, float]], *, name: str = "a.tsv", ours: bool = True, **more: Any) -> Records:
    idx, label, predict, radius = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    own = {column: np.arange(n) * k for k, column in enumerate(OWN)} if ours else {}
    values: dict[str, Any] = {
        "path": Path(name),
        "idx": idx,
        "label": label,
        "predict": predict,
        "radius": radius * 1.0,
    }
    values |= {"correct": (predict == label) & (label >= 0), "seconds": np.full(n, 2.5), "own": own, "manifest": None}
    return Records(**{**values, **more})


def by_hand(rows: list[tuple[int, int, int, float]], radius: float) -> float:
    return float(Fraction(sum(1 for _, label, predict, r in rows if label == predict and r >= radius), len(rows)))


def wilson(successes: int, n: int) -> tuple[float, float]:
    found = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return found.low, found.high


def certified(run: Records, radii: list[float]) -> list[float]:
    estimates = summarize(run, radii).certified
    assert estimates is not None
    return [estimate.value for estimate in estimates]


# --- one file --------------------------------------------------------------------------------------------------------


def test_a_summary() -> None:
    summary = summarize(records(ROWS), (0.25, 0.5, 0.51), name="five")
    assert (summary.name, summary.images, summary.expected) == ("five", 5, None)
    assert summary.certified is not None
    assert [estimate.value for estimate in summary.certified] == [0.6, 0.4, 0.0]  # at 0.5: the radius is inclusive
    assert [estimate[1:] for estimate in summary.certified] == [pytest.approx(wilson(k, 5)) for k in (3, 2, 0)]
    assert summary.accuracy == summary.certified[0]
    assert summary.average_radius is not None
    assert summary.average_radius.value == pytest.approx(0.25)
    low, high = stats.t.interval(0.95, 4, 0.25, stats.sem([0.5, 0.25, 0, 0, 0.5]))
    assert low < 0  # no radius is
    assert summary.average_radius.low == 0
    assert summary.average_radius.high == pytest.approx(high)
    assert summary.abstained.value == 0.2
    assert summary.evaluations == np.mean(np.arange(5) * 4)
    assert summary.copies == np.mean(np.arange(5) * (2 + 3))  # estimation and selection
    assert summary.seconds == 2.5


@given(rows=RUNS, radii=st.lists(st.floats(0, 1.2), min_size=1, max_size=5))
def test_certified_accuracy_is_a_count(rows: list[tuple[int, int, int, float]], radii: list[float]) -> None:
    run = records(rows)
    assert certified(run, radii) == pytest.approx([by_hand(rows, radius) for radius in radii], abs=1e-15)
    summary = summarize(run, radii)
    assert summary.certified is not None
    for estimate in summary.certified:
        assert estimate[1:] == pytest.approx(wilson(round(estimate.value * len(rows)), len(rows)))


@given(rows=RUNS)
def test_the_curve_is_certified_accuracy_and_its_area_the_average_radius(
    rows: list[tuple[int, int, int, float]],
) -> None:
    run = records(rows)
    radii, accuracy = certified_curve(run)
    assert accuracy.tolist() == [by_hand(rows, radius) for radius in radii.tolist()]
    between = (radii[1:] + radii[:-1]) / 2  # a step holds down to the radius before
    assert certified(run, [0.0, *between])[1:] == accuracy[1:].tolist()
    assert certified(run, [np.nextafter(radii[-1], 9)]) == [0]
    average = summarize(run, [0]).average_radius
    assert average is not None
    assert np.diff(radii) @ accuracy[1:] == pytest.approx(average.value)


@pytest.mark.parametrize("rows", [ROWS[:1], [(i, 1, 1, 0.5) for i in range(9)]])
def test_images_of_one_radius_do_not_tell_its_interval(rows: list[tuple[int, int, int, float]]) -> None:
    one = summarize(records(rows), [0])
    assert one.average_radius is not None
    assert math.isnan(one.average_radius.low)
    facts = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert facts["average_radius"] == {"value": 0.5, "ci95_low": None, "ci95_high": None}
    assert facts["accuracy"]["ci95_low"] == pytest.approx(wilson(len(rows), len(rows))[0])


def test_an_unlabelled_file_has_no_accuracy() -> None:
    run = records([(0, -1, 1, 0.5), (1, 0, -1, 0.0)], ours=False)
    summary = summarize(run, [0, 0.5])
    assert (summary.certified, summary.accuracy, summary.average_radius) == (None, None, None)
    assert (summary.evaluations, summary.copies) == (None, None)
    assert (summary.abstained.value, summary.mean_radius.value) == (0.5, 0.25)
    table = summary_table([summary]).splitlines()
    assert table[0].split() == ["images", "abstained,", "%", "mean", "radius", "NFE", "copies", "seconds"]
    assert table[1].split()[:4] == ["a.tsv", "2", "50.0", "0.250"]
    for refused in (lambda: certified_curve(run), lambda: compare(run, run, [0])):
        with pytest.raises(InputError, match=r"a\.tsv: the true class of image 0 is unknown"):
            refused()


@pytest.mark.parametrize("radii", [[], [-0.1], [math.nan], [math.inf]])
def test_radii_are_numbers_from_zero(radii: list[float]) -> None:
    with pytest.raises(InputError, match="radii must be numbers of at least 0, got"):
        summarize(records(ROWS), radii)


# --- two files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 5), (3, 3), (10, 2), (7, 30), (60, 41)])
def test_mcnemar_is_a_sum_of_binomials(b: int, c: int) -> None:
    n = b + c
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(min(1, 2 * tail)), rel=1e-12)


@given(rows=RUNS, seed=st.integers(0, 99))
def test_a_comparison_is_of_pairs(rows: list[tuple[int, int, int, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = [(i, label, int(rng.integers(-1, 3)), float(rng.integers(9) / 8)) for i, label, _, _ in rows]
    extra = [(100, 1, 1, 9.0)]
    order = rng.permutation(len(rows))  # nor need they be in the same order
    found = compare(records(rows + extra), records([other[i] for i in order], name="b.tsv"), [0, 0.5])
    assert found.names == ("a.tsv", "b.tsv")
    assert found.images == len(rows)
    for k, radius in enumerate((0, 0.5)):
        ones, twos = ([label == predict and r >= radius for _, label, predict, r in run] for run in (rows, other))
        pairs = np.array(ones, float) - np.array(twos, float)
        assert found.only[k] == ((pairs > 0).sum(), (pairs < 0).sum())
        assert found.difference[k].value == pytest.approx(pairs.mean())
        assert found.difference[k].low <= found.difference[k].value <= found.difference[k].high
        assert found.p_value[k] == mcnemar(*found.only[k])
    acr = [(r1 * (p1 == k)) - (r2 * (p2 == k)) for (_, k, p1, r1), (_, _, p2, r2) in zip(rows, other, strict=True)]
    assert found.average_radius.value == pytest.approx(np.mean(acr))


def test_only_the_same_images_are_compared() -> None:
    with pytest.raises(InputError, match="have no image in common"):
        compare(records(ROWS), records([(9, 1, 1, 0.5)]), [0])
    with pytest.raises(InputError, match="are of different data"):
        compare(records(ROWS), records([(1, 0, 1, 0.5)]), [0])
    here, there = ({"data": {"sha256": digest}} for digest in ("aa", "bb"))
    with pytest.raises(InputError, match="are of different data"):
        compare(records(ROWS, manifest=here), records(ROWS, manifest=there), [0])
    assert compare(records(ROWS, manifest=here), records(ROWS), [0]).images == 5


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables() -> None:
    indices = {"indices": [0, 20, 2]}
    both = [records(ROWS, manifest=indices), records([(0, -1, 1, 0.5)], name="b", ours=False)]
    lines = summary_table([summarize(run, [0, 0.5]) for run in both]).splitlines()
    assert lines[0].split() == ["certified", "accuracy,", "%", "0", "0.5"]
    low, high = (f"{100 * end:.1f}" for end in wilson(3, 5))
    assert lines[1].split() == ["a.tsv", "60.0", "40.0"]
    assert lines[2].split() == ["95", "%", "interval", f"{low}-{high}", "11.8-76.9"]
    assert lines[3].split() == ["b", "-", "-"]
    assert lines[4] == ""
    assert lines[6].split() == ["a.tsv", "5", "of", "10", "20.0", "0.250", "8", "10", "2.5"]
    assert " ".join(lines[7].split()) == "95 % interval 3.6-62.4 0.000-0.560"
    assert lines[8].split() == ["b", "1", "0.0", "-", "-", "-", "2.5"]
    assert lines[9].split() == ["95", "%", "interval", "0.0-79.3"]  # after one image nothing is sure
    assert {len(line) for line in lines[:4]} == {len(lines[0])}
    compared = comparison_table(compare(both[0], records(ROWS[:2], name="c\n"), [0])).splitlines()
    assert compared[0] == "a.tsv minus c?, 2 images"
    assert compared[2].split() == ["0", "+0.0", "-49.0", "to", "+49.0", "0", "0", "1"]
    assert compared[3] == "average radius  +0.0000"


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0.0, [0]), (0.799, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), (1.0, [0, 0.25, 0.5, 0.75, 1]), (0.04, None)],
)
def test_default_radii_are_round(largest: float, expected: list[float] | None) -> None:
    found = default_radii([records([(0, 1, 1, largest)]), records([(0, 1, 1, 0.0)])])
    assert found == (tuple(expected) if expected else (0, 0.01, 0.02, 0.03, 0.04))


@given(largest=st.floats(1e-3, 1e4))
def test_default_radii_reach_the_largest(largest: float) -> None:
    found = default_radii([records([(0, 1, 1, largest)])])
    assert len(found) <= 9
    assert found[0] == 0
    assert found[-1] <= largest * (1 + 1e-6)
    assert len(found) == 1 or largest < found[-1] + 1.001 * found[1]


def test_names_tell_files_apart() -> None:
    assert names_of([Path("x/sigma_0.25"), Path("x/dc.tsv"), Path("b.txt")]) == ["sigma_0.25", "dc", "b"]
    assert names_of([Path("/r/one/a.tsv"), Path("/r/two/a.tsv")]) == ["one/a", "two/a"]
    assert names_of([Path("a.tsv"), Path("a.tsv")]) == ["a.tsv", "a.tsv"]
    assert names_of([]) == []
