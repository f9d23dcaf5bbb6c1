"""Whole steps on a device: device arrays, captured steps against the same steps launched one by one, and the backends.

Skipped without a device; bench/gpu.sh runs it. What a stand-in can show is in tests/test_engine_sizes.py,
tests/test_backends_cuda_arrays.py, tests/test_backends_torch.py and tests/test_backends_onnx_cuda.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_cases import N_CLASSES, SEED, error_tolerance, make_case

import fastdc
from fastdc import BackendError, DiffusionClassifier, MissingDependencyError, ops
from fastdc.backends import NetworkOptions, open_network
from fastdc.data import digits_test

if not ops.build_config()["cuda"]:
    pytest.skip("fastdc was built without CUDA", allow_module_level=True)
if ops.cuda_device_count() == 0:
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.cuda

IMAGES = digits_test().images[:40]


def opened(backend: str, *, device: str = "cuda", **options: Any) -> DiffusionClassifier:
    bundle = fastdc.load_bundle(Path(fastdc.__file__).parent / "models" / "digits-mlp")
    try:
        network = open_network(bundle, backend, NetworkOptions(device=device, **options))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    except BackendError as error:
        if backend == "onnx" and "ExecutionProvider" in str(error):
            pytest.skip(str(error))
        raise
    return DiffusionClassifier(bundle.model, network)


# --- device arrays ---------------------------------------------------------------------------------------------------


@pytest.fixture
def arrays() -> Any:
    pytest.importorskip("cuda.core", exc_type=ImportError)
    from fastdc.backends.cuda_arrays import DeviceArrays

    return DeviceArrays(0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "int64"])
def test_what_is_placed_is_read_back(arrays: Any, dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.arange(5_000_011 * 2).reshape(-1, 2).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    made = arrays.place(values)
    assert made.pointer % 256 == 0
    np.testing.assert_array_equal(arrays.read(made, len(values)), values)
    arrays.write(made, values[::-1][:7])
    np.testing.assert_array_equal(arrays.read(made, 7), values[::-1][:7])


def test_kernels_on_device_arrays_are_captured_and_replayed(arrays: Any) -> None:
    """Noise with the CPU's bits, on the arrays' own stream, for whatever cells the table holds."""
    cases = [make_case(3072, layout, limit=24) for layout in ("runs", "distinct")]
    first = cases[0]
    images, rows, streams = map(arrays.place, (first.images, first.rows, first.streams))
    cells, u, errors = arrays.place(first.cells), arrays.empty((24, 3072), "float32"), arrays.empty((24,), "float32")
    common: dict[str, Any] = {"seed": SEED, "n_classes": N_CLASSES, "stream": arrays.stream}

    def launch() -> None:
        ops.add_noise(images, cells, rows, streams, out=u, **common)
        ops.denoising_error(u, images, cells, rows, streams, out=errors, **common)

    launch()
    arrays.synchronize()
    replay = arrays.capture(launch)
    for case in cases:
        arrays.write(cells, case.cells)
        replay()
        want = ops.add_noise(first.images, case.cells, first.rows, first.streams, seed=SEED, n_classes=N_CLASSES)
        np.testing.assert_array_equal(arrays.read(u, 24), want)
        on_cpu = ops.denoising_error(want, first.images, case.cells, first.rows, first.streams, seed=SEED)
        np.testing.assert_allclose(arrays.read(errors, 24), on_cpu, rtol=error_tolerance(3072))


def test_a_device_array_is_shared_with_torch(arrays: Any) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    made = arrays.place(np.arange(6, dtype=np.float32).reshape(2, 3))
    tensor = torch.from_dlpack(made)
    assert (tensor.device.type, tensor.data_ptr()) == ("cuda", made.pointer)
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


# --- backends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("batch", [1, 24, 100, 512])
def test_captured_steps_equal_those_launched_one_by_one(backend: str, batch: int) -> None:
    """To the bit: the same kernels on the same numbers, for full steps and padded ones."""
    images = IMAGES[:3] if batch == 1 else IMAGES
    captured, plain = (opened(backend, batch=batch, graphs=graphs) for graphs in (True, False))
    want = plain.errors(images, draws=5).errors
    for _ in range(3):  # as it is, captured, replayed
        np.testing.assert_array_equal(captured.errors(images, draws=5).errors, want)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_errors_and_labels_are_the_cpus(backend: str) -> None:
    got = opened(backend, batch=128).classify(IMAGES, rule="full", draws=16)
    want = opened("onnx", device="cpu").classify(IMAGES, rule="full", draws=16)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-3)
    np.testing.assert_array_equal(got.labels, want.labels)


@pytest.mark.parametrize("method", ["denoised", "apndc-x"])
def test_methods_that_denoise_first(method: str) -> None:
    options: dict[str, Any] = {"draws": 4, "method": method, "sigma": 0.1, "levels": (0.3, 2.0)}
    got = opened("torch", batch=16).errors(IMAGES[:9], **options)
    want = opened("torch", device="cpu", batch=16).errors(IMAGES[:9], **options)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision(precision: str) -> None:
    got = opened("torch", batch=64, precision=precision).classify(IMAGES, draws=8)
    want = opened("torch", batch=64).classify(IMAGES, draws=8)
    assert np.mean(got.labels == want.labels) > 0.9
    np.testing.assert_allclose(got.errors, want.errors, rtol=0.1, atol=0.05)


def test_compiled_steps_are_captured_too() -> None:
    got = opened("torch", batch=32, compile=True).errors(IMAGES[:8], draws=4)
    want = opened("torch", batch=32).errors(IMAGES[:8], draws=4)
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-3)


def test_replays_allocate_nothing() -> None:
    torch = pytest.importorskip("torch")
    clf = opened("torch", batch=32)
    for _ in range(3):
        clf.errors(IMAGES, draws=4)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    clf.errors(IMAGES, draws=4)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_a_second_device_gives_the_same_numbers() -> None:
    if ops.cuda_device_count() < 2:
        pytest.skip("needs two devices")
    one, other = (opened("torch", batch=32, device=device).errors(IMAGES, draws=4) for device in ("cuda:0", "cuda:1"))
    np.testing.assert_array_equal(one.errors, other.errors)
