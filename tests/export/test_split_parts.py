"""Dependence of values on inputs, and graphs cut out of a graph, on small graphs written by hand."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import TensorProto, helper, parser

from fastdc.export.split_parts import CLASS, IMAGE, Port, find_dependence, part, reads

INPUTS = {"sample": IMAGE, "timestep": IMAGE, "class_labels": CLASS, "table": CLASS}
HEAD = "(float[batch,4,6] sample, float[batch] timestep, int64[batch] class_labels, float[conditions,24] table)"


def graph(body: str) -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 20]>\n'
    return parser.parse_model(f"{head} g {HEAD} => (float[batch,24] output) {{ {body} }}")


# The flat image has the shape of the table's rows, and only the shape of the class part is used.
SIZES = """
    rows = Gather(table, class_labels)
    like = Shape(rows)
    flat = Reshape(sample, like)
    wide = Shape<start=1>(rows)
    ones = Expand(one, wide)
    more = Add(ones, one)
    all = Shape(table)
    moved = Mul(flat, more)
    output = Add(moved, rows)
"""


def sizes_graph() -> onnx.ModelProto:
    model = graph(SIZES)
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    return model


def test_sizes_are_no_data() -> None:
    """A shape depends on the batch alone, except that of a table, because no other part has the table."""
    found = find_dependence(sizes_graph(), INPUTS)
    nothing = 0
    expected = {
        "rows": CLASS,
        "like": nothing,
        "flat": IMAGE,
        "wide": nothing,
        "ones": nothing,
        "more": nothing,
        "all": CLASS,
        "moved": IMAGE,
        "output": IMAGE | CLASS,
    }
    assert {name: found.of[name] for name in expected} == expected
    assert found.sizes == {1: ((0, 1), (24, 0)), 3: ((24, 0),)}
    assert {"flat", "rows", "sample", "moved", "class_labels"} <= found.rows
    assert not {"table", "like", "ones", "one"} & found.rows


def test_rows_are_counted_in_bytes_and_operations() -> None:
    found = find_dependence(sizes_graph(), INPUTS)
    assert found.row_bytes("flat") == 24 * 4
    assert found.row_bytes("timestep") == 4
    by_name = dict(zip((node.output[0] for node in sizes_graph().graph.node), found.flops, strict=True))
    assert by_name["moved"] == by_name["output"] == 24
    assert by_name["flat"] == by_name["more"] == 0  # operations that do not grow with the batch count for no row


@pytest.mark.parametrize(
    ("body", "is_row"),
    [
        ("y = Transpose<perm=[1,0,2]>(sample)", False),  # the batch is second
        ("y = Reshape(sample, joined)", False),  # rows of several images
        ("y = MatMul(sample, turned)", True),
        ("y = Concat<axis=0>(sample, sample)", False),
        ("z = Unsqueeze(timestep, last) y = Mul(z, turned_row)", True),
    ],
)
def test_values_that_can_be_fetched_by_row(body: str, is_row: bool) -> None:
    model = graph(f"{body} output = Identity(y)")
    model.graph.initializer.extend(
        [
            helper.make_tensor("joined", TensorProto.INT64, [2], [-1, 6]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
            helper.make_tensor("turned", TensorProto.FLOAT, [6, 5], np.ones(30)),
            helper.make_tensor("turned_row", TensorProto.FLOAT, [1, 5], np.ones(5)),
        ]
    )
    assert ("y" in find_dependence(model, INPUTS).rows) == is_row


def test_a_part_takes_sizes_from_its_own_input() -> None:
    """The image's part has neither labels nor table, yet it reshapes to the shape of a value that comes from them."""
    model = sizes_graph()
    found = find_dependence(model, INPUTS)
    declared = helper.make_tensor_value_info("pair.0", TensorProto.FLOAT, ["batch", 24])
    made = part(
        model,
        found,
        [2, 7],
        inputs=list(model.graph.input)[:2],
        outputs=[(Port("pair.0", "moved"), declared)],
        size_of="sample",
    )
    onnx.checker.check_model(made, full_check=True)
    assert not {"table", "class_labels", "rows"} & {name for node in made.graph.node for name in node.input}
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        sample = np.random.default_rng(batch).standard_normal((batch, 4, 6), dtype=np.float32)
        (got,) = session.run(None, {"sample": sample, "timestep": np.zeros(batch, np.float32)})
        np.testing.assert_array_equal(got, 2 * sample.reshape(batch, 24))


def test_a_part_fetches_rows() -> None:
    """Inputs from other parts, by the rows that belong to a cell; no other node of the graph comes along."""
    model = sizes_graph()
    found = find_dependence(model, INPUTS)
    inputs = [
        helper.make_tensor_value_info("pair", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("pair.0", TensorProto.FLOAT, ["pairs", 24]),
        helper.make_tensor_value_info("class.0", TensorProto.FLOAT, ["conditions", 24]),
    ]
    made = part(
        model,
        found,
        [8],
        inputs=inputs,
        outputs=[(Port("output", "output"), model.graph.output[0])],
        fetched=[Port("pair.0", "moved", "pair"), Port("class.0", "rows", "class_labels")],
        size_of="class_labels",
    )
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["Gather", "Gather", "Add"]
    assert not made.graph.initializer
    rng = np.random.default_rng(0)
    pairs, classes = (rng.standard_normal((n, 24), dtype=np.float32) for n in (2, 3))
    pair, label = np.array([1, 0, 1, 1]), np.array([2, 2, 0, 1])
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pair": pair, "class_labels": label, "pair.0": pairs, "class.0": classes})
    np.testing.assert_array_equal(got, pairs[pair] + classes[label])


def branching_graph() -> onnx.ModelProto:
    """An If whose branches read a value of the graph around them."""
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["flat"], [f"inner.{op}"])],
            f"branch.{op}",
            [],
            [helper.make_tensor_value_info(f"inner.{op}", TensorProto.FLOAT, None)],
        )
        for op in ("Exp", "Neg")
    ]
    model = graph("flat = Flatten(sample) output = Identity(flat)")
    model.graph.node.insert(
        1, helper.make_node("If", ["yes"], ["moved"], then_branch=branches[0], else_branch=branches[1])
    )
    model.graph.node[2].input[0] = "moved"
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    return model


def test_graphs_inside_nodes() -> None:
    """A branch reads a value of the graph around it, under the name that the value has there."""
    model = branching_graph()
    assert set(reads(model.graph.node[1])) == {"yes", "flat"}
    found = find_dependence(model, INPUTS)
    assert found.of["moved"] == IMAGE
    outputs = [
        (Port(f"pair.{i}", name), helper.make_tensor_value_info(f"pair.{i}", TensorProto.FLOAT, ["batch", 24]))
        for i, name in enumerate(("flat", "moved"))
    ]
    made = part(model, found, [0, 1], inputs=list(model.graph.input)[:2], outputs=outputs, size_of="sample")
    sample = np.random.default_rng(0).standard_normal((2, 4, 6), dtype=np.float32)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    flat, moved = session.run(None, {"sample": sample, "timestep": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(flat, sample.reshape(2, 24))
    np.testing.assert_allclose(moved, np.exp(flat), rtol=1e-6)
    assert model.graph.node[0].output[0] == "flat"  # the whole graph is as it was


def test_an_input_is_handed_on() -> None:
    model = sizes_graph()
    declared = helper.make_tensor_value_info("pair.0", TensorProto.FLOAT, ["batch", 4, 6])
    made = part(
        model,
        find_dependence(model, INPUTS),
        [],
        inputs=list(model.graph.input)[:2],
        outputs=[(Port("pair.0", "sample"), declared)],
        size_of="sample",
    )
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["Identity"]
