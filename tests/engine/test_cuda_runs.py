"""Whole runs on a device: races, latency mode, several networks at once, a bundle in parts, against the plain CPU.

Races compare decisions, and networks agree up to the order of their sums only. The race here is one in which no
decision is so close that this could turn it, which is tested first. As in tests/engine/test_cuda_steps.py, tests marked
`cuda` run on a device and the rest on a double of one.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fastdc import Classification, DiffusionClassifier, Session
from fastdc.backends import AbstractNetwork, NetworkOptions, OnnxNetwork, halves
from fastdc.bundle.folder import load_bundle
from fastdc.bundle.format import PREFIX
from fastdc.bundle.shipped import find_model
from fastdc.certification.estimation import Fixed
from fastdc.diffusion import kernels
from fastdc.engine import StepTable
from fastdc.rules.protocol import geometric_looks
from helpers.cuda_sides import BATCH, IMAGES, RTOL, Open, Side, on_cpu, opened, sides
from helpers.worlds import unit_images

__all__ = ["opened"]

RACED = IMAGES[:20]
LIMIT, DRAWS = 4.45, 16
RACE: dict[str, Any] = {"rule": "calibrated", "rule_options": {"limit": LIMIT}, "draws": DRAWS}
WAIT = 120  # seconds after which a test is stuck

ONE_OF_EACH = sides("torch", "onnx", "tensorrt")


def raced() -> Classification:
    """The race on the CPU."""
    return on_cpu().classify(RACED, **RACE)


def assert_agrees(got: Classification, want: Classification, rows: Any = slice(None)) -> None:
    """The same decisions, and errors up to the order of the sums."""
    for name in ("labels", "evaluations"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name)[rows])
    np.testing.assert_array_equal(got.table.counts, want.table.counts[rows])
    np.testing.assert_allclose(got.errors, want.errors[rows], rtol=RTOL)


# --- races -----------------------------------------------------------------------------------------------------------


def test_no_decision_of_the_race_is_close() -> None:
    """A class is dropped at look m when m (e / best - 1) > limit: errors off by RTOL turn no comparison."""
    errors = on_cpu().errors(RACED, draws=DRAWS).errors.astype(np.float64)
    off = (1 + RTOL) / (1 - RTOL)
    for m in geometric_looks(DRAWS):
        means = errors[:, :, :m].mean(axis=2)
        ratio = means / means.min(axis=1, keepdims=True)
        np.testing.assert_array_equal(m * (ratio / off - 1) > LIMIT, m * (ratio * off - 1) > LIMIT)
    evaluations = raced().evaluations
    assert 10 < evaluations.min() < evaluations.max() < 10 * DRAWS, "it should be a race"


@pytest.mark.parametrize("side", ONE_OF_EACH)
def test_a_race_is_the_cpus(opened: Open, side: Side) -> None:
    clf = opened(side, batch=BATCH)
    for _ in range(2):  # the second time all steps are replays
        assert_agrees(clf.classify(RACED, **RACE), raced())


@pytest.mark.parametrize("side", ONE_OF_EACH)
def test_a_certificate_is_the_cpus(opened: Open, side: Side) -> None:
    """With the rule that takes the mean of all draws, so that a copy is lost only if its two best classes tie."""
    made = []
    for clf in (opened(side, batch=BATCH), on_cpu()):
        base = clf.base(sigma=0.25, draws=2, rule="full")
        (one,) = clf.certify(IMAGES[:1], Fixed(0.25, 40, 0.01), n0=8, base=base)
        made.append((one.label, one.copies, one.evaluations, one.successes))
    assert made[0][:3] == made[1][:3]
    assert abs(made[0][3] - made[1][3]) <= 1


# --- latency mode ----------------------------------------------------------------------------------------------------


def flat(network: Any, run: Any, *, draws: int) -> StepTable:
    """As if all steps cost the same: everything that a race may want is evaluated at once."""
    sizes = tuple(network.sizes or halves(network.batch))
    same = (1.0,) * len(sizes)
    return StepTable(sizes, same, together=same, slots=len(network.slots), fixed=network.sizes is not None)


@pytest.mark.parametrize("side", ONE_OF_EACH)
@pytest.mark.parametrize("table", ["measured", "flat"])
def test_latency_mode_gives_the_results_of_the_race(
    opened: Open, side: Side, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, errors and counted evaluations, for images one by one and in a burst."""
    if table == "flat":
        monkeypatch.setattr("fastdc.inference.job.steps_of", flat)
    clf, want = opened(side, batch=BATCH), raced()
    with Session(clf, mode="latency", **RACE) as session:
        alone = [session.submit(image).result(WAIT) for image in RACED]
        single = session.evaluated
        burst = [future.result(WAIT) for future in [session.submit(image) for image in RACED]]
    for results in (alone, burst):
        for i, result in enumerate(results):
            assert_agrees(result, want, [i])
    counted = want.evaluations.sum()
    assert single >= counted
    if table == "flat":
        assert single > counted, "nothing was evaluated ahead"


# --- several networks ------------------------------------------------------------------------------------------------


def wait_for_each_other(networks: Sequence[AbstractNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no network begin its second step before all have begun their first: each then has a part in the run."""
    meeting = threading.Barrier(len(networks), timeout=WAIT)
    for one in networks:
        met = threading.Event()
        for slot in one.slots:
            monkeypatch.setattr(slot, "write", _meets(slot.write, meeting, met))


def _meets(write: Callable[..., None], meeting: threading.Barrier, met: threading.Event) -> Callable[..., None]:
    lock = threading.Lock()

    def wait_and_write(*arguments: Any) -> None:
        with lock:
            first = not met.is_set()
            met.set()
        if first:
            meeting.wait()
        write(*arguments)

    return wait_and_write


@pytest.mark.parametrize("side", ONE_OF_EACH)
def test_two_networks_on_one_device_share_a_run(opened: Open, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on threads and streams of its own: one captures while the other launches and replays."""
    networks = [opened(side, batch=BATCH).network for _ in range(2)]
    wait_for_each_other(networks, monkeypatch)
    clf = DiffusionClassifier(on_cpu().model, networks[0], replicas=(networks[1],))
    for _ in range(2):
        assert_agrees(clf.classify(RACED, **RACE), raced())
    with Session(clf, mode="latency", **RACE) as session:
        results = [future.result(WAIT) for future in [session.submit(image) for image in RACED[:6]]]
    for i, result in enumerate(results):
        assert_agrees(result, raced(), [i])


@pytest.mark.parametrize("side", ONE_OF_EACH)
def test_two_devices_share_a_run(opened: Open, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    if side.on_device and kernels.cuda_device_count() < 2:
        pytest.skip("needs two devices")
    clf = opened(side, batch=BATCH, device="cuda:0,1")
    assert len(clf.networks) == 2
    if side.on_device:
        assert [network.device for network in clf.networks] == ["cuda:0", "cuda:1"]
    wait_for_each_other(clf.networks, monkeypatch)
    for _ in range(2):
        assert_agrees(clf.classify(RACED, **RACE), raced())


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", sides("onnx"))
def test_a_bundle_in_parts_gives_the_wholes_numbers(opened: Open, side: Side) -> None:
    """With condition tables and an encoder: on the device, whole and in parts on the CPU."""
    clf = opened(side, "shapes", batch=BATCH)
    bundle = load_bundle(find_model("shapes"))
    assert PREFIX in bundle.files
    images = unit_images(1, bundle.model.image_shape)
    got = clf.errors(images, draws=1).errors
    for split in (False, True):
        network = OnnxNetwork(bundle, NetworkOptions(batch=BATCH, threads=1), split=split)
        want = DiffusionClassifier(bundle.model, network, clf.encoder).errors(images, draws=1).errors
        np.testing.assert_allclose(got, want, rtol=RTOL)
