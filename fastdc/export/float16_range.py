"""Checks that no value of a float16 graph leaves the range of float16.

float16 ends at 65504. ONNX Runtime's CPU kernels compute float16 graphs in float32, so a comparison with torch on the
CPU agrees even where float16 arithmetic overflows, on a GPU. Here the graph runs once more, with the largest magnitude
of each of its float16 values as a further output. The inputs are a few of all possible ones, hence a margin.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.export.inspection import value_types
from fastdc.export.verify import Feeds
from fastdc.support import BackendError, one_line, require

if TYPE_CHECKING:
    import onnx

FLOAT16_MAX = 65504.0
"""The largest finite number of float16."""

MARGIN = 2.0
"""Factor by which the values of other inputs may exceed those that were seen."""

_PREFIX = "range."  # of every added name, so that none can be a name of the denoiser
_BATCH = 3  # reaches both ends of the levels and their middle
# Operators that only move values: their inputs are looked at already.
_MOVING = {"Reshape", "Transpose", "Slice", "Unsqueeze", "Squeeze", "Expand", "Identity", "Gather", "Split", "Concat"}


def check_range(model: "onnx.ModelProto", feeds: Feeds, folder: str | Path) -> float:
    """Finds the largest magnitude of a float16 value in a graph.

    Args:
        model: The graph, not changed.
        feeds: Inputs for a batch, such as those of :func:`fastdc.export.verify.denoiser_feeds`, floats in float32.
        folder: The folder of external weights.

    Returns:
        The largest magnitude.

    Raises:
        BackendError: It is above 65504 / 2; the message names the layer. Or ONNX Runtime cannot run the graph.
    """
    runtime = require("onnxruntime", extra="cpu")
    probed, layers = _probed(model)
    if not layers:
        return 0.0
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    largest = np.zeros(len(layers))
    try:
        session = runtime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        half = {item.name for item in session.get_inputs() if item.type == "tensor(float16)"}
        names = [f"{_PREFIX}{index}" for index in range(len(layers))]
        for feed in feeds(_BATCH, np.random.default_rng(0)):
            typed = {name: value.astype(np.float16) if name in half else value for name, value in feed.items()}
            found = np.array(session.run(names, typed), np.float64)
            largest = np.maximum(largest, np.where(np.isnan(found), np.inf, found))  # inf - inf
    except Exception as error:  # ONNX Runtime raises plain RuntimeErrors and types of its own
        raise BackendError(f"ONNX Runtime cannot run the exported network: {one_line(error)}") from error
    over = np.flatnonzero(largest > FLOAT16_MAX / MARGIN)
    if over.size:
        first = int(over[0])  # in the order of the computation: what follows may only pass it on
        value = f"{largest[first]:.3g}" if np.isfinite(largest[first]) else "infinity"
        raise BackendError(
            f"float16 ends at {FLOAT16_MAX:.0f}, and {layers[first]} reaches {value} (allowed here: "
            f"{FLOAT16_MAX / MARGIN:.0f}): export in bfloat16 or float32"
        )
    return float(largest.max())


def _probed(model: "onnx.ModelProto") -> "tuple[onnx.ModelProto, list[str]]":
    """A copy of the graph that returns the largest magnitude of each float16 value, and the layers of these values."""
    onnx = require("onnx", extra="export")
    half, make = onnx.TensorProto.FLOAT16, onnx.helper.make_node
    types = {name: one.type.tensor_type.elem_type for name, one in value_types(model).items()}
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    weights = {one.name for one in graph.initializer if "." in one.name}
    constants = {one.name for one in graph.initializer if len(one.dims) > 1} - weights
    reader = {name: node for node in reversed(model.graph.node) for name in node.input}  # the first that reads a value

    def named(node: Any) -> str | None:
        """The layer whose weights a node reads; a transposed matrix has lost its name, but not the bias after it."""
        own = next((name for name in node.input if name in weights), None)
        if own is None and constants & set(node.input) and node.output[0] in reader:
            own = next((name for name in reader[node.output[0]].input if name in weights), None)
        return None if own is None else own.removeprefix("module.").rpartition(".")[0]

    layers: list[str] = []
    last = "the input"
    added: list[Any] = []
    for node in model.graph.node:
        layer = named(node)
        last = last if layer is None else layer
        if node.op_type in _MOVING:
            continue
        for value in node.output:
            if types.get(value) == half:
                name = f"{_PREFIX}{len(layers)}"
                added += [
                    make("Cast", [value], [f"{name}.wide"], to=onnx.TensorProto.FLOAT),
                    make("Abs", [f"{name}.wide"], [f"{name}.size"]),
                    make("ReduceMax", [f"{name}.size"], [name], keepdims=0),
                ]
                graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
                layers.append(f"{node.op_type} {'after' if layer is None else 'in'} {last}")
    graph.node.extend(added)
    return probed, layers
