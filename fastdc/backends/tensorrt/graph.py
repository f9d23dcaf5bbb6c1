"""What an engine depends on in an ONNX file, read from its bytes without the onnx package.

An ONNX file is a protobuf message (onnx.proto): fields of a number and a value, some of them messages again. Two
exports of the same network may differ in notes, stack traces and local file names, so those fields are left out and the
rest is hashed as a tree, fields in the order of their numbers:

    digest(message) = sha256(for each field: number, kind, value or digest of the message it holds)

Names of nodes and values stay in: they are how one node refers to another. Weights in a file beside the graph count
with offset and length; their bytes have a hash of their own in the bundle's manifest.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

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

# Fields without a meaning for the computation: producer and version, names of graphs, notes, metadata, shapes that are
# annotations.
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
_IGNORED_ENTRIES = (b"location", b"checksum")  # where weights lie is not what they are
_WEIGHT_TYPES = frozenset({1, 2, 3, 10, 16})  # float32, uint8, int8, float16, bfloat16
_MAX_DEPTH = 64


@dataclass(frozen=True)
class GraphFacts:
    """What is known of a graph.

    Attributes:
        digest: sha256 of the computation, hexadecimal.
        opset: Version of ONNX's operators.
        fan_in: Products that each weight of at least two dimensions sums up for an output.
    """

    digest: str
    opset: int
    fan_in: tuple[int, ...]


Field = tuple[int, int, "int | memoryview"]
"""Number, wire kind (0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes) and value."""


def read_graph(content: bytes) -> GraphFacts:
    """The facts of an ONNX file.

    Raises:
        BundleError: The bytes are no protobuf message of a model.
    """
    try:
        model = list(_fields(memoryview(content)))
        digest = _digest("model", model, 0).hex()
        opset = max((_opset(value) for number, _, value in model if number == 8), default=0)
        graph = next(value for number, kind, value in model if number == 7 and kind == 2)
        fan_in = tuple(
            sum_length
            for number, _, value in _fields(_message(graph))
            if number == 5 and (sum_length := _fan_in(_message(value))) is not None
        )
    except (IndexError, ValueError, StopIteration) as error:
        raise BundleError(f"the network's graph is not an ONNX file: {error or 'it ends early'}") from None
    return GraphFacts(digest, opset, fan_in)


def tolerance(facts: GraphFacts, precision: str, *, tf32: bool = False) -> float:
    """Difference, relative to the largest output, that rounding alone may cause between two engines.

    See :mod:`fastdc.backends.rounding`.

    Args:
        facts: Of the graph.
        precision: Of the bundle.
        tf32: float32 is multiplied in TF32.
    """
    return rounding_tolerance(facts.fan_in, "tf32" if tf32 and precision == "float32" else precision)


def _digest(kind: str, fields: list[Field], depth: int) -> bytes:
    if depth > _MAX_DEPTH:
        raise ValueError("its messages are nested too deeply")
    children, notes = _CHILDREN[kind], _NOTES[kind]
    total = hashlib.sha256()
    for number, wire, value in sorted(fields, key=_number):
        if number in notes:
            continue
        child = children.get(number)
        if child is None or wire != 2:
            text = value.to_bytes(8, "little") if isinstance(value, int) else value
        else:
            inner = list(_fields(_message(value)))
            if child == "entry" and any(
                key == 1 and bytes(_message(name)) in _IGNORED_ENTRIES for key, _, name in inner
            ):
                continue
            text = _digest(child, inner, depth + 1)
        total.update(b"%d:%d:%d:" % (number, wire, len(text)))
        total.update(text)
    return total.digest()


def _number(field: Field) -> int:
    return field[0]


def _message(value: "int | memoryview") -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message is due")
    return value


def _opset(value: "int | memoryview") -> int:
    """The version of an operator set of ONNX itself, 0 of another's."""
    fields = {number: content for number, _, content in _fields(_message(value))}
    version = fields.get(2, 0)
    return version if isinstance(version, int) and not len(_message(fields.get(1, memoryview(b"")))) else 0


def _fan_in(tensor: memoryview) -> int | None:
    """Products a weight sums for an output: all but the first dimension, or the longer of two (either may be first)."""
    dims: list[int] = []
    element = 0
    for number, wire, value in _fields(tensor):
        if number == 1:
            dims += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and wire == 0 and isinstance(value, int):
            element = value
    if element not in _WEIGHT_TYPES or len(dims) < 2:
        return None
    return max(dims) if len(dims) == 2 else math.prod(dims[1:])


def _varints(packed: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 2**64:
                raise ValueError("a number is too large")
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(content: memoryview) -> Iterator[Field]:
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            yield number, wire, value
            continue
        if wire == 2:
            length, at = _varint(content, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of kind {wire} is unknown")
        if at + length > end:
            raise ValueError("it ends early")
        yield number, wire, content[at : at + length]
        at += length
