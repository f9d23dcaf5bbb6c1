"""Runs of the public object: what may not change a number, candidates, streams of results, and Ctrl-C.

In the Gaussian world, whose network works element by element, so that equality is asserted to the bit. The reference is
a race of each image alone, in plain Python, on the full table of errors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import Classification, DiffusionClassifier, InputError, Interrupted, Progress
from fastdc.rules.protocol import AbstractRule
from fastdc.support import Float32
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.races import DRAWS, RULES, rule_of, slow_race, winner
from helpers.worlds import SHAPE, ManySlots, classifier, denoiser, fails_with, gaussian, unit_images

WORLD = gaussian(4)
N = 9
IMAGES = unit_images(N)
TABLE = classifier(WORLD).errors(IMAGES, draws=DRAWS)
PARTS = ("labels", "probabilities", "errors", "evaluations", "votes")


def rule(name: str) -> AbstractRule:
    return rule_of(name, 4, scale=0.5)


def assert_same(one: Classification, other: Classification, rows: Any = slice(None)) -> None:
    """`one` is the rows of `other`, labels, counts and errors, to the bit."""
    for name in PARTS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[rows])
    np.testing.assert_array_equal(one.table.counts, other.table.counts[rows])
    np.testing.assert_array_equal(one.table.errors, other.table.errors[rows])


def check_against_the_slow_race(result: Classification, made: AbstractRule, rows: Any, candidates: Any = None) -> None:
    for row, i in enumerate(rows):
        counts = slow_race(made, TABLE.errors[i], None if candidates is None else candidates[row])
        assert result.table.counts[row].tolist() == counts
        assert result.labels[row] == winner(TABLE.errors[i], counts)
        known = np.arange(DRAWS) < np.array(counts)[:, None]
        np.testing.assert_array_equal(result.table.errors[row], np.where(known, TABLE.errors[i], np.nan))
        assert result.evaluations[row] == sum(counts) <= 4 * DRAWS


@given(
    name=st.sampled_from(RULES),
    rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=2 * N),
    batch=st.sampled_from([1, 3, 17, 128]),
    slots=st.integers(1, 3),
    capacity=st.sampled_from([1, 2, 7, 1024]),
)
def test_batch_slots_order_capacity_and_other_images_change_nothing(
    name: str, rows: list[int], batch: int, slots: int, capacity: int
) -> None:
    """Any images in any order, some of them more than once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastdc.inference.job.IN_FLIGHT", capacity)
        clf = classifier(WORLD, batch=batch, slots=slots)
        result = clf.classify(IMAGES[rows], rule=rule(name), draws=DRAWS)
    check_against_the_slow_race(result, rule(name), rows)


@pytest.mark.parametrize("name", ["race", *RULES])
def test_an_image_alone_gets_the_result_it_gets_among_others(name: str) -> None:
    made = name if name == "race" else rule(name)
    together = classifier(WORLD, slots=2).classify(IMAGES, rule=made, draws=DRAWS)
    for i in range(N):
        assert_same(classifier(WORLD, batch=5).classify(IMAGES[i : i + 1], rule=made, draws=DRAWS), together, [i])


def test_the_full_rule_is_the_smallest_mean_of_all_errors() -> None:
    result = classifier(WORLD, batch=50).classify(IMAGES, rule="full", draws=DRAWS)
    means = TABLE.errors.mean(axis=2, dtype=np.float64)
    np.testing.assert_array_equal(result.labels, means.argmin(axis=1))
    np.testing.assert_array_equal(result.errors, TABLE.mean())
    np.testing.assert_allclose(result.errors, means, rtol=1e-12)
    np.testing.assert_array_equal(result.table.errors, TABLE.errors)
    assert result.evaluations.tolist() == [4 * DRAWS] * N


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("decision", ["mean", "vote"])
def test_two_identical_classes_tie_and_the_run_ends(name: str, decision: str) -> None:
    world = GaussianWorld(means=np.repeat(WORLD.means[:1], 2, axis=0))
    made = rule_of(name, 2, scale=0.5)
    result = classifier(world).classify(IMAGES, rule=made, draws=DRAWS, decision=decision)
    assert result.labels.tolist() == [0] * N
    np.testing.assert_array_equal(result.errors[:, 0], result.errors[:, 1])
    assert result.evaluations.tolist() == [2 * (10 if name == "ttest" else DRAWS)] * N  # ttest has 10 at most


# --- candidates ------------------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(RULES),
    candidates=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=N, max_size=N),
    batch=st.sampled_from([3, 128]),
)
def test_candidates_race_among_themselves(name: str, candidates: list[set[int]], batch: int) -> None:
    clf = classifier(WORLD, batch=batch)
    lists = [sorted(classes) for classes in candidates]
    result = clf.classify(IMAGES, rule=rule(name), draws=DRAWS, candidates=lists)
    check_against_the_slow_race(result, rule(name), range(N), lists)
    for row, classes in enumerate(candidates):
        others = [k for k in range(4) if k not in classes]
        assert np.isnan(result.errors[row, others]).all()
        assert not result.probabilities[row, others].any()
        assert result.probabilities[row].sum() == pytest.approx(1)


def test_a_prefilter_sees_the_users_images() -> None:
    seen: list[Float32] = []

    def best_two(images: Float32) -> Any:
        seen.append(images)
        return np.argsort(TABLE.mean(), axis=1)[:, :2]

    clf = classifier(WORLD)
    result = clf.classify(IMAGES, rule="full", draws=DRAWS, candidates=best_two)
    np.testing.assert_allclose(seen[0], IMAGES, atol=1e-6)
    np.testing.assert_array_equal(result.labels, TABLE.mean().argmin(axis=1))
    assert result.evaluations.tolist() == [2 * DRAWS] * N
    mask = np.zeros((N, 4), bool)
    np.put_along_axis(mask, np.argsort(TABLE.mean(), axis=1)[:, :2], True, axis=1)
    assert_same(clf.classify(IMAGES, rule="full", draws=DRAWS, candidates=mask), result)


# --- results as they come --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "calibrated"])
@pytest.mark.parametrize("chunk", [1, 4, 9, 64, None])
def test_a_stream_gives_the_results_of_classify_in_order(chunk: int | None, name: str) -> None:
    whole = classifier(WORLD).classify(IMAGES, rule=rule(name), draws=DRAWS)
    chunks = list(classifier(WORLD, batch=5, slots=2).stream(IMAGES, chunk=chunk, rule=rule(name), draws=DRAWS))
    size = chunk or N
    assert [len(one.labels) for one in chunks] == [min(size, N - start) for start in range(0, N, size)]
    assert [i for one in chunks for i in one.indices.tolist()] == list(range(N))
    for one in chunks:
        assert_same(one, whole, one.indices)
        assert one.provenance == {**whole.provenance, "batch": 5}  # which ran, and changed nothing


def test_a_chunk_comes_as_soon_as_its_images_are_decided() -> None:
    done: list[int] = []
    clf = classifier(WORLD, batch=4)
    results = clf.stream(IMAGES, chunk=2, rule="full", draws=2, progress=lambda now: done.append(now.finished))
    for number in range(1, 5):
        next(results)
        assert done[-1] == 2 * number


def test_a_stream_that_is_left_frees_the_network() -> None:
    clf = classifier(WORLD, batch=4, slots=3)
    results = clf.stream(IMAGES, chunk=1, rule="full", draws=DRAWS)
    next(results)
    del results
    assert isinstance(clf.network, ManySlots)
    assert not clf.network.working
    assert clf.classify(IMAGES[:1], draws=1).labels.shape == (1,)


def test_chunks_are_whole_numbers() -> None:
    wrong: list[Any] = [0, -1, 1.5, "2", True]
    for chunk in wrong:
        call: Callable[[], Any] = lambda chunk=chunk: next(classifier(WORLD).stream(IMAGES, chunk=chunk))  # type: ignore[misc]  # noqa: E731
        fails_with(call, "chunk must be a whole number of at least 1 or None", kind=InputError)
    assert len(list(classifier(WORLD).stream(IMAGES, chunk=np.int64(3), draws=1))) == 3  # type: ignore[arg-type]


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupted(clf: DiffusionClassifier, after: int, **options: Any) -> tuple[Interrupted, list[Classification]]:
    """What comes out of a run that is interrupted once so many images are finished, and what was given before."""

    def progress(now: Progress) -> None:
        if now.finished >= after:
            raise KeyboardInterrupt

    chunks: list[Classification] = []

    def take() -> None:
        for one in clf.stream(IMAGES, draws=DRAWS, progress=progress, **options):
            chunks.append(one)

    with pytest.raises(Interrupted) as caught:
        take()
    return caught.value, chunks


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", ["full", "calibrated", "ttest"])
def test_an_interrupt_returns_exactly_the_finished_images(name: str, slots: int) -> None:
    whole = classifier(WORLD).classify(IMAGES, rule=rule(name), draws=DRAWS)
    error, _ = interrupted(classifier(WORLD, batch=7, slots=slots), 3, chunk=None, rule=rule(name))
    assert isinstance(error, KeyboardInterrupt)
    result = error.result
    assert isinstance(result, Classification)
    assert 3 <= len(result.indices) < N
    assert str(error) == f"interrupted: {len(result.indices)} of {N} images finished"
    assert_same(result, whole, result.indices)


def test_an_interrupted_stream_returns_what_it_has_not_given() -> None:
    whole = classifier(WORLD).classify(IMAGES, rule="full", draws=DRAWS)
    error, chunks = interrupted(classifier(WORLD, batch=16), 5, chunk=2, rule="full")
    assert [one.indices.tolist() for one in chunks] == [[0, 1], [2, 3]]
    assert error.result.indices.tolist() == [4]
    assert_same(error.result, whole, [4])
    assert str(error) == f"interrupted: 5 of {N} images finished"


def test_an_interrupt_before_any_image_is_finished_has_no_result() -> None:
    error, chunks = interrupted(classifier(WORLD, batch=4), 0, chunk=None, rule="full")
    assert (error.result, chunks) == (None, [])
    assert str(error) == f"interrupted: 0 of {N} images finished"


def test_an_interrupt_of_the_last_step_loses_nothing() -> None:
    whole = classifier(WORLD).classify(IMAGES, rule="full", draws=DRAWS)

    def progress(now: Progress) -> None:
        if now.finished == N:
            raise KeyboardInterrupt

    assert_same(classifier(WORLD).classify(IMAGES, rule="full", draws=DRAWS, progress=progress), whole)


@pytest.mark.parametrize("slots", [1, 3])
def test_an_interrupt_in_the_network_keeps_the_finished_images_and_frees_it(slots: int) -> None:
    calls = 0

    def function(*cells: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return denoiser(WORLD)(*cells)

    clf = DiffusionClassifier(WORLD.model, ManySlots(function, SHAPE, batch=12, slots=slots))
    whole = classifier(WORLD).classify(IMAGES, rule="full", draws=DRAWS)
    with pytest.raises(Interrupted) as caught:
        clf.classify(IMAGES, rule="full", draws=DRAWS)
    result = caught.value.result
    assert 1 <= len(result.indices) <= 3  # an image is four steps
    assert_same(result, whole, result.indices)
    assert_same(clf.classify(IMAGES, rule="full", draws=DRAWS), whole)
