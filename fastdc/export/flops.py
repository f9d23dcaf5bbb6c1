"""Counts the floating-point operations of an ONNX graph, node by node.

A product with K terms per result costs 2 K operations per result, a multiplication and an addition for each term:

    Conv            2 * results * (channels in / groups) * kernel      ConvTranspose   the same, by inputs
    MatMul, Gemm    2 * results * K                                    Einsum          2 * product of all its indices
    Attention       2 * heads * queries * keys * (width of a key + width of a value)

Other operators that compute (elementwise functions, normalisations, softmax, reductions) count one operation per
element. Operators that only move or describe data (Reshape, Gather, Shape, arithmetic on integers) count none. Biases
of convolutions are not counted, as in torch's ``FlopCounterMode``, which counts the products alone.

Shapes come from ONNX's own inference on a copy without weights, with a number for every dimension of the inputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastdc.export.inspection import attribute_of, inferable
from fastdc.support import InputError, require

require("onnx", extra="export")

import onnx  # noqa: E402

Shape = tuple[int, ...]

_MOVES = frozenset(
    [
        *("Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "DequantizeLinear"),
        *("Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "NonZero"),
        *("Pad", "QuantizeLinear", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    ]
)

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


@dataclass(frozen=True)
class Value:
    """Shape and type of a value of a graph.

    Attributes:
        shape: Dimensions; None if inference does not find all of them.
        elem_type: Type of the elements, of ``onnx.TensorProto``; 0 if unknown.
    """

    shape: Shape | None
    elem_type: int

    @property
    def size(self) -> int | None:
        """Number of elements; None if the shape is unknown."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.elem_type in _FLOATS

    def bytes(self) -> int:
        """Bytes of all elements; 0 if the shape is unknown."""
        return (self.size or 0) * element_bytes(self.elem_type)


@dataclass(frozen=True)
class Flops:
    """Cost of a graph.

    Attributes:
        per_row: Operations per row of the batch.
        products: Operations per row that belong to products: convolutions, matrix products, attention.
        parameters: Number of floating-point numbers stored as weights.
    """

    per_row: int
    products: int
    parameters: int


def element_bytes(elem_type: int) -> int:
    """Bytes of one element of a tensor type; 4 for an unknown type."""
    if elem_type == onnx.TensorProto.UNDEFINED:
        return 4
    size: int = onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize
    return size


def input_shapes(model: onnx.ModelProto, **dimensions: int) -> dict[str, Shape]:
    """Shapes of a graph's inputs, with numbers for its symbolic dimensions, such as ``batch=2, conditions=10``.

    Raises:
        InputError: A dimension has no number and no name, or a name that is not given.
    """
    found = {}
    for value in model.graph.input:
        shape = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                shape.append(int(dim.dim_value))
            elif dim.dim_param in dimensions:
                shape.append(dimensions[dim.dim_param])
            else:
                names = ", ".join(dimensions) or "none"
                raise InputError(f"input {value.name} has the dimension {dim.dim_param or '?'!r}, given are {names}")
        found[value.name] = tuple(shape)
    return found


def infer_values(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, Value]:
    """Shapes and types of all values at a graph's top level, weights and inputs included.

    Args:
        model: A graph; weights may be external.
        shapes: Shape of every input.

    Raises:
        InputError: An input has no shape, or one with another number of dimensions.
    """
    inferred = onnx.shape_inference.infer_shapes(_sized(model, shapes), data_prop=True).graph
    values = {item.name: _value(item) for item in (*inferred.value_info, *inferred.output, *inferred.input)}
    for tensor in model.graph.initializer:
        values[tensor.name] = Value(tuple(tensor.dims), tensor.data_type)
    return values


def measure_flops(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Flops:
    """Cost of a graph per row; the batch is the first dimension of its first input.

    Nodes whose shapes cannot be inferred are not counted.

    Args:
        model: A graph; weights may be external.
        shapes: Shape of every input, the batch included.

    Raises:
        InputError: An input has no shape, or one with another number of dimensions.
    """
    values = infer_values(model, shapes)
    total = products = 0
    for node in model.graph.node:
        count = node_flops(node, values) or 0
        total += count
        products += count if node.op_type in _PRODUCTS else 0
    batch = max(1, shapes[model.graph.input[0].name][0]) if model.graph.input else 1
    weights = [values[tensor.name] for tensor in model.graph.initializer]
    return Flops(
        per_row=total // batch,
        products=products // batch,
        parameters=sum(weight.size or 0 for weight in weights if weight.is_float),
    )


def node_flops(node: onnx.NodeProto, values: Mapping[str, Value]) -> int | None:
    """Operations of one node; None if a shape that the count needs is not known, or if the node runs other graphs."""
    if node.op_type in _MOVES:
        return 0
    if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
        return None
    ins = [values.get(name, Value(None, 0)) for name in node.input]
    outs = [values.get(name, Value(None, 0)) for name in node.output if name]
    counted = _PRODUCTS.get(node.op_type)
    if counted is not None:
        shapes = [value.shape for value in (*ins, *outs[:1])]
        # An omitted input has an empty name and no shape; no formula looks at one.
        needed = [shape for name, shape in zip((*node.input, "output"), shapes, strict=True) if name]
        if not outs or any(shape is None for shape in needed):
            return None
        return counted(node, [shape or () for shape in shapes[:-1]], outs[0].shape or ())
    if outs and outs[0].elem_type and not outs[0].is_float and not any(value.is_float for value in ins):
        return 0  # arithmetic on sizes and indices
    sizes = [value.size for value in (*ins[:1], *outs[:1])]
    known = [size for size in sizes if size is not None]
    return max(known) if known and len(known) == len(sizes) else None


def _conv(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    return 2 * math.prod(out) * math.prod(ins[1][1:])  # a kernel is (out, in / groups, ...)


def _conv_transpose(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])  # a kernel is (in, out / groups, ...)


def _matmul(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    return 2 * math.prod(out) * ins[0][-1]


def _gemm(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    return 2 * math.prod(out) * ins[0][0 if attribute_of(node, "transA", 0) else 1]


def _einsum(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    if len(ins) == 1:  # a permutation, or at most a sum over some indices
        return 0 if math.prod(ins[0]) == math.prod(out) else math.prod(ins[0])
    equation: str = attribute_of(node, "equation", b"").decode().replace(" ", "")
    indices: dict[str, int] = {}
    for operand, shape in zip(equation.partition("->")[0].split(","), ins, strict=True):
        before, dots, after = operand.partition("...")
        named = [*before, *(f".{i}" for i in range(len(before) + len(after) - len(shape), 0) if dots), *after]
        for index, size in zip(named, shape, strict=True):
            indices[index] = max(size, indices.get(index, 1))  # dimensions under the dots may be 1 in one operand
    return 2 * math.prod(indices.values())


def _attention(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> int:
    query, key, value = ins[:3]
    if len(query) == 3:  # heads side by side in the last dimension
        heads, groups = (int(attribute_of(node, name, 1)) for name in ("q_num_heads", "kv_num_heads"))
        query = (query[0], heads, query[1], query[2] // heads)
        key, value = ((item[0], groups, item[1], item[2] // groups) for item in (key, value))
    past = ins[4][2] if len(ins) > 4 and len(ins[4]) == 4 else 0
    return 2 * math.prod(query[:3]) * (key[2] + past) * (query[3] + value[3])


_PRODUCTS: dict[str, Callable[[onnx.NodeProto, list[Shape], Shape], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
}


def _sized(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """The graph without its large weights, with numbers for the dimensions of its inputs."""
    light = inferable(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    graph = onnx.GraphProto(name=light.graph.name)
    graph.node.extend(light.graph.node)
    graph.initializer.extend(light.graph.initializer)
    graph.input.extend(_sized_input(value, shapes) for value in model.graph.input if value.name not in weights)
    graph.input.extend({value.name: value for value in light.graph.input if value.name in weights}.values())
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in light.graph.output)
    light.graph.CopyFrom(graph)
    return light


def _sized_input(value: onnx.ValueInfoProto, shapes: Mapping[str, Shape]) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type
    shape = shapes.get(value.name)
    if shape is None or len(shape) != len(kind.shape.dim):
        raise InputError(f"input {value.name} needs a shape of {len(kind.shape.dim)} dimensions, got {shape}")
    sized: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(value.name, kind.elem_type, shape)
    return sized


def _value(item: onnx.ValueInfoProto) -> Value:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        return Value(None, kind.elem_type)
    dims = kind.shape.dim
    shape = tuple(int(dim.dim_value) for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None
    return Value(shape, kind.elem_type)
