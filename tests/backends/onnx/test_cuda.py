"""ONNX Runtime on a CUDA device, as far as a double of onnxruntime goes.

The double records the options, bindings and runs of sessions and runs them on the CPU provider, on device arrays in the
CPU's memory. Buffers, addresses, padding and numbers are tested as they are. How a GPU provider takes its options is
not tested.
"""

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastdc
from fastdc import BackendError, BundleError, DiffusionClassifier, InputError
from fastdc.backends import FunctionNetwork, NetworkOptions, halves, open_network, registry
from fastdc.backends.onnx import OnnxCudaNetwork
from fastdc.bundle import Bundle
from fastdc.data import digits_test
from fastdc.diffusion import kernels
from helpers.cuda_doubles import Core, HostedArrays
from helpers.latent_world import MODEL, PROMPTS, Encoder, network, table, write
from helpers.onnxruntime_double import Ort
from helpers.paths import SHIPPED
from helpers.worlds import fails_with, tiny_bundle, unit_images

onnxruntime: Any = pytest.importorskip("onnxruntime")


def opened(bundle: Bundle, ort: Ort | None = None, **options: Any) -> OnnxCudaNetwork:
    core = Core(lazy=False)
    given = NetworkOptions(device="cuda", **options)
    return OnnxCudaNetwork(bundle, given, ort=ort or Ort(), make_arrays=lambda: HostedArrays(core))


def shipped(name: str = "digits-mlp") -> Bundle:
    return fastdc.load_bundle(SHIPPED / name)


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("latent") / "world")


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", [True, False])
def test_errors_are_those_of_the_cpu_backend(graphs: bool) -> None:
    images = digits_test().images[:7]
    bundle = shipped()
    net = opened(bundle, batch=32, graphs=graphs)
    got = DiffusionClassifier(bundle.model, net).classify(images, rule="race")
    want = fastdc.load("digits-mlp", backend="onnx", batch=32, threads=1).classify(images, rule="race")
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.table.errors, want.table.errors, rtol=1e-4)
    assert (net.backend, net.device, net.precision) == ("onnx", "cuda:0", "float32")
    assert net.sizes == halves(32)


def test_tables_are_placed_once_for_all_slots(latent: Bundle) -> None:
    ort = Ort()
    net = opened(latent, ort, batch=8)
    images = unit_images(5, MODEL.image_shape)
    oracle = DiffusionClassifier(MODEL, FunctionNetwork(network, MODEL.sample_shape), Encoder())
    got = DiffusionClassifier(MODEL, net, Encoder()).errors(images, draws=4)
    np.testing.assert_allclose(got.errors, oracle.errors(images, draws=4).errors, rtol=1e-4)
    bound = [binding for session in ort.sessions for binding in session.bindings]
    names = set(bound[0]) - {"sample", "timestep", "class_labels", "output"}
    assert names
    for name in names:
        assert len({binding[name] for binding in bound}) == 1
        assert bound[0][name][2] == table(PROMPTS).shape


# --- sessions, options and bindings ----------------------------------------------------------------------------------


def test_each_slot_has_a_session_on_its_own_stream() -> None:
    ort = Ort()
    net = opened(shipped(), ort, batch=8)
    streams = [slot.stream for slot in net.slots]
    assert len({net.stream, *streams}) == 3
    for session, stream in zip(ort.sessions, streams, strict=True):
        assert session.providers == [
            (
                "CUDAExecutionProvider",
                {
                    "device_id": "0",
                    "user_compute_stream": str(stream),
                    "use_tf32": "0",
                    "cudnn_conv_algo_search": "HEURISTIC",
                },
            )
        ]
        assert not session.fallback


def test_the_users_options_override_fastdcs() -> None:
    ort = Ort()
    given = {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "1", "enable_cuda_graph": "0"}
    net = opened(shipped(), ort, batch=8, provider_options=given)
    (_, options), *_ = ort.sessions[0].providers
    assert options.items() >= given.items()
    assert net.provider_options[0] == options


def test_tensorrts_provider_gets_a_range_of_shapes(latent: Bundle) -> None:
    ort = Ort()
    given = {"provider": "tensorrt", "trt_engine_cache_enable": "1"}
    net = opened(latent, ort, batch=16, tf32=True, provider_options=given)
    (provider, options), (other, others) = ort.sessions[0].providers
    assert (provider, other) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    same = {key: options[key] for key in ("device_id", "user_compute_stream")}
    assert others == {**same, "use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}
    assert options["trt_engine_cache_enable"] == "1"
    assert "provider" not in options
    shape = "x".join(map(str, MODEL.sample_shape))
    rows = "x".join(map(str, table(PROMPTS).shape))
    for which, batch in (("min", 1), ("opt", 16), ("max", 16)):
        entries = options[f"trt_profile_{which}_shapes"].split(",")
        assert entries[:3] == [f"sample:{batch}x{shape}", f"timestep:{batch}", f"class_labels:{batch}"]
        assert entries[3].endswith(f":{rows}")
    assert net.provider == "TensorrtExecutionProvider"


def test_tensorrts_provider_warns_of_tf32_unless_nvidias_switch_is_set(
    latent: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"provider": "tensorrt"}
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    with pytest.warns(RuntimeWarning, match="NVIDIA_TF32_OVERRIDE=0"):
        opened(latent, batch=2, provider_options=given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(latent, batch=2)
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        opened(latent, batch=2, provider_options=given)


def test_a_binding_for_each_size_and_no_waiting() -> None:
    ort = Ort()
    net = opened(shipped(), ort, batch=8)
    slot, session = net.slots[0], ort.sessions[0]
    for size in (8, 1, 8, 4):
        slot.run(size)
    assert session.runs == ["1"] * 4
    assert len(session.bindings) == 3, "one binding per size"
    index, element, shape, pointer = session.bindings[0]["sample"]
    assert (index, element, shape, pointer) == (0, 1, (8, *shipped().model.sample_shape), slot.sample.pointer)
    assert session.bindings[0]["class_labels"][1:3] == (7, (8,))
    assert net.capture(slot, lambda: None) is None


def test_the_default_step_depends_on_the_networks_cost(latent: Bundle) -> None:
    assert opened(shipped()).batch == 512
    costly = dataclasses.replace(latent, manifest={**latent.manifest, "cost": {"flops": 1e12}})
    assert opened(costly).batch == 16


def test_libraries_that_are_not_beside_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip may install ONNX Runtime and CUDA's libraries into different folders, as with --target."""
    for folder, library in (("cu13", "libcublasLt.so.13"), ("cudnn", "libcudnn.so.9"), ("nccl", "libnccl.so.2")):
        (tmp_path / "nvidia" / folder / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / folder / "lib" / library).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    ort = Ort()
    opened(shipped(), ort, batch=2)
    where = tmp_path / "nvidia"
    assert ort.preloaded == [
        {"cuda": True, "cudnn": False, "directory": str(where / "cu13" / "lib")},
        {"cuda": False, "cudnn": True, "directory": str(where / "cudnn" / "lib")},
        {},
    ]
    ort = Ort()
    ort.__file__ = str(tmp_path / "onnxruntime" / "__init__.py")  # type: ignore[attr-defined]
    opened(shipped(), ort, batch=2)
    assert ort.preloaded == [{}]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_package_without_the_provider() -> None:
    ort = Ort()
    ort.available = ["CPUExecutionProvider"]
    fails_with(lambda: opened(shipped(), ort), "CUDAExecutionProvider", "onnxruntime-gpu", kind=BackendError)


def test_a_provider_that_does_not_load_is_refused() -> None:
    """ONNX Runtime itself falls back to the CPU with a warning."""
    ort = Ort()
    ort.loads = False
    fails_with(lambda: opened(shipped(), ort), "CUDAExecutionProvider", "driver", kind=BackendError)


def test_a_providers_error_is_passed_on() -> None:
    """With its fallback, ONNX Runtime would print the error and make a session on the CPU."""
    ort = Ort()
    ort.refuses = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory"
    fails_with(lambda: opened(shipped(), ort), "CUDAExecutionProvider does not run", "out of memory", kind=BackendError)


@pytest.mark.parametrize("option", ["enable_cuda_graph", "trt_cuda_graph_enable"])
@pytest.mark.parametrize("value", ["1", "True"])
def test_onnx_runtimes_own_graphs_are_refused(option: str, value: str) -> None:
    fails_with(lambda: opened(shipped(), provider_options={option: value}), option, kind=InputError)


def test_the_installed_package_without_cuda() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has CUDA here")
    core = Core()
    fails_with(
        lambda: OnnxCudaNetwork(shipped(), NetworkOptions(device="cuda"), make_arrays=lambda: HostedArrays(core)),
        "onnxruntime-gpu",
        kind=BackendError,
    )


@pytest.mark.skipif(kernels.cuda_device_count() > 0, reason="there is a device")
def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    options = NetworkOptions(device="cuda:1")
    fails_with(lambda: open_network(shipped(), "onnx", options), "cuda:1", kind=BackendError)
    monkeypatch.setattr(registry, "installed", lambda name: name != "torch")
    fails_with(lambda: open_network(shipped(), "auto", options), "cuda:1", kind=BackendError)


def test_other_precisions_and_providers_are_refused() -> None:
    fails_with(lambda: opened(shipped(), precision="bfloat16"), "float32", "bfloat16", kind=BackendError)
    fails_with(lambda: opened(shipped(), provider_options={"provider": "rocm"}), "rocm", kind=InputError)


def test_other_graphs_are_refused(tmp_path: Path) -> None:
    fails_with(lambda: opened(tiny_bundle(tmp_path / "b")), "denoiser.onnx", kind=BundleError)
    from helpers.denoiser_graphs import graph

    bad = tiny_bundle(tmp_path / "c", graph(timestep=("DOUBLE", ["batch"])))
    fails_with(lambda: opened(bad), "must map", kind=BundleError)


def test_a_failing_run_is_one_line() -> None:
    ort = Ort()
    net = opened(shipped(), ort, batch=4)
    ort.fails = True
    fails_with(lambda: net.slots[0].run(4), "out of memory", kind=BackendError)
