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

import numpy as np

from fastdc.backends.onnx.node import Node, Shape, exact, positive
from fastdc.backends.onnx.windows import conv, conv_transpose, pool

_LARGEST_SCALE = 2**20
_ATTENTION_INPUTS = 4  # queries, keys, values and a mask


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
    terms = operands.split(",")
    sizes: dict[str, Shape] = {"...": ()}  # of a letter: one dimension
    for index, term in enumerate(terms):
        before, dots, after = term.partition("...")
        if not (before + after).isalpha() and before + after:
            raise ValueError(f"equation {equation!r:.80}")
        given, rest = node.shape(index), len(node.shape(index)) - len(after)
        if len(before) > rest or (not dots and len(before) != rest):
            raise ValueError(f"equation {equation!r:.80}")
        parts = [*zip(before, given, strict=False), *zip(after, given[rest:], strict=True)]
        for name, size in [*((letter, (one,)) for letter, one in parts), (dots, given[len(before) : rest])]:
            sizes[name] = np.broadcast_shapes(size, sizes.get(name, (1,)[: len(size)]))
    if "->" not in equation:
        once = [letter for letter in set(operands) - {*",."} if operands.count(letter) == 1]
        result = "..." * ("..." in operands) + "".join(sorted(once))
    before, dots, after = result.partition("...")
    if len(set(before + after)) != len(before + after):
        raise ValueError(f"equation {equation!r:.80}")
    return tuple(size for name in (*before, dots, *after) for size in sizes[name or "..."] if name)


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
    return np.broadcast_shapes(node.shape(), positive(target))


def _tile(node: Node) -> Shape:
    given, times = node.shape(), node.whole(1)
    assert times is not None
    return tuple(size * many for size, many in zip(given, positive(times), strict=True))


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
            if not 0 < scale < _LARGEST_SCALE:
                raise ValueError("scales")
            found[axis] = math.floor(given[axis] * scale)
            if found[axis] != math.floor(np.float32(given[axis]) * np.float32(scale)):
                raise ValueError("a size depends on how a product is rounded")
    return positive(found)


def _depth_to_space(node: Node) -> Shape:
    (rows, channels, height, width), block = node.shape(), node.attributes["blocksize"]
    if channels % block**2:
        raise ValueError("the blocks do not fit")
    return (rows, channels // block**2, height * block, width * block)


def _space_to_depth(node: Node) -> Shape:
    (rows, channels, height, width), block = node.shape(), node.attributes["blocksize"]
    if height % block or width % block:
        raise ValueError("the blocks do not fit")
    return (rows, channels * block**2, height // block, width // block)


def _shape(node: Node) -> Shape:
    return (len(dimensions(node)),)


def dimensions(node: Node) -> Shape:
    """The dimensions that a Shape gives."""
    return node.shape()[node.get("start", 0) : node.get("end", None)]


def _constant_of_shape(node: Node) -> Shape:
    return positive(node.whole(0) or [])


def _range(node: Node) -> Shape:
    start, limit, step = (np.ravel(node.numbers(index))[0].item() for index in range(3))
    if isinstance(start, int):
        return (max(0, -((start - exact(limit)) // exact(step))),)
    size = math.ceil((limit - start) / step)
    if size != math.ceil(np.float32(np.float32(limit) - np.float32(start)) / np.float32(step)):
        raise ValueError("a size depends on how a difference is rounded")
    return (max(0, size),)


def _one_hot(node: Node) -> Shape:
    given, depth = node.shape(), node.whole(1)
    assert depth is not None
    axis = _axis(node.get("axis", -1), len(given) + 1)
    return (*given[:axis], *positive(depth[:1]), *given[axis:])


def _attention(node: Node) -> Shape:
    """One output of queries, keys and values of the same layout, without those of earlier calls."""
    (rows, *query), value = _heads(node)[0], _heads(node)[2]
    if node.outputs > 1 or len(node.inputs) > _ATTENTION_INPUTS:
        raise ValueError("attention with earlier keys, or several outputs")
    if len(node.shape()) == len(("row", "head", "token", "feature")):
        return (rows, *query[:2], value[3])
    return (rows, query[1], query[0] * value[3])


def _heads(node: Node) -> list[Shape]:
    """Shapes (rows, heads, tokens, features) of the queries, keys and values of an Attention."""
    found = []
    for index, name in enumerate(("q_num_heads", "kv_num_heads", "kv_num_heads")):
        shape = node.shape(index)
        if len(shape) == len(("row", "token", "features")):
            heads = node.attributes[name]
            if shape[2] % heads:
                raise ValueError("the heads do not fit")
            shape = (shape[0], heads, shape[1], shape[2] // heads)
        elif len(shape) != len(("row", "head", "token", "feature")):
            raise ValueError("attention of other dimensions")
        found.append(shape)
    (rows, many, _, features), key, value = found
    if key[:3] != value[:3] or (key[0], key[3]) != (rows, features) or not key[1] or many % key[1]:
        raise ValueError("queries, keys and values do not fit")
    return found


def scratch_of(node: Node) -> Shape:
    """Dimensions of what a library may hold while it computes a node, besides its inputs and outputs.

    These are all windows of a convolution in a matrix, the scores of an attention, and the product of three operands.
    """
    name = node.operator
    if name in ("Conv", "ConvInteger"):
        return (*node.shape(1)[1:], *conv(node)[2:])
    if name == "ConvTranspose":
        return (*node.shape(1)[1:], *node.shape(0)[2:])
    if name == "Attention":
        query, key, value = _heads(node)
        return (*query[:3], max(key[2], key[3], value[3]))
    if name == "Einsum" and len(node.inputs) > len(("first", "second")):
        return tuple(size for index in range(len(node.inputs)) for size in node.shape(index))
    return ()


_RULES: dict[Callable[[Node], Shape], str] = {
    _same: "Abs BatchNormalization Cast CastLike Ceil Celu Clip Cos CumSum DequantizeLinear Dropout "
    "DynamicQuantizeLinear Elu Erf Exp EyeLike Floor Gelu GroupNormalization HardSigmoid HardSwish Identity "
    "InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization "
    "MeanVarianceNormalization Mish Neg Not QuantizeLinear RMSNormalization Reciprocal Relu "
    "RotaryEmbedding Round ScatterElements ScatterND Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt "
    "Swish Tan Tanh ThresholdedRelu Trilu",
    _broadcast: "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum "
    "Where Xor",
    _matmul: "MatMul MatMulInteger QLinearMatMul",
    _gemm: "Gemm",
    _einsum: "Einsum",
    conv: "Conv ConvInteger",
    conv_transpose: "ConvTranspose",
    pool: "AveragePool MaxPool",
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
