"""Steps of fixed sizes: padded, cut, captured once and replayed, with the numbers of steps of any size.

The double below stands for a network on a device: it runs a few sizes only, and what it captures is the launch itself,
which it replays on whatever the cell table holds by then. So padding, cutting, keys and the reuse of a run's arrays are
tested as they are; that a CUDA graph replays what was captured is for a device (tests/engine/test_cuda_steps.py).
"""

import gc
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdc import BackendError, DiffusionClassifier, Session
from fastdc.backends import AbstractSlot, FunctionNetwork, halves
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import SHAPE, Float32, ManySlots, classifier, denoiser, gaussian, unit_images

WORLD = gaussian(3)


class FixedSizes(ManySlots):
    """A function network that runs the halves of its batch; `captured` counts captures by slot."""

    def __init__(self, world: GaussianWorld = WORLD, *, batch: int = 16, slots: int = 2, captures: bool = True) -> None:
        super().__init__(denoiser(world), SHAPE, batch=batch, slots=slots)
        self.sizes = halves(batch)
        self.captures = captures
        self.captured: Counter[int] = Counter()
        self.replayed = 0
        self.lock = threading.Lock()

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        if not self.captures:
            return None
        with self.lock:
            self.captured[self.slots.index(slot)] += 1

        def replay() -> None:
            with self.lock:
                self.replayed += 1
            launch()

        return replay


def on(net: FixedSizes, world: GaussianWorld = WORLD) -> DiffusionClassifier:
    return DiffusionClassifier(world.model, net)


def plain(images: Float32, world: GaussianWorld = WORLD, **options: Any) -> Float32:
    """The errors in steps of any size."""
    return classifier(world).errors(images, **options).errors


@given(batch=st.integers(1, 5000))
def test_halves_are_never_more_than_twice_too_large(batch: int) -> None:
    sizes = halves(batch)
    assert sizes[0] == 1
    assert sizes[-1] == batch
    assert len(sizes) == (batch - 1).bit_length() + 1
    assert all(small < large <= 2 * small for small, large in itertools.pairwise(sizes))


@given(
    n=st.integers(1, 5),
    classes=st.integers(1, 4),
    draws=st.integers(1, 6),
    batch=st.integers(1, 40),
    slots=st.integers(1, 3),
)
def test_padded_and_replayed_steps_give_the_same_bits(n: int, classes: int, draws: int, batch: int, slots: int) -> None:
    world = gaussian(classes)
    net = FixedSizes(world, batch=batch, slots=slots)
    images = unit_images(n)
    np.testing.assert_array_equal(on(net, world).errors(images, draws=draws).errors, plain(images, world, draws=draws))
    assert set(net.recorded) <= set(net.sizes or ())


@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("rule", ["full", "race", "paired"])
def test_a_race_does_not_notice_sizes(rule: str, captures: bool) -> None:
    images = unit_images(12)
    want = classifier(WORLD).classify(images, rule=rule, draws=32)
    got = on(FixedSizes(captures=captures)).classify(images, rule=rule, draws=32)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_array_equal(got.table.errors, want.table.errors)
    np.testing.assert_array_equal(got.table.counts, want.table.counts)


def test_a_size_is_captured_the_second_time_and_replayed_from_then_on() -> None:
    net = FixedSizes(batch=8, slots=1)
    clf = on(net)
    clf.errors(unit_images(8), draws=8)  # 192 cells: 24 full steps
    assert net.captured == {0: 1}
    assert net.replayed == 23
    assert net.recorded == [8] * 24


def test_a_run_of_the_same_shape_captures_nothing() -> None:
    """One image after another, as a server without a session does it."""
    net = FixedSizes(batch=8, slots=1)
    clf = on(net)
    for i in range(6):
        image = unit_images(1, seed=i)
        np.testing.assert_array_equal(clf.errors(image, draws=8).errors, plain(image, draws=8))
    assert net.captured == {0: 1}
    clf.errors(unit_images(1), draws=8, seed=1)  # the seed is an argument of the kernels
    clf.errors(unit_images(1), draws=8, seed=1)
    assert net.captured == {0: 2}
    clf.errors(unit_images(3), draws=4)  # other arrays
    assert net.captured == {0: 3}
    assert len(net.kept["arrays"]) == 2


def test_kept_arrays_are_few_and_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdc.engine.step._STEPS_KEPT", 3)
    net = FixedSizes(batch=8, slots=1)
    clf = on(net)
    for draws in (1, 2, 3, 4, 5, 6, 7):
        image = unit_images(1)
        np.testing.assert_array_equal(clf.errors(image, draws=draws).errors, plain(image, draws=draws))
    assert len(net.kept["arrays"]) == 4
    for seed in (0, 1, 2, 3, 0, 0):
        np.testing.assert_array_equal(clf.errors(image, draws=7, seed=seed).errors, plain(image, draws=7, seed=seed))
    assert max(len(arrays.steps) for _, arrays in net.kept["arrays"]) == 3


def test_runs_that_live_at_once_have_arrays_of_their_own() -> None:
    """A session keeps its run; another one of the same shape must not write into its images."""
    net = FixedSizes()
    clf = on(net)
    images = unit_images(4)

    def scheduled() -> Any:
        settings = clf.settings(rule="full", draws=4)
        return settings.job.scheduler(net, lambda: None, 4)

    with Session(clf, rule="full", draws=4, capacity=4) as session:
        session.submit(images[0]).result(20)
        other, _ = scheduled()
        assert len(net.kept["arrays"]) == 2
        other.put(0, np.full(SHAPE, 7, np.float32), 1)
        for i, image in enumerate(images):
            got = session.submit(image).result(20)
            np.testing.assert_array_equal(got.table.errors[0], plain(images, draws=4)[i])
    del other, session
    gc.collect()
    scheduled()
    assert len(net.kept["arrays"]) == 2


@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_methods_that_denoise_first(method: str) -> None:
    images = unit_images(5)
    options: dict[str, Any] = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0), "denoiser": "mean"}
    net = FixedSizes(batch=8)
    for _ in range(2):
        np.testing.assert_array_equal(on(net).errors(images, **options).errors, plain(images, **options))
    assert len(net.kept["arrays"]) == 1


@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_a_denoiser_with_fixed_sizes(method: str) -> None:
    images = unit_images(21)
    model = replace(WORLD.model, null_class=0)  # any label serves as "no class"
    options: dict[str, Any] = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0)}
    want = DiffusionClassifier(model, FunctionNetwork(denoiser(WORLD), SHAPE)).errors(images, **options)
    net = FixedSizes(batch=8)
    for _ in range(2):
        got = classifier(WORLD).errors(images, **options, denoiser=DiffusionClassifier(model, net))
        np.testing.assert_array_equal(got.errors, want.errors)


def test_a_step_that_fails_is_captured_when_it_works_again() -> None:
    net = FixedSizes(batch=8, slots=1)
    clf = on(net)
    images = unit_images(2)
    slot = net.slots[0]
    run = slot.run

    def failing(count: int) -> None:
        raise BackendError("not now")

    slot.run = failing  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not now"):
        clf.errors(images, draws=4)
    slot.run = run  # type: ignore[method-assign]
    np.testing.assert_array_equal(clf.errors(images, draws=4).errors, plain(images, draws=4))
    assert net.captured == {0: 1}


def test_without_sizes_nothing_is_kept() -> None:
    clf = classifier(WORLD)
    clf.errors(unit_images(2), draws=4)
    assert clf.network.kept == {}


def test_captured_steps_give_further_errors_too() -> None:
    clf = on(FixedSizes())
    images = unit_images(7)
    plan: dict[str, Any] = {"draws": 4, "levels": (0.2, 2.0)}
    runs = clf.validation_runs(images, **plan)
    other = clf.settings(rule="full", loss="l1", **plan).job.plan
    for table, loss in zip(runs.job.tables(runs.images.x, runs.images.streams, [other]), ("l2", "l1"), strict=True):
        np.testing.assert_array_equal(table.errors, plain(images, loss=loss, **plan))
