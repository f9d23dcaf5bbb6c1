"""What a graph makes is known at every number of rows, with the memory inside its operators."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as ort

from fastdc.backends.onnx.screen import screen, screened_values
from helpers.denoiser_graphs import node, returned, whole

helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto


# --- numbers that are followed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Equal", "Less", "Neg", "Cast"])
def test_followed_whole_numbers_are_those_of_onnx_runtime(operator: str) -> None:
    """Near the limits of int32, of what float64 holds, and of int64; numbers may be unknown, but not wrong."""
    known = 0
    for kind in (np.int32, np.int64):
        edges = [edge for bits in (31, 53, 63) if bits < np.iinfo(kind).bits for edge in (2**bits - 1, -(2**bits) + 1)]
        for first in (*edges, *(edge // 2 + 1 for edge in edges), 7, -7):
            for second in (1, 2, 3, 2**30, -1):
                inputs = ["a"] if operator in ("Neg", "Cast") else ["a", "b"]
                if operator in ("Div", "Mod") and second < 0:
                    continue
                attributes = {"to": TensorProto.INT32} if operator == "Cast" else {}
                constants = [
                    node("Constant", output=name, value=numpy_helper.from_array(np.array([number], kind)))
                    for name, number in (("a", first), ("b", second))
                ]
                content = returned(*constants, node(operator, *inputs, **attributes))
                numbers = screened_values(content)["made"].numbers
                if numbers is None:
                    assert operator not in ("Max", "Min", "Equal", "Less", "Neg", "Mod", "Div") or abs(first) >= 2**53
                    continue
                known += 1
                np.testing.assert_array_equal(numbers, computed(content))
    assert known > 10


def computed(content: bytes) -> Any:
    """The value "made" as ONNX Runtime computes it."""
    model = onnx.load_model_from_string(content)
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info("made"))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"sample": np.ones((1, 1, 2, 3), np.float32), "timestep": np.ones(1, np.float32)}
    return session.run(["made"], given | {"class_labels": np.ones(1, np.int64)})[0]


def test_numbers_that_libraries_compute_differently_are_unknown() -> None:
    power = [whole("a", 3), whole("b", 35), node("Pow", "a", "b")]
    assert screened_values(returned(*power))["made"].numbers is None
    small = numpy_helper.from_array(np.array([2**16, 2**16], np.int32))
    product = [node("Constant", output="a", value=small), node("ReduceProd", "a")]
    assert screened_values(returned(*product))["made"].numbers is None


# --- more rows -------------------------------------------------------------------------------------------------------


def rows(*after: Any) -> list[Any]:
    """Nodes that take the rows of the sample, and a ConstantOfShape of their result "n"."""
    constants = [whole(f"c{number}", number) for number in (1, 2, 3, 7, 2**11, 2**28)]
    constants += [whole("minus", -1)]
    return [*constants, node("Shape", "sample", output="r", start=0, end=1), *after, node("ConstantOfShape", "n")]


def less(number: int) -> Any:
    return node("Sub", "r", f"c{number}", output=f"less{number}")


@pytest.mark.parametrize(
    ("after", "part"),
    [
        ([node("Mul", "r", "c2048", output="n")], None),
        ([node("Where", "same", "c1", "r", output="n")], None),
        ([less(1), node("Mul", "less1", "c268435456", output="n")], "in proportion"),
        ([node("Concat", "r", "r", "c7", output="n", axis=0)], "in proportion"),
        (
            [
                less(1),
                less(2),
                less(3),
                node("Mul", "less1", "less2", output="n2"),
                node("Mul", "n2", "less3", output="n"),
            ],
            "not known",
        ),
        ([node("Div", "r", "c2048", output="d"), node("Mul", "d", "c268435456", output="n")], "not known"),
        ([node("Mod", "r", "c7", output="n")], "not known"),
        ([node("Equal", "r", "c7", output="e"), node("Where", "e", "c268435456", "c1", output="n")], "not known"),
        ([node("Less", "r", "c2048", output="e"), node("Where", "e", "c268435456", "c1", output="n")], "not known"),
        ([less(7), node("Abs", "less7", output="n")], "not known"),
    ],
)
def test_values_grow_with_the_rows_no_faster_than_in_proportion(after: list[Any], part: str | None) -> None:
    nodes = rows(node("Equal", "r", "minus", output="same"), *after)
    if part is None:
        assert screen(returned(*nodes), None) == ()
        return
    with pytest.raises(ValueError, match=part):
        screen(returned(*nodes), None)


# --- memory inside operators -----------------------------------------------------------------------------------------


def ones(name: str, kind: int, *shape: int) -> list[Any]:
    number = helper.make_tensor("one", kind, [1], [1])
    return [whole(f"{name}s", *shape), node("ConstantOfShape", f"{name}s", output=name, value=number)]


@pytest.mark.parametrize(
    "nodes",
    [
        [*ones("q", 1, 1, 1, 49152, 1), node("Attention", "q", "q", "q")],
        [*ones("q", 1, 1, 49152, 2), node("Attention", "q", "q", "q", q_num_heads=2, kv_num_heads=2)],
        [*ones("q", 1, 1, 1, 512, 512), *ones("w", 1, 1, 64, 64, 1), node("ConvTranspose", "q", "w")],
        [*ones("q", 1, 1, 1, 512, 512), *ones("w", 1, 1, 1, 128, 128), node("ConvTranspose", "q", "w")],
        [*ones("q", 2, 1, 1, 1024, 1024), *ones("w", 2, 1, 1, 64, 64), node("ConvInteger", "q", "w")],
        [*ones("q", 1, 2048), node("Einsum", "q", "q", "q", equation="a,b,c->")],
        [*ones("q", 1, 2**40, 0), node("LayerNormalization", "q", "timestep", axis=1, output="made")],
    ],
)
def test_memory_inside_operators_counts(nodes: list[Any]) -> None:
    if nodes[-1].op_type == "LayerNormalization":
        nodes[-1].output.append("mean")
    with pytest.raises(ValueError, match=r"elements|not known"):
        screen(returned(*nodes), None)


def test_earlier_keys_of_an_attention_are_refused() -> None:
    attention = helper.make_node("Attention", ["q"] * 3, ["made", "keys", "values"], q_num_heads=2, kv_num_heads=2)
    with pytest.raises(ValueError, match="several outputs"):
        screen(returned(*ones("q", 1, 1, 4, 8), attention), None)


@pytest.mark.parametrize("equation", ["...ij,...jk->...ik", "...ij,...jk", "a...j,b...j->ab..."])
def test_einsum_with_an_ellipsis(equation: str) -> None:
    pair = [*ones("q", 1, 3, 4, 5, 5), *ones("w", 1, 1, 4, 5, 5)]
    content = returned(*pair, node("Einsum", "q", "w", equation=equation))
    assert screened_values(content)["made"].shape == computed(content).shape
