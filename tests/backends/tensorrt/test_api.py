"""Every member of TensorRT that fastdc uses exists in the published bindings (11.4, 10.16, RTX 1.7) and the installed.

USES lists the members. Two tests show that the list is complete: a double of the bindings records each member that a
build and a step use and refuses calls that fit no signature, and the syntax tree of the package is searched.
"""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from fastdc import BackendError
from fastdc.backends.onnx.graphs import graph_source
from fastdc.backends.tensorrt import build, driver
from fastdc.backends.tensorrt.build import EngineOptions, build_engine, merge_timing_caches
from fastdc.backends.tensorrt.engine import Engine, check_tensors, load_engine
from fastdc.backends.tensorrt.module import use_module
from fastdc.backends.tensorrt.network import TensorRTSlot
from fastdc.bundle import DENOISER, find_model, load_bundle
from helpers.cuda_doubles import Core, HostedArrays
from helpers.tensorrt_double import VERSIONS, Double, Part, arguments_of, fits, interface

USES: dict[str, set[str]] = {
    "Builder": {
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
    },
    "BuilderFlag": {"TF32"},
    "ExecutionContextAllocationStrategy": {"USER_MANAGED"},
    "HardwareCompatibilityLevel": {"AMPERE_PLUS", "NONE"},
    "IAttention": {"decomposable"},
    "IAttentionOutputLayer": {"attention"},
    "IBuilderConfig": {
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "get_timing_cache",
        "hardware_compatibility_level",
        "max_aux_streams",
        "profiling_verbosity",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    },
    "ICudaEngine": {
        "create_execution_context",
        "get_device_memory_size_for_profile_v2",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "num_io_tensors",
    },
    "IExecutionContext": {
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    },
    "ILayer": {"type"},
    "INetworkDefinition": {"get_input", "get_layer", "get_output", "num_inputs", "num_layers", "num_outputs"},
    "IOptimizationProfile": {"set_shape"},
    "ITensor": {"dtype", "get_dimension_name", "name", "shape"},
    "ITimingCache": {"combine", "serialize"},
    "LayerType": {"ATTENTION_OUTPUT"},
    "MemoryPoolType": {"WORKSPACE"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "OnnxParser": {
        "get_error",
        "load_initializer",
        "load_model_proto",
        "num_errors",
        "parse",
        "parse_from_file",
        "parse_model_proto",
    },
    "ParserError": {"desc", "node_name", "node_operator"},
    "ProfilingVerbosity": {"DETAILED"},
    "Runtime": {"deserialize_cuda_engine", "engine_host_code_allowed"},
}

# Further members of TensorRT-RTX, which make steps safe to capture.
RTX_USES: dict[str, set[str]] = {
    "BuilderFlag": {"REQUIRE_USER_ALLOCATION"},
    "DynamicShapesKernelSpecializationStrategy": {"EAGER"},
    "ICudaEngine": {"create_runtime_config"},
    "IRuntimeConfig": {
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
    },
}

# Names of variables that hold objects of TensorRT, in build.py, engine.py and network.py.
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "merged": "ITimingCache",
    "tensor": "ITensor",
    "layer": "ILayer",
    "runtime": "Runtime",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "levels": "HardwareCompatibilityLevel",
}
FOLDER = Path(build.__file__).parent
MODEL = find_model("digits-mlp") / "denoiser.onnx"
OPTIONS = EngineOptions(batches=(2,), latency=(1, 1, 2), workspace=2**20, tf32=True, hardware_compatible=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_member_is_in_the_published_bindings(version: str) -> None:
    classes = interface(version)["classes"]
    missing = [f"{name}.{member}" for name, member in used_of(version) if member not in classes.get(name, ())]
    assert missing == []
    assert {"ILogger", "ILogger.Severity"} <= set(classes)
    assert {"ERROR", "INFO"} <= set(classes["ILogger.Severity"])
    assert fits(classes["Builder"]["__init__"], 1, set())
    assert fits(classes["OnnxParser"]["__init__"], 2, set())
    assert fits(classes["Runtime"]["__init__"], 1, set())


def used_of(version: str) -> set[tuple[str, str]]:
    """(class, member) of everything that fastdc uses of a version."""
    both = (USES, RTX_USES) if version.startswith("rtx") else (USES,)
    return {(name, member) for uses in both for name, members in uses.items() for member in members}


def test_the_installed_module_is_the_one_that_was_read() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    from tensorrt_api import describe

    assert [f"{name}.{member}" for name, member in used_of("rtx") if not hasattr(getattr(module, name), member)] == []
    golden = interface("rtx-1.7")
    if module.__version__ == golden["version"]:
        assert describe(module)["classes"] == golden["classes"]


def used_by_a_build_and_a_step(version: str, monkeypatch: pytest.MonkeyPatch) -> Double:
    monkeypatch.setattr(driver, "check_driver", lambda: None)
    monkeypatch.setattr(driver, "use_device", lambda index: None)
    double = Double(version)
    trt = use_module(double.module, "tensorrt_rtx" if version.startswith("rtx") else "tensorrt")
    built = build_engine(trt, MODEL, 11, OPTIONS)
    build_engine(trt, MODEL.read_bytes(), 11, EngineOptions(batches=(2,), latency=(1, 1, 2)))
    build_engine(trt, graph_source(load_bundle(find_model("shapes")), DENOISER), 11, OPTIONS)
    merge_timing_caches(trt, b"a", b"b")
    double.faults = ("OnnxParser.parse",)
    with pytest.raises(BackendError, match=r"cannot parse the graph: node 1 \(Frob\): unknown"):
        build_engine(trt, MODEL, 11, OPTIONS)
    double.faults = ()
    loaded = load_engine(trt, built.plan)
    check_tensors(loaded, "float32", ())
    home = HostedArrays(Core(lazy=False))
    slot = TensorRTSlot(Engine(trt, loaded, OPTIONS, 0, (1, 8, 8), "float32"), home, home, {})
    slot.write(slot.class_labels, np.zeros(2, np.int64))
    slot.run(2)
    return double


@pytest.mark.parametrize("version", VERSIONS)
def test_the_list_is_what_a_build_and_a_step_use(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    used = used_by_a_build_and_a_step(version, monkeypatch).used
    wanted = used_of(version)
    if version.startswith("rtx"):  # its timing cache does nothing
        wanted -= {("IBuilderConfig", name) for name in ("set_timing_cache", "get_timing_cache")}
    assert used == wanted


def members_written(source: str) -> set[tuple[str, str]]:
    """(class, member) of each attribute of a variable in VARIABLES, and of each class of the module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        inner = node.value
        if isinstance(inner, ast.Name) and inner.id in VARIABLES:
            found.add((VARIABLES[inner.id], node.attr))
        is_module = isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in ("module", "trt.module")
        if is_module and isinstance(inner, ast.Attribute):
            found.add((inner.attr, node.attr))
    return found


@pytest.mark.parametrize(("name", "least"), [("build", 8), ("engine", 5), ("network", 7)])
def test_the_list_has_every_member_in_the_sources(name: str, least: int) -> None:
    """Including code that no test runs. A layer may also have the attributes of its real class."""
    written = members_written((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    allowed = used_of("rtx")
    allowed |= {("ILayer", "__class__"), ("ILayer", "attention")}
    assert len(written) >= least
    assert written - allowed == set()


def test_the_list_has_every_class_in_the_sources() -> None:
    known = {*USES, *RTX_USES, "ILogger"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("module", "trt.module"):
                assert node.attr in known, f"{path.name}: {node.attr}"


def test_signatures_are_parsed() -> None:
    signature = "f(self: X, a: typing.Dict[str, int], b: Y = <Y.Z: 0>, c: list[tuple[int, str]] = None) -> bool"
    assert arguments_of(signature) == [("a", True), ("b", False), ("c", False)]
    assert fits([signature], 1, {"c"})
    assert fits(["g(self: X) -> int", signature], 0, set())
    assert not fits([signature], 0, {"b"})
    assert not fits([signature], 4, set())
    assert not fits([signature], 1, {"a", "d"})
    assert not fits([], 0, set())


def test_the_double_refuses_what_the_bindings_do_not_have() -> None:
    double = Double("11.4")
    config: Any = Part(double, "IBuilderConfig")
    with pytest.raises(AssertionError, match=r"IBuilderConfig of 11\.4 has no int8_calibrator"):
        config.int8_calibrator = None
    with pytest.raises(AssertionError, match="set_flag"):
        config.set_flag(1, 2, 3)
    with pytest.raises(AttributeError, match=r"BuilderFlag of 11\.4 has no FP16"):
        double.module.BuilderFlag.FP16  # noqa: B018
    assert Double("10.16").module.BuilderFlag.FP16 is not None, "later versions removed it"
