"""ONNX graphs of a denoiser, right and wrong."""

from functools import cache
from typing import Any

import numpy as np
import pytest

Values = dict[str, tuple[str, list[Any]]]


@cache
def onnx_package() -> Any:
    """The package onnx; skips the test if it or ONNX Runtime is missing."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return onnx


def graph(
    *, inputs: Values | None = None, outputs: Values | None = None, nodes: list[Any] | None = None, **changes: Any
) -> bytes:
    """An ONNX graph that returns its sample; `changes` declare some of its inputs or its output differently."""
    onnx = onnx_package()
    helper = onnx.helper
    image = ["batch", 1, 2, 3]
    right: Values = {"sample": ("FLOAT", image), "timestep": ("FLOAT", ["batch"]), "class_labels": ("INT64", ["batch"])}
    taken = inputs or {name: changes.get(name, value) for name, value in right.items()}
    given: Values = outputs or {"output": changes.get("output", ("FLOAT", image))}

    def values(entries: Values) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)
            for name, (kind, shape) in entries.items()
        ]

    nodes = nodes or [helper.make_node("Identity", [next(iter(taken))], [name]) for name in given]
    made = helper.make_graph(nodes, "g", values(taken), values(given))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def node(operator: str, *inputs: str, output: str = "made", **attributes: Any) -> Any:
    """A node with one output."""
    return onnx_package().helper.make_node(operator, list(inputs), [output], **attributes)


def whole(name: str, *numbers: int) -> Any:
    """A constant vector of whole numbers."""
    return node("Constant", output=name, value=onnx_package().numpy_helper.from_array(np.array(numbers, np.int64)))


def returned(*nodes: Any) -> bytes:
    """A right graph with further nodes, whose values are not used."""
    return graph(nodes=[*nodes, node("Identity", "sample", output="output")])
