"""Lowered operators compute what the operators compute, by torch and by numpy."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from fastdc.backends import widen
from fastdc.export.inspection import check_graph
from fastdc.export.lower import lower_einsum, lower_single_group, lower_types

KINDS: dict[Any, int] = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


def normalisations(groups: tuple[int, ...], kind: type[Any] = np.float32) -> onnx.ModelProto:
    """One GroupNormalization after another on (batch, 6, 5, 3)."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], [], "x"
    for i, number in enumerate(groups):
        for part in ("scale", "bias"):
            constants.append(numpy_helper.from_array(rng.standard_normal(6).astype(kind), f"{part}{i}"))
        inputs = [value, f"scale{i}", f"bias{i}"]
        value = "y" if i == len(groups) - 1 else f"h{i}"
        nodes.append(helper.make_node("GroupNormalization", inputs, [value], num_groups=number, epsilon=1e-3))
    ends = [[helper.make_tensor_value_info(name, KINDS[kind], ["batch", 6, 5, 3])] for name in ("x", "y")]
    made = helper.make_graph(nodes, "norms", *ends, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(None, {"x": x})[0]
    return out


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_group_normalisation_is_torchs(kind: type[Any]) -> None:
    model = normalisations((1, 1, 1, 1), kind)
    weights = [torch.from_numpy(numpy_helper.to_array(one).astype(np.float64)) for one in model.graph.initializer]
    assert lower_single_group(model) == 4
    assert lower_single_group(model) == 0
    check_graph(model)
    assert len({one.name for one in model.graph.initializer}) == len(model.graph.initializer)
    for batch in (1, 4):
        x: np.ndarray = (3 + 5 * np.random.default_rng(batch).standard_normal((batch, 6, 5, 3))).astype(kind)
        want = torch.from_numpy(x.astype(np.float64))
        for i in range(4):
            want = torch.nn.functional.group_norm(want, 1, weights[2 * i], weights[2 * i + 1], eps=1e-3)
        # Four normalisations, each with a gain of up to its scale (2.2) on a rounding of 2^-24 or 2^-11.
        np.testing.assert_allclose(run(model, x), want.numpy(), atol=2e-5 if kind is np.float32 else 0.1)


def test_several_groups_stay_one_operator() -> None:
    model = normalisations((3, 1, 6))
    assert lower_single_group(model) == 1
    assert [one.op_type for one in model.graph.node].count("GroupNormalization") == 2
    check_graph(model)


def test_only_permutations_become_transposes() -> None:
    def model(equation: str, operands: int = 1) -> onnx.ModelProto:
        nodes = [helper.make_node("Einsum", ["x"] * operands, ["y"], equation=equation)]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        made = helper.make_graph(nodes, "einsum", [x], [y])
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)

    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for equation in ("abc->cab", "ijk -> kji", "abc->abc"):
        lowered = model(equation)
        assert lower_einsum(lowered) == 1
        assert [node.op_type for node in lowered.graph.node] == ["Transpose"]
        assert np.array_equal(run(lowered, x), np.einsum(equation, x))
    for equation, operands in (("abc->ab", 1), ("abc,abc->abc", 2)):
        assert lower_einsum(model(equation, operands)) == 0


def test_mixed_float_types_are_promoted_as_torch_does() -> None:
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT16, [2, 3]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 1]),
    ]
    output = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])]
    info = [helper.make_tensor_value_info("row", TensorProto.FLOAT16, [2, 4])]  # as the exporter notes it, wrongly
    nodes = [
        helper.make_node("Concat", ["a", "x"], ["row"], name="mixed", axis=1),
        helper.make_node("Concat", ["row", "row"], ["y"], name="same", axis=0),
    ]
    made = helper.make_graph(nodes, "concat", inputs, output, value_info=info)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    assert lower_types(model) == 1
    del model.graph.value_info[:]
    check_graph(model)
    feed = {"a": np.array([[1, 2, 3], [4, 5, 6]], np.float16), "x": np.full((2, 1), 0.1, np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    row = torch.cat([torch.from_numpy(feed["a"]), torch.from_numpy(feed["x"])], dim=1)
    assert np.array_equal(session.run(None, feed)[0], torch.cat([row, row]).numpy())


def test_a_transposed_convolution_in_bfloat16_runs_in_float32() -> None:
    ends = [
        [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, ["batch", 2, s, s])] for n, s in (("x", 3), ("y", 6))
    ]
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [2, 1, 2, 2], [0.5] * 8)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 2])
    made = helper.make_graph([node], "deconvolution", *ends, [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    assert lower_types(model) == 1
    assert [one.op_type for one in model.graph.node] == ["Cast", "Cast", "ConvTranspose", "Cast"]
    check_graph(model)
    wide = widen(model)
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 3), np.float32)
    want = torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.full((2, 1, 2, 2), 0.5), stride=2, groups=2)
    np.testing.assert_allclose(run(wide, x), want.numpy(), rtol=1e-6)
