"""Where the weights of an ONNX graph lie: inside it, or beside it in one file that several graphs may share.

A protobuf message ends at 2 GiB, so a larger graph cannot be one file. ONNX lets a weight live elsewhere: its tensor
then holds a file name, an offset and a length (onnx.proto, ``TensorProto.external_data``). Here every weight of at
least 1 KiB moves. Smaller tensors (shapes, scalars, axes) stay, because engines read them while they parse. Weights
start at multiples of 64 bytes, and large ones at multiples of 4096, so that a file can be used as it is mapped into
memory.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastdc.support import InputError, require

if TYPE_CHECKING:
    import onnx

LARGE = int(1.5 * 2**30)
"""Bytes of weights from which they must lie outside the graph; the limit of the message is 2 GiB."""

SMALLEST_MOVED = 1024
"""Bytes of the smallest tensor that moves."""

_ALIGN, _ALIGN_LARGE, _FROM_LARGE = 64, 4096, 65_536  # bytes


def weight_bytes(model: "onnx.ModelProto") -> int:
    """Bytes of the weights that lie inside a graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def external(model: "onnx.ModelProto", path: str | Path) -> "onnx.ModelProto":
    """Moves the weights out of a graph, into a new file beside the place where the graph will be saved.

    The graph is changed in place, because two copies of its weights may not fit into memory; at most one weight at a
    time is copied. Equal weights are written once. The same graph gives the same file.

    Args:
        model: A graph whose weights are inside (``raw_data``).
        path: The file to write; tensors refer to it by its bare name.

    Returns:
        The same graph, now small.

    Raises:
        InputError: The file exists.
    """
    path = Path(path)
    places: dict[bytes, tuple[int, int]] = {}
    try:
        with path.open("xb") as file:
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) >= SMALLEST_MOVED:
                    _move(tensor, file, path.name, places)
    except FileExistsError:
        raise InputError(f"{path} exists: weights are written to a new file") from None
    return model


def _move(tensor: "onnx.TensorProto", file: BinaryIO, name: str, places: dict[bytes, tuple[int, int]]) -> None:
    """Writes a tensor's data, unless the same data are in the file already, and lets the tensor refer to them."""
    content = tensor.raw_data
    key = hashlib.sha256(content).digest()
    if key not in places:
        align = _ALIGN_LARGE if len(content) >= _FROM_LARGE else _ALIGN
        file.write(bytes(-file.tell() % align))
        places[key] = (file.tell(), len(content))
        file.write(content)
    offset, length = places[key]
    tensor.ClearField("raw_data")
    onnx = require("onnx", extra="export")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for field, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=field, value=value)
