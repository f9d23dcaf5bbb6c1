"""The operators that a bundle's graph may use, and the shape of the value that each one makes.

Every operator here makes one value (a Split: several) whose shape follows from the shapes of its inputs and from small
numbers, such as the target of a Reshape. There are no operators that run other graphs, draw random numbers, hold text
or sequences, read files, or make as many elements as the data say. So the size of every value of a graph is known
before the graph is given to a library. Numbers are followed through the small arithmetic that exporters write for
shapes (Shape, Gather, Concat, Mul, ...).

A rule is a function of a node that returns the shape of its first output; it may raise anything on a node that is not
valid. The meaning of the operators is that of onnx.ai/onnx/operators, in every version of the operator set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]

MOST_FOLLOWED = 4096
"""Elements of the largest value whose numbers are followed: shapes and indices, not weights."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a graph, at one row per symbolic dimension.

    Attributes:
        shape: Its dimensions.
        kind: ONNX's number of its element type.
        numbers: Its elements, if they are known and few.
        fixed: Whether it depends on no input, so that a library may compute it when it loads the graph.
    """

    shape: Shape
    kind: int
    numbers: npt.NDArray[Any] | None = field(default=None, repr=False)
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Node:
    """A node with the values that it reads.

    Attributes:
        operator: Name of the operator.
        inputs: Its inputs; None for an omitted one.
        attributes: Numbers (int, float), lists of them, bytes and tensors, by name.
        outputs: Number of outputs.
    """

    operator: str
    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: int = 1

    def shape(self, index: int = 0) -> Shape:
        """Shape of an input."""
        value = self.inputs[index]
        assert value is not None
        return value.shape

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def numbers(self, index: int, name: str | None = None) -> Any:
        """The elements of an input, or of the attribute that older versions have in its place; None if absent."""
        if name is not None and name in self.attributes:
            return np.asarray(self.attributes[name])
        if not self.has(index):
            return None
        value = self.inputs[index]
        if value is None or value.numbers is None:
            raise ValueError(f"input {index} is not known beforehand")
        return value.numbers

    def whole(self, index: int, name: str | None = None) -> list[int] | None:
        """The same as whole numbers."""
        found = self.numbers(index, name)
        return None if found is None else [int(number) for number in np.ravel(found)]

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def _axes(given: Sequence[int] | None, rank: int) -> list[int]:
    return list(range(rank)) if given is None else [_axis(axis, rank) for axis in given]


def _same(node: Node) -> Shape:
    return node.shape()


def _broadcast(node: Node) -> Shape:
    return np.broadcast_shapes(*(node.shape(index) for index in range(len(node.inputs))))


def _matmul(node: Node) -> Shape:
    # The inputs after the second and the zero points between them (of quantised products) are scalars or vectors.
    first, second = node.shape(0), node.shape(3 if node.operator == "QLinearMatMul" else 1)
    rows = first[:-1] if len(first) > 1 else ()
    columns = second[-1:] if len(second) > 1 else ()
    if first[-1] != second[-2 if len(second) > 1 else -1]:
        raise ValueError("the factors do not fit")
    return (*np.broadcast_shapes(first[:-2], second[:-2]), *rows[-1:], *columns)


def _gemm(node: Node) -> Shape:
    first, second = node.shape(0), node.shape(1)
    return (first[1 if node.get("transA", 0) else 0], second[0 if node.get("transB", 0) else 1])


def _einsum(node: Node) -> Shape:
    equation = node.get("equation", b"").decode().replace(" ", "")
    operands, _, result = equation.partition("->")
    sizes: dict[str, int] = {}
    for index, letters in enumerate(operands.split(",")):
        if not (letters.isalpha() or not letters):
            raise ValueError(f"equation {equation!r:.80}")
        for letter, size in zip(letters, node.shape(index), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if "->" not in equation:
        result = "".join(sorted(letter for letter in sizes if operands.count(letter) == 1))
    return tuple(sizes[letter] for letter in result)


def _window(node: Node, sizes: Shape, kernel: Sequence[int]) -> Shape:
    """Spatial dimensions of what a window gives that slides over spatial dimensions."""
    rank = len(sizes)
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads, automatic = node.get("pads", [0] * 2 * rank), node.get("auto_pad", b"NOTSET")
    if min(*strides, *dilations, *kernel) < 1 or min(pads) < 0:
        raise ValueError("strides, dilations or pads")
    found = []
    for place, size in enumerate(sizes):
        if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
            found.append(-(-size // strides[place]))
            continue
        room = size + (0 if automatic == b"VALID" else pads[place] + pads[place + rank])
        room -= dilations[place] * (kernel[place] - 1) + 1
        steps = room // strides[place]
        if node.get("ceil_mode", 0):  # one more, unless it would begin behind the end
            steps = -(-room // strides[place])
            steps -= steps * strides[place] >= size + pads[place]
        found.append(steps + 1)
    return tuple(found)


def _conv(node: Node) -> Shape:
    given, kernel = node.shape(0), node.shape(1)
    return (given[0], kernel[0], *_window(node, given[2:], kernel[2:]))


def _conv_transpose(node: Node) -> Shape:
    given, kernel = node.shape(0), node.shape(1)
    rank = len(given) - 2
    strides, dilations = node.get("strides", [1] * rank), node.get("dilations", [1] * rank)
    pads, more = node.get("pads", [0] * 2 * rank), node.get("output_padding", [0] * rank)
    sizes = node.get("output_shape", None)
    if sizes is None and node.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        sizes = [size * stride for size, stride in zip(given[2:], strides, strict=True)]
    if sizes is None:
        sizes = [
            strides[i] * (given[i + 2] - 1)
            + more[i]
            + (kernel[i + 2] - 1) * dilations[i]
            + 1
            - pads[i]
            - pads[i + rank]
            for i in range(rank)
        ]
    return (given[0], kernel[1] * node.get("group", 1), *_positive(sizes))


def _pool(node: Node) -> Shape:
    given = node.shape()
    return (*given[:2], *_window(node, given[2:], node.attributes["kernel_shape"]))


def _global_pool(node: Node) -> Shape:
    given = node.shape()
    return (*given[:2], *(1 for _ in given[2:]))


def _reduce(node: Node) -> Shape:
    given = node.shape()
    axes = node.whole(1, "axes")
    if not axes and node.get("noop_with_empty_axes", 0):
        return given
    return _without(given, _axes(axes or None, len(given)), node.get("keepdims", 1))


def _arg(node: Node) -> Shape:
    given = node.shape()
    return _without(given, [_axis(node.get("axis", 0), len(given))], node.get("keepdims", 1))


def _without(given: Shape, axes: Sequence[int], keep: int) -> Shape:
    return tuple(1 if place in axes else size for place, size in enumerate(given) if keep or place not in axes)


def _reshape(node: Node) -> Shape:
    given, target = node.shape(), node.whole(1, "shape")
    assert target is not None
    sizes = [given[i] if size == 0 and not node.get("allowzero", 0) else size for i, size in enumerate(target)]
    if (rest := [i for i, size in enumerate(sizes) if size == -1]) and len(rest) == 1:
        others = math.prod(size for size in sizes if size != -1)
        sizes[rest[0]] = math.prod(given) // others
    if math.prod(sizes) != math.prod(given) or min(sizes, default=0) < 0:
        raise ValueError(f"{given} as {target}")
    return tuple(sizes)


def _flatten(node: Node) -> Shape:
    given = node.shape()
    axis = node.get("axis", 1)
    axis = axis + len(given) if axis < 0 else axis
    return (math.prod(given[:axis]), math.prod(given[axis:]))


def _transpose(node: Node) -> Shape:
    given = node.shape()
    order = node.get("perm", list(range(len(given)))[::-1])
    if sorted(order) != list(range(len(given))):
        raise ValueError("perm")
    return tuple(given[place] for place in order)


def _squeeze(node: Node) -> Shape:
    given, axes = node.shape(), node.whole(1, "axes")
    gone = [i for i, size in enumerate(given) if size == 1] if axes is None else _axes(axes, len(given))
    if any(given[place] != 1 for place in gone):
        raise ValueError("axes")
    return tuple(size for place, size in enumerate(given) if place not in gone)


def _unsqueeze(node: Node) -> Shape:
    given, axes = node.shape(), node.whole(1, "axes")
    assert axes is not None
    rank = len(given) + len(axes)
    new, old = _axes(axes, rank), iter(given)
    if len(set(new)) != len(new):
        raise ValueError("axes")
    return tuple(1 if place in new else next(old) for place in range(rank))


def _concat(node: Node) -> Shape:
    shapes = [node.shape(index) for index in range(len(node.inputs))]
    axis = _axis(node.attributes["axis"], len(shapes[0]))
    if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) != 1:
        raise ValueError("the inputs do not fit")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def split_shapes(node: Node) -> list[Shape]:
    """Shapes of the outputs of a Split."""
    given = node.shape()
    axis, parts = _axis(node.get("axis", 0), len(given)), node.whole(1, "split")
    if parts is None:
        each = -(-given[axis] // node.outputs)
        parts = [each] * (node.outputs - 1) + [given[axis] - each * (node.outputs - 1)]
    if sum(parts) != given[axis] or len(parts) != node.outputs or min(parts) < 0:
        raise ValueError("the parts do not fit")
    return [(*given[:axis], size, *given[axis + 1 :]) for size in parts]


def slices(node: Node) -> tuple[slice, ...]:
    """The part of each dimension that a Slice takes."""
    given = node.shape()
    starts, ends = node.whole(1, "starts"), node.whole(2, "ends")
    assert starts is not None
    assert ends is not None
    axes, steps = node.whole(3, "axes"), node.whole(4) or [1] * len(starts)
    found = [slice(None)] * len(given)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        place = _axis(axis, len(given))
        size = given[place]
        if step < 0:  # an end before the first element: Python's None
            first = min(start + size if start < 0 else start, size - 1)
            last = end + size if end < 0 else end
            found[place] = slice(max(first, 0), last if last >= 0 else None, step)
        else:
            found[place] = slice(start, end, step)
    return tuple(found)


def _slice(node: Node) -> Shape:
    given = node.shape()
    return tuple(len(range(*part.indices(size))) for part, size in zip(slices(node), given, strict=True))


def _gather(node: Node) -> Shape:
    given, index = node.shape(0), node.shape(1)
    axis = _axis(node.get("axis", 0), len(given))
    return (*given[:axis], *index, *given[axis + 1 :])


def _gather_nd(node: Node) -> Shape:
    given, index, batch = node.shape(0), node.shape(1), node.get("batch_dims", 0)
    return (*index[:-1], *given[batch + index[-1] :])


def _expand(node: Node) -> Shape:
    target = node.whole(1)
    assert target is not None
    return np.broadcast_shapes(node.shape(), _positive(target))


def _tile(node: Node) -> Shape:
    given, times = node.shape(), node.whole(1)
    assert times is not None
    return tuple(size * many for size, many in zip(given, _positive(times), strict=True))


def _pad(node: Node) -> Shape:
    given, pads = node.shape(), node.whole(1, "pads")
    assert pads is not None
    axes = _axes(node.whole(3), len(given))
    if len(pads) != 2 * len(axes):
        raise ValueError("pads")
    found = list(given)
    for place, axis in enumerate(axes):
        found[axis] += pads[place] + pads[place + len(axes)]
    return tuple(found)


def _resize(node: Node) -> Shape:
    given = node.shape()
    axes = _axes(node.get("axes", None), len(given))
    found = list(given)
    if node.has(3):
        sizes = node.whole(3) or []
        for axis, size in zip(axes, sizes, strict=True):
            found[axis] = size if node.get("keep_aspect_ratio_policy", b"stretch") == b"stretch" else -1
    else:
        scales = np.ravel(node.numbers(2 if len(node.inputs) > 2 else 1))
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            found[axis] = math.floor(given[axis] * scale)
    return _positive(found)


def _depth_to_space(node: Node) -> Shape:
    (rows, channels, height, width), block = node.shape(), node.attributes["blocksize"]
    return (rows, channels // block**2, height * block, width * block)


def _space_to_depth(node: Node) -> Shape:
    (rows, channels, height, width), block = node.shape(), node.attributes["blocksize"]
    return (rows, channels * block**2, height // block, width // block)


def _shape(node: Node) -> Shape:
    return (len(dimensions(node)),)


def dimensions(node: Node) -> Shape:
    """The dimensions that a Shape gives."""
    return node.shape()[node.get("start", 0) : node.get("end", None)]


def _constant_of_shape(node: Node) -> Shape:
    return _positive(node.whole(0) or [])


def _range(node: Node) -> Shape:
    start, limit, step = (float(np.ravel(node.numbers(index))[0]) for index in range(3))
    return (max(0, math.ceil((limit - start) / step)),)


def _one_hot(node: Node) -> Shape:
    given, depth = node.shape(), node.whole(1)
    assert depth is not None
    axis = _axis(node.get("axis", -1), len(given) + 1)
    return (*given[:axis], *_positive(depth[:1]), *given[axis:])


def _attention(node: Node) -> Shape:
    query, value = node.shape(0), node.shape(2)
    if len(query) == 4:
        return (*query[:3], value[3])
    heads, groups = node.attributes["q_num_heads"], node.attributes["kv_num_heads"]
    return (*query[:2], value[2] // groups * heads)


def _positive(sizes: Sequence[int]) -> Shape:
    if min(sizes, default=0) < 0:
        raise ValueError(f"a dimension is negative: {list(sizes)}")
    return tuple(sizes)


_RULES: dict[Callable[[Node], Shape], str] = {
    _same: "Abs BatchNormalization Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Dropout "
    "DynamicQuantizeLinear Elu Erf Exp EyeLike Floor Gelu GroupNormalization HardSigmoid HardSwish Identity "
    "InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization "
    "MeanVarianceNormalization Mish Neg Not PRelu QuantizeLinear RMSNormalization Reciprocal Relu "
    "RotaryEmbedding Round ScatterElements ScatterND Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt "
    "Swish Tan Tanh ThresholdedRelu Trilu",
    _broadcast: "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow Sub Sum "
    "Where Xor",
    _matmul: "MatMul MatMulInteger QLinearMatMul",
    _gemm: "Gemm",
    _einsum: "Einsum",
    _conv: "Conv ConvInteger",
    _conv_transpose: "ConvTranspose",
    _pool: "AveragePool MaxPool",
    _global_pool: "GlobalAveragePool GlobalMaxPool",
    _reduce: "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare",
    _arg: "ArgMax ArgMin",
    _reshape: "Reshape",
    _flatten: "Flatten",
    _transpose: "Transpose",
    _squeeze: "Squeeze",
    _unsqueeze: "Unsqueeze",
    _concat: "Concat",
    _slice: "Slice",
    _gather: "Gather",
    _gather_nd: "GatherND",
    _expand: "Expand",
    _tile: "Tile",
    _pad: "Pad",
    _resize: "Resize",
    _depth_to_space: "DepthToSpace",
    _space_to_depth: "SpaceToDepth",
    _shape: "Shape",
    _constant_of_shape: "ConstantOfShape",
    _range: "Range",
    _one_hot: "OneHot",
    _attention: "Attention",
    lambda node: node.shape(1): "GatherElements",
    lambda node: (): "Size",
    lambda node: split_shapes(node)[0]: "Split",
    lambda node: node.attributes["value"].shape: "Constant",
}

SHAPE_OF: Mapping[str, Callable[[Node], Shape]] = {
    name: rule for rule, names in _RULES.items() for name in names.split()
}
"""The rule of every operator that a graph may use."""
