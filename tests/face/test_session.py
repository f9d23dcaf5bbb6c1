"""A session gives every image the result it would get alone, whoever submits it and whatever else runs."""

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from fastdc import BackendError, Classification, DiffusionClassifier, InputError, Session
from fastdc.session import MODES
from helpers.worlds import (
    SHAPE,
    Float32,
    Float64,
    Int64,
    ManySlots,
    classifier,
    denoiser,
    fails_with,
    gaussian,
    unit_images,
)

WORLD = gaussian(4)
OPTIONS: dict[str, Any] = {"rule": "calibrated", "rule_options": {"limit": 0.6}, "draws": 16}


def assert_same(one: Classification, row: int, other: Classification) -> None:
    assert one.labels[0] == other.labels[row]
    np.testing.assert_array_equal(one.errors[0], other.errors[row])
    np.testing.assert_array_equal(one.probabilities[0], other.probabilities[row])
    np.testing.assert_array_equal(one.table.counts[0], other.table.counts[row])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("capacity", [1, 5, 1024])
def test_results_are_those_of_classify_from_any_number_of_threads(slots: int, capacity: int, mode: str) -> None:
    images = unit_images(24)
    together = classifier(WORLD).classify(images, **OPTIONS)
    assert len(set(together.evaluations.tolist())) > 1, "the images should not all be equally hard"
    futures: dict[int, Future[Classification]] = {}
    with Session(classifier(WORLD, batch=7, slots=slots), capacity=capacity, mode=mode, **OPTIONS) as session:

        def submit(start: int) -> None:
            for i in range(start, len(images), 4):
                futures[i] = session.submit(images[i])

        threads = [threading.Thread(target=submit, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, future in futures.items():
        assert_same(future.result(timeout=0), i, together)  # closing waited for all
    needed = together.evaluations.sum()
    assert session.evaluated == needed if mode == "throughput" else session.evaluated >= needed


def test_latency_mode_looks_ahead_where_small_steps_cost_as_much_as_large_ones() -> None:
    """A network that takes its time for a step of any size: an image should be few steps, decided as always."""

    def constant(*cells: Any) -> Any:
        time.sleep(0.004)
        return denoiser(WORLD)(*cells)

    images = unit_images(6)
    steps = {}
    for mode in MODES:
        network = ManySlots(constant, SHAPE, batch=64)
        with Session(DiffusionClassifier(WORLD.model, network), mode=mode, **OPTIONS) as session:
            measuring = len(network.recorded)
            results = [session.submit(image).result(20) for image in images]
        steps[mode] = len(network.recorded) - measuring
        expected = classifier(WORLD).classify(images, **OPTIONS)
        for i, result in enumerate(results):
            assert_same(result, i, expected)
    assert steps["latency"] < steps["throughput"] / 2


def test_an_image_joins_while_another_runs() -> None:
    images = unit_images(2)
    started, joined = threading.Event(), threading.Event()
    evaluate = denoiser(WORLD)

    def held(sample: Float32, timestep: Float32, labels: Int64) -> Float64:
        started.set()
        assert joined.wait(10)
        return np.asarray(evaluate(sample, timestep, labels))

    network = ManySlots(held, SHAPE, batch=4)
    with Session(DiffusionClassifier(WORLD.model, network), rule="full", draws=20) as session:
        long = session.submit(images[0])
        assert started.wait(10)
        short = session.submit(images[1], candidates=[2])
        joined.set()
        assert short.result(10).labels[0] == 2
        assert long.result(10).evaluations[0] == 80
    assert max(network.recorded) <= 4


def test_streams_and_candidates_are_those_of_classify() -> None:
    images = unit_images(3)
    expected = classifier(WORLD).classify(images, streams=[7, 8, 9], candidates=[[0, 1]] * 3, **OPTIONS)
    with Session(classifier(WORLD), **OPTIONS) as session:
        futures = [session.submit(images[i], stream=7 + i, candidates=[0, 1]) for i in range(3)]
        for i, future in enumerate(futures):
            assert_same(future.result(10), i, expected)


def test_bad_input_is_refused_at_once_and_harms_nobody() -> None:
    with Session(classifier(WORLD), **OPTIONS) as session:
        fails_with(lambda: session.submit(unit_images(2)), "submit takes one image, got 2", kind=InputError)
        fails_with(lambda: session.submit(unit_images(1)[0] * 3), "[0, 1]", kind=InputError)
        fails_with(lambda: session.submit(unit_images(1)[0], stream=-1), "streams", kind=InputError)
        fails_with(lambda: session.submit(unit_images(1)[0], candidates=[4]), "candidates", kind=InputError)
        assert session.submit(unit_images(1)[0]).result(10).labels.shape == (1,)
    fails_with(lambda: session.submit(unit_images(1)[0]), "over", kind=BackendError)
    fails_with(lambda: Session(classifier(WORLD), rule="no"), "rule", kind=InputError)
    fails_with(lambda: Session(classifier(WORLD), mode="fast"), "mode", "throughput, latency", kind=InputError)


def test_a_failing_network_fails_every_waiting_image_and_ends_the_session() -> None:
    def broken(sample: Float32, _: Float32, __: Int64) -> Float32:
        return np.full_like(sample, np.nan)

    with Session(DiffusionClassifier(WORLD.model, ManySlots(broken, slots=2)), **OPTIONS) as session:
        futures = [session.submit(image) for image in unit_images(1)]
        for future in futures:
            fails_with(lambda future=future: future.result(10), "not finite", kind=BackendError)  # type: ignore[misc]
        fails_with(lambda: session.submit(unit_images(1)[0]), "over", "not finite", kind=BackendError)


def test_a_thread_cannot_wait_for_its_own_run() -> None:
    clf = classifier(WORLD)
    results = clf.stream(unit_images(8), chunk=1, rule="full", draws=100)
    next(results)
    fails_with(lambda: clf.classify(unit_images(1)), "busy", "this thread", kind=BackendError)
    results.close()  # type: ignore[attr-defined]
    clf.classify(unit_images(1))


def test_the_seconds_of_a_result_are_those_since_its_image_came() -> None:
    """The network waits until the test lets it go, so that the time of each image is known on both sides."""
    go = threading.Event()

    def waiting(*cells: Any) -> Float64:
        assert go.wait(20)
        return denoiser(WORLD)(*cells)

    with Session(DiffusionClassifier(WORLD.model, ManySlots(waiting, batch=64)), **OPTIONS) as session:
        before = time.perf_counter()
        first = session.submit(unit_images(2)[0])
        time.sleep(0.05)
        between = time.perf_counter()
        second = session.submit(unit_images(2)[1])
        go.set()
        seconds = [future.result(20).seconds for future in (first, second)]
        after = time.perf_counter()
    assert 0.05 <= seconds[0] <= after - before
    assert 0 < seconds[1] <= after - between
