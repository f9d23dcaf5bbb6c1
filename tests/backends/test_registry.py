"""Which backend runs a bundle, and one line for each one that cannot.

A missing package is simulated in a process of its own, by a finder that hides the package.
"""

from pathlib import Path
from typing import Any

import pytest

import fastdc
from fastdc import BackendError, Bundle, InputError
from fastdc.backends import NetworkOptions, OnnxNetwork, open_network
from fastdc.diffusion import kernels
from fastdc.support import install_hint
from helpers.paths import SHIPPED
from helpers.subprocesses import without
from helpers.worlds import fails_with, tiny_bundle


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


def test_threads_inside_a_step_leave_fewer_slots() -> None:
    pytest.importorskip("onnxruntime")
    for threads, inside, slots in ((4, 1, 4), (4, 2, 2), (3, 2, 1), (1, 2, 1)):
        network = OnnxNetwork(digits_mlp(), NetworkOptions(threads=threads), intra_op_threads=inside)
        assert len(network.slots) == slots


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"device": "cuda:1"}, {"precision": "bfloat16"}])
def test_onnx_on_the_cpu_refuses_devices_and_bfloat16(options: dict[str, str]) -> None:
    pytest.importorskip("onnxruntime")
    (value,) = options.values()
    fails_with(lambda: open_network(digits_mlp(), "onnx", NetworkOptions(**options)), value, kind=BackendError)  # type: ignore[arg-type]


def test_torch_refuses_devices_that_do_not_exist() -> None:
    torch = pytest.importorskip("torch")
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for backend in ("torch", "auto"):
        fails_with(lambda b=backend: fastdc.load("digits-mlp", backend=b, device=missing), missing, kind=BackendError)  # type: ignore[misc]


def test_unknown_backends_and_bundles_without_weights(tmp_path: Path) -> None:
    fails_with(lambda: open_network(digits_mlp(), "jax"), "onnx, torch", kind=InputError)
    pytest.importorskip("torch")
    fails_with(lambda: open_network(tiny_bundle(tmp_path / "b"), "torch"), "no torch weights")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "compile is for backend torch, got backend onnx"),
        ({"tf32": True}, "tf32 is for CUDA devices"),
        ({"provider_options": {"provider": "cuda"}}, "provider_options are for backend onnx on a CUDA device"),
    ],
)
def test_options_that_a_backend_has_no_use_for_are_refused(options: dict[str, Any], message: str) -> None:
    fails_with(lambda: open_network(digits_mlp(), "onnx", NetworkOptions(**options)), message, kind=InputError)


def test_tensorrt_without_a_gpu_says_so() -> None:
    pytest.importorskip("cuda.core")
    pytest.importorskip("filelock")
    if kernels.cuda_device_count():
        pytest.skip("there is a CUDA device")
    fails_with(lambda: open_network(digits_mlp(), "tensorrt"), "tensorrt", kind=BackendError)


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
    assert out == [f"onnxruntime is needed here and is not installed: {install_hint('cpu')}", "torch"]


def test_without_torch() -> None:
    pytest.importorskip("onnxruntime")
    code = f"import fastdc{_TRY}attempt(backend='torch'); attempt(precision='bfloat16'); attempt()"
    needed = f"torch is needed here and is not installed: {install_hint('torch')}"
    assert without("torch", code).splitlines() == [needed, needed, "onnx"]


def test_without_any_backend() -> None:
    out = without("torch,onnxruntime", f"import fastdc{_TRY}attempt()").splitlines()
    assert out == [f"no backend is installed: {install_hint('cpu')} for ONNX Runtime"]


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
