"""Looking ahead changes when errors are evaluated and nothing else: what finishes is what the plain scheduler gives.

Whatever a table claims that steps cost, every request must end with the same classes at the same draws and the same
errors, to the bit. That looking ahead is worth it is a matter of the table: with one where all steps cost the same a
race is one step, with one in proportion to the cells nothing is evaluated for nothing.
"""

import itertools
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc.backends import halves
from fastdc.diffusion.plan import Plan, PlanConfig, make_plan
from fastdc.engine import Finished, Foresight, LookAhead, Pool, Request, Scheduler, StepTable, evaluate
from fastdc.engine.look_ahead import AHEAD_BYTES
from fastdc.inference.images import streams_of, to_model_range
from fastdc.rules.calibrated import Calibrated
from fastdc.rules.class_tree import ClassTree
from fastdc.rules.full import Full
from fastdc.rules.hierarchy import Hierarchy
from fastdc.rules.protocol import AbstractRule, geometric_looks
from helpers.races import DRAWS, RULES, rule_of
from helpers.sources import Source
from helpers.worlds import SHAPE, Float32, ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(4)
N = 6
X = to_model_range(unit_images(N), WORLD.model)
STREAMS = streams_of(X)


def plan_of(draws: int, **options: Any) -> Plan:
    return make_plan(WORLD.schedule, WORLD.model.parameterization, PlanConfig(draws=draws, weighting="edm", **options))


def flat(batch: int, slots: int = 1) -> StepTable:
    """All steps cost the same."""
    return StepTable((1, batch), (1.0, 1.0), together=(1.0, 1.0), slots=slots)


def in_proportion(batch: int) -> StepTable:
    return StepTable((1, batch), (1.0, float(batch)))


def race(
    network: ManySlots,
    rule: AbstractRule,
    steps: StepTable | None,
    *,
    draws: int = DRAWS,
    capacity: int = 16,
    denoising: tuple[int, ...] = (),
    plan: Plan | None = None,
    **request: Any,
) -> tuple[dict[int, Finished], Scheduler]:
    """What finishes, by image; with the plain scheduler where there is no table."""
    pool = Pool.of(network, SHAPE, plan or plan_of(draws), seed=0, n_classes=4, capacity=capacity, denoising=denoising)
    requests = (Request(i, X[i], int(STREAMS[i]), **request) for i in range(N))

    def put(place: int, image: Float32, stream: int) -> None:
        if isinstance(made, LookAhead):
            assert not made._out[place], "a step in flight refers to the image that is replaced"
        pool.put(place, image, stream)

    options: dict[str, Any] = {"put": put, "next_request": Source(requests), "capacity": capacity}
    options |= {"denoising": denoising, "denoised": pool.denoised}
    made = Scheduler(rule, draws, 4, **options) if steps is None else LookAhead(rule, draws, 4, steps=steps, **options)
    finished: list[Finished] = []
    for _ in evaluate(network, pool, made):
        finished += made.finished()
    assert made.flying == 0
    return {one.key: one for one in finished}, made


def assert_same(got: dict[int, Finished], want: dict[int, Finished]) -> None:
    assert sorted(got) == sorted(want) == list(range(N))
    for key, one in want.items():
        np.testing.assert_array_equal(got[key].counts, one.counts)
        np.testing.assert_array_equal(got[key].values, one.values)


def network(*, batch: int = 64, slots: int = 1, **options: Any) -> ManySlots:
    return ManySlots(denoiser(WORLD), batch=batch, slots=slots, **options)


@given(
    name=st.sampled_from(RULES),
    seconds=st.tuples(*[st.floats(0.01, 1.0)] * 8),
    batch=st.sampled_from([1, 3, 16, 64]),
    slots=st.integers(1, 3),
    capacity=st.sampled_from([1, 2, 16]),
    fixed=st.booleans(),
)
def test_whatever_steps_cost_results_are_those_of_the_plain_race(
    name: str, seconds: tuple[float, ...], batch: int, slots: int, capacity: int, fixed: bool
) -> None:
    rule = rule_of(name, 4, scale=0.5)
    want, plain = race(network(), rule, None)
    sizes = halves(batch)
    net = network(batch=batch, slots=slots)
    net.sizes = sizes if fixed else None
    table = StepTable(sizes, seconds[: len(sizes)], together=seconds[-len(sizes) :], slots=slots, fixed=fixed)
    got, made = race(net, rule, table, capacity=capacity)
    assert_same(got, want)
    assert plain.evaluated <= made.evaluated <= N * 4 * DRAWS
    assert max(net.recorded) <= batch
    if not fixed:
        assert sum(net.recorded) == made.evaluated  # no cell twice, none padded


def test_where_all_steps_cost_the_same_an_image_is_one_step() -> None:
    net = network(batch=64)
    rule = Calibrated(1.5)
    got, made = race(net, rule, flat(64), draws=16, capacity=1)
    want, plain = race(network(), rule, None, draws=16)
    assert_same(got, want)
    assert net.recorded == [64] * N
    assert made.evaluated == N * 64 > plain.evaluated


def test_where_steps_cost_what_they_hold_nothing_is_evaluated_in_vain() -> None:
    rule = Calibrated(1.5)
    got, made = race(network(), rule, in_proportion(64), capacity=1)
    want, plain = race(network(), rule, None, capacity=1)
    assert_same(got, want)
    assert made.evaluated == plain.evaluated


def test_cells_go_into_one_step_where_slots_side_by_side_are_slower() -> None:
    slow = StepTable((1, 64), (1.0, 1.5), together=(3.0, 3.0), slots=2)
    fast = StepTable((1, 64), (1.0, 64.0), together=(1.0, 64.0), slots=2)
    one, two = network(slots=2), network(slots=2)
    race(one, Full(), slow, draws=4, capacity=1)
    race(two, Full(), fast, draws=4, capacity=1)
    assert one.recorded == [16] * N
    assert two.recorded == [8] * 2 * N


def test_steps_are_padded_to_the_size_that_is_done_soonest() -> None:
    net = network(batch=16)
    net.sizes = (1, 4, 8, 16)
    table = StepTable((1, 4, 8, 16), (1.0, 9.0, 2.0, 9.5), fixed=True)
    got, _ = race(net, Calibrated(1.5), table, capacity=1)
    assert_same(got, race(network(), Calibrated(1.5), None)[0])
    assert 4 not in net.recorded
    assert 8 in net.recorded


@pytest.mark.parametrize("slots", [1, 2])
def test_candidates_and_targets_are_honoured(slots: int) -> None:
    for request in ({"classes": np.array([0, 2], np.int32)}, {"target": 1}):
        for rule in (Full(), Calibrated(0.8)):
            want, _ = race(network(), rule, None, **request)
            got, made = race(network(slots=slots), rule, flat(64, slots), **request)
            assert_same(got, want)
            if "classes" in request:
                assert made.evaluated <= N * 2 * DRAWS


def test_rules_that_add_classes_are_honoured() -> None:
    tree = ClassTree(((0, 1), (2, 3)))
    for steps in (flat(64), flat(5, 2), in_proportion(16)):
        rule = Hierarchy(tree, Calibrated(1.5), keep_nodes=1)
        net = network(batch=steps.sizes[-1], slots=steps.slots)
        assert_same(race(net, rule, steps)[0], race(network(), rule, None)[0])


@pytest.mark.parametrize("method", ["epndc", "apndc"])
@pytest.mark.parametrize("batch", [3, 64])
def test_images_that_are_denoised_first_wait_for_it(method: str, batch: int) -> None:
    plan = plan_of(DRAWS, method=method, noise=0.5, levels=(0.6, 2.0))
    options: dict[str, Any] = {"plan": plan, "denoising": (0, 1, 2, 3) if plan.method.denoises else (), "capacity": 2}
    want, plain = race(network(), Calibrated(0.5), None, **options)
    got, made = race(network(batch=batch, slots=2), Calibrated(0.5), flat(batch, 2), **options)
    assert_same(got, want)
    assert made.evaluated >= plain.evaluated


def test_an_image_is_replaced_when_no_step_refers_to_it() -> None:
    """A decision falls while cells ahead of it are in flight; the only slot of the pool must wait for them."""

    def function(*cells: Any) -> npt.NDArray[Any]:
        if np.any(cells[2] == 3):  # with classes 0 and 1 decided on first
            time.sleep(0.002)
        return np.asarray(denoiser(WORLD)(*cells))

    rule = Calibrated(0.01)
    net = ManySlots(function, batch=4, slots=3)
    got, _ = race(net, rule, flat(4, 3), capacity=1)
    assert_same(got, race(network(), rule, None)[0])


def times(looks: tuple[int, ...], alive: list[float], goes_on: list[float], steps: StepTable) -> list[float]:
    """The expected time of every way to cut the looks into steps; the last one is a step for each look."""
    count = len(looks)
    before = (0, *looks)
    totals = []
    for cuts in itertools.product((False, True), repeat=count - 1):
        starts = [0, *(i + 1 for i in range(count - 1) if cuts[i])]
        ends = [*(start for start in starts[1:]), count]
        total, reached = 0.0, 1.0
        for start, end in zip(starts, ends, strict=True):
            first = alive[start] * (looks[start] - before[start])
            total += reached * steps.round(round(first + alive[start] * (looks[end - 1] - looks[start])))
            reached *= float(np.prod(goes_on[start:end]))
        totals.append(total)
    return totals


@given(seconds=st.tuples(*[st.floats(0.1, 10.0)] * 7), seen=st.lists(st.integers(0, 6), min_size=1, max_size=16))
def test_how_far_ahead_is_the_cheapest_of_all_ways(seconds: tuple[float, ...], seen: list[int]) -> None:
    looks = geometric_looks(32)
    table = StepTable(halves(64), seconds)
    foresight = Foresight(looks, 8, table)
    for last in seen:
        for look in range(min(last, len(looks) - 1) + 1):
            foresight.begin(look, max(2, 8 - look))
    foresight._refresh()
    reached = [0.5**i + sum(min(last, len(looks) - 1) >= i for last in seen) for i in range(len(looks))]
    sums = [max(2.0, 8 * 0.5**i) * 0.5**i for i in range(len(looks))]
    sums = [s + (r - 0.5**i) * max(2, 8 - i) for i, (s, r) in enumerate(zip(sums, reached, strict=True))]
    goes_on = [b / a for a, b in itertools.pairwise(reached)] + [0.0]
    alive = [s / r for s, r in zip(sums, reached, strict=True)]
    ways = times(looks, alive, goes_on, table)
    assert foresight._value[0] == pytest.approx(min(ways))
    assert foresight.gain == pytest.approx(1 - min(ways) / ways[-1])


def test_looking_ahead_is_for_devices_whose_small_steps_cost_as_much_as_large_ones() -> None:
    looks = geometric_looks(32)
    assert Foresight(looks, 4, in_proportion(64)).gain == pytest.approx(0, abs=1e-9)
    assert Foresight(looks, 4, flat(128)).gain > 0.4  # one step, where a race is two on average
    job = classifier(WORLD).settings(rule="calibrated", rule_options={"limit": 0.6}, draws=32).job
    for table, kind in ((in_proportion(128), Scheduler), (flat(128), LookAhead)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastdc.inference.job.steps_of", lambda *_, table=table, **__: table)
            assert type(job.scheduler(job.networks[0], lambda: None, 4, latency=True)[1]) is kind


def test_other_cells_of_the_step_leave_less_room_for_looking_ahead() -> None:
    steps = StepTable((1, 32, 33, 64), (1.0, 1.0, 10.0, 10.0))
    foresight = Foresight(geometric_looks(8), 4, steps)
    assert foresight.depth(0, 4, missing=4) == 4  # all eight draws: 32 cells
    assert foresight.depth(0, 4, missing=4, beside=16) == 3  # four draws
    assert foresight.depth(0, 2, missing=2, beside=16) == 4


def test_memory_is_bounded() -> None:
    assert LookAhead.capacity_for(1024, 10, 128) == 1024
    assert LookAhead.capacity_for(1024, 1000, 1024) == AHEAD_BYTES // (5 * 1000 * 1024)
    assert LookAhead.capacity_for(7, 10**5, 10**5) == 1
