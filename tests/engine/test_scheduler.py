"""The scheduler against a race of single images in plain Python, however the work is cut and in whatever order it ends.

No network: a cell's error is looked up, when its step ends, by the image that is then at the cell's place. A place
that was given away too early would therefore show.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import InputError
from fastdc.engine import IN_FLIGHT, Finished, Request, Scheduler, Work
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.full import Full
from fastdc.rules.protocol import AbstractRule, Classes, Look
from fastdc.support import Float32, Mask
from helpers.races import DRAWS, RULES, rule_of, slow_race, tables
from helpers.sources import Source
from helpers.worlds import fails_with

Rng = np.random.Generator


class Bench:
    """Stands in for the network: answers the cells of a scheduler from tables (n, K, J), and counts."""

    def __init__(self, errors: Float32, seed: int = 0) -> None:
        self.errors = errors
        self.rng = np.random.default_rng(seed)
        self.image_in: dict[int, int] = {}
        self.streams: dict[int, int] = {}
        self.evaluated: set[tuple[int, int, int]] = set()
        self.proposed: list[list[list[int]]] = []

    def put(self, place: int, image: Float32, stream: int) -> None:
        self.image_in[place] = int(image[0, 0, 0])
        self.streams[place] = stream

    def request(self, image: int, classes: Sequence[int] | None = None) -> Request:
        ids = None if classes is None else np.array(classes, np.int32)
        return Request(image, np.full((1, 1, 1), image, np.float32), 100 + image, ids)

    def answer(self, work: Work) -> Float32:
        cells = [(self.image_in[place], k, j) for place, k, j in work.cells.tolist()]
        for place in work.cells[:, 0].tolist():
            assert self.streams[place] == 100 + self.image_in[place]
        assert not self.evaluated.intersection(cells), "a cell was evaluated twice"
        assert len(set(cells)) == len(cells), "a cell is in a step twice"
        self.evaluated.update(cells)
        return np.array([self.errors[cell] for cell in cells], np.float32)

    def run(self, scheduler: Scheduler, *, room: int = 5, at_once: int = 1) -> Iterator[list[Finished]]:
        """Runs to the end with steps of up to `room` cells, up to `at_once` in flight, answered in random order."""
        flying: list[Work] = []
        while True:
            while len(flying) < at_once:
                work = scheduler.propose(int(self.rng.integers(1, room + 1)))
                if not len(work.cells):
                    break
                assert len(work.cells) <= room
                self.proposed.append(work.cells.tolist())
                flying.append(work)
            if not flying:
                return
            assert scheduler.flying == sum(len(work.cells) for work in flying)
            work = flying.pop(int(self.rng.integers(len(flying))))
            scheduler.observe(work, self.answer(work))
            yield scheduler.finished()


def scheduler_of(
    bench: Bench, rule: AbstractRule, requests: Iterable[Request] | Source | None = None, *, capacity: int = IN_FLIGHT
) -> Scheduler:
    n, n_classes, draws = bench.errors.shape
    given = [bench.request(i) for i in range(n)] if requests is None else requests
    source = given if isinstance(given, Source) else Source(given)
    return Scheduler(rule, draws, n_classes, put=bench.put, next_request=source, capacity=capacity)


def counts_of(finished: Iterable[Finished], errors: Float32) -> dict[int, list[int]]:
    """The counts by key; every value must be the one of the table."""
    result = {}
    for one in finished:
        assert one.counts.dtype == np.int32
        assert one.values.dtype == np.float32
        assert one.key not in result
        result[one.key] = one.counts.tolist()
        expected = [errors[one.key, k, j] for k, count in enumerate(result[one.key]) for j in range(count)]
        assert one.values.tolist() == expected
    return result


@given(
    name=st.sampled_from(RULES),
    n=st.integers(1, 9),
    n_classes=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    ties=st.booleans(),
    capacity=st.sampled_from([1, 2, 7, IN_FLIGHT]),
    room=st.integers(1, 30),
    at_once=st.integers(1, 4),
)
def test_every_image_is_decided_as_in_a_race_of_its_own(
    name: str, n: int, n_classes: int, seed: int, ties: bool, capacity: int, room: int, at_once: int
) -> None:
    errors = tables(n, n_classes, DRAWS, seed=seed, ties=ties)
    rule = rule_of(name, n_classes)
    bench = Bench(errors, seed)
    order = bench.rng.permutation(n).tolist()
    given = (replace(bench.request(i), group=i % 3 << 40) for i in order)  # which changes no result
    scheduler = scheduler_of(bench, rule, given, capacity=capacity)
    done: list[Finished] = []
    bounds = []
    for finished in bench.run(scheduler, room=room, at_once=at_once):
        done += finished
        waiting = n - scheduler.admitted
        assert waiting >= max(n - len(done) - capacity, 0)
        assert scheduler.evaluated == len(bench.evaluated)
        bounds.append(scheduler.at_most + waiting * n_classes * DRAWS)
        assert scheduler.evaluated <= bounds[-1] <= n * n_classes * DRAWS
    assert counts_of(done, errors) == {i: slow_race(rule, errors[i]) for i in range(n)}
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == scheduler.evaluated == sum(int(one.counts.sum()) for one in done)
    assert (scheduler.prepare(), scheduler.flying) == (0, 0)
    assert scheduler.finished() == []


def test_a_lower_group_is_finished_first() -> None:
    """Its hard requests are not left behind by the first looks of requests that come later."""
    bench = Bench(tables(40, 3, DRAWS, seed=0))
    requests = [replace(bench.request(i), group=i // 10) for i in range(40)]
    ended = [one.key // 10 for done in bench.run(scheduler_of(bench, rule_of("paired", 3), requests)) for one in done]
    assert ended == sorted(ended)


@given(
    name=st.sampled_from(RULES),
    candidates=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=8),
    seed=st.integers(0, 10_000),
    room=st.integers(1, 30),
)
def test_candidates_race_among_themselves(name: str, candidates: list[set[int]], seed: int, room: int) -> None:
    """Their numbers differ from request to request, so that rules see padded looks."""
    errors = tables(len(candidates), 5, DRAWS, seed=seed)
    rule = rule_of(name, 5)
    bench = Bench(errors, seed)
    requests = [bench.request(i, sorted(classes)) for i, classes in enumerate(candidates)]
    scheduler = scheduler_of(bench, rule, requests)
    assert scheduler.prepare() > 0
    assert scheduler.at_most == sum(map(len, candidates)) * DRAWS
    done = [one for finished in bench.run(scheduler, room=room, at_once=2) for one in finished]
    expected = {i: slow_race(rule, errors[i], sorted(classes)) for i, classes in enumerate(candidates)}
    assert counts_of(done, errors) == expected


# --- special numbers -------------------------------------------------------------------------------------------------


def run(rule: AbstractRule, errors: Any, **options: Any) -> dict[int, list[int]]:
    table = np.asarray(errors, np.float32)
    bench = Bench(table)
    scheduler = scheduler_of(bench, rule, **options)
    return counts_of([one for finished in bench.run(scheduler) for one in finished], table)


@pytest.mark.parametrize("name", RULES)
def test_two_equal_classes_tie_until_the_budget_ends_or_the_rule_decides(name: str) -> None:
    errors = np.repeat(tables(1, 1, DRAWS, seed=3), 2, axis=1)
    decides = {"ttest": 10}  # at most 10 draws
    assert run(rule_of(name, 2), errors) == {0: [decides.get(name, DRAWS)] * 2}


@pytest.mark.parametrize("name", RULES)
def test_a_single_class_is_looked_at_once(name: str) -> None:
    rule = rule_of(name, 1)
    assert run(rule, tables(2, 1, DRAWS, seed=0)) == {i: [rule.looks(DRAWS)[0]] for i in range(2)}


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("staged", "votes")])
def test_with_one_draw_every_class_is_evaluated_once(name: str) -> None:
    assert run(rule_of(name, 3), tables(4, 3, 1, seed=0)) == {i: [1, 1, 1] for i in range(4)}


def test_a_clear_winner_ends_at_the_first_look() -> None:
    assert run(Calibrated(0.5), [[[9.0] * 8, [1.0] * 8, [8.0] * 8]]) == {0: [1, 1, 1]}
    assert run(Calibrated(0.5), [[[1.4] * 8, [1.0] * 8, [8.0] * 8]]) == {0: [2, 2, 1]}


def test_without_requests_there_is_nothing_to_do() -> None:
    bench = Bench(tables(1, 2, 3, seed=0))
    scheduler = scheduler_of(bench, Full(), ())
    assert (scheduler.prepare(), scheduler.at_most, scheduler.admitted) == (0, 0, 0)
    assert scheduler.propose(5).cells.shape == (0, 3)
    assert list(bench.run(scheduler)) == []


def test_steps_are_filled_across_images_and_classes_run_fastest() -> None:
    bench = Bench(tables(3, 2, 2, seed=0))
    scheduler = scheduler_of(bench, Full())
    assert scheduler.prepare() == 12
    assert scheduler.propose(5).cells.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]]
    assert scheduler.flying == 5
    assert scheduler.prepare() == 7
    assert len(scheduler.propose(100).cells) == 7
    assert len(scheduler.propose(100).cells) == 0  # nothing until errors come


def test_earlier_looks_go_first() -> None:
    """Image 0 is ready for its second look while the others wait for their first."""
    bench = Bench(np.ones((4, 2, 4), np.float32))
    scheduler = scheduler_of(bench, Calibrated(9.0))
    for _ in bench.run(scheduler, room=1):
        pass
    draws = [cells[0][2] for cells in bench.proposed]
    assert draws == sorted(draws)
    assert [cells[0][0] for cells in bench.proposed[:8]] == [0, 0, 1, 1, 2, 2, 3, 3]


# --- coming and going ------------------------------------------------------------------------------------------------


def test_requests_are_read_as_there_is_room_and_leave_at_once() -> None:
    """Image i ends after its first look if i is even; at most two are in flight."""
    errors = np.ones((9, 2, 4), np.float32)
    errors[::2, 1] = 9
    bench = Bench(errors)
    read: list[int] = []

    def source() -> Iterator[Request]:
        for i in range(9):
            read.append(i)
            yield bench.request(i)

    scheduler = scheduler_of(bench, Calibrated(1.0), source(), capacity=2)
    assert read == []
    seen = []
    for finished in bench.run(scheduler, room=2):
        seen += [one.key for one in finished]
        assert len(read) <= len(seen) + 2
        for image, label, draw in bench.evaluated:
            assert errors[image, label].max() < 9 or draw == 0
        ended = {image for image in range(0, 9, 2) if {(image, 0, 0), (image, 1, 0)} <= bench.evaluated}
        assert ended <= set(seen), "an image that is decided must leave with that step"
    assert sorted(seen) == read == list(range(9))
    assert set(bench.image_in) == {0, 1}


def test_an_endless_source_is_not_read_ahead() -> None:
    bench = Bench(tables(1, 2, 4, seed=0))
    read: list[int] = []

    def source() -> Iterator[Request]:
        while True:
            read.append(len(read))
            yield bench.request(0)

    scheduler = scheduler_of(bench, Full(), source(), capacity=3)
    scheduler.propose(1)
    assert len(read) == 3
    assert scheduler.admitted == 3


def test_the_key_of_a_place_is_that_of_its_request() -> None:
    bench = Bench(tables(5, 2, DRAWS, seed=0))
    scheduler = scheduler_of(bench, Calibrated(0.5), [bench.request(i) for i in (4, 2, 0, 3, 1)], capacity=2)
    for _ in bench.run(scheduler, room=3):
        assert {place: scheduler.key(place) for place in bench.image_in} == bench.image_in


def test_requests_may_come_while_others_run_and_after_all_have_ended() -> None:
    errors = tables(9, 3, DRAWS, seed=5)
    bench = Bench(errors)
    rule = Calibrated(1.0)
    source = Source(bench.request(i) for i in range(4))
    scheduler = scheduler_of(bench, rule, source, capacity=3)
    ahead = iter([6, 4, 7, 5])
    done: list[Finished] = []
    for finished in bench.run(scheduler, room=4, at_once=2):
        done += finished
        for image in [i for i in [next(ahead, None)] if i is not None]:
            source.add(bench.request(image))
    assert len(done) == 8
    source.add(bench.request(8))
    done += [one for finished in bench.run(scheduler) for one in finished]
    assert counts_of(done, errors) == {i: slow_race(rule, errors[i]) for i in range(9)}


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_request_ends_when_the_class_that_it_asks_about_has_lost(target: int) -> None:
    """Class 1 wins, but the others fall behind only slowly: a plain race goes on for all eight draws."""
    errors = np.ones((1, 3, 8), np.float32)
    errors[0, [0, 2]] = 1.05
    rule = Calibrated(0.12)  # the lead is 0.05 m: it exceeds the limit at the third draw
    bench = Bench(errors)
    request = Request(0, np.zeros((1, 1, 1), np.float32), 100, target=target)
    (done,) = [one for finished in bench.run(scheduler_of(bench, rule, [request])) for one in finished]
    assert done.best == 1
    assert done.counts.tolist() == [3, 3, 3]
    kept = Calibrated(0.25)  # never exceeded before the draws are used up, except by the class asked about
    far = errors.copy()
    far[0, target if target != 1 else 0] = 2.0
    bench = Bench(far)
    (done,) = [one for finished in bench.run(scheduler_of(bench, kept, [request])) for one in finished]
    assert done.best == 1
    assert done.counts.max() == (1 if target != 1 else 8)


# --- rules that add classes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guests(AbstractRule):
    """Begins with the classes 0, 4, ...; at the first look each that stays brings in its next class, then the next.

    Keeps classes within `margin` of the best mean.
    """

    name = "guests"
    expands = True
    margin: float = 0.5

    def looks(self, draws: int) -> tuple[int, ...]:
        return tuple(sorted({1, min(3, draws), draws}))

    def begin(self, candidates: Classes) -> Classes:
        return np.asarray(candidates[candidates % 4 == 0], np.int32)

    def keep(self, look: Look) -> Mask:
        means = look.means
        return np.asarray(look.alive & (means <= means.min(axis=1, keepdims=True) + self.margin))

    def expand(self, look: Look, keep: Mask) -> list[Classes]:
        assert look.candidates is not None
        added = []
        for row, classes in enumerate(look.classes):
            hosts = classes[keep[row]]
            guests = hosts[hosts % 4 == 0] + 1 + look.index
            guests = guests[(guests < look.candidates.shape[1]) & (look.index < 2)]
            added.append(guests[look.candidates[row, guests] & ~np.isin(guests, classes)].astype(np.int32))
        return added


def slow_guests(errors: Float32, margin: float, candidates: set[int]) -> list[int]:
    """What becomes of one image, looked at after 1, 3 and all draws."""
    n_classes, draws = errors.shape
    counts = [0] * n_classes
    alive = {k for k in candidates if k % 4 == 0}
    for index, m in enumerate(sorted({1, min(3, draws), draws})):
        for again in (False, True):
            for k in alive:
                counts[k] = m
            means = {k: errors[k, :m].astype(np.float64).mean() for k in alive}
            alive = {k for k in alive if means[k] <= min(means.values()) + margin}
            if not again and index < 2:
                alive |= {k + 1 + index for k in alive if k % 4 == 0} & candidates
        if len(alive) == 1:
            break
    return counts


@given(
    candidates=st.lists(st.sets(st.integers(0, 6)).map(lambda some: some | {4}), min_size=1, max_size=6),
    margin=st.sampled_from([0.0, 0.3, 1.0]),
    draws=st.sampled_from([1, 2, 4, 7]),
    seed=st.integers(0, 1000),
    room=st.integers(1, 20),
    at_once=st.integers(1, 3),
)
def test_classes_that_join_catch_up_and_the_look_is_taken_again(
    candidates: list[set[int]], margin: float, draws: int, seed: int, room: int, at_once: int
) -> None:
    errors = tables(len(candidates), 7, draws, seed=seed)
    bench = Bench(errors, seed)
    requests = [bench.request(i, sorted(classes)) for i, classes in enumerate(candidates)]
    scheduler = scheduler_of(bench, Guests(margin), requests, capacity=3)
    bounds, done = [], []
    for finished in bench.run(scheduler, room=room, at_once=at_once):
        done += finished
        bounds.append(scheduler.at_most + sum(len(c) * draws for c in candidates[scheduler.admitted :]))
    assert counts_of(done, errors) == {i: slow_guests(errors[i], margin, c) for i, c in enumerate(candidates)}
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == scheduler.evaluated


def test_rules_that_add_classes_are_shown_the_candidates_and_no_others_are() -> None:
    seen: list[Look] = []

    @dataclass(frozen=True)
    class Watching(Guests):
        expands = False

        def keep(self, look: Look) -> Mask:
            seen.append(look)
            return look.alive

    bench = Bench(tables(2, 6, 4, seed=0))
    scheduler = scheduler_of(bench, Watching(), [bench.request(0, [0, 3, 4]), bench.request(1)])
    assert len([one for finished in bench.run(scheduler, room=99) for one in finished]) == 2
    assert [look.candidates for look in seen] == [None, None]
    assert [look.classes.tolist() for look in seen] == [[[0, 4], [0, 4]]] * 2
    assert [(look.index, look.draws, look.last) for look in seen] == [(0, 1, False), (1, 3, False)]


# --- rules that break their word -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(AbstractRule):
    """Keeps nothing, or everything, padding included."""

    name = "broken"
    everything: bool = False

    def looks(self, draws: int) -> tuple[int, ...]:
        return (1, draws)

    def keep(self, look: Look) -> npt.NDArray[np.bool_]:
        return np.full(look.classes.shape, self.everything)


def test_a_rule_may_neither_drop_everybody_nor_keep_who_is_not_there() -> None:
    says = "rule broken must keep at least one of the classes alive, and only those"
    fails_with(lambda: run(Broken(), tables(2, 3, 4, seed=0)), says, kind=InputError)
    bench = Bench(tables(2, 3, 4, seed=0))
    requests = [bench.request(0, [0, 1]), bench.request(1, [0, 1, 2])]
    scheduler = scheduler_of(bench, Broken(everything=True), requests)
    fails_with(lambda: list(bench.run(scheduler, room=99)), says, kind=InputError)


def test_a_class_that_was_dropped_does_not_return() -> None:
    @dataclass(frozen=True)
    class Regretting(Guests):
        def expand(self, look: Look, keep: Mask) -> list[Classes]:
            return [classes[(classes >= 0) & ~kept] for classes, kept in zip(look.classes, keep, strict=True)]

    errors = np.ones((1, 5, 4), np.float32)
    errors[:, 4] = 9
    fails_with(lambda: run(Regretting(), errors), "class 4", "was evaluated before", kind=InputError)


def test_what_cannot_be_scheduled_is_refused() -> None:
    bench = Bench(tables(1, 2, 4, seed=0))
    fails_with(lambda: scheduler_of(bench, Full(), capacity=0), "capacity must be at least 1, got 0", kind=InputError)
    fails_with(lambda: scheduler_of(bench, rule_of("staged", 2)), "needs draws=12, got 4", kind=InputError)
