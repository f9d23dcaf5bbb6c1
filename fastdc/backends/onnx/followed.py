"""The numbers of small values and the element types of all, as they follow from the inputs of a node.

Exporters write shapes as arithmetic on small values (Shape, Gather, Concat, Mul, ...), which is followed here so that
the shapes of the values made from them are known.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastdc.backends.onnx.shapes import SHAPE_OF, Node, dimensions, slices

FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 6, 7, 9, 10, 11, 16
"""ONNX's numbers of element types."""

FLOATS = frozenset({FLOAT, FLOAT16, DOUBLE, BFLOAT16})

FOLLOWED: Mapping[int, Any] = {
    FLOAT: np.float32,
    INT32: np.int32,
    INT64: np.int64,
    BOOL: np.bool_,
    FLOAT16: np.float16,
    DOUBLE: np.float64,
}
"""Types whose numbers are followed."""


def _cast(node: Node) -> Any:
    return node.numbers(0).astype(FOLLOWED[node.attributes["to"]])


def _divide(node: Node) -> Any:
    first, second = node.numbers(0), node.numbers(1)
    if np.issubdtype(first.dtype, np.integer):  # ONNX rounds to zero
        return np.trunc(first / second).astype(first.dtype)
    return first / second


def _constant_of_shape(node: Node) -> Any:
    number = node.attributes["value"].numbers[0] if "value" in node.attributes else np.float32(0)
    return np.full(SHAPE_OF["ConstantOfShape"](node), number)


def _product(node: Node) -> Any:
    axes = tuple(node.whole(1, "axes") or range(len(node.shape())))
    return np.prod(node.numbers(0), axis=axes, keepdims=bool(node.get("keepdims", 1)))


def _fold(function: Callable[..., Any]) -> Callable[[Node], Any]:
    def evaluated(node: Node) -> Any:
        given = [node.numbers(index) for index in range(len(node.inputs))]
        return function(*given)

    return evaluated


def _to_shape(node: Node) -> Any:
    return node.numbers(0).reshape(SHAPE_OF[node.operator](node))


NUMBERS_OF: Mapping[str, Callable[[Node], Any]] = {
    "Shape": lambda node: np.array(dimensions(node), np.int64),
    "Size": lambda node: np.array(math.prod(node.shape()), np.int64),
    "Constant": lambda node: node.attributes["value"].numbers,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "Identity": lambda node: node.numbers(0),
    "Gather": lambda node: np.take(node.numbers(0), node.numbers(1), axis=node.get("axis", 0)),
    "Slice": lambda node: node.numbers(0)[slices(node)],
    "Concat": lambda node: np.concatenate(
        [node.numbers(index) for index in range(len(node.inputs))], axis=node.attributes["axis"]
    ),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _to_shape),
    "Transpose": lambda node: node.numbers(0).transpose(node.get("perm", None)),
    "Expand": lambda node: np.broadcast_to(node.numbers(0), SHAPE_OF["Expand"](node)),
    "Range": lambda node: np.arange(*(np.ravel(node.numbers(index))[0] for index in range(3))),
    "Add": _fold(np.add),
    "Sub": _fold(np.subtract),
    "Mul": _fold(np.multiply),
    "Div": _divide,
    "Mod": lambda node: (np.fmod if node.get("fmod", 0) else np.mod)(node.numbers(0), node.numbers(1)),
    "Max": _fold(lambda *given: np.max(np.broadcast_arrays(*given), axis=0)),
    "Min": _fold(lambda *given: np.min(np.broadcast_arrays(*given), axis=0)),
    "Neg": _fold(np.negative),
    "Abs": _fold(np.abs),
    "Floor": _fold(np.floor),
    "Ceil": _fold(np.ceil),
    "Sqrt": _fold(np.sqrt),
    "Pow": _fold(np.power),
    "Equal": _fold(np.equal),
    "Less": _fold(np.less),
    "Greater": _fold(np.greater),
    "Not": _fold(np.logical_not),
    "And": _fold(np.logical_and),
    "Or": _fold(np.logical_or),
    "Where": _fold(np.where),
    "ReduceProd": _product,
}
"""How the numbers of small values are followed, for the operators that exporters use on shapes."""


def kind_of(node: Node) -> int:
    """Element type of a node's first output: that of its first input for most operators."""
    name = node.operator
    stated = node.attributes.get(_STATED.get(name, ""), 0)
    if stated:
        return int(stated)
    if name in ("Constant", "ConstantOfShape"):
        return int(node.attributes["value"].kind) if "value" in node.attributes else FLOAT
    if name in _KINDS and not node.has(_LIKE.get(name, len(node.inputs))):
        return _KINDS[name]
    return _input_kind(node, _LIKE.get(name, 0))


def _input_kind(node: Node, index: int) -> int:
    value = node.inputs[index]
    assert value is not None
    return value.kind


_KINDS: Mapping[str, int] = {
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin"), INT64),
    **dict.fromkeys(("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), BOOL),
    **dict.fromkeys(("IsNaN", "IsInf"), BOOL),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), INT32),
    **dict.fromkeys(("DynamicQuantizeLinear", "QuantizeLinear"), UINT8),
}
_LIKE: Mapping[str, int] = {
    **dict.fromkeys(("CastLike", "DequantizeLinear", "Where"), 1),
    **dict.fromkeys(("OneHot", "QuantizeLinear"), 2),
    "QLinearMatMul": 7,
}
"""The input whose type an operator's output has, if not the first."""

_STATED: Mapping[str, str] = {
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), "output_dtype"),
    "Cast": "to",
    "EyeLike": "dtype",
}
"""The attribute that may state the type of an operator's output."""
