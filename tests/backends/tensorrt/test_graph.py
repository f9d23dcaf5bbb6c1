"""ONNX files read without the onnx package, compared with the onnx package on the same bytes."""

import math
from typing import Any

import numpy as np
import pytest

from fastdc import BundleError
from fastdc.backends.tensorrt.graph import GraphFacts, read_graph, tolerance
from fastdc.bundle import find_model

onnx = pytest.importorskip("onnx")
MODELS = ("digits-mlp", "digits")


def file_of(name: str) -> bytes:
    return (find_model(name) / "denoiser.onnx").read_bytes()


def loaded(name: str = "digits-mlp") -> Any:
    return onnx.load_from_string(file_of(name))


@pytest.mark.parametrize("name", MODELS)
def test_facts_agree_with_onnx(name: str) -> None:
    facts, model = read_graph(file_of(name)), loaded(name)
    assert facts.opset == model.opset_import[0].version
    weights = [tuple(one.dims) for one in model.graph.initializer if len(one.dims) > 1 and one.data_type == 1]
    assert facts.fan_in == tuple(max(dims) if len(dims) == 2 else math.prod(dims[1:]) for dims in weights)
    assert len(facts.fan_in) > 5


@pytest.mark.parametrize("name", MODELS)
def test_notes_do_not_count(name: str) -> None:
    model = loaded(name)
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        part.doc_string = "made at /home/someone"
        part.metadata_props.add(key="stack_trace", value="line 1")
    model.producer_name, model.producer_version, model.model_version = "someone", "9", 7
    model.graph.name = "another"
    model.graph.value_info.add().name = "an annotation"
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.doc_string = "why"
    changed = model.SerializeToString()
    assert changed != file_of(name)
    assert read_graph(changed) == read_graph(file_of(name))


def test_the_order_of_fields_does_not_count() -> None:
    model = loaded()
    parts = [onnx.ModelProto(graph=model.graph), onnx.ModelProto(ir_version=model.ir_version)]
    parts.append(onnx.ModelProto(opset_import=model.opset_import))
    shuffled = b"".join(part.SerializeToString() for part in parts)
    assert onnx.load_from_string(shuffled).graph == model.graph
    assert read_graph(shuffled).digest == read_graph(file_of("digits-mlp")).digest


def changes() -> dict[str, Any]:
    def weight(model: Any) -> None:
        one = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(one).copy()
        values.flat[-1] = np.nextafter(values.flat[-1], np.float32(9))
        one.raw_data = values.tobytes()

    def operator(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "Add").op_type = "Sub"

    def attribute(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Gemm")
        node.attribute.append(onnx.helper.make_attribute("alpha", 0.5))

    def wiring(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Sub" or len(node.input) == 2)
        first, second = node.input[:2]
        del node.input[:2]
        node.input.extend([second, first])

    def opset(model: Any) -> None:
        model.opset_import[0].version += 1

    def shape(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 1

    return {one.__name__: one for one in (weight, operator, attribute, wiring, opset, shape)}


@pytest.mark.parametrize("change", changes())
def test_every_change_of_the_computation_changes_the_digest(change: str) -> None:
    model = loaded()
    changes()[change](model)
    assert read_graph(model.SerializeToString()).digest != read_graph(file_of("digits-mlp")).digest


def test_external_weights_count_by_their_offset_and_not_by_the_files_name() -> None:
    def with_data(location: str, offset: int) -> str:
        model = loaded()
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", "64")):
            tensor.external_data.add(key=key, value=value)
        return read_graph(model.SerializeToString()).digest

    assert with_data("a.data", 0) == with_data("b.data", 0)
    assert with_data("a.data", 0) != with_data("a.data", 64)


def test_graphs_inside_attributes_count() -> None:
    def with_branch(value: float, note: str) -> str:
        inner = onnx.helper.make_graph(
            [onnx.helper.make_node("Constant", [], ["y"], value_float=value, doc_string=note)], "branch", [], []
        )
        node = onnx.helper.make_node("If", ["sample"], ["output"], then_branch=inner, else_branch=inner)
        return read_graph(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])).SerializeToString()
        ).digest

    assert with_branch(1.0, "a") == with_branch(1.0, "b")
    assert with_branch(1.0, "a") != with_branch(2.0, "a")


def test_bytes_that_are_not_a_model_are_refused() -> None:
    whole = file_of("digits-mlp")
    for content in (
        b"",
        b"\x0a",
        b"junk",
        whole[:-100],
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x3b",
        b"\x38\x01",
        b"\x38" + b"\xff" * 9 + b"\x02",
    ):
        with pytest.raises(BundleError, match="the network's graph is not an ONNX file: "):
            read_graph(content)


def test_nesting_without_end_is_refused() -> None:
    content = b""
    for _ in range(40):  # an attribute's graph has a node with an attribute, and so on
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            length = len(content)
            content = tag + bytes([length & 0x7F | 0x80, length >> 7]) + content
    length = len(content)
    with pytest.raises(BundleError, match="nested too deeply"):
        read_graph(b"\x3a" + bytes([length & 0x7F | 0x80, length >> 7]) + content)


def test_tolerances() -> None:
    facts = GraphFacts("", 20, (9, 16))
    assert tolerance(facts, "float32") == 8 * 2.0**-24 * 7
    assert tolerance(facts, "float32", tf32=True) == tolerance(facts, "float16") == 8 * 2.0**-11 * math.sqrt(2)
    assert tolerance(facts, "bfloat16") == tolerance(facts, "int8") == 8 * 2.0**-8 * math.sqrt(2)


@pytest.mark.slow
def test_the_tolerance_is_that_of_exports() -> None:
    """For nearly square linear layers, as close as the two ways of counting allow."""
    pytest.importorskip("torch")
    from fastdc.bundle import build_network, load_bundle
    from fastdc.export import tolerance as of_module

    network = load_bundle(find_model("digits-mlp")).manifest["network"]
    module = build_network(network["kind"], network["config"])
    ours = tolerance(read_graph(file_of("digits-mlp")), "float32")
    assert 1.0 <= ours / of_module(module) < 1.5
