"""The parts of an ONNX file that an engine depends on, read from its bytes without the onnx package.

An ONNX file is a protobuf message (onnx.proto): a list of fields with a number and a value, where a value may be a
message again. Two exports of the same network may differ in notes, stack traces and local file names. Those fields are
left out, and the rest is hashed as a tree, with the fields in the order of their numbers:

    digest(message) = sha256(for each field: number, kind, value or digest of the message it holds)

Names of nodes and values are included, because nodes refer to each other by name. Weights in a file beside the graph
count with their offset and length; the bundle's manifest has a hash of their bytes.
"""

import hashlib
import math
from dataclasses import dataclass

from fastdc.backends.onnx.wire import Field, fields, message, varints
from fastdc.backends.rounding import rounding_tolerance
from fastdc.support import BundleError

# Kinds of messages and, by field number, the kind of message that a field holds (onnx.proto, IR version 13).
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {13: "entry"},
    "value": {},
    "entry": {},
}

# Fields without effect on the computation: producer and version, names of graphs, notes, metadata, and shapes that are
# only annotations.
_NOTES: dict[str, frozenset[int]] = {
    "model": frozenset({2, 3, 4, 5, 6, 14}),
    "graph": frozenset({2, 10, 13, 16}),
    "function": frozenset({8, 12, 14}),
    "node": frozenset({6, 9}),
    "attribute": frozenset({13}),
    "tensor": frozenset({12, 16}),
    "value": frozenset({3, 4}),
    "entry": frozenset(),
}
_IGNORED_ENTRIES = (b"location", b"checksum")  # where weights lie, not their values
_WEIGHT_TYPES = frozenset({1, 2, 3, 10, 16})  # float32, uint8, int8, float16, bfloat16
_MAX_DEPTH = 64


@dataclass(frozen=True)
class GraphFacts:
    """Facts of a graph.

    Attributes:
        digest: sha256 of the computation, hexadecimal.
        opset: Version of ONNX's operators.
        fan_in: Number of products that each weight with two or more dimensions sums for one output.
    """

    digest: str
    opset: int
    fan_in: tuple[int, ...]


def read_graph(content: bytes) -> GraphFacts:
    """The facts of an ONNX file.

    Raises:
        BundleError: The bytes are not the protobuf message of a model.
    """
    try:
        model = list(fields(memoryview(content)))
        digest = _digest("model", model, 0).hex()
        opset = max((_opset(value) for number, _, value in model if number == 8), default=0)
        graph = next(value for number, kind, value in model if number == 7 and kind == 2)
        fan_in = tuple(
            sum_length
            for number, _, value in fields(message(graph))
            if number == 5 and (sum_length := _fan_in(message(value))) is not None
        )
    except (IndexError, ValueError, StopIteration) as error:
        raise BundleError(f"the network's graph is not an ONNX file: {error or 'it ends early'}") from None
    return GraphFacts(digest, opset, fan_in)


def tolerance(facts: GraphFacts, precision: str, *, tf32: bool = False) -> float:
    """Difference between two engines, relative to the largest output, that rounding explains.

    The formula is in :mod:`fastdc.backends.rounding`.

    Args:
        facts: Facts of the graph.
        precision: Precision of the bundle.
        tf32: Whether float32 products are computed in TF32.
    """
    return rounding_tolerance(facts.fan_in, "tf32" if tf32 and precision == "float32" else precision)


def _digest(kind: str, parts: list[Field], depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise ValueError("its messages are nested too deeply")
    children, notes = _CHILDREN[kind], _NOTES[kind]
    total = hashlib.sha256()
    for number, wire, value in sorted(parts, key=_number):
        if number in notes:
            continue
        child = children.get(number)
        if child is None or wire != 2:
            text = value.to_bytes(8, "little") if isinstance(value, int) else value
        else:
            inner = list(fields(message(value)))
            if child == "entry" and any(
                key == 1 and bytes(message(name)) in _IGNORED_ENTRIES for key, _, name in inner
            ):
                continue
            text = _digest(child, inner, depth + 1)
        total.update(b"%d:%d:%d:" % (number, wire, len(text)))
        total.update(text)
    return total.digest()


def _number(field: Field) -> int:
    return field[0]


def _opset(value: "int | memoryview") -> int:
    """Version of an operator set if it is ONNX's own, else 0."""
    parts = {number: content for number, _, content in fields(message(value))}
    version = parts.get(2, 0)
    return version if isinstance(version, int) and not len(message(parts.get(1, memoryview(b"")))) else 0


def _fan_in(tensor: memoryview) -> int | None:
    """Number of products that a weight sums for one output; None if the tensor is not a weight.

    It is the product of all dimensions but the first; of two dimensions it is the longer, since either may be first.
    """
    dims: list[int] = []
    element = 0
    for number, wire, value in fields(tensor):
        if number == 1:
            dims += [value] if isinstance(value, int) else varints(value)
        elif number == 2 and wire == 0 and isinstance(value, int):
            element = value
    if element not in _WEIGHT_TYPES or len(dims) < 2:
        return None
    return max(dims) if len(dims) == 2 else math.prod(dims[1:])
