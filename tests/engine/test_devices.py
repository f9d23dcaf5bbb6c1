"""Several devices give the numbers of one, share the work by their speed, and end together whatever happens.

The devices are function networks on the CPU, each with a thread of its own as a GPU would have. Where the order of
events matters, networks wait for one another: with another distribution of the work these tests would time out.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdc
from fastdc import BackendError, Classification, DiffusionClassifier, InputError, Interrupted, Progress, Session
from fastdc.backends import NetworkOptions
from fastdc.backends.function import NetworkFunction
from fastdc.certification.estimation import Fixed
from fastdc.engine import IN_FLIGHT, Request, device_name, devices_of, room_of
from helpers.races import DRAWS, RULES, rule_of
from helpers.worlds import (
    SHAPE,
    ManySlots,
    classifier,
    denoiser,
    fails_with,
    gaussian,
    tiny_bundle,
    unit_images,
)

WORLD = gaussian(4)
N = 12
IMAGES = unit_images(N)
WAIT = 20  # seconds after which a test is stuck


def spread(*functions: NetworkFunction, batch: int = 8, slots: int = 1) -> DiffusionClassifier:
    """A classifier on as many devices as there are functions."""
    networks = [ManySlots(function, SHAPE, batch=batch, slots=slots) for function in functions]
    return over(networks)


def over(networks: Sequence[ManySlots]) -> DiffusionClassifier:
    return DiffusionClassifier(WORLD.model, networks[0], replicas=tuple(networks[1:]))


def recorded(clf: DiffusionClassifier) -> list[int]:
    """Cells that each device evaluated."""
    return [sum(network.recorded) for network in clf.networks]  # type: ignore[attr-defined]


def plain(devices: int = 2) -> list[NetworkFunction]:
    return [denoiser(WORLD)] * devices


def assert_same(one: Classification, other: Classification, rows: Any = slice(None)) -> None:
    """Labels, probabilities, counts and errors, to the bit."""
    for name in ("labels", "probabilities", "errors", "evaluations", "votes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[rows])
    np.testing.assert_array_equal(one.table.counts, other.table.counts[rows])
    np.testing.assert_array_equal(one.table.errors, other.table.errors[rows])


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastdc-device")]


# --- the same numbers ------------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(RULES),
    devices=st.integers(2, 4),
    batch=st.sampled_from([1, 5, 128]),
    slots=st.integers(1, 2),
    n=st.integers(1, N),
)
def test_results_are_those_of_one_device(name: str, devices: int, batch: int, slots: int, n: int) -> None:
    rule = rule_of(name, 4, scale=0.5)
    seen: list[Progress] = []
    clf = spread(*plain(devices), batch=batch, slots=slots)
    got = clf.classify(IMAGES[:n], rule=rule, draws=DRAWS, progress=seen.append)
    assert_same(got, classifier(WORLD).classify(IMAGES[:n], rule=rule, draws=DRAWS))
    assert sum(recorded(clf)) == got.evaluations.sum()
    total = int(got.evaluations.sum())
    assert seen[-1] == Progress(n, n, total, total)
    assert threads_left() == []


def test_candidates_streams_chunks_and_errors_are_those_of_one_device() -> None:
    options: dict[str, Any] = {"streams": list(range(N)), "candidates": [[i % 4, (i + 1) % 4] for i in range(N)]}
    clf, one = spread(*plain(3)), classifier(WORLD)
    assert_same(clf.classify(IMAGES, **options), one.classify(IMAGES, **options))
    whole = one.classify(IMAGES, draws=DRAWS)
    chunks = list(clf.stream(IMAGES, chunk=5, draws=DRAWS))
    assert [chunk.indices.tolist() for chunk in chunks] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    for chunk in chunks:
        assert_same(chunk, whole, chunk.indices)
    np.testing.assert_array_equal(clf.errors(IMAGES, draws=3).errors, one.errors(IMAGES, draws=3).errors)
    assert whole.provenance["device"] == "cpu"
    assert chunks[0].provenance["device"] == "cpu,cpu,cpu"


@pytest.mark.parametrize("method", ["dc", "epndc", "apndc"])
def test_certificates_are_those_of_one_device(method: str) -> None:
    def certificates(clf: DiffusionClassifier) -> list[Any]:
        denoiser = "mean" if method == "apndc" else None
        base = clf.base(
            sigma=0.25, method=method, denoiser=denoiser, draws=4, rule="calibrated", rule_options={"limit": 0.6}
        )
        made = clf.certify(IMAGES[:4], Fixed(0.25, 40, 0.01), n0=8, base=base)
        return [(c.label, c.radius, c.p_lower, c.successes, c.copies, c.evaluations) for c in made]

    clf = spread(*plain(), slots=2)
    assert certificates(clf) == certificates(classifier(WORLD))
    assert threads_left() == []


@pytest.mark.parametrize("mode", ["throughput", "latency"])
@pytest.mark.parametrize("capacity", [1, 1024])
def test_a_session_gives_what_one_device_gives(capacity: int, mode: str) -> None:
    options: dict[str, Any] = {"rule": "calibrated", "rule_options": {"limit": 0.6}, "draws": 16}
    whole = classifier(WORLD).classify(IMAGES, **options)
    with Session(spread(*plain(3), slots=2), capacity=capacity, mode=mode, **options) as session:
        first = session.submit(IMAGES[0]).result(WAIT)
        futures = [session.submit(image) for image in IMAGES]
        for i, future in enumerate(futures):
            assert_same(future.result(WAIT), whole, [i])
        assert_same(first, whole, [0])
    assert session.evaluated >= whole.evaluations.sum() + whole.evaluations[0]
    assert threads_left() == []


# --- who does what ---------------------------------------------------------------------------------------------------


def test_a_slow_device_holds_what_it_has_and_the_others_do_the_rest() -> None:
    """The first step of one device ends when the other has evaluated all that the first one has no room for."""
    n, draws = 60, 2
    rest = threading.Event()
    room = room_of(ManySlots(denoiser(WORLD), batch=2), 2, n)
    assert room == 8

    def slow(*cells: Any) -> Any:
        assert rest.wait(WAIT)
        return denoiser(WORLD)(*cells)

    def fast(*cells: Any) -> Any:
        if sum(networks[1].recorded) >= (n - room) * 4 * draws:
            rest.set()
        return denoiser(WORLD)(*cells)

    networks = [ManySlots(slow, batch=2), ManySlots(fast, batch=2)]
    clf = over(networks)
    images = unit_images(n)
    np.testing.assert_array_equal(
        clf.errors(images, draws=draws).errors, classifier(WORLD).errors(images, draws=draws).errors
    )


def test_a_burst_of_images_meets_all_devices() -> None:
    """Three images, three devices: the first steps wait until each device has one."""
    barrier = threading.Barrier(3, timeout=WAIT)

    def function(met: list[bool]) -> Callable[..., Any]:
        def evaluate(*cells: Any) -> Any:
            if not met:
                met.append(True)
                barrier.wait()
            return denoiser(WORLD)(*cells)

        return evaluate

    with Session(spread(*[function([]) for _ in range(3)], batch=128), draws=4) as session:
        for future in [session.submit(image) for image in IMAGES[:3]]:
            assert future.result(WAIT).labels.shape == (1,)


@given(batch=st.integers(1, 600), slots=st.integers(1, 3), devices=st.integers(2, 8), n=st.integers(1, 10_000))
def test_a_device_has_room_for_full_steps_and_for_no_more_than_its_share(
    batch: int, slots: int, devices: int, n: int
) -> None:
    room = room_of(ManySlots(denoiser(WORLD), batch=batch, slots=slots), devices, n)
    share = -(-n // devices)
    assert 1 <= room <= min(share, IN_FLIGHT)
    assert room >= min(batch * slots, share, IN_FLIGHT)
    assert room <= max(batch * slots, -(-share // 4) + 1)


# --- interruptions and failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("kind", [ZeroDivisionError, BackendError])
def test_what_goes_wrong_on_one_device_ends_all(kind: type[Exception], slots: int) -> None:
    failed = threading.Event()
    steps = [0]

    def broken(*cells: Any) -> Any:
        steps[0] += 1
        if steps[0] > 3:
            failed.set()
            raise kind("from the device")
        return denoiser(WORLD)(*cells)

    def good(*cells: Any) -> Any:
        assert failed.wait(WAIT)
        time.sleep(0.005)
        return denoiser(WORLD)(*cells)

    clf = spread(good, broken, batch=4, slots=slots)
    with pytest.raises(kind, match="from the device"):
        clf.classify(unit_images(200), rule="full", draws=50)
    assert threads_left() == []
    assert recorded(clf)[0] < 200 * 4 * 50 / 4, "the other device should have stopped"
    failed.clear()
    with pytest.raises(kind):  # and not "busy"
        clf.classify(IMAGES, rule="full", draws=50)
    failed.clear()
    with Session(clf, rule="full", draws=50) as session:
        futures = []
        with suppress(BackendError):  # the session may be over before the last image
            for image in IMAGES[:4]:
                futures.append(session.submit(image))
        for future in futures:
            with pytest.raises(kind):
                future.result(WAIT)
        assert futures


class Gate:
    """A network that stops after so many cells, and goes on slowly once it is opened."""

    def __init__(self, cells: int, opened: threading.Event) -> None:
        self.left = cells
        self.opened = opened

    def __call__(self, *cells: Any) -> Any:
        self.left -= len(cells[0])
        if self.left < 0:
            assert self.opened.wait(WAIT)
            time.sleep(0.02)
        return denoiser(WORLD)(*cells)


def test_a_device_that_is_busy_with_a_run_of_the_same_thread_refuses() -> None:
    def unhurried(*cells: Any) -> Any:
        time.sleep(0.005)
        return denoiser(WORLD)(*cells)

    clf = spread(unhurried, denoiser(WORLD))
    second = DiffusionClassifier(WORLD.model, clf.networks[1])
    results = second.stream(IMAGES, chunk=1, rule="full", draws=100)
    next(results)
    fails_with(lambda: clf.classify(IMAGES, rule="full", draws=100), "busy", kind=BackendError)
    results.close()  # type: ignore[attr-defined]
    clf.classify(IMAGES)


@pytest.mark.parametrize("slots", [1, 2])
def test_an_interrupt_between_steps_keeps_every_finished_image(slots: int) -> None:
    def progress(now: Progress) -> None:
        if now.finished >= 2:
            opened.set()
            raise KeyboardInterrupt

    opened = threading.Event()
    gates = [Gate(100, opened) for _ in range(3)]  # two images of 48 cells, of four
    clf = spread(*gates, batch=2, slots=slots)
    whole = classifier(WORLD).classify(IMAGES, rule="full", draws=DRAWS)
    with pytest.raises(Interrupted) as caught:
        clf.classify(IMAGES, rule="full", draws=DRAWS, progress=progress)
    result = caught.value.result
    assert 2 <= len(result.indices) < N
    assert_same(result, whole, result.indices)
    assert threads_left() == []
    for gate in gates:
        gate.left = 10**6
    assert_same(clf.classify(IMAGES, rule="full", draws=DRAWS), whole)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests themselves run in the background of a shell."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_all_devices_work_ends_them_after_their_steps() -> None:
    """The signal comes while the caller waits, as it mostly does."""
    main = threading.get_ident()
    steps = [0]

    def function(*cells: Any) -> Any:
        steps[0] += 1
        if steps[0] == 40:
            signal.pthread_kill(main, signal.SIGINT)
        return denoiser(WORLD)(*cells)

    clf = spread(function, denoiser(WORLD), batch=2)
    images = unit_images(400)
    with pytest.raises(Interrupted) as caught:
        clf.classify(images, rule="full", draws=DRAWS)
    for _ in range(1000):  # a thread whose start was interrupted ends by itself
        if not threads_left():
            break
        time.sleep(0.005)
    assert threads_left() == []
    assert sum(recorded(clf)) < 400 * 4 * DRAWS
    if caught.value.result is not None:
        rows = caught.value.result.indices
        assert_same(caught.value.result, classifier(WORLD).classify(images[rows], rule="full", draws=DRAWS))
    assert len(clf.classify(IMAGES).labels) == N


def test_closing_a_run_ends_all_devices_and_frees_them() -> None:
    opened = threading.Event()
    gates = [Gate(100, opened) for _ in range(3)]
    clf = spread(*gates, batch=2)
    results = clf.stream(IMAGES, chunk=1, rule="full", draws=DRAWS)
    next(results)
    opened.set()
    results.close()  # type: ignore[attr-defined]
    assert threads_left() == []
    assert sum(recorded(clf)) < N * 4 * DRAWS
    for gate in gates:
        gate.left = 10**6
    clf.classify(IMAGES)


def test_a_closed_run_can_be_taken_up_again() -> None:
    """As a base classifier does: what was in flight is finished first."""
    job = spread(*plain(), batch=2).settings(rule="full").job
    x, streams = IMAGES * 2 - 1, range(N)
    requests = (Request(i, x[i], streams[i]) for i in range(N))
    runner = job.runner(requests, total=N, capacity=2)
    steps = runner.evaluate()
    next(steps)
    steps.close()
    assert threads_left() == []
    runner.submit(Request(N, x[0], 0))
    assert sum(runner.evaluate()) > 0
    finished = {one.key: one.values for one in runner.finished()}
    assert sorted(finished) == list(range(N + 1))
    np.testing.assert_array_equal(finished[N], finished[0])
    assert runner.evaluated == runner.at_most == (N + 1) * 4 * job.plan.draws
    assert runner.admitted == N + 1


# --- devices ---------------------------------------------------------------------------------------------------------


def test_devices_are_read_as_users_write_them() -> None:
    assert devices_of("cuda:0,1,3") == ("cuda:0", "cuda:1", "cuda:3")
    for one in ("auto", "cpu", "cuda", "cuda:2"):
        assert devices_of(one) == (one,)
    for wrong in ("cuda:0,", "cuda:0,cuda:1", "cuda,1", "cpu,cpu", "cuda:0,-1", "cuda:,1", "cuda:0, 1"):
        fails_with(lambda wrong=wrong: devices_of(wrong), "cuda:N,M", kind=InputError)  # type: ignore[misc]
    fails_with(lambda: devices_of("cuda:1,01"), "once", kind=InputError)


def test_a_model_is_loaded_onto_every_device(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[NetworkOptions] = []

    def open_network(bundle: Any, backend: str, options: NetworkOptions) -> ManySlots:
        network = ManySlots(denoiser(WORLD), batch=options.batch or 1)
        network.device = options.device
        opened.append(options)
        return network

    monkeypatch.setattr("fastdc.loading.open_network", open_network)
    bundle = tiny_bundle(tmp_path / "tiny")
    clf = fastdc.load(bundle, device="cuda:0,1", batch=3)
    assert [(options.device, options.batch) for options in opened] == [("cuda:0", 3), ("cuda:1", 3)]
    assert device_name(clf.networks) == "cuda:0,1"
    assert [network.device for network in clf.networks] == ["cuda:0", "cuda:1"]
    assert len(fastdc.load(bundle, device="cpu").networks) == 1
    fails_with(lambda: fastdc.load(bundle, device="cuda:1,1"), "once", kind=InputError)
    fails_with(lambda: fastdc.load(bundle, device="cuda:0,x"), "cuda:N,M", kind=InputError)


def test_networks_that_compute_differently_are_refused() -> None:
    one, other = ManySlots(denoiser(WORLD), batch=4), ManySlots(denoiser(WORLD), batch=2, slots=3)
    clf = over([one, other])
    assert clf.networks == (one, other)
    assert DiffusionClassifier(WORLD.model, one).networks == (one,)
    fails_with(lambda: over([one, one]), "different networks", "twice", kind=InputError)
    half = ManySlots(denoiser(WORLD))
    half.precision = "float16"
    fails_with(lambda: over([one, half]), "one backend and precision", "float16", kind=InputError)


def test_devices_have_one_name_together() -> None:
    networks = [ManySlots(denoiser(WORLD)) for _ in range(3)]
    assert device_name(networks[:1]) == "cpu"
    assert device_name(networks) == "cpu,cpu,cpu"
    for number, network in enumerate(networks):
        network.device = f"cuda:{number}"
    assert device_name(networks) == "cuda:0,1,2"
    assert device_name(networks[1:2]) == "cuda:1"
