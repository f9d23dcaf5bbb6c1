"""Where the weights of an ONNX graph lie: inside it, or beside it in one file that several graphs may share.

A protobuf message ends at 2 GiB, so a larger graph cannot be one file. ONNX lets a weight live elsewhere: its tensor
then holds a file name, an offset and a length (onnx.proto, ``TensorProto.external_data``). Here every weight from 1 KiB
on moves; what is smaller (shapes, scalars, axes) stays, because engines want to see it while they parse. Weights start
at multiples of 64 bytes, and large ones at multiples of 4096, so that a file that is mapped into memory can be used as
it lies.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastdc.backends import one_line
from fastdc.support import BackendError, InputError, require

if TYPE_CHECKING:
    import onnx

LARGE = int(1.5 * 2**30)  # bytes of weights from which they must be external; the message's own limit is 2 GiB
SMALLEST_MOVED = 1024
_ALIGN, _ALIGN_LARGE, _FROM_LARGE = 64, 4096, 65_536  # bytes


def weight_bytes(model: "onnx.ModelProto") -> int:
    """Bytes of the weights that lie inside a graph."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def external(model: "onnx.ModelProto", path: str | Path) -> "onnx.ModelProto":
    """Moves the weights out of a graph, into a new file beside where the graph will be saved.

    The graph is changed in place, because two copies of its weights may not fit into memory; no more than one weight
    at a time is copied. Equal weights are written once. The same graph gives the same file.

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
    content = tensor.raw_data
    key = hashlib.sha256(content).digest()
    if key not in places:
        align = _ALIGN_LARGE if len(content) >= _FROM_LARGE else _ALIGN
        file.write(bytes(-file.tell() % align))
        places[key] = (file.tell(), len(content))
        file.write(content)
    offset, length = places[key]
    tensor.ClearField("raw_data")
    refer(tensor, name, offset, length)


def refer(tensor: "onnx.TensorProto", name: str, offset: int, length: int) -> None:
    """Lets a tensor without data refer to `length` bytes at `offset` of the file `name` beside the graph."""
    onnx = require("onnx", extra="export")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", name), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def skeleton(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with its large weights as inputs: all that shape inference and checks need, in kilobytes."""
    onnx = require("onnx", extra="export")
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, full = light.graph, model.graph
    graph.name = full.name
    graph.node.extend(full.node)
    graph.input.extend(full.input)
    graph.output.extend(full.output)
    graph.value_info.extend(full.value_info)
    for tensor in full.initializer:
        if len(tensor.raw_data) < SMALLEST_MOVED and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def value_types(model: "onnx.ModelProto") -> "dict[str, onnx.ValueInfoProto]":
    """Type and shape of every value of a graph, as far as ONNX can infer them.

    ONNX infers nothing beyond a GroupNormalization (it is defined by a function that depends on its input's type), so
    it is passed as what it is to shapes: an Identity.
    """
    onnx = require("onnx", extra="export")
    light = skeleton(model)
    for node in light.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {one.name: one for one in (*graph.input, *graph.value_info, *graph.output)}


def check_graph(model: "onnx.ModelProto") -> None:
    """Checks operators, types and shapes by ONNX's own rules, at any size of the weights.

    Raises:
        BackendError: The graph is not valid.
    """
    checker = require("onnx.checker", extra="export")
    try:
        checker.check_model(skeleton(model), full_check=True)
    except Exception as error:  # ValidationError, InferenceError: plain exceptions, with a trace in their text
        raise BackendError(f"the exported network is not valid ONNX: {one_line(error)}") from error
