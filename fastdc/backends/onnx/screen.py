"""What a graph of a bundle may hold, checked on its bytes before any library is given them.

A library that loads a graph reads the files that it names, runs the graphs inside its nodes, and computes everything
that depends on no input. A graph passes here only if

* its bytes are a ModelProto as writers emit it (:mod:`fastdc.backends.onnx.wire`), with the fields that a network
  needs: no functions, no graphs inside nodes, no sparse tensors, no training;
* every operator is one of :mod:`fastdc.backends.onnx.shapes`, of ONNX's own set;
* weights have as many bytes as their dimensions say, in the graph or in ``denoiser.data``, inside that file;
* every value is made before it is used, has a shape that is known, and no more than ``MOST_ELEMENTS`` elements at one
  row per symbolic dimension;
* values that depend on no input have together no more than ``MOST_FIXED`` elements beyond those of the weights.

What remains is work: a graph within these limits may still take long, or more memory at larger batches. Ctrl-C ends it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.backends.onnx.followed import FLOAT, FLOATS, FOLLOWED, INT64, NUMBERS_OF, kind_of
from fastdc.backends.onnx.shapes import MOST_FOLLOWED, SHAPE_OF, Node, Shape, Value, split_shapes
from fastdc.backends.onnx.wire import BYTES, EIGHT, FOUR, VARINT, Known, Reader, message, varints
from fastdc.bundle import DATA

MOST_NODES = 20_000
"""Nodes of a graph. Stable Diffusion XL has about five thousand."""

MOST_ELEMENTS = 2**30
"""Elements of a value at one row. Attention over the 4429 tokens of Stable Diffusion 3 has 2**29."""

MOST_FIXED = 2**25
"""Elements of all values that depend on no input, beyond as many as the weights have."""

_MOST_FIELDS = 2_000_000
_MOST_DIMENSION = 2**48

_B, _V = (BYTES,), (VARINT,)
_MODEL: Known = {
    1: ("ir_version", _V, False),
    2: ("producer_name", _B, False),
    3: ("producer_version", _B, False),
    4: ("domain", _B, False),
    5: ("model_version", _V, False),
    6: ("doc_string", _B, False),
    7: ("graph", _B, False),
    8: ("opset_import", _B, True),
    14: ("metadata_props", _B, True),
}
_OPSET: Known = {1: ("domain", _B, False), 2: ("version", _V, False)}
_GRAPH: Known = {
    1: ("node", _B, True),
    2: ("name", _B, False),
    5: ("initializer", _B, True),
    10: ("doc_string", _B, False),
    11: ("input", _B, True),
    12: ("output", _B, True),
    13: ("value_info", _B, True),
    14: ("quantization_annotation", _B, True),
    16: ("metadata_props", _B, True),
}
_NODE: Known = {
    1: ("input", _B, True),
    2: ("output", _B, True),
    3: ("name", _B, False),
    4: ("op_type", _B, False),
    5: ("attribute", _B, True),
    6: ("doc_string", _B, False),
    7: ("domain", _B, False),
    9: ("metadata_props", _B, True),
}
_ATTRIBUTE: Known = {
    1: ("name", _B, False),
    2: ("f", (FOUR,), False),
    3: ("i", _V, False),
    4: ("s", _B, False),
    5: ("t", _B, False),
    7: ("floats", (FOUR, BYTES), True),
    8: ("ints", (VARINT, BYTES), True),
    13: ("doc_string", _B, False),
    20: ("type", _V, False),
}
_TENSOR: Known = {
    1: ("dims", (VARINT, BYTES), True),
    2: ("data_type", _V, False),
    4: ("float_data", (FOUR, BYTES), True),
    5: ("int32_data", (VARINT, BYTES), True),
    7: ("int64_data", (VARINT, BYTES), True),
    8: ("name", _B, False),
    9: ("raw_data", _B, False),
    10: ("double_data", (EIGHT, BYTES), True),
    11: ("uint64_data", (VARINT, BYTES), True),
    12: ("doc_string", _B, False),
    13: ("external_data", _B, True),
    14: ("data_location", _V, False),
    16: ("metadata_props", _B, True),
}
_ENTRY: Known = {1: ("key", _B, False), 2: ("value", _B, False)}
_INPUT: Known = {
    1: ("name", _B, False),
    2: ("type", _B, False),
    3: ("doc_string", _B, False),
    4: ("metadata_props", _B, True),
}
_TYPE: Known = {1: ("tensor_type", _B, False), 6: ("denotation", _B, False)}
_TENSOR_TYPE: Known = {1: ("elem_type", _V, False), 2: ("shape", _B, False)}
_SHAPE: Known = {1: ("dim", _B, True)}
_DIM: Known = {1: ("dim_value", _V, False), 2: ("dim_param", _B, False), 3: ("denotation", _B, False)}

# Bytes of an element and the field that may hold it instead of raw bytes, by ONNX's number of the type. Texts, complex
# numbers and types of less than a byte are in no denoiser.
_ELEMENTS: dict[int, tuple[int, str]] = {
    1: (4, "float_data"),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), (1, "int32_data")),
    **dict.fromkeys((4, 5, 10, 16), (2, "int32_data")),
    6: (4, "int32_data"),
    7: (8, "int64_data"),
    11: (8, "double_data"),
    12: (4, "uint64_data"),
    13: (8, "uint64_data"),
}
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_FIXED_WIDTH = {"float_data": np.float32, "double_data": np.float64}

_Fields = dict[str, list["int | memoryview"]]


@dataclass(frozen=True)
class External:
    """A weight in ``denoiser.data``.

    Attributes:
        name: Name of the tensor.
        kind: ONNX's number of its element type.
        shape: Its dimensions.
        offset: Place of its first byte in the file.
        length: Number of its bytes.
    """

    name: str
    kind: int
    shape: Shape
    offset: int
    length: int


def screen(content: bytes, data_bytes: int | None) -> tuple[External, ...]:
    """Refuses a graph that holds more than a network needs.

    Args:
        content: Content of the graph's file.
        data_bytes: Size of ``denoiser.data``; None if the bundle has none.

    Returns:
        The weights that lie in ``denoiser.data``.

    Raises:
        ValueError: The graph does not pass; the message says why.
    """
    screening = _Screening(data_bytes)
    screening.graph_of(memoryview(content))
    return tuple(screening.external)


def screened_values(content: bytes, data_bytes: int | None = None) -> Mapping[str, Value]:
    """The values of a graph that passes, by name; the arguments are those of :func:`screen`."""
    screening = _Screening(data_bytes)
    screening.graph_of(memoryview(content))
    return screening.values


class _Screening:
    """The check of one graph."""

    def __init__(self, data_bytes: int | None) -> None:
        self._data_bytes = data_bytes
        self._reader = Reader(_MOST_FIELDS)
        self.external: list[External] = []
        self.values: dict[str, Value] = {}
        self._fixed = MOST_FIXED  # elements that may still be made of no input

    def graph_of(self, content: memoryview) -> None:
        model = self._reader.read(content, "ModelProto", _MODEL)
        if "graph" not in model:
            raise ValueError("it has no graph")
        for given in model.get("opset_import", []):
            self._reader.read(message(given), "OperatorSetIdProto", _OPSET)
        graph = self._reader.read(message(model["graph"][0]), "GraphProto", _GRAPH)
        nodes = graph.get("node", [])
        if len(nodes) > MOST_NODES:
            raise ValueError(f"it has {len(nodes)} nodes, at most {MOST_NODES} are read")
        for given in graph.get("initializer", []):
            name, value = self._tensor(message(given), shared=True)
            self._define(name, value)
            self._fixed += math.prod(value.shape)
        for given in graph.get("input", []):
            self._input(message(given))
        for given in graph.get("output", []):
            self._declared(message(given))
        for given in nodes:
            self._node(message(given))

    def _define(self, name: str, value: Value) -> None:
        if name in self.values:
            raise ValueError(f"value {name!r:.80} is made twice")
        self.values[name] = value

    def _input(self, content: memoryview) -> None:
        """An input, with one row in each symbolic dimension."""
        name, shape, kind = self._declared(content)
        if name not in self.values:  # it may be a weight, as in old graphs
            self._define(name, self._sized(f"input {name!r:.80}", shape, kind))

    def _declared(self, content: memoryview) -> tuple[str, Shape, int]:
        """Name, shape and element type of an input or output; the names must be texts, which Python is given."""
        given = self._reader.read(content, "ValueInfoProto", _INPUT)
        tensor = self._inner(self._inner(given, "type", _TYPE), "tensor_type", _TENSOR_TYPE)
        shape = []
        for one in self._inner(tensor, "shape", _SHAPE).get("dim", []):
            dim = self._reader.read(message(one), "Dimension", _DIM)
            _text(dim, "dim_param")
            shape.append(_size(dim.get("dim_value", [1])[0]))
        return _text(given, "name"), tuple(shape), _number(tensor, "elem_type")

    def _inner(self, fields: _Fields, name: str, known: Known) -> _Fields:
        return self._reader.read(message(fields[name][0]), name, known) if name in fields else {}

    def _node(self, content: memoryview) -> None:
        given = self._reader.read(content, "NodeProto", _NODE)
        operator, domain = _text(given, "op_type"), _text(given, "domain")
        if domain not in ("", "ai.onnx") or operator not in SHAPE_OF:
            raise ValueError(
                f"operator {f'{domain}.' if domain else ''}{operator or '?'!s:.80} is not one of a denoiser's"
            )
        names, made = _texts(given, "input"), _texts(given, "output")
        what = f"{operator} {_text(given, 'name') or (made or ['?'])[0]!r:.80}"
        missing = [name for name in names if name and name not in self.values]
        if missing:
            raise ValueError(f"{what} reads {missing[0]!r:.80}, which nothing before it makes")
        inputs = [self.values[name] if name else None for name in names]
        attributes = dict(self._attribute(message(one)) for one in given.get("attribute", []))
        if len(attributes) != len(given.get("attribute", [])):
            raise ValueError(f"{what} has an attribute twice")
        if operator == "Constant" and "value" not in attributes:
            attributes = {"value": _constant(attributes)}
        node = Node(operator, inputs, attributes, len(made))
        if operator in ("Div", "Mod") and not _divides_safely(inputs):
            raise ValueError(f"{what} divides whole numbers by what is not known to be positive")
        for name, value in zip(made, self._outputs(what, node), strict=False):
            if name:
                self._define(name, value)

    def _outputs(self, what: str, node: Node) -> list[Value]:
        # Shapes count as well: a library knows all but their rows when it loads the graph.
        fixed = node.operator in ("Shape", "Size") or all(value is None or value.fixed for value in node.inputs)
        try:
            with np.errstate(all="ignore"):
                shapes = split_shapes(node) if node.operator == "Split" else [SHAPE_OF[node.operator](node)]
                shapes = [tuple(int(size) for size in shape) for shape in shapes]
                kind = kind_of(node)
        except Exception as error:  # a rule takes the node to be valid
            raise ValueError(
                f"the shape of what {what} makes is not known beforehand ({error or 'invalid'!s:.80})"
            ) from None
        values = [self._sized(what, shape, kind, fixed=fixed) for shape in shapes]
        if node.operator != "Split":  # further outputs are at most as large as the first, and of any type
            others = () if node.operator == "DynamicQuantizeLinear" else shapes[0]
            values += [self._sized(what, others, 0, fixed=fixed) for _ in range(node.outputs - 1)]
        follow = NUMBERS_OF.get(node.operator)
        if follow is None or math.prod(shapes[0]) > MOST_FOLLOWED:
            return values
        try:
            with np.errstate(all="ignore"):
                numbers = np.asarray(follow(node))
        except Exception:  # not known, or a node that is not valid
            return values
        return [Value(shapes[0], kind, numbers if numbers.shape == shapes[0] else None, fixed), *values[1:]]

    def _sized(self, what: str, shape: Shape, kind: int, *, fixed: bool = False) -> Value:
        elements = math.prod(shape)
        if elements > MOST_ELEMENTS:
            raise ValueError(f"{what} has the shape {shape!s:.80}, at most {MOST_ELEMENTS} elements are made")
        if fixed:
            self._fixed -= elements
            if self._fixed < 0:
                raise ValueError(
                    f"{what} and other values that depend on no input have more than {MOST_FIXED} elements"
                )
        return Value(shape, kind, None, fixed)

    def _attribute(self, content: memoryview) -> tuple[str, Any]:
        given = self._reader.read(content, "AttributeProto", _ATTRIBUTE)
        kind = given.get("type", [0])[0]
        name = _text(given, "name")
        values: dict[int, Any] = {
            1: lambda: float(np.frombuffer(message(given["f"][0]), "<f4")[0]) if "f" in given else 0.0,
            2: lambda: _signed(given.get("i", [0])[0]),
            3: lambda: bytes(message(given["s"][0])) if "s" in given else b"",
            4: lambda: self._tensor(message(given["t"][0]), shared=False)[1],
            6: lambda: _unpacked(given.get("floats", []), "float_data"),
            7: lambda: [_signed(number) for number in _unpacked(given.get("ints", []), "int64_data")],
        }
        if kind not in values or (kind == 4 and "t" not in given):
            raise ValueError(f"attribute {name!r:.80} is of the kind {kind}, which no denoiser needs")
        return name, values[kind]()

    def _tensor(self, content: memoryview, *, shared: bool) -> tuple[str, Value]:
        """Name and value of a tensor; `shared`: its data may lie in ``denoiser.data``."""
        given = self._reader.read(content, "TensorProto", _TENSOR)
        name, kind = _text(given, "name"), _number(given, "data_type")
        entries = self._entries(name, given["external_data"]) if "external_data" in given else None
        if kind not in _ELEMENTS:
            raise ValueError(f"tensor {name!r:.80} is of the element type {kind}, which no denoiser needs")
        shape = tuple(_size(size) for size in _unpacked(given.get("dims", []), "int64_data"))
        (width, field), elements = _ELEMENTS[kind], math.prod(shape)
        holders = [one for one in (*_TYPED, "raw_data") if one in given]
        if len(holders) + (entries is not None) > 1 or (_number(given, "data_location") == 1) != (entries is not None):
            raise ValueError(f"tensor {name!r:.80} has data in two places, or nowhere")
        if entries is not None:
            if not shared:
                raise ValueError(f"tensor {name!r:.80} of a node refers to data outside the file")
            self.external.append(External(name, kind, shape, *self._place(name, entries, width * elements)))
            return name, Value(shape, kind, fixed=True)
        holder = holders[0] if holders else "raw_data"
        if holder not in ("raw_data", field):
            raise ValueError(f"tensor {name!r:.80} has its data in {holder}, expected {field}")
        parts = given.get(holder, [])
        found = len(message(parts[0])) / width if holder == "raw_data" and parts else _count(parts, field)
        if found != elements:
            raise ValueError(f"tensor {name!r:.80} of the shape {shape!s:.80} has the data of {found:g} elements")
        return name, Value(shape, kind, _numbers(parts, holder, kind, shape), fixed=True)

    def _entries(self, name: str, given: Iterable["int | memoryview"]) -> dict[str, str]:
        """What a tensor says of data outside the file, which is only that they lie in ``denoiser.data``."""
        entries: dict[str, str] = {}
        for one in given:
            entry = self._reader.read(message(one), "StringStringEntryProto", _ENTRY)
            key = _text(entry, "key")
            if key not in ("location", "offset", "length", "checksum") or key in entries:
                raise ValueError(
                    f"tensor {name!r:.80} refers to data outside the file by {key!r:.80}, twice or unknown"
                )
            entries[key] = _text(entry, "value")
        if entries.get("location") != DATA or self._data_bytes is None:
            raise ValueError(f"it refers to data outside the file, which may only be {DATA} of the same bundle")
        return entries

    def _place(self, name: str, entries: dict[str, str], length: int) -> tuple[int, int]:
        """Offset and length of a tensor of `length` bytes in ``denoiser.data``."""
        places = [entries.get("offset", "0"), entries.get("length", str(length))]
        if not all(place.isascii() and place.isdigit() and len(place) < 20 for place in places):
            raise ValueError(f"tensor {name!r:.80} lies at {places!r:.80} of {DATA}")
        offset, given = map(int, places)
        if given != length or offset + length > (self._data_bytes or 0):
            raise ValueError(
                f"tensor {name!r:.80} needs {length} bytes and refers to {given} at {offset} of the "
                f"{self._data_bytes} of {DATA}"
            )
        return offset, length


def _constant(attributes: dict[str, Any]) -> Value:
    """The value of a Constant that is given as numbers."""
    if len(attributes) != 1:
        raise ValueError("a Constant has no value")
    ((name, given),) = attributes.items()
    if name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise ValueError(f"a Constant has the attribute {name!r:.80}, which no denoiser needs")
    kind = INT64 if "int" in name else FLOAT
    numbers = np.asarray(given, FOLLOWED[kind])
    return Value(numbers.shape, kind, numbers if numbers.size <= MOST_FOLLOWED else None, fixed=True)


def _divides_safely(inputs: Sequence[Value | None]) -> bool:
    """Whether a division cannot end the process, as that of the least whole number by -1 does in ONNX Runtime."""
    if len(inputs) != 2 or any(value is None for value in inputs):
        return False
    divisor = inputs[1]
    assert divisor is not None
    return divisor.kind in FLOATS or (divisor.numbers is not None and bool(np.all(divisor.numbers > 0)))


def _text(fields: _Fields, name: str) -> str:
    found = _texts(fields, name)
    return found[0] if found else ""


def _texts(fields: _Fields, name: str) -> list[str]:
    return [bytes(message(given)).decode() for given in fields.get(name, [])]  # UnicodeDecodeError is a ValueError


def _number(fields: _Fields, name: str) -> int:
    found = fields.get(name, [0])[0]
    assert isinstance(found, int)  # the reader has checked the kind
    return found


def _signed(number: "int | memoryview") -> int:
    """A number of 64 bits in two's complement."""
    assert isinstance(number, int)
    return number - 2**64 if number >= 2**63 else number


def _size(given: "int | memoryview") -> int:
    size = _signed(given)
    if not 0 <= size <= _MOST_DIMENSION:
        raise ValueError(f"a dimension is {size}")
    return size


def _unpacked(parts: list["int | memoryview"], field: str) -> list[Any]:
    """The elements of a repeated field, each in a part of its own or many in one."""
    found: list[Any] = []
    for part in parts:
        if isinstance(part, int):
            found.append(part)
        elif field in _FIXED_WIDTH:
            found += np.frombuffer(part, _FIXED_WIDTH[field]).tolist()
        else:
            found += varints(part)
    return found


def _count(parts: list["int | memoryview"], field: str) -> float:
    """Number of elements of a repeated field."""
    total = 0.0
    for part in parts:
        if isinstance(part, int):
            total += 1
        elif field in _FIXED_WIDTH:
            total += len(part) / np.dtype(_FIXED_WIDTH[field]).itemsize
        else:
            total += int((np.frombuffer(part, np.uint8) < 0x80).sum())
    return total


def _numbers(parts: list["int | memoryview"], holder: str, kind: int, shape: Shape) -> Any:
    """The elements of a small tensor; None for a large one or of a type that is not followed."""
    if kind not in FOLLOWED or math.prod(shape) > MOST_FOLLOWED:
        return None
    if holder == "raw_data":
        raw = message(parts[0]) if parts else b""
        return np.frombuffer(raw, FOLLOWED[kind]).reshape(shape)
    given = _unpacked(parts, holder)
    if holder not in _FIXED_WIDTH:
        given = [_signed(number) for number in given]
    return np.array(given).astype(FOLLOWED[kind]).reshape(shape)
