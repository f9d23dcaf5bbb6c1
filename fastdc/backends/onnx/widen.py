"""bfloat16 graphs on the CPU, where ONNX Runtime has no bfloat16: the same values, in float32.

Every bfloat16 number is a float32 number, so weights stay what they are; what differs is that sums and layers' outputs
are rounded less.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.backends.onnx.graphs import graph_source, session_of
from fastdc.backends.protocol import one_line
from fastdc.bundle import Bundle
from fastdc.support import BundleError, InputError, require

if TYPE_CHECKING:
    import onnx


def widened_session(bundle: Bundle, name: str, *, threads: int = 1) -> Any:
    """A session of one of a bundle's graphs, widened.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        BundleError: The graph is corrupt, or refers to files outside the bundle.
    """
    onnx = require("onnx", extra="export")
    source = graph_source(bundle, name)
    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        wide = widen(model)
    except Exception as error:  # protobuf's and onnx's exceptions share no base class
        raise BundleError(f"{bundle.path / name} cannot be read: {one_line(error)}") from None
    if isinstance(source, bytes):
        return session_of(wide.SerializeToString(), bundle.path / name, threads=threads)
    with tempfile.TemporaryDirectory(prefix="fastdc-") as folder:  # a message holds no more than 2 GiB
        path = Path(folder) / name
        onnx.save_model(wide, path, save_as_external_data=True, location="weights.data")
        return session_of(str(path), bundle.path / name, threads=threads)


def widen(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A bfloat16 graph with the same values and every bfloat16 replaced by float32.

    Raises:
        InputError: A weight lies outside the graph.
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
