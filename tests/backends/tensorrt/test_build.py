"""Engines built by the real ``tensorrt_rtx``, which builds without a GPU: shapes, types, options and errors."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdc import BackendError, InputError
from fastdc.backends.onnx.graphs import graph_source
from fastdc.backends.tensorrt.build import EngineOptions, build_engine, build_plan, merge_timing_caches, parser_errors
from fastdc.backends.tensorrt.module import TensorRT, import_tensorrt, use_module
from fastdc.bundle import DENOISER, find_model, load_bundle
from helpers.tensorrt_double import DAMAGED, VERSIONS, Double

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnxruntime")

MLP = find_model("digits-mlp") / "denoiser.onnx"
SMALL = EngineOptions(batches=(2, 5), latency=(1, 2, 4))


@pytest.fixture(scope="module")
def trt() -> TensorRT:
    return import_tensorrt("tensorrt_rtx")


class Spy:
    """An object of TensorRT whose calls are recorded."""

    def __init__(self, real: Any, calls: list[tuple[Any, ...]]) -> None:
        self.__dict__.update(_real=real, _calls=calls)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            self._calls.append((name, *arguments))
            plain = [one._real if isinstance(one, Spy) else one for one in arguments]
            made = value(*plain)
            return Spy(made, self._calls) if type(made).__name__ in ("IBuilderConfig", "IOptimizationProfile") else made

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._calls.append((f"{name} =", value))
        setattr(self._real, name, value)


class SpyModule:
    """``tensorrt_rtx`` whose builders record their calls."""

    def __init__(self, real: Any, calls: list[tuple[Any, ...]]) -> None:
        self._real, self._calls = real, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def Builder(self, logger: Any) -> Spy:  # noqa: N802 (TensorRT's name)
        return Spy(self._real.Builder(logger), self._calls)


def spied(trt: TensorRT) -> tuple[TensorRT, list[tuple[Any, ...]]]:
    calls: list[tuple[Any, ...]] = []
    return TensorRT(SpyModule(trt.module, calls), trt.flavour, trt.version, trt.logger), calls


def test_every_input_has_a_shape_in_every_profile(trt: TensorRT) -> None:
    spy, calls = spied(trt)
    built = build_engine(spy, MLP, 11, SMALL)
    assert built.inputs == {"sample": "FLOAT", "timestep": "FLOAT", "class_labels": "INT64"}
    assert built.outputs == {"output": "FLOAT"}
    assert len(built.plan) > 10_000
    assert built.layers > 10
    assert built.seconds > 0
    shapes = [arguments for name, *arguments in calls if name == "set_shape"]
    wanted = [
        [name, *((size, *rest) for size in sizes)]
        for sizes in ((2, 2, 2), (5, 5, 5), (1, 2, 4))
        for name, rest in (("sample", (1, 8, 8)), ("timestep", ()), ("class_labels", ()))
    ]
    assert shapes == wanted
    assert sum(name == "add_optimization_profile" for name, *_ in calls) == 3


def test_weights_of_a_bundle_come_from_memory(trt: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes whose hash was checked: the files may change or vanish afterwards."""
    bundle = load_bundle(shutil.copytree(find_model("shapes"), tmp_path / "b"))
    source = graph_source(bundle, DENOISER)
    assert source.external
    shutil.rmtree(bundle.path)
    monkeypatch.chdir(tmp_path)
    built = build_engine(trt, source, 10, EngineOptions(batches=(2,), latency=None))
    assert built.outputs == {"output": "FLOAT"}
    assert len(built.plan) > len(source.data) / 2


def test_a_weight_that_the_parser_refuses_is_an_error() -> None:
    double = Double("11.4", faults=("OnnxParser.load_initializer",))
    source = graph_source(load_bundle(find_model("shapes")), DENOISER)
    with pytest.raises(BackendError, match="cannot parse the graph"):
        build_engine(use_module(double.module, "tensorrt"), source, 10, SMALL)


def test_options_reach_the_builder(trt: TensorRT) -> None:
    spy, calls = spied(trt)
    build_engine(spy, MLP, 11, SMALL)
    flags = trt.module.BuilderFlag
    assert ("clear_flag", flags.TF32) in calls, "TensorRT turns it on by default"
    assert ("max_aux_streams =", 0) in calls
    assert ("set_flag", flags.REQUIRE_USER_ALLOCATION) in calls, "otherwise it may allocate during a capture"
    assert ("builder_optimization_level =", 3) in calls
    assert not [call for call in calls if call[0] == "set_memory_pool_limit"]
    assert not [call for call in calls if "timing" in call[0]], "deprecated and without effect in this flavour"
    spy, calls = spied(trt)
    more = EngineOptions(batches=(4,), latency=None, tf32=True, workspace=2**28, opt_level=1, hardware_compatible=True)
    build_engine(spy, MLP.read_bytes(), 11, more)
    assert ("set_flag", flags.TF32) in calls
    assert ("set_memory_pool_limit", trt.module.MemoryPoolType.WORKSPACE, 2**28) in calls
    assert ("builder_optimization_level =", 1) in calls
    levels = trt.module.HardwareCompatibilityLevel
    assert ("hardware_compatibility_level =", levels.AMPERE_PLUS) in calls
    assert sum(name == "add_optimization_profile" for name, *_ in calls) == 1


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_goes_in_and_comes_out(trt: TensorRT) -> None:
    """In the flavour that times kernels; tensorrt_rtx takes the same calls and stores nothing."""
    standard = TensorRT(trt.module, "tensorrt", trt.version, trt.logger)
    spy, calls = spied(standard)
    first = build_engine(spy, MLP, 11, SMALL)
    assert first.timing_cache
    assert ("create_timing_cache", b"") in calls
    second = build_engine(spy, MLP, 11, SMALL, timing_cache=first.timing_cache)
    assert ("create_timing_cache", first.timing_cache) in calls
    assert merge_timing_caches(standard, first.timing_cache, second.timing_cache)
    assert merge_timing_caches(standard, first.timing_cache, b"") == first.timing_cache


def test_a_timing_cache_that_is_refused_is_replaced() -> None:
    """If the file is damaged or of another version, the build starts an empty cache; else the file would stay bad."""
    double = Double("11.4")
    standard = use_module(double.module, "tensorrt")
    built = build_engine(standard, MLP, 11, SMALL, timing_cache=DAMAGED)
    assert built.timing_cache == b"timing"
    assert build_engine(standard, MLP, 11, SMALL, timing_cache=b"earlier").timing_cache == b"earlier"


def test_timing_caches_are_merged() -> None:
    double = Double("11.4")
    standard = use_module(double.module, "tensorrt")
    for ours, theirs in ((b"a", b""), (b"a", b"a")):
        assert merge_timing_caches(standard, ours, theirs) == ours
    assert double.calls == [], "nothing to merge"
    assert merge_timing_caches(standard, b"a", b"b") == b"a+b"
    double.faults = ("ITimingCache.combine",)
    assert merge_timing_caches(standard, b"a", b"b") == b"a"


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_are_strongly_typed_in_every_version(version: str) -> None:
    double = Double(version)
    build_engine(use_module(double.module, "tensorrt_rtx" if "rtx" in version else "tensorrt"), MLP, 11, SMALL)
    ((flags,),) = [call[1:] for call in double.calls if call[0] == "Builder.create_network"]
    names = [name for name, what in double.classes["NetworkDefinitionCreationFlag"].items() if what == "value"]
    assert [name for bit, name in enumerate(names) if flags >> bit & 1] == ["STRONGLY_TYPED"]


def test_a_dimension_without_a_range_is_named(trt: TensorRT) -> None:
    with pytest.raises(BackendError, match="input sample of the graph has a dimension 'batch': expected other"):
        build_plan(trt, MLP, [{"other": (1, 1, 1)}], SMALL)


def test_a_file_that_is_not_a_graph_is_refused_in_one_line(trt: TensorRT, tmp_path: Path) -> None:
    for model in (b"junk", tmp_path / "absent.onnx"):
        with pytest.raises(BackendError, match=r"^TensorRT-RTX .* cannot parse the graph: ") as caught:
            build_engine(trt, model, 11, SMALL)
        assert "\n" not in str(caught.value)


def test_a_parsers_errors_name_node_operator_and_reason() -> None:
    class Error:
        def __init__(self, *words: str) -> None:
            self.words = words

        def node_name(self) -> str:
            return self.words[0]

        def node_operator(self) -> str:
            return self.words[1]

        def desc(self) -> str:
            return self.words[2]

    class Parser:
        errors = (Error("down.0", "Frob", "not\nknown"), Error("", "", "worse"))
        num_errors = 2

        def get_error(self, index: int) -> Error:
            return self.errors[index]

    assert parser_errors(Parser()) == "down.0 (Frob): not known; ? (?): worse"


def test_tables_have_the_bundles_rows_in_every_profile(trt: TensorRT) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    inputs = [
        helper.make_tensor_value_info("sample", kind.FLOAT, ["batch", 6]),
        helper.make_tensor_value_info("class_labels", kind.INT64, ["batch"]),
        helper.make_tensor_value_info("table_0", kind.FLOAT, ["conditions", 6]),
    ]
    nodes = [
        helper.make_node("Gather", ["table_0", "class_labels"], ["row"]),
        helper.make_node("Add", ["sample", "row"], ["output"]),
    ]
    output = helper.make_tensor_value_info("output", kind.FLOAT, ["batch", 6])
    model = helper.make_model(
        helper.make_graph(nodes, "text", inputs, [output]), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )
    spy, calls = spied(trt)
    build_engine(spy, model.SerializeToString(), 7, SMALL)
    found = [arguments for name, *arguments in calls if name == "set_shape" and arguments[0] == "table_0"]
    assert found == 3 * [["table_0", (7, 6), (7, 6), (7, 6)]]


def test_attention_of_opset_23_may_be_taken_apart(trt: TensorRT) -> None:
    """A head of 8 has no attention kernel, so the operator builds only if TensorRT may take it apart."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = ["batch", 1, 16, 8]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["output"], name="attend")
    output = helper.make_tensor_value_info("output", kind, shape)
    opset = helper.make_opsetid("", 23)
    model = helper.make_model(
        helper.make_graph([node], "attention", inputs, [output]), opset_imports=[opset], ir_version=10
    )
    built = build_plan(trt, model.SerializeToString(), [{"batch": (1, 2, 4)}], SMALL)
    assert built.outputs == {"output": "FLOAT"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batches": (8, 4)}, "batches must be different sizes"),
        ({"batches": (4, 4)}, "batches must be different sizes"),
        ({"batches": (0,)}, "batches must be different sizes"),
        ({"batches": (), "latency": None}, "at least one batch"),
        ({"latency": (4, 2, 8)}, "latency must be three sizes in increasing order"),
        ({"latency": (1, 2, 4.5)}, "latency must be three sizes in increasing order"),
        ({"batches": (True,)}, "batches must be different sizes"),
        ({"opt_level": 6}, "opt_level must be a whole number from 0 to 5, got 6"),
        ({"workspace": 0}, "workspace must be a whole number of at least 1, got 0"),
        ({"aux_streams": -1}, "aux_streams must be a whole number from 0 to 16, got -1"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineOptions(**given)


def test_profiles_of_options() -> None:
    options = EngineOptions(batches=(64, 512), latency=(1, 8, 100))
    assert options.ranges == ((64, 64, 64), (512, 512, 512), (1, 8, 100))
    assert options.largest == 512
    assert EngineOptions(batches=(), latency=(1, 2, 3)).largest == 3
