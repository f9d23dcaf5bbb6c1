"""Backends: ONNX Runtime, torch and functions give the same numbers, and refuse in one line what they cannot run.

Packages that are missing are simulated by a finder that hides them, in a process of its own.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import BackendError, BundleError, DiffusionClassifier, InputError
from fastdc.backends import FunctionNetwork, NetworkOptions, open_network
from fastdc.bundle.folder import Bundle
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from fastdc.diffusion.kernels import cuda_device_count
from fastdc.diffusion.plan import PlanConfig, make_plan
from fastdc.inference.error_table import ErrorTable
from fastdc.testing.absent import WITHOUT
from helpers.paths import SHIPPED
from helpers.worlds import SHAPE, Float64, denoiser, fails_with, gaussian, tiny_bundle, unit_images

WORLD = gaussian(3)


def without(modules: str, code: str) -> str:
    """The output of a Python program in a process that cannot import `modules` (separated by commas)."""
    command = [sys.executable, "-c", WITHOUT + code, modules]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


# --- agreement -------------------------------------------------------------------------------------------------------


def allowed(clf: DiffusionClassifier, module: Any, table: ErrorTable) -> Float64:
    """How far errors may differ when the network's output F differs by rounding alone.

    export.tolerance derives by how much relatively to the largest |F|, which is below 8 here (F is trained towards unit
    variance). A difference f of F changes w mean(r^2) by at most 2 |a| f sqrt(w err) + w (a f)^2, and the sums round.
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
    from fastdc.bundle.architectures import build_network

    images = digits_test().images[:n]
    onnx = fastdc.load(name, backend="onnx", threads=2)
    torch = fastdc.load(name, backend="torch", threads=1)
    assert (onnx.network.backend, torch.network.backend) == ("onnx", "torch")
    one, other = (clf.classify(images, rule="full") for clf in (onnx, torch))
    entry = fastdc.load_bundle(SHIPPED / name).manifest["network"]
    limit = allowed(onnx, build_network(entry["kind"], entry["config"]), one.table)
    difference = np.abs(one.table.errors.astype(np.float64) - other.table.errors)
    assert (difference < limit).all(), (difference / limit).max()
    assert (limit < 0.02 * one.table.errors).all(), "a limit that allows anything tests nothing"
    np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_backends_agree_about_noisy_images(method: str) -> None:
    """The denoised image stays where the network runs, in the image's place or beside it."""
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
    """A network's own matrix products may be ordered by batch size; fastdc adds nothing to that."""
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
    # Eight bits of significand, some ten roundings on the way to F: a few per cent of an error of order one.
    np.testing.assert_allclose(half.errors, full.errors, rtol=0.1, atol=0.05)


def test_a_torch_module_from_python() -> None:
    torch = pytest.importorskip("torch")
    from fastdc.backends.torch import TorchNetwork

    class Denoiser(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.means = torch.nn.Parameter(torch.tensor(WORLD.means, dtype=torch.float32))

        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            variance = torch.exp(2 * timestep / WORLD.schedule.timestep_scale)[:, None, None, None]
            inside = WORLD.spread**2
            return (inside * sample + variance * self.means[class_labels]) / (inside + variance)

    module = Denoiser()
    images = unit_images(4)
    network = TorchNetwork(module, SHAPE, NetworkOptions(batch=10))
    got = DiffusionClassifier(WORLD.model, network).classify(torch.from_numpy(images), draws=6)
    want = DiffusionClassifier(WORLD.model, WORLD.network()).classify(images, draws=6)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-5)
    assert module.means.requires_grad, "the user's module is not frozen behind their back"

    class Cropping(Denoiser):
        def forward(self, sample: Any, timestep: Any, class_labels: Any) -> Any:
            return sample[:, :, 1:]

    cropping = DiffusionClassifier(WORLD.model, TorchNetwork(Cropping(), SHAPE))
    fails_with(lambda: cropping.classify(images, draws=1), "(12, 1, 3, 4)", "(12, 1, 4, 4)", kind=BackendError)


def test_a_function_must_return_the_shape_of_its_sample() -> None:
    network = FunctionNetwork(lambda sample, t, k: sample.reshape(len(sample), -1), SHAPE, NetworkOptions(batch=5))
    clf = DiffusionClassifier(WORLD.model, network)
    fails_with(lambda: clf.classify(unit_images(1)), "(5, 16)", "(5, 1, 4, 4)", kind=BackendError)


def test_a_function_may_return_any_float_type() -> None:
    images = unit_images(2)
    for dtype in (np.float64, np.float32):
        network = FunctionNetwork(lambda u, t, k, d=dtype: denoiser(WORLD)(u, t, k).astype(d), SHAPE)  # type: ignore[misc]
        got = DiffusionClassifier(WORLD.model, network).errors(images).errors
        np.testing.assert_array_equal(got, DiffusionClassifier(WORLD.model, WORLD.network()).errors(images).errors)


# --- choice and refusal ----------------------------------------------------------------------------------------------


def digits_mlp() -> Bundle:
    return fastdc.load_bundle(SHIPPED / "digits-mlp")


def test_the_automatic_choice() -> None:
    pytest.importorskip("onnxruntime")
    assert open_network(digits_mlp()).backend == "onnx"
    pytest.importorskip("torch")
    assert open_network(digits_mlp(), "auto", NetworkOptions(precision="bfloat16")).backend == "torch"
    assert open_network(digits_mlp(), "auto", NetworkOptions(precision="float32")).backend == "onnx"


def test_threads_are_slots_in_onnx_and_global_in_torch() -> None:
    pytest.importorskip("onnxruntime")
    assert len(fastdc.load("digits-mlp", backend="onnx", threads=3).network.slots) == 3
    assert kernels.num_threads() == 3
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        assert len(fastdc.load("digits-mlp", backend="torch", threads=1).network.slots) == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device": "cuda:1"}, {"precision": "bfloat16"}])
def test_onnx_refuses_what_it_does_not_run(options: dict[str, str]) -> None:
    pytest.importorskip("onnxruntime")
    (value,) = options.values()
    fails_with(lambda: open_network(digits_mlp(), "onnx", NetworkOptions(**options)), value, kind=BackendError)  # type: ignore[arg-type]


def test_torch_refuses_devices_that_are_not_there() -> None:
    torch = pytest.importorskip("torch")
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for backend in ("torch", "auto"):
        fails_with(lambda b=backend: fastdc.load("digits-mlp", backend=b, device=missing), missing, kind=BackendError)  # type: ignore[misc]


def test_backends_that_are_none(tmp_path: Path) -> None:
    fails_with(lambda: open_network(digits_mlp(), "jax"), "onnx, torch", kind=InputError)
    pytest.importorskip("torch")
    fails_with(lambda: open_network(tiny_bundle(tmp_path / "b"), "torch"), "no torch weights")


def test_tensorrt_without_a_gpu_says_so() -> None:
    pytest.importorskip("cuda.core")
    pytest.importorskip("filelock")
    if cuda_device_count():
        pytest.skip("there is a CUDA device")
    fails_with(lambda: open_network(digits_mlp(), "tensorrt"), "tensorrt", kind=BackendError)


def test_torch_refuses_weights_that_do_not_fit(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    from fastdc.bundle.architectures import build_network
    from fastdc.bundle.folder import write_bundle
    from fastdc.bundle.format import DENOISER, WEIGHTS

    bundle = digits_mlp()
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("format", "version", "files")}
    entry = manifest["network"]
    weights = build_network(entry["kind"], entry["config"]).state_dict()
    for name, content in (
        ("garbage", b"\xff" * 100),
        ("empty", b""),
        ("foreign", save({"weight": torch.zeros(3)})),
        ("truncated", bundle.read(WEIGHTS)[:-1000]),
        ("shapes", save({key: torch.zeros(1) for key in weights})),
    ):
        bad = write_bundle(tmp_path / name, manifest, {DENOISER: b"", WEIGHTS: content})
        fails_with(lambda bad=bad: open_network(bad, "torch"), WEIGHTS, "does not fit")  # type: ignore[misc]
    for kind, config in (("resnet", entry["config"]), ("mlp", {}), ("mlp", {**entry["config"], "width": 10**9})):
        changed = {**manifest, "network": {"kind": kind, "config": config}}
        files = {DENOISER: b"", WEIGHTS: bundle.read(WEIGHTS)}
        bad = write_bundle(tmp_path / "garbage", changed, files, overwrite=True)
        fails_with(lambda bad=bad: open_network(bad, "torch"), kind=BundleError)  # type: ignore[misc]


# --- missing packages ------------------------------------------------------------------------------------------------

_TRY = """
def attempt(**options):
    try:
        network = fastdc.load("digits-mlp", **options).network
        print(network.backend)
    except fastdc.MissingDependencyError as error:
        print(error)
"""


def test_without_onnxruntime() -> None:
    pytest.importorskip("torch")
    out = without("onnxruntime", f"import fastdc{_TRY}attempt(backend='onnx'); attempt(backend='auto')").splitlines()
    assert out == ["onnxruntime is needed here and is not installed: pip install 'fastdc[cpu]'", "torch"]


def test_without_torch() -> None:
    pytest.importorskip("onnxruntime")
    code = f"import fastdc{_TRY}attempt(backend='torch'); attempt(precision='bfloat16'); attempt()"
    needed = "torch is needed here and is not installed: pip install 'fastdc[cuda]'"
    assert without("torch", code).splitlines() == [needed, needed, "onnx"]


def test_without_any_backend() -> None:
    out = without("torch,onnxruntime", f"import fastdc{_TRY}attempt()").splitlines()
    assert out == ["no backend is installed: pip install 'fastdc[cpu]' for ONNX Runtime"]


def test_without_diffusers() -> None:
    pytest.importorskip("torch")
    code = """
import fastdc
try:
    fastdc.load("digits", backend="torch")
except fastdc.MissingDependencyError as error:
    print(error)
"""
    (line,) = without("diffusers", code).splitlines()
    assert line.startswith("diffusers is needed here")


def test_a_function_network_needs_no_package() -> None:
    code = """
import numpy as np
from fastdc.testing.gaussian_world import *; from fastdc import *
world = GaussianWorld.random(3)
print(DiffusionClassifier(world.model, world.network()).classify(np.zeros((2, 1, 4, 4)), draws=2).labels.shape)
"""
    assert without("torch,onnxruntime,onnx,scipy,PIL,click,tqdm", code) == "(2,)\n"
