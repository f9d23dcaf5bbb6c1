"""The numbers of small values and the element types of all, as they follow from the inputs of a node.

Exporters write shapes as arithmetic on small values (Shape, Gather, Concat, Mul, ...), which is followed here so that
the shapes of the values made from them are known. What is followed is what every library computes: whole numbers of
less than 2**53 in amount, whose results are of their type, and floats where a single step is rounded one way only. All
other numbers count as unknown.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastdc.backends.onnx.node import Node, exact
from fastdc.backends.onnx.shapes import SHAPE_OF, dimensions, slices

FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 6, 7, 9, 10, 11, 16
"""ONNX's numbers of element types."""

FLOATS = frozenset({FLOAT, FLOAT16, DOUBLE, BFLOAT16})

FOLLOWED: Mapping[int, Any] = {
    FLOAT: np.float32,
    INT32: np.int32,
    INT64: np.int64,
    BOOL: np.bool_,
    DOUBLE: np.float64,
}
"""Types whose numbers are followed. Libraries round float16 in different places."""


def _known(numbers: Any, kind: Any) -> Any:
    """Numbers as an array of a type that holds each of them as it is."""
    found = np.asarray(numbers)
    if found.dtype == object and kind != np.bool_:
        for number in found.ravel():
            exact(number)
    made = found.astype(kind)
    if not np.all(np.isfinite(made)) or np.any(made != found):
        raise ValueError("a number is not one of its type")
    return made


def _exactly(array: Any) -> Any:
    """Whole numbers as Python's, which do not overflow; other numbers as they are."""
    if not np.issubdtype(array.dtype, np.integer):
        return array
    made = array.astype(object)
    for number in made.ravel():
        exact(number)
    return made


def _cast(node: Node) -> Any:
    given, kind = node.numbers(0), FOLLOWED[node.attributes["to"]]
    if kind == np.bool_:
        return given.astype(kind)
    return _known(np.trunc(given) if np.issubdtype(kind, np.integer) and given.dtype.kind == "f" else given, kind)


def _to_zero(first: int, second: int) -> int:
    """A quotient as ONNX rounds it."""
    return abs(first) // abs(second) * (1 if (first < 0) == (second < 0) else -1)


def _divide(first: Any, second: Any) -> Any:
    return np.frompyfunc(_to_zero, 2, 1)(first, second) if first.dtype == object else first / second


def _mod(node: Node) -> Any:
    first, second = _exactly(node.numbers(0)), _exactly(node.numbers(1))
    if first.dtype != object or node.get("fmod", 0):
        raise ValueError("only whole numbers are followed")
    return _known(first % second, node.numbers(0).dtype)


def _constant_of_shape(node: Node) -> Any:
    number = node.attributes["value"].numbers[0] if "value" in node.attributes else np.float32(0)
    return np.full(SHAPE_OF["ConstantOfShape"](node), number)


def _product(node: Node) -> Any:
    given = node.numbers(0)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError("only whole numbers are followed")
    axes = tuple(node.whole(1, "axes") or range(given.ndim))
    return _known(np.prod(_exactly(given), axis=axes, keepdims=bool(node.get("keepdims", 1))), given.dtype)


def _range(node: Node) -> Any:
    ends = [np.ravel(node.numbers(index))[0] for index in range(3)]
    if not np.issubdtype(ends[0].dtype, np.integer):
        raise ValueError("only whole numbers are followed")
    return np.arange(*(exact(int(end)) for end in ends), dtype=ends[0].dtype)


def _fold(function: Callable[..., Any]) -> Callable[[Node], Any]:
    """Arithmetic whose result is of the type of its first input."""

    def evaluated(node: Node) -> Any:
        given = [node.numbers(index) for index in range(len(node.inputs))]
        return _known(function(*map(_exactly, given)), given[0].dtype)

    return evaluated


def _compare(function: Callable[..., Any]) -> Callable[[Node], Any]:
    return lambda node: function(*(_exactly(node.numbers(index)) for index in range(2))).astype(np.bool_)


def _logic(function: Callable[..., Any]) -> Callable[[Node], Any]:
    return lambda node: function(*(node.numbers(index) for index in range(len(node.inputs))))


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
    "Range": _range,
    "Add": _fold(np.add),
    "Sub": _fold(np.subtract),
    "Mul": _fold(np.multiply),
    "Div": _fold(_divide),
    "Mod": _mod,
    "Max": _fold(lambda *given: np.max(np.broadcast_arrays(*given), axis=0)),
    "Min": _fold(lambda *given: np.min(np.broadcast_arrays(*given), axis=0)),
    "Neg": _fold(np.negative),
    "Abs": _fold(np.abs),
    "Floor": _fold(np.floor),
    "Ceil": _fold(np.ceil),
    "Sqrt": _fold(np.sqrt),
    "Equal": _compare(np.equal),
    "Less": _compare(np.less),
    "Greater": _compare(np.greater),
    "Not": _logic(np.logical_not),
    "And": _logic(np.logical_and),
    "Or": _logic(np.logical_or),
    "Where": _logic(np.where),
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
