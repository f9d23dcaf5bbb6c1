"""Rewrites operators that some engine cannot run or computes wrongly as operators that every engine has.

* Einsum with one operand, such as the ``nhwpqc->nchpwq`` that puts the patches of a DiT together, becomes a Transpose;
  ONNX has no bfloat16 Einsum.
* GroupNormalization with one group, which NVIDIA's ONNX parser (versions 10 and 11) miscomputes without a warning,

      y = scale * (x - mean) / sqrt(var + epsilon) + bias,  mean and var over all channels and positions,

  becomes an InstanceNormalization of x reshaped to (batch, 1, -1), whose own scale and bias are 1 and 0, followed by
  the channels' scale and bias: what torch itself writes below opset 21. Statistics are taken in float32, as the
  operator's ``stash_type`` asks.
* Concat of several float types, which torch promotes to the widest and its exporter writes down unpromoted (the text
  and the sizes in SDXL's embedding of the level), gets Casts, because ONNX wants one type.
* ConvTranspose in bfloat16, which TensorRT cannot type, runs in float32 between Casts.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.export.inspection import attribute_of, value_types
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
    return _replace(model, "GroupNormalization", _GroupRewriting(model))


def lower_types(model: "onnx.ModelProto") -> int:
    """Inserts, in place, the Casts that Concat and ConvTranspose need; returns how many nodes got some.

    Args:
        model: A graph with the types that the exporter notes for every value (``value_info``).
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
    """A node with Casts to float32 before the inputs `narrow`, and a Cast to the type `back` after it."""
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
    """Puts other nodes in the place of those for which `rewrite` returns some; returns how many.

    Only the main graph is searched: exported denoisers have no branches.
    """
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
    equation = attribute_of(node, "equation", b"").decode()
    match = _PERMUTATION.fullmatch(equation)
    if match is None or sorted(match[1]) != sorted(match[2]) or len(set(match[1])) != len(match[1]):
        return None
    order = [match[1].index(letter) for letter in match[2]]
    return [helper.make_node("Transpose", list(node.input), list(node.output), name=node.name, perm=order)]


class _GroupRewriting:
    """Rewrites a GroupNormalization with one group; knows the types and shapes of the graph."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self._model = model
        self._types: dict[str, Any] | None = None

    def __call__(self, node: "onnx.NodeProto") -> "Nodes | None":
        if attribute_of(node, "num_groups", 0) != 1:
            return None
        onnx = require("onnx", extra="export")
        make = onnx.helper.make_node
        x, scale, bias = node.input
        kind = self._type_of(x)
        narrow = kind.elem_type != onnx.TensorProto.FLOAT
        prefix = f"{node.name or node.output[0]}.lowered"

        def name(part: str) -> str:
            return f"{prefix}.{part}"

        grouped = self._constant(name("grouped"), "int64", [0, 1, -1])
        column = self._constant(name("column"), "int64", [-1] + [1] * (len(kind.shape.dim) - 2))
        ones = self._constant(name("ones"), "float32", [1.0])
        zeros = self._constant(name("zeros"), "float32", [0.0])
        epsilon = float(attribute_of(node, "epsilon", 1e-5))
        wide, normal = (name("wide"), name("narrow")) if narrow else (x, name("whole"))
        before = [make("Cast", [x], [wide], to=onnx.TensorProto.FLOAT)] if narrow else []
        after = [make("Cast", [name("whole")], [normal], to=kind.elem_type)] if narrow else []
        nodes = [
            make("Shape", [x], [name("shape")]),
            *before,
            make("Reshape", [wide, grouped], [name("groups")]),
            make("InstanceNormalization", [name("groups"), ones, zeros], [name("normal")], epsilon=epsilon),
            make("Reshape", [name("normal"), name("shape")], [name("whole")]),
            *after,
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
