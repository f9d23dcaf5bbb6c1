"""Backends agree: ONNX Runtime and torch give the same errors up to rounding, at every batch and number of threads."""

from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import DiffusionClassifier, ErrorTable
from fastdc.backends import AbstractNetwork, FunctionNetwork
from fastdc.data import digits_test
from fastdc.diffusion import PlanConfig, make_plan
from helpers.paths import SHIPPED
from helpers.worlds import SHAPE, Float64


def allowed(clf: DiffusionClassifier, module: Any, table: ErrorTable) -> Float64:
    """Tolerance of errors if the network's output F differs by rounding alone.

    export.tolerance derives the difference relative to the largest |F|, which is below 8 here (F is trained towards
    unit variance). A difference f of F changes w mean(r^2) by at most 2 |a| f sqrt(w err) + w (a f)^2, and the sums
    round.
    """
    from fastdc.export import tolerance

    f = 8 * tolerance(module)
    plan = make_plan(clf.model.schedule, clf.model.parameterization, PlanConfig.from_dict(table.plan))
    errors, rows = table.errors.astype(np.float64), plan.rows.astype(np.float64)
    a, weight = np.abs(rows[:, 2]), rows[:, 6]
    return 2 * a * f * np.sqrt(weight * errors) + weight * (a * f) ** 2 + 1e-6 * errors


@pytest.mark.parametrize(("name", "n"), [("digits", 3), ("digits-mlp", 40)])
def test_onnx_and_torch_agree_within_rounding(name: str, n: int) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    if name == "digits":
        pytest.importorskip("diffusers")
    from fastdc.bundle import build_network

    images = digits_test().images[:n]
    onnx = fastdc.load(name, backend="onnx", threads=2)
    torch = fastdc.load(name, backend="torch", threads=1)
    assert (onnx.network.backend, torch.network.backend) == ("onnx", "torch")
    one, other = (clf.classify(images, rule="full") for clf in (onnx, torch))
    entry = fastdc.load_bundle(SHIPPED / name).manifest["network"]
    limit = allowed(onnx, build_network(entry["kind"], entry["config"]), one.table)
    difference = np.abs(one.table.errors.astype(np.float64) - other.table.errors)
    assert (difference < limit).all(), (difference / limit).max()
    assert (limit < 0.02 * one.table.errors).all(), "the limit must be able to fail"
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_backends_agree_about_noisy_images(method: str) -> None:
    """Methods that denoise first keep the denoised image on the network's device, instead of the image or beside it."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    images = digits_test().images[:9]
    one, other = (
        fastdc.load("digits-mlp", backend=backend, batch=7).errors(
            images, draws=4, method=method, sigma=0.1, levels=(0.3, 2.0)
        )
        for backend in ("onnx", "torch")
    )
    np.testing.assert_allclose(one.errors, other.errors, rtol=2e-4)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_batch_and_threads_change_results_by_rounding_only(backend: str) -> None:
    """The network's matrix products may be ordered by batch size; fastdc adds no other dependence."""
    pytest.importorskip("onnxruntime" if backend == "onnx" else "torch")
    images = digits_test().images[:6]
    runs = [
        fastdc.load("digits-mlp", backend=backend, batch=batch, threads=threads).classify(images, draws=4)
        for batch, threads in ((128, 1), (128, 1), (1, 1), (7, 2), (240, 1), (4096, 2))
    ]
    np.testing.assert_array_equal(runs[0].table.errors, runs[1].table.errors)
    for run in runs[2:]:
        np.testing.assert_allclose(run.table.errors, runs[0].table.errors, rtol=1e-4)
        np.testing.assert_array_equal(run.labels, runs[0].labels)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_torch_runs_in_half_precision(precision: str) -> None:
    pytest.importorskip("torch")
    test = digits_test()
    images, truth = test.images[:20], test.labels[:20]
    clf = fastdc.load("digits-mlp", precision=precision)
    assert (clf.network.backend, clf.network.precision) == ("torch", precision)
    half = clf.classify(images, draws=4)
    full = fastdc.load("digits-mlp", backend="torch").classify(images, draws=4)
    assert np.mean(half.labels == truth) > 0.9
    assert not np.array_equal(half.errors, full.errors)
    # Eight bits of significand and about ten roundings on the way to F: a few per cent of an error of order one.
    np.testing.assert_allclose(half.errors, full.errors, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("backend", ["function", "onnx", "torch"])
def test_values_that_were_read_do_not_change(backend: str) -> None:
    if backend == "function":
        network: AbstractNetwork = FunctionNetwork(lambda sample, timestep, labels: sample, SHAPE)
    else:
        pytest.importorskip("onnxruntime" if backend == "onnx" else "torch")
        network = fastdc.load("digits-mlp", backend=backend, batch=8).network
    (slot, *_) = network.slots
    for owner, buffer in ((slot, slot.errors), (network, network.place(np.zeros(8, np.float32)))):
        owner.write(buffer, np.arange(8, dtype=np.float32))
        read = owner.read(buffer, 5)
        owner.write(buffer, np.zeros(8, np.float32))
        np.testing.assert_array_equal(read, [0, 1, 2, 3, 4])
