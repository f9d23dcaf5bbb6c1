"""Graphs that hold more than a network needs are refused on their bytes; all others have the shapes that ONNX says.

The shapes of single operators are compared with ONNX's own test cases, and those of whole graphs with what ONNX Runtime
computes.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as ort

from fastdc.backends.onnx.graphs import graph_source, open_graph, session_of
from fastdc.backends.onnx.screen import screen, screened_values
from fastdc.backends.onnx.shapes import SHAPE_OF
from fastdc.bundle import DATA, find_model, load_bundle
from helpers.denoiser_graphs import graph, node, returned, whole
from helpers.worlds import fails_with, tiny_bundle

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

# Test cases of types that no denoiser needs, whole numbers divided by what is not known to be positive, and policies,
# paddings and outputs that no exporter writes.
REFUSED = (
    *("string", "div_", "mod_", "bfloat16", "_not_larger", "_not_smaller", "blocked"),
    *("_with_past", "_qk_matmul", "_nonpad", "_padded_kv", "attention_local_window"),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the test cases themselves
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shapes_and_numbers_are_those_of_onnx() -> None:
    from onnx.backend.test.case.node import collect_testcases

    agreed: Counter[str] = Counter()
    for case in collect_testcases(None):
        model = case.model
        if model is None or len(model.graph.node) != 1 or model.functions or model.graph.node[0].domain:
            continue
        node = model.graph.node[0]
        given, wanted = case.data_sets[0]
        if node.op_type not in SHAPE_OF or not all(isinstance(one, np.ndarray) for one in (*given, *wanted)):
            continue
        kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        if kinds - {1, 2, 3, 6, 7, 9, 10, 11}:
            continue
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for value, array in zip(model.graph.input, given, strict=True):
            changed.graph.initializer.append(numpy_helper.from_array(array, value.name))
        try:
            values = screened_values(changed.SerializeToString())
        except ValueError:
            assert any(part in case.name for part in REFUSED), case.name
            continue
        outputs = dict(zip((value.name for value in model.graph.output), wanted, strict=True))
        for name in node.output if node.op_type == "Split" else node.output[:1]:
            assert values[name].shape == outputs[name].shape, case.name
            agreed[node.op_type] += 1
            if (numbers := values[name].numbers) is not None:
                if np.issubdtype(outputs[name].dtype, np.floating):
                    np.testing.assert_allclose(numbers, outputs[name], rtol=1e-6, err_msg=case.name)
                else:
                    np.testing.assert_array_equal(numbers, outputs[name], err_msg=case.name)
                    assert numbers.dtype == outputs[name].dtype
                agreed["numbers"] += 1
    assert len(agreed) > 110
    assert agreed["numbers"] > 100


@pytest.mark.parametrize("name", ["denoiser.onnx", "text.onnx", "encoder.onnx"])
def test_shapes_of_whole_graphs_are_those_of_a_run(name: str) -> None:
    bundle = load_bundle(find_model("shapes"))
    model = onnx.load(bundle.path / name)
    made = [output for node in model.graph.node for output in node.output]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(output) for output in made)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    feeds = {
        one.name: np.zeros([size if isinstance(size, int) else 1 for size in one.shape], types[one.type])
        for one in session.get_inputs()
    }
    values = screened_values(bundle.read(name), (bundle.path / DATA).stat().st_size)
    for output, array in zip(made, session.run(made, feeds), strict=True):
        assert values[output].shape == array.shape
        if values[output].numbers is not None:
            np.testing.assert_array_equal(values[output].numbers, array)


# --- what is refused -------------------------------------------------------------------------------------------------


BRANCH = helper.make_graph(
    [node("Identity", "sample", output="inner")], "g", [], [helper.make_empty_tensor_value_info("inner")]
)
HUGE = 2**40


@pytest.mark.parametrize(
    ("nodes", "part"),
    [
        ([whole("n", 1, 4, 2, 3), node("Expand", "sample", "n")], None),
        ([node("If", "sample", then_branch=BRANCH, else_branch=BRANCH)], "operator If"),
        ([node("Loop", "sample", "", body=BRANCH)], "operator Loop"),
        ([node("Identity", "sample", body=BRANCH)], "field 6"),
        ([node("NonZero", "sample")], "operator NonZero"),
        ([node("RandomNormal", shape=[4])], "operator RandomNormal"),
        ([node("EPContext", "sample", domain="com.microsoft")], "operator com.microsoft.EPContext"),
        ([node("Add", "sample", "later"), node("Identity", "sample", output="later")], "nothing before it makes"),
        ([node("Identity", "sample"), node("Identity", "sample")], "made twice"),
        ([node("Constant", value_string="text")], "no denoiser needs"),
        ([whole("n", HUGE), node("ConstantOfShape", "n")], "elements"),
        ([whole("n", 2**20, 2**20), node("Expand", "sample", "n")], "not known beforehand"),
        ([whole("n", 1, HUGE, 1, 1), node("Expand", "sample", "n")], "elements"),
        ([whole("n", 1, 1, HUGE, 1), node("Tile", "sample", "n")], "elements"),
        ([whole("p", 0, 0, HUGE, 0, 0, 0, 0, 0), node("Pad", "sample", "p")], "elements"),
        ([whole("s", 1, 1, HUGE, 2), node("Resize", "sample", "", "", "s")], "elements"),
        ([node("Resize", "sample", "", "scales")], "nothing before it makes"),
        (
            [whole("n", 2**20), node("Mul", "n", "n", output="m"), node("ConstantOfShape", "m")],
            "elements",
        ),
        (
            [
                node("Shape", "sample", output="n", start=1, end=2),
                whole("m", 2**32),
                node("Mul", "n", "m", output="k"),
                node("ConstantOfShape", "k"),
            ],
            "elements",
        ),
        ([whole("n", 2**26), node("ConstantOfShape", "n")], "depend on no input"),
        ([node("Reshape", "sample", "class_labels")], "not known beforehand"),
        ([node("ConstantOfShape", "class_labels")], "not known beforehand"),
        ([whole("a", -(2**63)), whole("b", -1), node("Div", "a", "b")], "divides whole numbers"),
        ([node("Mod", "class_labels", "class_labels")], "divides whole numbers"),
    ],
)
def test_graphs_with_more_than_a_network_needs(nodes: list[Any], part: str | None) -> None:
    content = returned(*nodes)
    start = time.perf_counter()
    if part is None:
        assert screen(content, None) == ()
        return
    with pytest.raises(ValueError, match=part) as caught:
        screen(content, None)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 1


def test_a_range_of_numbers() -> None:
    ends = [whole("a", 0), whole("b", HUGE), whole("c", 1)]
    ends = [node("Squeeze", one.output[0], output=f"{one.output[0]}.") for one in ends]
    constants = [whole("a", 0), whole("b", HUGE), whole("c", 1)]
    with pytest.raises(ValueError, match="elements"):
        screen(returned(*constants, *ends, node("Range", "a.", "b.", "c.")), None)


def test_products_that_grow_are_refused() -> None:
    """Each step squares the number of elements, and no single node says a large number."""
    nodes, value = [node("Flatten", "sample", output="v0", axis=0)], "v0"
    for step in range(1, 7):
        nodes.append(node("Transpose", value, output=f"t{step}"))
        nodes.append(node("MatMul", f"t{step}", value, output=f"m{step}"))
        nodes.append(node("Flatten", f"m{step}", output=f"v{step}", axis=0))
        value = f"v{step}"
    with pytest.raises(ValueError, match="elements"):
        screen(returned(*nodes), None)


def changed(change: Callable[[Any], None]) -> bytes:
    model = onnx.load_model_from_string(graph())
    change(model)
    return bytes(model.SerializeToString())


def weight(**fields: Any) -> Callable[[Any], None]:
    return lambda model: model.graph.initializer.append(TensorProto(name="w", **fields))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (changed(lambda model: model.functions.add(name="f", domain="d")), "field 25"),
        (changed(lambda model: model.training_info.add()), "field 20"),
        (changed(lambda model: model.graph.sparse_initializer.add()), "field 15"),
        (changed(weight(dims=[2**40, 2**20], data_type=1, raw_data=b"")), "the data of 0 elements"),
        (changed(weight(dims=[3], data_type=1, raw_data=bytes(16))), "the data of 4 elements"),
        (changed(weight(dims=[-1], data_type=1, raw_data=bytes(16))), "dimension is -1"),
        (changed(weight(dims=[1], data_type=8, string_data=[b"x"])), "field 6"),
        (changed(weight(dims=[1], data_type=14, float_data=[1, 2])), "element type 14"),
        (changed(weight(dims=[1], data_type=1, float_data=[1], raw_data=bytes(4))), "two places"),
        (changed(weight(dims=[1], data_type=1, raw_data=bytes(4), data_location=1)), "two places"),
        (changed(weight(dims=[1], data_type=7, int32_data=[1])), "expected int64_data"),
        (changed(lambda model: model.metadata_props.add(key="a").ParseFromString(b"\x1a\x00")), "field 3"),
        (changed(lambda model: model.graph.value_info.add().type.sequence_type.SetInParent()), "field 4"),
        (
            changed(lambda model: model.graph.quantization_annotation.add().MergeFromString(b"\x1a\x00")),
            "TensorAnnotation has the field 3",
        ),
        (graph() + graph(), "given twice"),
        (b"\x0b\x0c" + graph(), "kind 3"),
        (b"\x88\x00\x0a" + graph(), "shortest form"),
        (b"\x08\x8a\x00" + graph(), "shortest form"),
        (b"\x0a\x01\x0a" + graph(), "ModelProto.ir_version is of the kind 2"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "too long"),
        (b"\x80" * 9, "ends early"),
        (b"\x3a\x0a", "ends early"),
        (graph().replace(b"batch", b"bat\xffh"), "utf-8"),
        (graph(output=("FLOAT", ["other", 1, 2, 3])).replace(b"other", b"oth\xffr"), "utf-8"),
        (b"", "no graph"),
    ],
)
def test_other_spellings_and_parts(content: bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        screen(content, None)


def test_many_nodes_are_refused_soon() -> None:
    nodes = [node("Identity", "sample", output=f"v{index}") for index in range(25_000)]
    start = time.perf_counter()
    with pytest.raises(ValueError, match="25001 nodes"):
        screen(returned(*nodes), None)
    assert time.perf_counter() - start < 2


def test_a_flatbuffer_of_onnx_runtime_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime would read it by its first bytes, with operators and weights that no check has seen."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(graph(), options, providers=["CPUExecutionProvider"])
    content = (tmp_path / "model.ort").read_bytes()
    assert ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    bundle = tiny_bundle(tmp_path / "b", content)
    fails_with(lambda: open_graph(bundle, "denoiser.onnx"), "denoiser.onnx", "cannot be loaded")
    fails_with(lambda: session_of(str(tmp_path / "model.ort"), tmp_path), "cannot be loaded by ONNX Runtime")


# --- whole numbers among the attributes ------------------------------------------------------------------------------


FLOATS = {
    "w": helper.make_tensor("w", 1, [1, 4, 3, 3], [1.0] * 36),
    "q": helper.make_tensor("q", 1, [1, 4, 8], [1.0] * 32),
    "s": helper.make_tensor("s", 1, [1], [1.0]),
}


def floats(name: str) -> Any:
    return node("Constant", output=name, value=FLOATS[name])


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("ConvTranspose", ("sample", "w"), {"group": 0}),
        ("ConvTranspose", ("sample", "w"), {"group": -1}),
        ("ConvTranspose", ("sample", "w"), {"strides": [0, 1], "output_shape": [4, 4]}),
        ("ConvTranspose", ("sample", "w"), {"output_shape": [4, 2**31]}),
        ("Conv", ("sample", "w"), {"group": 0}),
        ("Conv", ("sample", "w"), {"dilations": [1, 2**62], "pads": [0, 0, 0, 0]}),
        ("MaxPool", ("sample",), {"kernel_shape": [1, 1], "pads": [0, 0, 0, -1]}),
        ("Attention", ("q", "q", "q"), {"q_num_heads": 0, "kv_num_heads": 1}),
        ("Attention", ("q", "q", "q"), {"q_num_heads": 1, "kv_num_heads": 0}),
        ("RotaryEmbedding", ("q", "q", "q"), {"num_heads": -1}),
        ("GroupNormalization", ("sample", "s", "s"), {"num_groups": 0}),
        ("DepthToSpace", ("sample",), {"blocksize": 0}),
        ("Split", ("sample",), {"num_outputs": 2**31}),
        ("GatherND", ("sample", "n"), {"batch_dims": -(2**62)}),
        ("Softmax", ("sample",), {"axis": 2**31}),
        ("LpNormalization", ("sample",), {"p": 0}),
    ],
)
def test_whole_numbers_that_libraries_divide_by_or_reserve_memory_by(
    operator: str, inputs: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    constants = [*map(floats, FLOATS), whole("n", 0)]
    with pytest.raises(ValueError, match=rf"{operator} .* has the .*, expected from"):
        screen(returned(*constants, node(operator, *inputs, **attributes)), None)


# --- weights beside the graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_a_session_has_the_bytes_that_were_verified(old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files may change or vanish after they were read; `old`: ONNX Runtime until 1.23 takes weights one by one."""
    bundle = load_bundle(shutil.copytree(find_model("shapes"), tmp_path / "b"))
    want = open_graph(load_bundle(find_model("shapes")), "classes.onnx")
    source = graph_source(bundle, "classes.onnx")
    assert source.external
    shutil.rmtree(bundle.path)
    monkeypatch.chdir(tmp_path)
    if old:
        more = {"add_external_initializers_from_files_in_memory": None}
        monkeypatch.setattr(ort, "SessionOptions", type("Options", (ort.SessionOptions,), more))
    session = session_of(source, tmp_path)
    feeds = {"class_labels": np.arange(3), "embeddings": np.ones((3, 6, 32), np.float32)}
    feeds = {one.name: feeds[one.name] if one.name in feeds else _ones(one) for one in session.get_inputs()}
    for got, wanted in zip(session.run(None, feeds), want.run(None, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def _ones(value: Any) -> Any:
    return np.ones([size if isinstance(size, int) else 3 for size in value.shape], np.float32)


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"location": "../denoiser.data"}, "outside the file"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "1", "length": "4"}, "outside the file"),
        ({"location": DATA, "offset": "-4"}, "lies at"),
        ({"location": DATA, "offset": "98"}, "98 of the 100"),
        ({"location": DATA, "length": "8"}, "refers to 8"),
        ({"location": DATA, "basepath": "/"}, "'basepath'"),
        ({"offset": "0"}, "outside the file"),
    ],
)
def test_references_to_other_data_are_refused(entries: dict[str, str], part: str) -> None:
    tensor = TensorProto(name="w", dims=[1], data_type=1, data_location=1)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(ValueError, match=part):
        screen(changed(lambda model: model.graph.initializer.append(tensor)), 100)
    constant = node("Constant", value=tensor)
    with pytest.raises(ValueError, match=r"outside the file|refers|lies"):
        screen(returned(constant), 100)


def test_weights_that_overlap_are_refused() -> None:
    """Each is made anew in memory, so a small file would fill any."""

    def weights(number: int) -> bytes:
        def add(model: Any) -> None:
            for index in range(number):
                tensor = TensorProto(name=f"w{index}", dims=[10], data_type=1, data_location=1)
                tensor.external_data.add(key="location", value=DATA)
                model.graph.initializer.append(tensor)

        return changed(add)

    assert len(screen(weights(2), 80)) == 2
    with pytest.raises(ValueError, match="its weights have 120 bytes, more than the 80"):
        screen(weights(3), 80)
