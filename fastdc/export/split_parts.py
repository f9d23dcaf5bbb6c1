"""Cuts a graph into parts: finds the inputs that each node depends on, and makes a graph of some of the nodes.

A node depends on data (the image, its noise level, the class) or on none, as weights do, and numbers that follow from
the size of the batch alone, such as the target of a Reshape. Nodes that depend on no data are copied into every part
that reads them. If such a chain starts at ``Shape`` of a value that the part does not have, the size is taken from an
input of the part: every dimension is either a number or a multiple of the batch. To tell which, all shapes are inferred
twice, with different numbers for the batch and for the conditions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastdc.export.flops import Value, infer_values, node_flops
from fastdc.support import require

require("onnx", extra="export")

import onnx  # noqa: E402
from onnx import helper  # noqa: E402

IMAGE, CLASS = 1, 2
"""Bits of the data that a value depends on: the noisy image and its level; the condition."""

# A dimension is a multiple of the batch if it is 2 a at the first batch and 3 a at the second. The number of conditions
# changes in another ratio.
_BATCHES, _CONDITIONS = (2, 3), (5, 7)
_BATCH_NAME = "split.batch"


@dataclass(frozen=True)
class Dependence:
    """The data that each value and node of a denoiser's graph depends on.

    Attributes:
        of: Bits :data:`IMAGE` and :data:`CLASS` of each value; weights and values that follow from sizes have none.
        nodes: The bits of each node, in order.
        sizes: The dimensions that each ``Shape`` node returns if they are known without its input, by its place, as
            (number, multiple of the batch); one of the two is zero.
        flops: Operations per row of each node.
        values: Types, and shapes at a batch of two.
        rows: Values whose first dimension is the batch while no other depends on it.
    """

    of: Mapping[str, int]
    nodes: tuple[int, ...]
    sizes: Mapping[int, tuple[tuple[int, int], ...]]
    flops: tuple[int, ...]
    values: Mapping[str, Value]
    rows: frozenset[str]

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a value of :attr:`rows`."""
        return self.values[name].bytes() // _BATCHES[0]


def find_dependence(model: onnx.ModelProto, inputs: Mapping[str, int]) -> Dependence:
    """Analyses a graph.

    Args:
        model: A denoiser's graph; the first dimension of tables is the number of conditions, of other inputs the batch.
        inputs: The data that each input stands for: :data:`IMAGE` or :data:`CLASS`.
    """
    few, more = (infer_values(model, _shapes(model, b, k)) for b, k in zip(_BATCHES, _CONDITIONS, strict=True))
    dims = {name: _dimensions(few[name], more.get(name)) for name in few}
    of = dict(inputs)
    nodes, flops = [], []
    sizes = {}
    for place, node in enumerate(model.graph.node):
        bits = 0
        for name in reads(node):
            bits |= of.get(name, 0)
        known = dims.get(node.input[0]) if node.op_type == "Shape" else None
        if bits and known is not None:
            sizes[place] = _shape_slice(node, known)
            bits = 0
        of.update(dict.fromkeys(node.output, bits))
        nodes.append(bits)
        low, high = node_flops(node, few), node_flops(node, more)
        flops.append(0 if low is None or high is None else max(0, high - low))
    rows = frozenset(
        name
        for name, known in dims.items()
        if of.get(name) and known and known[0] == (0, 1) and all(multiple == 0 for _, multiple in known[1:])
    )
    return Dependence(of, tuple(nodes), sizes, tuple(flops), few, rows)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, including those that graphs inside it take from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {item.name for item in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in reads(inner) if name not in made)
                made.update(inner.output)
            yield from (item.name for item in graph.output if item.name not in made)


@dataclass(frozen=True)
class Port:
    """An input or output of a part.

    Attributes:
        name: Its name outside.
        value: Name of the same value in the whole graph.
        by: For an input of the last part, the input that holds the numbers of the rows to fetch; "" otherwise.
    """

    name: str
    value: str
    by: str = ""


def part(
    model: onnx.ModelProto,
    found: Dependence,
    chosen: Sequence[int],
    *,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[tuple[Port, onnx.ValueInfoProto]],
    fetched: Sequence[Port] = (),
    size_of: str,
) -> onnx.ModelProto:
    """A graph of some nodes of a model, with copies of the nodes that they need and that depend on no data.

    Args:
        model: The whole graph.
        found: Dependence of the whole graph.
        chosen: Places of nodes that depend on data.
        inputs: Inputs of the part.
        outputs: Outputs of the part, with their declarations.
        fetched: Inputs from which rows are gathered.
        size_of: The input whose first dimension is the part's batch.
    """
    given = {item.name for item in inputs} - {port.name for port in fetched} | {port.value for port in fetched}
    nodes, needed = _needed(model, found, chosen, {port.value for port, _ in outputs}, given)
    graph = onnx.GraphProto(name=model.graph.name)
    graph.input.extend(inputs)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    for port in fetched:
        graph.node.append(
            helper.make_node("Gather", [port.name, port.by], [port.value], axis=0, name=f"get.{port.name}")
        )
    if any(any(multiple for _, multiple in found.sizes.get(place, ())) for place in nodes):
        graph.node.append(helper.make_node("Shape", [size_of], [_BATCH_NAME], start=0, end=1, name=_BATCH_NAME))
    renamed = {port.value: port.name for port, _ in outputs if port.value not in given}
    for place in nodes:
        node = model.graph.node[place]
        if place in found.sizes:
            _add_size(graph, node.output[0], found.sizes[place])
        else:
            graph.node.append(_rename(node, renamed))
    for port, declared in outputs:
        if port.value in given:
            graph.node.append(helper.make_node("Identity", [port.value], [port.name], name=f"put.{port.name}"))
        graph.output.append(declared)
    whole = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, graph=graph)
    whole.producer_version = model.producer_version
    whole.opset_import.extend(model.opset_import)
    whole.functions.extend(model.functions)
    return whole


def _needed(
    model: onnx.ModelProto, found: Dependence, chosen: Sequence[int], wanted: set[str], given: set[str]
) -> tuple[list[int], set[str]]:
    """Places of the nodes of a part, in order, and the names that it reads."""
    mine = set(chosen)
    needed = set(wanted)
    nodes = []
    for place in range(len(found.nodes) - 1, -1, -1):
        node = model.graph.node[place]
        made_here = place in mine or found.nodes[place] == 0
        if made_here and any(name in needed and name not in given for name in node.output if name):
            nodes.append(place)
            needed.update(() if place in found.sizes else reads(node))
    return nodes[::-1], needed


def _add_size(graph: onnx.GraphProto, name: str, size: Sequence[tuple[int, int]]) -> None:
    """Makes the value of this name: number + multiple * batch, per dimension."""
    numbers, multiples = ([pair[k] for pair in size] for k in range(2))
    if not any(multiples):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(size)], numbers))
        return
    for suffix, data in (("numbers", numbers), ("multiples", multiples)):
        graph.initializer.append(helper.make_tensor(f"{name}.{suffix}", onnx.TensorProto.INT64, [len(size)], data))
    scaled = f"{name}.scaled"
    graph.node.append(helper.make_node("Mul", [_BATCH_NAME, f"{name}.multiples"], [scaled], name=scaled))
    graph.node.append(helper.make_node("Add", [scaled, f"{name}.numbers"], [name], name=name))


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    if not names.keys() & {*reads(node), *node.output}:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename_in_place(copy, names)
    return copy


def _rename_in_place(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    # Names are unique in a graph and the graphs inside its nodes, so a name means the same value everywhere.
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename_in_place(inner, names)
            for item in graph.output:
                item.name = names.get(item.name, item.name)


def _shapes(model: onnx.ModelProto, batch: int, conditions: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs; every input except the denoiser's three is a table."""
    shapes = {}
    for value in model.graph.input:
        first = batch if value.name in ("sample", "timestep", "class_labels") else conditions
        shapes[value.name] = (first, *(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim[1:]))
    return shapes


def _dimensions(few: Value, more: Value | None) -> tuple[tuple[int, int], ...] | None:
    """Each dimension as (number, multiple of the batch); None if one is neither."""
    if more is None or few.shape is None or more.shape is None or len(few.shape) != len(more.shape):
        return None
    dims = []
    for low, high in zip(few.shape, more.shape, strict=True):
        if low == high:
            dims.append((low, 0))
        elif low * _BATCHES[1] == high * _BATCHES[0] and low % _BATCHES[0] == 0:
            dims.append((0, low // _BATCHES[0]))
        else:
            return None
    return tuple(dims)


def _shape_slice(node: onnx.NodeProto, dims: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    options = {attribute.name: int(attribute.i) for attribute in node.attribute}
    return dims[slice(options.get("start", 0), options.get("end"))]
