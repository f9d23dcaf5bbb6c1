"""Networks as TensorRT engines, on a double with the interface of the real bindings: numbers, calls and their order."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("filelock")

from fastdc import BackendError, Bundle, DiffusionClassifier, MissingDependencyError, load_bundle
from fastdc.backends import NetworkOptions, OnnxNetwork, open_network
from fastdc.backends.tensorrt import driver
from fastdc.backends.tensorrt import module as opening
from fastdc.backends.tensorrt import network as module
from fastdc.backends.tensorrt.build import EngineOptions, build_engine
from fastdc.backends.tensorrt.cache import EngineCache
from fastdc.backends.tensorrt.driver import Gpu
from fastdc.backends.tensorrt.engine import Engine, check_tensors, load_engine
from fastdc.backends.tensorrt.module import use_module
from fastdc.backends.tensorrt.network import (
    TensorRTNetwork,
    TensorRTSlot,
    check_usable,
    default_engine,
    engine_key,
    sizes_of,
)
from fastdc.bundle import find_model
from fastdc.data import digits_test
from helpers.cuda_doubles import Core, HostedArrays
from helpers.tensorrt_double import VERSIONS, Double

MLP = load_bundle(find_model("digits-mlp"))
SMALL = EngineOptions(batches=(4, 16), latency=(1, 2, 4))
CARD = Gpu("Double 1", "9.0", 13)
Open = Callable[..., tuple[TensorRTNetwork, Double]]


def flavour_of(version: str) -> str:
    return "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Open]:
    """Opens a network on what fastdc takes for a machine with a GPU."""
    core = Core(lazy=False)
    current: list[int] = []
    monkeypatch.setattr(module, "DeviceArrays", lambda index: HostedArrays(core))
    monkeypatch.setattr(driver, "gpu", lambda index: CARD)
    monkeypatch.setattr(driver, "use_device", current.append)
    monkeypatch.setattr(driver, "check_driver", lambda: None)

    def open_it(
        version: str = "11.4", bundle: Bundle = MLP, options: NetworkOptions | None = None, **more: Any
    ) -> tuple[TensorRTNetwork, Double]:
        double = Double(version, **more)
        trt = use_module(double.module, flavour_of(version))
        monkeypatch.setattr(module, "open_tensorrt", lambda flavour: trt)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = TensorRTNetwork(bundle, options, engine=SMALL, cache=EngineCache(tmp_path))
        return made, double

    yield open_it
    assert set(current) <= {0}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_gets_the_errors_of_the_other_backend(version: str, opened: Open) -> None:
    """With steps of several sizes, part-filled steps and two slots."""
    images = digits_test().images[:3]
    network, double = opened(version, options=NetworkOptions(graphs=False))
    assert network.built
    ours = DiffusionClassifier(MLP.model, network).errors(images)
    theirs = DiffusionClassifier(MLP.model, OnnxNetwork(MLP)).errors(images)
    assert np.allclose(ours.errors, theirs.errors, rtol=1e-4)
    assert np.all(np.isfinite(ours.errors))
    assert "IExecutionContext.execute_async_v3" in double.names()


def test_the_engine_is_kept_and_loaded_the_next_time(opened: Open) -> None:
    first, double = opened()
    assert first.built
    assert "Builder.build_serialized_network" in double.names()
    assert [check["batch"] for check in first.self_test["checks"]] == [1, 2, 4, 16]
    second, double = opened()
    assert (second.built, second.plan, second.self_test) == (False, first.plan, first.self_test)
    assert not [name for name in double.names() if name.startswith("Builder")]
    third, _ = opened("10.16")
    assert third.built, "a plan fits only its own version"


PROFILES = [
    {"sample": tuple((n, 1, 8, 8) for n in sizes), "timestep": tuple((n,) for n in sizes)}
    | {"class_labels": tuple((n,) for n in sizes)}
    for sizes in ((4, 4, 4), (16, 16, 16), (1, 2, 4))
]


def test_a_step_is_prepared_once_and_then_only_run(opened: Open) -> None:
    network, double = opened()
    slot = network.slots[0]
    assert isinstance(slot, TensorRTSlot)
    assert double.profiles == PROFILES
    slot.write(slot.sample, np.ones((4, 1, 8, 8), np.float32))
    slot.write(slot.timestep, np.ones(4, np.float32))
    slot.write(slot.class_labels, np.zeros(4, np.int64))
    double.calls.clear()
    slot.run(2)
    shapes = [("sample", (2, 1, 8, 8)), ("timestep", (2,)), ("class_labels", (2,))]
    buffers = [(name, getattr(slot, name).pointer) for name in ("sample", "timestep", "class_labels", "output")]
    assert double.calls[0][0] == "ICudaEngine.create_execution_context"
    assert double.calls[0][1].name == "USER_MANAGED"
    assert double.calls[1:] == [
        ("IExecutionContext.set_device_memory", slot.scratch.pointer, 1002),
        ("IExecutionContext.set_optimization_profile_async", 2, slot.stream),
        *(("IExecutionContext.set_input_shape", name, shape) for name, shape in shapes),
        ("IExecutionContext.infer_shapes",),
        ("IExecutionContext.get_tensor_shape", "output"),
        *(("IExecutionContext.set_tensor_address", name, pointer) for name, pointer in buffers),
        ("IExecutionContext.execute_async_v3", slot.stream),
    ]
    assert slot.scratch.dtype == "float32"
    assert 4 * len(slot.scratch) >= 1002
    assert all(pointer % 256 == 0 for _, pointer in buffers)
    double.calls.clear()
    slot.run(2)
    assert double.calls == [("IExecutionContext.execute_async_v3", slot.stream)]
    double.calls.clear()
    slot.run(4)
    call = ("IExecutionContext.set_optimization_profile_async", 0, slot.stream)
    assert call in double.calls, "its own profile, not the range"
    first, second = network.slots
    assert first.stream != second.stream
    assert 0 not in (first.stream, second.stream, network.stream)


def test_kernels_of_tensorrt_rtx_are_there_when_a_step_first_runs(opened: Open) -> None:
    """By default it compiles them in the background, and a capture would keep the kernels used meanwhile."""
    _, double = opened("rtx-1.7")
    made = [call for call in double.calls if call[0] == "ICudaEngine.create_execution_context"]
    assert {call[1]._kind for call in made} == {"IRuntimeConfig"}
    strategies = [
        call[1].name for call in double.calls if call[0].endswith("set_execution_context_allocation_strategy")
    ]
    assert set(strategies) == {"USER_MANAGED"}
    assert len(strategies) == len(made)
    eager = [call[1].name for call in double.calls if "specialization" in call[0]]
    assert eager == ["EAGER"] * len(made)


def test_tables_are_bound_once_for_all_slots(opened: Open) -> None:
    """Each row of a step gets its condition's row of the table, at every size of step."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    inputs = [
        helper.make_tensor_value_info("sample", kind.FLOAT, ["batch", 1, 8, 8]),
        helper.make_tensor_value_info("timestep", kind.FLOAT, ["batch"]),
        helper.make_tensor_value_info("class_labels", kind.INT64, ["batch"]),
        helper.make_tensor_value_info("text", kind.FLOAT, ["conditions", 1, 8, 8]),
    ]
    nodes = [
        helper.make_node("Gather", ["text", "class_labels"], ["row"]),
        helper.make_node("Add", ["sample", "row"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("output", kind.FLOAT, ["batch", 1, 8, 8])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    network, double = opened()
    double.profiles.clear()
    trt = use_module(double.module, "tensorrt")
    loaded = load_engine(trt, build_engine(trt, model.SerializeToString(), 3, SMALL).plan)
    assert all(one["text"] == 3 * ((3, 1, 8, 8),) for one in double.profiles)
    check_tensors(loaded, "float32", ("text",))
    texts = np.arange(3 * 64, dtype=np.float32).reshape(3, 1, 8, 8)
    tables = {"text": network.place(texts)}
    engine = Engine(trt, loaded, SMALL, 0, (1, 8, 8), "float32")
    rng = np.random.default_rng(0)
    for _ in range(2):
        slot = TensorRTSlot(engine, HostedArrays(Core(lazy=False)), network.home, tables)
        for size in (1, 4, 16):
            sample = rng.standard_normal((size, 1, 8, 8)).astype(np.float32)
            labels = rng.integers(0, 3, size)
            got = slot.runner()(sample, np.zeros(size, np.float32), labels)
            assert np.array_equal(got, sample + texts[labels])
    addresses = {call[2] for call in double.calls if call[0].endswith("set_tensor_address") and call[1] == "text"}
    assert addresses == {tables["text"].pointer}


def test_each_size_runs_in_its_narrowest_profile(opened: Open) -> None:
    network, double = opened()
    assert network.sizes == (1, 2, 4, 16)
    assert network.batch == 16
    slot = network.slots[0]
    profiles = []
    for size in (1, 2, 3, 4, 16):
        double.calls.clear()
        slot.run(size)
        profiles += [call[1] for call in double.calls if call[0].endswith("set_optimization_profile_async")]
    assert profiles == [2, 2, 2, 0, 1]
    with pytest.raises(BackendError, match="the engine has no profile for a step of 5"):
        slot.run(5)


def test_sizes_of_an_engine() -> None:
    assert sizes_of(EngineOptions(batches=(64, 512), latency=(1, 8, 64))) == (1, 2, 4, 8, 16, 32, 64, 512)
    assert sizes_of(EngineOptions(batches=(), latency=(3, 5, 20))) == (3, 5, 10, 20)
    assert sizes_of(EngineOptions(batches=(7,), latency=None)) == (7,)


FAULTS = {
    "ICudaEngine.create_execution_context": "cannot make a context",
    "IExecutionContext.set_optimization_profile_async": "does not take the profile of 1",
    "IExecutionContext.set_input_shape": r"does not take sample of shape \(1, 1, 8, 8\)",
    "IExecutionContext.set_tensor_address": "does not take the buffer of sample",
    "IExecutionContext.execute_async_v3": "does not run a step of 1",
    "Builder": "makes no Builder",
    "Runtime": "makes no Runtime",
    "IOptimizationProfile.set_shape": "refuses the shapes .* of sample",
    "Builder.build_serialized_network": "cannot build the graph",
    "IBuilderConfig.add_optimization_profile": "refuses the shapes",
}


RAISED = {
    "IExecutionContext.set_optimization_profile_async": "Error in set optimization profile async.",
    "IOptimizationProfile.set_shape": "Shape provided for max is inconsistent with other shapes.",
    **dict.fromkeys(("Builder", "Runtime"), r"pybind11::init\(\): factory function returned nullptr"),
}
"""What the bindings raise for calls that do not return False (python/src/infer/pyCore.cpp of NVIDIA/TensorRT)."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_of_tensorrt_is_one_line(fault: str, opened: Open) -> None:
    reason = RAISED.get(fault, "no reason given")
    with pytest.raises(BackendError, match=rf"^TensorRT 11\.4\.0\.106 {FAULTS[fault]}.*{reason}$"):
        opened(faults=(fault,))


def test_an_engine_that_computes_something_else_is_refused(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"the engine differs from the CPU by .* it is refused"):
        opened(wrong=1e-3)
    assert not list(tmp_path.glob("*.plan"))


def test_a_plan_of_another_precision_is_refused_when_it_is_built(opened: Open) -> None:
    bundle = replace(MLP, manifest={**MLP.manifest, "precision": "float16"})
    with pytest.raises(BackendError, match=r"the engine must map .*'sample': 'HALF'.* it has .*'sample': 'FLOAT'"):
        opened(bundle=bundle)


@pytest.mark.parametrize("missing", ["tensorrt", "cuda.core", "filelock", "onnxruntime"])
def test_a_machine_is_usable_if_everything_is_installed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def need(name: str, **more: Any) -> None:
        if name == missing:
            raise MissingDependencyError(f"{name} is needed here", name=name)

    monkeypatch.setattr(module, "open_tensorrt", lambda: need("tensorrt"))
    monkeypatch.setattr(module, "cuda_core", lambda: need("cuda.core"))
    monkeypatch.setattr(module, "require", need)
    with pytest.raises(MissingDependencyError, match=f"^{missing} is needed here$"):
        check_usable()
    missing = ""
    check_usable()


def test_a_buffer_that_is_not_aligned_is_refused(opened: Open) -> None:
    network, _ = opened()
    slot = network.slots[0]
    assert isinstance(slot, TensorRTSlot)
    slot.timestep = slot.timestep[1:]
    with pytest.raises(BackendError, match="the buffer of timestep must start at a multiple of 256 bytes"):
        slot.run(2)


def test_steps_are_captured_on_the_slots_stream(opened: Open) -> None:
    network, _ = opened()
    assert network.capture(network.slots[1], lambda: None) is not None
    network, _ = opened(options=NetworkOptions(graphs=False))
    assert network.capture(network.slots[1], lambda: None) is None


def test_everything_that_an_engine_depends_on_is_in_its_key() -> None:
    double = Double("11.4")
    trt = use_module(double.module, "tensorrt")
    key = engine_key(MLP, SMALL, trt, CARD)
    others = [
        engine_key(MLP, replace(SMALL, **change), trt, CARD)
        for change in (
            {"batches": (4, 17)},
            {"latency": (1, 3, 4)},
            {"opt_level": 4},
            {"workspace": 1},
            {"tf32": True},
            {"aux_streams": 1},
            {"hardware_compatible": True},
        )
    ]
    cards = (replace(CARD, name="B"), replace(CARD, sm="9.1"), replace(CARD, driver=12))
    others += [engine_key(MLP, SMALL, trt, card) for card in cards]
    others.append(engine_key(load_bundle(find_model("digits")), SMALL, trt, CARD))
    others.append(engine_key(MLP, SMALL, replace(trt, version="11.4.0.107"), CARD))
    others.append(engine_key(MLP, SMALL, replace(trt, flavour="tensorrt_rtx"), CARD))
    more = {**MLP.manifest, "files": {**MLP.manifest["files"], "denoiser.data": {"sha256": "ab"}}}
    others.append(engine_key(replace(MLP, manifest=more), SMALL, trt, CARD))
    others.append(engine_key(replace(MLP, manifest={**MLP.manifest, "precision": "int8"}), SMALL, trt, CARD))
    others.append(engine_key(replace(MLP, model=replace(MLP.model, null_class=None)), SMALL, trt, CARD))
    texts = {repr(sorted(one.items())) for one in (key, *others)}
    assert len(texts) == len(others) + 1
    assert key == engine_key(MLP, SMALL, trt, CARD)


def test_the_default_engine() -> None:
    def of(flops: float | None, batch: int | None = None, memory: int = 1 << 37) -> EngineOptions:
        manifest = {**MLP.manifest, **({} if flops is None else {"cost": {"flops": flops}})}
        return default_engine(replace(MLP, manifest=manifest), NetworkOptions(batch=batch), memory=memory)

    assert of(None).ranges == ((64, 64, 64), (512, 512, 512), (1, 8, 256))
    assert of(680e9).ranges == ((2, 2, 2), (16, 16, 16), (1, 8, 8)), "Stable Diffusion"
    assert of(1e15).ranges == ((1, 1, 1),)
    assert of(None, memory=1 << 30).largest == 256, "two steps of 8x8 float32 pixels, 4096 bytes each, in half of it"
    assert of(680e9, batch=2).ranges == ((1, 1, 1), (2, 2, 2))
    assert of(680e9, batch=3).ranges == ((1, 1, 1), (3, 3, 3), (1, 2, 2))
    for batch in (*range(1, 40), 100, 512, 1000):
        sizes = sizes_of(of(None, batch))
        assert sizes[-1] == batch
        assert all(larger <= 2 * size for size, larger in pairwise(sizes)), "padded to at most twice the cells"
    assert not of(None).tf32
    assert default_engine(MLP, NetworkOptions(tf32=True), memory=1 << 37).tf32


def test_impossible_options_are_refused_before_tensorrt_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_tensorrt", lambda flavour: pytest.fail("opened"))
    with pytest.raises(BackendError, match="backend tensorrt runs on an NVIDIA GPU, got device 'cpu'"):
        TensorRTNetwork(MLP, NetworkOptions(device="cpu"))
    with pytest.raises(BackendError, match="here float32: export the model in float16 to run it so"):
        TensorRTNetwork(MLP, NetworkOptions(precision="float16"))


def test_a_missing_package_is_reported_before_an_engine_is_built(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test comes after minutes of building. An engine that exists already does not need it."""
    opened()

    def require(name: str, **more: Any) -> Any:
        assert name == "onnxruntime"
        raise MissingDependencyError("onnxruntime is needed here", name=name)

    monkeypatch.setattr(module, "require", require)
    assert not opened()[0].built
    with pytest.raises(MissingDependencyError, match="onnxruntime is needed here"):
        opened("10.16", faults=("Builder",))


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise OSError

    monkeypatch.setattr(driver, "libcuda", absent)
    monkeypatch.setattr(opening, "installed", lambda name: True)
    with pytest.raises(BackendError, match=r"^backend tensorrt needs an NVIDIA GPU: no driver is installed"):
        open_network(MLP, "tensorrt")
