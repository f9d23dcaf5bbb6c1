"""bfloat16 graphs in float32, for the CPU, where ONNX Runtime has no bfloat16.

Every bfloat16 number is a float32 number, so the weights keep their values. Sums and the outputs of layers are rounded
less than in bfloat16.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.backends.onnx.graphs import Graph, graph_source, session_of
from fastdc.bundle import Bundle
from fastdc.support import BundleError, InputError, one_line, require, temporary_folder

if TYPE_CHECKING:
    import onnx


def widened_session(bundle: Bundle, name: str, *, threads: int = 1) -> Any:
    """A session of one of a bundle's bfloat16 graphs in float32.

    Args:
        bundle: The bundle.
        name: Name of the graph's file.
        threads: Number of threads inside the session.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        BundleError: The graph is corrupt, or holds what no denoiser needs.
    """
    onnx = require("onnx", extra="export")
    source = graph_source(bundle, name)
    try:
        model = onnx.load_from_string(source.content)
        places = {one.name: one for one in source.external}
        for tensor in model.graph.initializer:
            if tensor.name in places:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                tensor.raw_data = bytes(source.weight(places[tensor.name]))
        wide = widen(model)
    except Exception as error:  # protobuf's and onnx's exceptions share no base class
        raise BundleError(f"{bundle.path / name} cannot be read: {one_line(error)}") from None
    if not source.external:
        return session_of(Graph(wide.SerializeToString()), bundle.path / name, threads=threads)
    with temporary_folder() as folder:  # a protobuf message holds at most 2 GiB
        path = folder / name
        onnx.save_model(wide, path, save_as_external_data=True, location="weights.data")
        return session_of(str(path), bundle.path / name, threads=threads)


def widen(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of a bfloat16 graph with the same values, in which float32 replaces every bfloat16.

    Args:
        model: The graph, with its weights inside.

    Raises:
        MissingDependencyError: onnx is not installed.
        InputError: A weight lies in another file.

    Example:
        >>> from fastdc.backends import widen
        >>> import onnx
        >>> widen(onnx.ModelProto(ir_version=10)).ir_version
        10
    """
    onnx = require("onnx", extra="export")
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    copy = onnx.ModelProto()
    copy.CopyFrom(model)

    def tensor(one: Any) -> None:
        if one.data_type != narrow:
            return
        if one.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError("a bfloat16 graph is checked with its weights inside, before they are moved out")
        values = onnx.numpy_helper.to_array(one).astype(np.float32)
        one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))

    for one in copy.graph.initializer:
        tensor(one)
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    for node in (*copy.graph.node, *(node for function in copy.functions for node in function.node)):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i == narrow:
                attribute.i = wide
            elif attribute.type == onnx.AttributeProto.TENSOR:
                tensor(attribute.t)
    return copy
