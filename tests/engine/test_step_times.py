"""The table of what steps cost: read as written down, and measured through the engine.

The network that is timed takes a known time by its size, long against all else; only the order of times is asserted.
"""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import BackendError, InputError
from fastdc.backends import halves
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.engine import Pool, Scheduler, StepTable, evaluate, measure_steps, steps_of
from fastdc.rules.full import Full
from helpers.worlds import SHAPE, ManySlots, denoiser, fails_with, gaussian

WORLD = gaussian(3)
PLAN = make_plan(WORLD.schedule, WORLD.model.parameterization, PlanConfig(draws=4))


def pool_on(network: ManySlots) -> Pool:
    return Pool.of(network, SHAPE, PLAN, seed=0, n_classes=3, capacity=2)


def times() -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[st.floats(1e-4, 1.0)] * 4)


@given(alone=times(), together=times(), slots=st.integers(1, 3), fixed=st.booleans(), cells=st.integers(0, 100))
def test_a_round_is_one_step_or_an_even_share_for_every_slot(
    alone: tuple[float, ...], together: tuple[float, ...], slots: int, fixed: bool, cells: int
) -> None:
    """Against the definition, written as a loop."""
    sizes = (1, 3, 8, 10)
    table = StepTable(sizes, alone, together=together, slots=slots, fixed=fixed)

    def seconds(measured: tuple[float, ...], count: int) -> float:
        soonest = [min(measured[i:]) for i in range(4)]
        at = next(i for i in range(4) if sizes[i] >= count)
        if fixed or sizes[at] == count:
            return soonest[at]
        low, high = sizes[at - 1], sizes[at]
        return soonest[at - 1] + (soonest[at] - soonest[at - 1]) * (count - low) / (high - low)

    shared = alone if slots == 1 else together
    expected, left = 0.0, cells
    while left > 10 * slots:
        left -= 10 * slots
        expected += shared[3]
    if left:
        share = seconds(shared, -(-left // slots))
        one = seconds(alone, left) if left <= 10 else float("inf")
        expected += min(share, one)
        assert table.in_one(left) == (slots > 1 and one <= share)
    assert table.round(cells) == pytest.approx(expected, rel=1e-9)


def test_the_cheapest_size_is_the_one_done_soonest() -> None:
    table = StepTable((1, 2, 4, 8), (3.0, 5.0, 4.0, 4.5), fixed=True)
    assert [table.cheapest(n) for n in range(1, 9)] == [1, 4, 4, 4, 8, 8, 8, 8]
    assert [table.round(n) for n in (0, 1, 2, 3, 5, 9, 16)] == [0.0, 3.0, 4.0, 4.0, 4.5, 7.5, 9.0]
    free = StepTable((1, 8), (1.0, 2.0))
    assert [free.cheapest(n) for n in (1, 5, 8)] == [1, 5, 8]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (((), ()), {}),
        (((2, 2), (1.0, 1.0)), {}),
        (((0, 2), (1.0, 1.0)), {}),
        (((1, 2), (1.0,)), {}),
        (((1,), (0.0,)), {}),
        (((1,), (float("nan"),)), {}),
        (((1,), (1.0,)), {"slots": 0}),
        (((1,), (1.0,)), {"slots": 2}),
        (((1,), (1.0,)), {"slots": 2, "together": (float("inf"),)}),
    ],
)
def test_a_table_that_is_none_is_refused(arguments: Any, options: dict[str, Any]) -> None:
    fails_with(lambda: StepTable(*arguments, **options), "table of steps", kind=InputError)


@pytest.mark.parametrize("slots", [1, 2])
def test_steps_are_timed_as_the_engine_runs_them(slots: int) -> None:
    def function(sample: Any, timestep: Any, labels: Any) -> Any:
        time.sleep(0.002 * len(sample))
        return denoiser(WORLD)(sample, timestep, labels)

    network = ManySlots(function, batch=8, slots=slots)
    table = measure_steps(network, pool_on(network), (1, 8), repeats=2)
    assert (table.sizes, table.slots, table.fixed) == ((1, 8), slots, False)
    assert 0.002 <= table.seconds[0] < table.seconds[1]
    assert table.seconds[1] >= 0.016
    assert len(table.together) == (2 if slots > 1 else 0)
    assert set(network.recorded) == {1, 8}
    assert len(network.recorded) == 2 * 5 * (slots + (slots > 1))  # each size alone and on all slots


@pytest.mark.parametrize("fixed", [False, True])
def test_large_sizes_are_not_timed_where_that_takes_long(fixed: bool) -> None:
    """Fixed sizes are: their times need not be in proportion, and there are few."""
    network = ManySlots(denoiser(WORLD), batch=6)
    network.sizes = halves(6) if fixed else None
    table = measure_steps(network, pool_on(network), limit=0.0)
    assert table.sizes == (1, 2, 3, 6)
    assert set(network.recorded) == ({1, 2, 3, 6} if fixed else {1})
    if not fixed:
        assert table.seconds == pytest.approx([table.seconds[0] * size for size in table.sizes])


def test_a_table_is_measured_once_a_network() -> None:
    network, other = ManySlots(denoiser(WORLD), batch=2), ManySlots(denoiser(WORLD), batch=2)
    table = steps_of(network, pool_on(network), draws=4)
    steps = len(network.recorded)
    assert steps_of(network, pool_on(network), draws=4) is table
    assert len(network.recorded) == steps > 0
    assert steps_of(other, pool_on(other), draws=4) is not table


def test_what_cannot_be_timed_is_refused() -> None:
    network = ManySlots(denoiser(WORLD), batch=4)
    for sizes in ((), (0, 1), (1, 5)):
        fails_with(lambda sizes=sizes: measure_steps(network, pool_on(network), sizes), "sizes", kind=InputError)  # type: ignore[misc]
    fails_with(lambda: measure_steps(network, pool_on(network), repeats=0), "sizes", kind=InputError)
    broken = ManySlots(lambda sample, _, __: np.full_like(sample, np.nan))
    fails_with(lambda: measure_steps(broken, pool_on(broken)), "not finite", kind=BackendError)


def test_a_network_is_timed_when_it_is_free() -> None:
    network = ManySlots(denoiser(WORLD), batch=4)
    pool = pool_on(network)
    scheduler = Scheduler(Full(), 4, 3, put=pool.put, next_request=lambda: None)
    assert list(evaluate(network, pool, scheduler)) == []
    measure_steps(network, pool_on(network), (1,))
    assert list(evaluate(network, pool, scheduler)) == []  # and was given back
