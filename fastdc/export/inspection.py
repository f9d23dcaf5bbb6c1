"""What can be known of an ONNX graph without its weights: attributes of nodes, types and shapes, validity."""

from typing import TYPE_CHECKING, Any

from fastdc.export.storage import SMALLEST_MOVED
from fastdc.support import BackendError, one_line, require

if TYPE_CHECKING:
    import onnx


def attribute_of(node: "onnx.NodeProto", name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` if the node does not have it."""
    helper = require("onnx.helper", extra="export")
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)


def skeleton(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with its large weights as inputs: kilobytes, which is all that shape inference and checks need."""
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


def inferable(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The skeleton of a graph, in a form in which ONNX infers the shape of every value.

    ONNX infers nothing beyond a GroupNormalization, because a function that depends on the input's type defines it. For
    shapes it is an Identity, and stands as one here.
    """
    light = skeleton(model)
    for node in light.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
    return light


def value_types(model: "onnx.ModelProto") -> "dict[str, onnx.ValueInfoProto]":
    """Type and shape of every value of a graph, as far as ONNX can infer them."""
    onnx = require("onnx", extra="export")
    graph = onnx.shape_inference.infer_shapes(inferable(model), data_prop=True).graph
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
