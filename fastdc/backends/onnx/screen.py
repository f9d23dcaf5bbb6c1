"""What a graph of a bundle may hold, checked on its bytes before any library is given them.

A library that loads a graph reads the files that it names, runs the graphs inside its nodes, and computes everything
that depends on no input. A graph passes here only if

* its bytes, in every message, are a ModelProto as writers emit it (:mod:`fastdc.backends.onnx.wire`), with the fields
  that a network needs (:mod:`fastdc.backends.onnx.messages`): no functions, no graphs inside nodes, no sparse tensors,
  no training;
* every operator is one of :mod:`fastdc.backends.onnx.shapes`, of ONNX's own set;
* weights have as many bytes as their dimensions say, in the graph or in ``denoiser.data``, inside that file, and those
  in the file have together no more bytes than it;
* whole numbers among the attributes are within the bounds of :mod:`fastdc.backends.onnx.attributes`;
* every value is made before it is used, has a shape that is known, no more than ``MOST_ELEMENTS`` elements at one row
  per symbolic dimension, and at more rows no more than in proportion (:mod:`fastdc.backends.onnx.rows`). The same holds
  for the scratch memory of convolutions, attention and products of three operands;
* values that depend on no input have together no more than ``MOST_FIXED`` elements beyond those of the weights.

What remains is work: a graph within these limits may still take long, or more memory at larger batches. Ctrl-C ends it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdc.backends.onnx import messages
from fastdc.backends.onnx.attributes import check_whole_numbers
from fastdc.backends.onnx.followed import FLOAT, FLOATS, FOLLOWED, INT64
from fastdc.backends.onnx.node import MOST_FOLLOWED, Node, Shape, Value
from fastdc.backends.onnx.rows import ROWS, Rows, check_growth, gathered, made_by, steady
from fastdc.backends.onnx.shapes import SHAPE_OF
from fastdc.backends.onnx.wire import Known, Reader, message, varints
from fastdc.bundle import DATA

MOST_NODES = 20_000
"""Nodes of a graph. Stable Diffusion XL has about five thousand."""

MOST_ELEMENTS = 2**30
"""Elements of a value at one row. Attention over the 4429 tokens of Stable Diffusion 3 has 2**29."""

MOST_FIXED = 2**25
"""Elements of all values that depend on no input, beyond as many as the weights have."""

_MOST_FIELDS = 2_000_000
_MOST_DIMENSION = 2**48

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
    """The values of a graph that passes at one row, by name; the arguments are those of :func:`screen`."""
    screening = _Screening(data_bytes)
    screening.graph_of(memoryview(content))
    return {name: rows[0] for name, rows in screening.values.items()}


class _Screening:
    """The check of one graph."""

    def __init__(self, data_bytes: int | None) -> None:
        self._data_bytes = data_bytes
        self._reader = Reader(_MOST_FIELDS)
        self.external: list[External] = []
        self.values: dict[str, Rows] = {}
        self._fixed = MOST_FIXED  # elements that may still be made of no input

    def graph_of(self, content: memoryview) -> None:
        model = self._reader.read(content, "ModelProto", messages.MODEL)
        if "graph" not in model:
            raise ValueError("it has no graph")
        self._properties(model)
        for given in model.get("opset_import", []):
            self._reader.read(message(given), "OperatorSetIdProto", messages.OPSET)
        graph = self._reader.read(message(model["graph"][0]), "GraphProto", messages.GRAPH)
        self._properties(graph)
        nodes = graph.get("node", [])
        if len(nodes) > MOST_NODES:
            raise ValueError(f"it has {len(nodes)} nodes, at most {MOST_NODES} are read")
        for given in graph.get("initializer", []):
            name, value = self._tensor(message(given), shared=True)
            self._define(name, (value,) * len(ROWS))
            self._fixed += math.prod(value.shape)
        if (total := sum(one.length for one in self.external)) > (self._data_bytes or 0):
            raise ValueError(f"its weights have {total} bytes, more than the {self._data_bytes} of {DATA}")
        for given in graph.get("input", []):
            self._input(message(given))
        for given in (*graph.get("output", []), *graph.get("value_info", [])):
            self._declared(message(given))
        for given in graph.get("quantization_annotation", []):
            annotation = self._reader.read(message(given), "TensorAnnotation", messages.ANNOTATION)
            _text(annotation, "tensor_name")
            self._properties(annotation, "quant_parameter_tensor_names")
        for given in nodes:
            self._node(message(given))

    def _properties(self, fields: _Fields, field: str = "metadata_props") -> None:
        for given in fields.get(field, []):
            entry = self._reader.read(message(given), "StringStringEntryProto", messages.ENTRY)
            _text(entry, "key")
            _text(entry, "value")

    def _define(self, name: str, value: Rows) -> None:
        if name in self.values:
            raise ValueError(f"value {name!r:.80} is made twice")
        self.values[name] = value

    def _input(self, content: memoryview) -> None:
        """An input, with as many rows in each symbolic dimension."""
        name, shape, kind = self._declared(content)
        if name in self.values:  # it may be a weight, as in old graphs
            return
        shapes = [tuple(rows if size is None else size for size in shape) for rows in ROWS]
        values = [Value(one, kind) for one in shapes] if None in shape else [Value(shapes[0], kind)] * len(ROWS)
        self._check_size(f"input {name!r:.80}", shapes)
        self._define(name, tuple(values))

    def _declared(self, content: memoryview) -> tuple[str, tuple[int | None, ...], int]:
        """Name, shape (None: symbolic) and element type of a value; names must be texts, which Python is given."""
        given = self._reader.read(content, "ValueInfoProto", messages.INPUT)
        self._properties(given)
        tensor = self._inner(self._inner(given, "type", messages.TYPE), "tensor_type", messages.TENSOR_TYPE)
        shape: list[int | None] = []
        for one in self._inner(tensor, "shape", messages.SHAPE).get("dim", []):
            dim = self._reader.read(message(one), "Dimension", messages.DIM)
            if _text(dim, "dim_param") and "dim_value" in dim:
                raise ValueError("a dimension has a number and a name")
            shape.append(_size(dim["dim_value"][0]) if "dim_value" in dim else None)
        return _text(given, "name"), tuple(shape), _number(tensor, "elem_type")

    def _inner(self, fields: _Fields, name: str, known: Known) -> _Fields:
        return self._reader.read(message(fields[name][0]), name, known) if name in fields else {}

    def _node(self, content: memoryview) -> None:
        given = self._reader.read(content, "NodeProto", messages.NODE)
        self._properties(given)
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
        check_whole_numbers(what, attributes)
        if operator in ("Div", "Mod") and not _divides_safely(inputs):
            raise ValueError(f"{what} divides whole numbers by what is not known to be positive")
        once = all(rows is None or steady(rows) for rows in inputs)
        nodes = [
            Node(operator, [None if rows is None else rows[place] for rows in inputs], attributes, len(made))
            for place in range(1 if once else len(ROWS))
        ]
        for name, rows in zip(made, self._outputs(what, nodes), strict=False):
            if name:
                self._define(name, rows)

    def _outputs(self, what: str, nodes: Sequence[Node]) -> list[Rows]:
        # Shapes count as well: a library knows all but their rows when it loads the graph.
        fixed = nodes[0].operator in ("Shape", "Size") or all(value is None or value.fixed for value in nodes[0].inputs)
        try:
            with np.errstate(all="ignore"):
                made = [made_by(node, fixed=fixed) for node in nodes]
        except Exception as error:  # a rule takes the node to be valid
            raise ValueError(
                f"the shape of what {what} makes is not known beforehand ({error or 'invalid'!s:.80})"
            ) from None
        outputs = list(zip(*(values for values, _ in made), strict=True))
        for values in outputs:
            self._check_size(what, [value.shape for value in values], fixed=fixed)
        self._check_size(f"{what} inside", [scratch for _, scratch in made], fixed=fixed)
        if len(nodes) == 1:
            return [values * len(ROWS) for values in outputs]
        with np.errstate(all="ignore"):
            return [gathered(nodes, values) for values in outputs]

    def _check_size(self, what: str, shapes: Sequence[Shape], *, fixed: bool = False) -> None:
        """Refuses a value of too many elements; `shapes`: at each of ``ROWS``, or at any."""
        elements = math.prod(shapes[0])
        if elements > MOST_ELEMENTS:
            raise ValueError(f"{what} has the shape {shapes[0]!s:.80}, at most {MOST_ELEMENTS} elements are made")
        if len(shapes) > 1:
            check_growth(what, shapes)
        if fixed:
            self._fixed -= elements
            if self._fixed < 0:
                raise ValueError(
                    f"{what} and other values that depend on no input have more than {MOST_FIXED} elements"
                )

    def _attribute(self, content: memoryview) -> tuple[str, Any]:
        given = self._reader.read(content, "AttributeProto", messages.ATTRIBUTE)
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
        given = self._reader.read(content, "TensorProto", messages.TENSOR)
        self._properties(given)
        name, kind = _text(given, "name"), _number(given, "data_type")
        entries = self._entries(name, given["external_data"]) if "external_data" in given else None
        if kind not in messages.ELEMENTS:
            raise ValueError(f"tensor {name!r:.80} is of the element type {kind}, which no denoiser needs")
        shape = tuple(_size(size) for size in _unpacked(given.get("dims", []), "int64_data"))
        (width, field), elements = messages.ELEMENTS[kind], math.prod(shape)
        holders = [one for one in (*messages.TYPED, "raw_data") if one in given]
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
            entry = self._reader.read(message(one), "StringStringEntryProto", messages.ENTRY)
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


def _divides_safely(inputs: Sequence[Rows | None]) -> bool:
    """Whether a division cannot end the process, as that of the least whole number by -1 does in ONNX Runtime."""
    if len(inputs) != len(("dividend", "divisor")) or inputs[0] is None or inputs[1] is None:
        return False
    return all(
        divisor.kind in FLOATS or (divisor.numbers is not None and bool(np.all(divisor.numbers > 0)))
        for divisor in inputs[1]
    )


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
        elif field in messages.FIXED_WIDTH:
            found += np.frombuffer(part, messages.FIXED_WIDTH[field]).tolist()
        else:
            found += varints(part)
    return found


def _count(parts: list["int | memoryview"], field: str) -> float:
    """Number of elements of a repeated field."""
    total = 0.0
    for part in parts:
        if isinstance(part, int):
            total += 1
        elif field in messages.FIXED_WIDTH:
            total += len(part) / np.dtype(messages.FIXED_WIDTH[field]).itemsize
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
    if holder not in messages.FIXED_WIDTH:
        given = [_signed(number) for number in given]
    return np.array(given).astype(FOLLOWED[kind]).reshape(shape)
