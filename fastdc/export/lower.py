"""Operators that some engine cannot run or computes wrongly, rewritten as ones that every engine has.

* Einsum with one operand, such as the ``nhwpqc->nchpwq`` that puts the patches of a DiT together, is a Transpose; as an
  Einsum it has no bfloat16 in ONNX.
* GroupNormalization with one group is miscomputed without a word by NVIDIA's ONNX parser (versions 10 and 11). With one
  group, or with any other number,

      y = scale * (x - mean) / sqrt(var + epsilon) + bias,  mean and var over a group's channels and all positions,

  is an InstanceNormalization of x reshaped to (batch, groups, -1), whose own scale and bias are 1 and 0, followed by
  the channels' scale and bias: what torch itself writes below opset 21. Statistics are taken in float32, as the
  operator's ``stash_type`` asks.
* Concat of several float types, which torch promotes to the widest and its exporter writes down as it is (the text and
  the sizes in SDXL's embedding of the level), gets Casts: ONNX wants one type.
* ConvTranspose in bfloat16, which TensorRT cannot type, runs in float32 between Casts.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.export.storage import value_types
from fastdc.support import require

if TYPE_CHECKING:
    import onnx

    Nodes = list[onnx.NodeProto]

_PERMUTATION = re.compile(r"\s*([a-zA-Z]+)\s*->\s*([a-zA-Z]+)\s*")


def lower_einsum(model: "onnx.ModelProto") -> int:
    """Replaces, in place, every Einsum that only permutes dimensions by a Transpose; returns how many."""
    return _replace(model, "Einsum", _transpose)


def lower_single_group(model: "onnx.ModelProto") -> int:
    """Replaces, in place, every GroupNormalization with one group; returns how many."""
    rewriting = _GroupRewriting(model, every=False)
    return _replace(model, "GroupNormalization", rewriting)


def lower_groups(model: "onnx.ModelProto") -> int:
    """Replaces, in place, every GroupNormalization, for engines that have no kernel for it; returns how many."""
    rewriting = _GroupRewriting(model, every=True)
    return _replace(model, "GroupNormalization", rewriting)


def lower_types(model: "onnx.ModelProto") -> int:
    """Inserts, in place, the Casts that Concat and ConvTranspose need; returns how many nodes got some.

    Args:
        model: With the types that the exporter notes for every value (``value_info``).
    """
    onnx = require("onnx", extra="export")
    graph = model.graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.input, *graph.value_info, *graph.output)}
    types.update((one.name, one.data_type) for one in graph.initializer)
    wide, narrow = onnx.TensorProto.FLOAT, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

    def concat(node: Any) -> "Nodes | None":
        mixed = {types.get(name) for name in node.input}
        if len(mixed) == 1 or not mixed <= {wide, *narrow}:
            return None
        types[node.output[0]] = wide
        return _in_float32(node, [name for name in node.input if types[name] != wide])

    def transposed(node: Any) -> "Nodes | None":
        if types.get(node.input[0]) != onnx.TensorProto.BFLOAT16:
            return None
        return _in_float32(node, list(node.input), back=onnx.TensorProto.BFLOAT16)

    return _replace(model, "Concat", concat) + _replace(model, "ConvTranspose", transposed)


def _in_float32(node: "onnx.NodeProto", narrow: list[str], *, back: int | None = None) -> "Nodes":
    """A node with Casts to float32 before the inputs `narrow`, and to the type `back` after it."""
    onnx = require("onnx", extra="export")
    prefix = f"{node.name or node.output[0]}.cast"
    casts: Nodes = []
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for index, name in enumerate(node.input):
        if name in narrow:
            made.input[index] = f"{prefix}.{index}"
            to = onnx.TensorProto.FLOAT
            casts.append(onnx.helper.make_node("Cast", [name], [made.input[index]], name=made.input[index], to=to))
    if back is None:
        return [*casts, made]
    made.output[0] = f"{prefix}.out"
    after = onnx.helper.make_node("Cast", [made.output[0]], [node.output[0]], name=f"{prefix}.back", to=back)
    return [*casts, made, after]


def _replace(model: "onnx.ModelProto", op_type: str, rewrite: "Callable[[onnx.NodeProto], Nodes | None]") -> int:
    """Rewrites nodes where `rewrite` gives others; only the main graph, as exported denoisers have no branches."""
    nodes: Nodes = []
    count = 0
    for node in model.graph.node:
        others = rewrite(node) if node.op_type == op_type else None
        nodes += [node] if others is None else others
        count += others is not None
    if count:
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]  # clearing the list frees its nodes
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return count


def _transpose(node: "onnx.NodeProto") -> "Nodes | None":
    helper = require("onnx.helper", extra="export")
    equation = _attribute(node, "equation", b"").decode()
    match = _PERMUTATION.fullmatch(equation)
    if match is None or sorted(match[1]) != sorted(match[2]) or len(set(match[1])) != len(match[1]):
        return None
    order = [match[1].index(letter) for letter in match[2]]
    return [helper.make_node("Transpose", list(node.input), list(node.output), name=node.name, perm=order)]


def _attribute(node: "onnx.NodeProto", name: str, default: Any) -> Any:
    helper = require("onnx.helper", extra="export")
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


class _GroupRewriting:
    """Rewrites GroupNormalization; knows the types and shapes of the graph."""

    def __init__(self, model: "onnx.ModelProto", *, every: bool) -> None:
        self._model, self._every = model, every
        self._types: dict[str, Any] | None = None

    def __call__(self, node: "onnx.NodeProto") -> "Nodes | None":
        groups = int(_attribute(node, "num_groups", 0))
        if groups != 1 and not self._every:
            return None
        onnx = require("onnx", extra="export")
        make = onnx.helper.make_node
        x, scale, bias = node.input
        kind = self._type_of(x)
        narrow = kind.elem_type != onnx.TensorProto.FLOAT
        rank = len(kind.shape.dim)
        prefix = f"{node.name or node.output[0]}.lowered"

        def name(part: str) -> str:
            return f"{prefix}.{part}"

        grouped = self._constant(name("grouped"), "int64", [0, groups, -1])
        column = self._constant(name("column"), "int64", [-1] + [1] * (rank - 2))
        ones = self._constant(name("ones"), "float32", [1.0] * groups)
        zeros = self._constant(name("zeros"), "float32", [0.0] * groups)
        nodes = [make("Shape", [x], [name("shape")])]
        wide = x
        if narrow:
            nodes.append(make("Cast", [x], [name("wide")], to=onnx.TensorProto.FLOAT))
            wide = name("wide")
        nodes += [
            make("Reshape", [wide, grouped], [name("groups")]),
            make(
                "InstanceNormalization",
                [name("groups"), ones, zeros],
                [name("normal")],
                epsilon=float(_attribute(node, "epsilon", 1e-5)),
            ),
            make("Reshape", [name("normal"), name("shape")], [name("whole")]),
        ]
        normal = name("whole")
        if narrow:
            nodes.append(make("Cast", [normal], [name("narrow")], to=kind.elem_type))
            normal = name("narrow")
        nodes += [
            make("Reshape", [scale, column], [name("scale")]),
            make("Reshape", [bias, column], [name("bias")]),
            make("Mul", [normal, name("scale")], [name("scaled")]),
            make("Add", [name("scaled"), name("bias")], list(node.output)),
        ]
        for index, one in enumerate(nodes):
            one.name = name(str(index))
        return nodes

    def _constant(self, name: str, dtype: str, values: list[Any]) -> str:
        onnx = require("onnx", extra="export")
        self._model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def _type_of(self, value: str) -> Any:
        if self._types is None:
            self._types = {name: one.type.tensor_type for name, one in value_types(self._model).items()}
        return self._types[value]
