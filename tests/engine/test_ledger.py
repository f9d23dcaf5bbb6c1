"""The ledger against a model of it in plain Python, under any sequence of calls; and every call it refuses."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastdc import InputError
from fastdc.diffusion.kernels import Ledger
from helpers.worlds import fails_with

MAX_PLACES = 4
Cell = tuple[int, int, int]


def ids(classes: Any) -> Any:
    return np.array(classes, np.int32)


class Request:
    """What the ledger knows of one request."""

    def __init__(self) -> None:
        self.alive: dict[int, list[float]] = {}
        self.dropped: dict[int, list[float]] = {}
        self.drawn = 0
        self.todo: list[Cell] = []  # cells of the block that nobody has taken
        self.missing: set[Cell] = set()  # cells of the block without an error

    def begin(self, place: int, classes: list[int], draws: range) -> None:
        self.todo = [(place, k, j) for j in draws for k in classes]
        self.missing = set(self.todo)


class LedgerMachine(RuleBasedStateMachine):
    """Random calls, each made on the ledger and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[int, Request] = {}
        self.queue: list[tuple[int, int, int]] = []  # (-priority, order, place), smallest first
        self.steps: dict[int, list[Cell]] = {}
        self.order = 0
        self.values = 0  # every error is another number

    @initialize(draws=st.integers(1, 6), classes=st.integers(1, 5))
    def begin(self, draws: int, classes: int) -> None:
        self.draws, self.classes = draws, classes
        self.ledger = Ledger(draws, classes)

    def resting(self) -> list[int]:
        return sorted(place for place, request in self.requests.items() if not request.missing)

    def enqueue(self, place: int, priority: int) -> None:
        self.queue.append((-priority, self.order, place))
        self.order += 1

    @precondition(lambda self: len(self.requests) < MAX_PLACES)
    @rule(data=st.data(), priority=st.integers(-3, 3))
    def open(self, data: st.DataObject, priority: int) -> None:
        place = data.draw(st.sampled_from([s for s in range(MAX_PLACES) if s not in self.requests]))
        classes = sorted(data.draw(st.sets(st.integers(0, self.classes - 1), min_size=1)))
        end = data.draw(st.integers(1, self.draws))
        self.ledger.open(place, ids(classes), end, priority)
        request = self.requests[place] = Request()
        request.alive = {k: [] for k in classes}
        request.begin(place, classes, range(end))
        self.enqueue(place, priority)

    @rule(room=st.integers(0, 12))
    def propose(self, room: int) -> None:
        expected: list[Cell] = []
        while self.queue and len(expected) < room:
            place = min(self.queue)[2]
            request = self.requests[place]
            count = room - len(expected)
            expected += request.todo[:count]
            request.todo = request.todo[count:]
            if not request.todo:
                self.queue.remove(min(self.queue))
        ticket, cells = self.ledger.propose(room)
        assert cells.dtype == np.int32
        assert cells.shape == (len(expected), 3)
        assert [tuple(cell) for cell in cells.tolist()] == expected
        assert ticket not in self.steps
        if expected:
            self.steps[ticket] = expected
        else:
            fails_with(lambda: self.ledger.observe(ticket, np.zeros(0, np.float32)), "not proposed", kind=InputError)

    @precondition(lambda self: self.steps)
    @rule(data=st.data())
    def observe(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.steps)))
        cells = self.steps.pop(ticket)
        # Distinct, exact in float32, and in no order that classes or draws have.
        counter = np.arange(self.values, self.values + len(cells), dtype=np.int64)
        errors = (counter * 104729 % 2**20).astype(np.float32)
        self.values += len(cells)
        complete = set()
        for (place, k, j), error in zip(cells, errors.tolist(), strict=True):
            request = self.requests[place]
            request.missing.remove((place, k, j))
            row = request.alive[k]
            row += [float("nan")] * (j + 1 - len(row))
            row[j] = error
            if not request.missing:
                request.drawn = max(map(len, request.alive.values()))
                complete.add(place)
        got = self.ledger.observe(ticket, errors)
        assert got.dtype == np.int32
        assert got.tolist() == sorted(complete)
        fails_with(lambda: self.ledger.observe(ticket, errors), f"step {ticket}", kind=InputError)

    @precondition(lambda self: any(self.requests[place].drawn < self.draws for place in self.resting()))
    @rule(data=st.data(), priority=st.integers(-3, 3))
    def extend(self, data: st.DataObject, priority: int) -> None:
        able = [place for place in self.resting() if self.requests[place].drawn < self.draws]
        places = data.draw(st.lists(st.sampled_from(able), min_size=1, unique=True))
        end = data.draw(st.integers(max(self.requests[place].drawn for place in places) + 1, self.draws))
        self.ledger.extend(ids(places), end, priority)
        for place in places:
            request = self.requests[place]
            request.begin(place, sorted(request.alive), range(request.drawn, end))
            self.enqueue(place, priority)

    @precondition(lambda self: any(self.fresh(place) for place in self.resting()))
    @rule(data=st.data(), priority=st.integers(-3, 3))
    def add(self, data: st.DataObject, priority: int) -> None:
        place = data.draw(st.sampled_from([place for place in self.resting() if self.fresh(place)]))
        classes = sorted(data.draw(st.sets(st.sampled_from(self.fresh(place)), min_size=1)))
        self.ledger.add(place, ids(classes), priority)
        request = self.requests[place]
        request.alive.update({k: [] for k in classes})
        request.begin(place, classes, range(request.drawn))
        self.enqueue(place, priority)

    def fresh(self, place: int) -> list[int]:
        request = self.requests[place]
        return [k for k in range(self.classes) if k not in request.alive and k not in request.dropped]

    @precondition(lambda self: self.resting())
    @rule(data=st.data(), padding=st.integers(0, 2))
    def drop(self, data: st.DataObject, padding: int) -> None:
        places = data.draw(st.lists(st.sampled_from(self.resting()), min_size=1, unique=True))
        width = max(len(self.requests[place].alive) for place in places) + padding
        keep = np.zeros((len(places), width), np.bool_)
        for row, place in enumerate(places):
            alive = sorted(self.requests[place].alive)
            kept = data.draw(st.sets(st.sampled_from(alive), min_size=1))
            keep[row, : len(alive)] = [k in kept for k in alive]
            request = self.requests[place]
            for k in alive:
                if k not in kept:
                    request.dropped[k] = request.alive.pop(k)
        self.ledger.drop(ids(places), keep)

    @precondition(lambda self: self.resting())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        places = data.draw(st.lists(st.sampled_from(self.resting()), unique=True))
        for place, (counts, values, best) in zip(places, self.ledger.close(ids(places)), strict=True):
            request = self.requests.pop(place)
            rows = {**request.alive, **request.dropped}
            assert counts.dtype == np.int32
            assert values.dtype == np.float32
            assert counts.tolist() == [len(rows.get(k, [])) for k in range(self.classes)]
            assert values.tolist() == [error for k in sorted(rows) for error in rows[k]]
            most = max(map(len, rows.values()))
            sums = {k: math.fsum(row) for k, row in sorted(rows.items()) if len(row) == most}
            assert best == min(sums, key=lambda k: sums[k])

    @invariant()
    def agrees(self) -> None:
        requests = self.requests.values()
        if not hasattr(self, "ledger"):
            return
        assert self.ledger.waiting == sum(len(request.todo) for request in requests)
        assert self.ledger.flying == sum(map(len, self.steps.values()))
        assert self.ledger.flying == sum(len(request.missing) - len(request.todo) for request in requests)
        resting = self.resting()
        for place in resting:
            assert self.ledger.drawn(place) == self.requests[place].drawn
        for draws in {self.requests[place].drawn for place in resting}:
            places = [place for place in resting[::-1] if self.requests[place].drawn == draws]
            self.shows(places, draws, *self.ledger.gather(ids(places)))

    def shows(self, places: list[int], draws: int, classes: Any, errors: Any) -> None:
        width = max(len(self.requests[place].alive) for place in places)
        assert classes.dtype == np.int32
        assert classes.shape == (len(places), width)
        assert errors.dtype == np.float32
        assert errors.shape == (len(places), width, draws)
        for row, place in enumerate(places):
            alive = self.requests[place].alive
            assert classes[row].tolist() == sorted(alive) + [-1] * (width - len(alive))
            assert errors[row, : len(alive)].tolist() == [alive[k] for k in sorted(alive)]
            assert np.isnan(errors[row, len(alive) :]).all()


LedgerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
test_any_sequence_of_calls_agrees_with_the_model = LedgerMachine.TestCase


# --- what is refused -------------------------------------------------------------------------------------------------


def resting_ledger() -> Ledger:
    """Places 0 and 1 at 2 of 4 draws, with classes 0, 2 and 1, 2 of 4; place 2 waits for errors."""
    ledger = Ledger(4, 4)
    ledger.open(0, ids([0, 2]), 2, 0)
    ledger.open(1, ids([1, 2]), 2, 0)
    ledger.open(2, ids([3]), 1, -1)
    ticket, _ = ledger.propose(8)
    ledger.observe(ticket, np.ones(8, np.float32))
    return ledger


def observed_twice(ledger: Ledger) -> None:
    ticket, _ = ledger.propose(1)
    ledger.observe(ticket, np.ones(1, np.float32))
    ledger.observe(ticket, np.ones(1, np.float32))


def different_draws(ledger: Ledger) -> None:
    ledger.extend(ids([1]), 3, 0)
    ticket, cells = ledger.propose(9)
    ledger.observe(ticket, np.ones(len(cells), np.float32))
    ledger.gather(ids([0, 1]))


def dropped_class_returns(ledger: Ledger) -> None:
    ledger.drop(ids([0]), np.array([[True, False]]))
    ledger.add(0, ids([1, 2]), 0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda _: Ledger(0, 1), "n_draws must be positive, got 0"),
        (lambda _: Ledger(2**31, 1), "n_draws must be positive, got 2147483648"),
        (lambda _: Ledger(1, -1), "n_classes must be positive, got -1"),
        (lambda ledger: ledger.open(0, ids([0]), 1, 0), "place 0 is not free"),
        (lambda ledger: ledger.open(-1, ids([0]), 1, 0), "place -1 is not free"),
        (lambda ledger: ledger.open(5, ids([]), 1, 0), "at least one class"),
        (lambda ledger: ledger.open(5, ids([[0]]), 1, 0), "classes must be a vector, got 2 dimensions of 1"),
        (lambda ledger: ledger.open(5, ids([0, 4]), 1, 0), "classes must be in [0, 4), got 4"),
        (lambda ledger: ledger.open(5, ids([-1, 1]), 1, 0), "classes must be in [0, 4), got -1"),
        (lambda ledger: ledger.open(5, ids([1, 1]), 1, 0), "classes must increase, got 1 after 1"),
        (lambda ledger: ledger.open(5, ids([2, 1]), 1, 0), "classes must increase, got 1 after 2"),
        (lambda ledger: ledger.open(5, ids([0]), 0, 0), "must end in (0, 4], got 0"),
        (lambda ledger: ledger.open(5, ids([0]), 5, 0), "must end in (0, 4], got 5"),
        (lambda ledger: ledger.extend(ids([0]), 2, 0), "must end in (2, 4], got 2"),
        (lambda ledger: ledger.extend(ids([0]), 5, 0), "must end in (2, 4], got 5"),
        (lambda ledger: ledger.extend(ids([2]), 2, 0), "place 2 still waits for 1 errors"),
        (lambda ledger: ledger.extend(ids([7]), 2, 0), "place 7 holds no request"),
        (lambda ledger: ledger.add(0, ids([1, 2]), 0), "class 2 of place 0 was evaluated before"),
        (dropped_class_returns, "class 2 of place 0 was evaluated before"),
        (lambda ledger: ledger.add(2, ids([0]), 0), "place 2 still waits for 1 errors"),
        (lambda ledger: ledger.add(0, ids([]), 0), "at least one class"),
        (lambda ledger: ledger.add(0, ids([4]), 0), "classes must be in [0, 4), got 4"),
        (lambda ledger: ledger.propose(-1), "room must not be negative, got -1"),
        (lambda ledger: ledger.observe(99, np.zeros(1, np.float32)), "step 99 was not proposed"),
        (observed_twice, "is already observed"),
        (
            lambda ledger: ledger.observe(ledger.propose(3)[0], np.zeros(2, np.float32)),
            "has 1 cells, got 2 errors",
        ),
        (lambda ledger: ledger.observe(ledger.propose(1)[0], np.zeros((1, 1), np.float32)), "errors must be a vector"),
        (lambda ledger: ledger.drawn(2), "place 2 still waits for 1 errors"),
        (lambda ledger: ledger.drawn(3), "place 3 holds no request"),
        (lambda ledger: ledger.gather(ids([])), "at least one request"),
        (lambda ledger: ledger.gather(ids([0, 2])), "place 2 still waits for 1 errors"),
        (different_draws, "place 1 has 3 draws, expected 2"),
        (lambda ledger: ledger.drop(ids([0]), np.array([[False, False]])), "place 0 would lose its last class"),
        (lambda ledger: ledger.drop(ids([0]), np.array([[True]])), "for each of 2 classes, got 1"),
        (lambda ledger: ledger.drop(ids([0]), np.array([True, True])), "a row for each of 1 places"),
        (lambda ledger: ledger.drop(ids([0, 1]), np.ones((1, 2), bool)), "a row for each of 2 places"),
        (lambda ledger: ledger.drop(ids([2]), np.ones((1, 1), bool)), "place 2 still waits for 1 errors"),
        (lambda ledger: ledger.close(ids([2])), "place 2 still waits for 1 errors"),
        (lambda ledger: ledger.close(ids([9])), "place 9 holds no request"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Callable[[Ledger], Any], says: str) -> None:
    ledger = resting_ledger()
    fails_with(lambda: call(ledger), says, kind=InputError)


def test_a_refused_call_changes_nothing() -> None:
    ledger = resting_ledger()
    before = ledger.gather(ids([0, 1])), ledger.waiting, ledger.flying
    for call in (
        lambda: ledger.open(5, ids([1, 0]), 1, 0),
        lambda: ledger.extend(ids([0]), 5, 0),
        lambda: ledger.add(0, ids([2]), 0),
        lambda: ledger.drop(ids([0]), np.array([[False, False]])),
        lambda: ledger.close(ids([0, 2])),
        lambda: ledger.observe(99, np.zeros(1, np.float32)),
    ):
        with pytest.raises(InputError):
            call()
    (classes, errors), waiting, flying = before
    after = ledger.gather(ids([0, 1]))
    np.testing.assert_array_equal(after[0], classes)
    np.testing.assert_array_equal(after[1], errors)
    assert (ledger.waiting, ledger.flying) == (waiting, flying)
    ledger.open(5, ids([0, 1]), 1, 0)  # the place stayed free


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_may_share_a_ledger() -> None:
    """Its calls exclude each other; without that, a Python without the GIL crashes here."""
    places, draws = 400, 4
    ledger = Ledger(draws, 3)

    def work(first: int) -> None:
        for place in range(first, places, 4):
            ledger.open(place, ids([0, 1, 2]), draws, 0)
            ticket, cells = ledger.propose(7)
            ledger.observe(ticket, cells[:, 2].astype(np.float32))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    ticket, cells = ledger.propose(ledger.waiting)
    ledger.observe(ticket, cells[:, 2].astype(np.float32))
    assert (ledger.waiting, ledger.flying) == (0, 0)
    for counts, values, _ in ledger.close(ids(range(places))):
        assert counts.tolist() == [draws] * 3
        assert values.tolist() == [0, 1, 2, 3] * 3


# --- memory ----------------------------------------------------------------------------------------------------------


def test_draws_that_are_not_reached_take_no_memory() -> None:
    """A thousand classes at two billion draws, of which one is asked for."""
    n_classes = 1000
    ledger = Ledger(2**31 - 1, n_classes)
    for place in range(100):
        ledger.open(place, np.arange(n_classes, dtype=np.int32), 1, 0)
    assert ledger.waiting == 100 * n_classes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_closed_request_gives_its_memory_back() -> None:
    n_classes, draws = 200, 50
    ledger = Ledger(draws, n_classes)
    classes, errors = np.arange(n_classes, dtype=np.int32), np.zeros(n_classes * draws, np.float32)

    def once() -> None:
        ledger.open(0, classes, draws, 0)
        ticket, _ = ledger.propose(len(errors))
        ledger.observe(ticket, errors)
        ledger.close(ids([0]))

    for _ in range(20):
        once()
    before = resident_bytes()
    for _ in range(500):
        once()
    assert resident_bytes() - before < 500 * errors.nbytes / 4
