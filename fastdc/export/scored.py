"""A denoiser and its error in one ONNX graph of standard operators, for engines that fastdc does not drive itself.

Per row, with the columns of :data:`fastdc.diffusion.ROW_FIELDS` as coefficients and e the noise:

    u = gx x + ge e;   F = denoiser(u, timestep, class_labels);   r = a F + b x + c e
    error = weight * mean over pixels of r^2

as ``add_noise`` and ``denoising_error`` of :mod:`fastdc.diffusion` compute it. The graph departs from them in three
points. The noise is an input, because ONNX has no generator that could be reproduced. The mean is summed in float32 in
an order of the engine's choice. There is no target image, so the column d is not used.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.diffusion import ROW_FIELDS
from fastdc.export.inspection import check_graph
from fastdc.support import InputError, require

if TYPE_CHECKING:
    import onnx

COLUMNS = ROW_FIELDS[:-1]
"""Columns of the input ``coefficients``: those of a coefficient row but the timestep, which is an input of its own."""

_NAME = "scored."  # prefix of every added name, so that none can be a name of the denoiser


def scored_graph(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Wraps a denoiser's graph into one that returns errors.

    Args:
        model: A denoiser's graph, as :func:`fastdc.export.graph.export_graph` makes it in any precision; it is not
            changed. Weights outside it stay where they are.

    Returns:
        A graph with the inputs ``x0`` and ``noise`` float32 [batch, c, h, w], ``coefficients`` float32 [batch, 7] in
        the order of :data:`COLUMNS`, and the denoiser's inputs except its sample; the output is ``errors`` float32
        [batch].

    Raises:
        InputError: The graph is no denoiser's.
        BackendError: The resulting graph is not valid.
    """
    onnx = require("onnx", extra="export")
    scored = onnx.ModelProto()
    scored.CopyFrom(model)
    graph = scored.graph
    inputs = {value.name: value for value in graph.input}
    if "sample" not in inputs or [value.name for value in graph.output] != ["output"]:
        raise InputError("the graph must be a denoiser's, with an input 'sample' and the one output 'output'")
    sample = inputs["sample"].type.tensor_type
    shape = [one.dim_param or one.dim_value for one in sample.shape.dim]
    returned = [one.dim_value for one in graph.output[0].type.tensor_type.shape.dim[1:]]
    if returned != shape[1:]:
        raise InputError(f"the output must be like the sample, {shape[1:]}, got {returned}")
    builder = _Builder()
    columns = _add_noise(builder, sample.elem_type)
    before, builder.nodes = builder.nodes, []
    _add_error(builder, columns)
    float32, declare = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    values = [declare(name, float32, shape) for name in ("x0", "noise")]
    values.append(declare("coefficients", float32, [shape[0], len(COLUMNS)]))
    made = onnx.helper.make_graph(
        [*before, *graph.node, *builder.nodes],
        "scored",
        [*values, *(value for value in graph.input if value.name != "sample")],
        [declare("errors", float32, [shape[0]])],
        [*graph.initializer, *builder.constants],
    )
    graph.CopyFrom(made)
    check_graph(scored)
    return scored


class _Builder:
    """Collects named nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def constant(self, values: list[int]) -> str:
        """The name of a new constant, int64."""
        onnx = require("onnx", extra="export")
        name = f"{_NAME}constant.{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, "int64"), name))
        return name

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """The output's name of a new node."""
        onnx = require("onnx", extra="export")
        self._count += 1
        name = f"{_NAME}{op_type}.{self._count}"
        self.nodes.append(onnx.helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


def _add_noise(builder: _Builder, kind: int) -> dict[str, str]:
    """Makes the denoiser's sample; returns the name of each column as (batch, 1, 1, 1).

    Args:
        builder: Takes the nodes.
        kind: ONNX type of the sample.
    """
    column = builder.constant([-1, 1, 1, 1])
    columns = {}
    for index, field in enumerate(COLUMNS):
        picked = builder.node("Gather", ["coefficients", builder.constant([index])], f"{_NAME}{field}.flat", axis=1)
        columns[field] = builder.node("Reshape", [picked, column], f"{_NAME}{field}")
    signal = builder.node("Mul", [columns["gx"], "x0"], f"{_NAME}signal")
    noise = builder.node("Mul", [columns["ge"], "noise"], f"{_NAME}noise")
    noisy = builder.node("Add", [signal, noise], f"{_NAME}noisy")
    builder.node("Cast", [noisy], "sample", to=kind)
    return columns


def _add_error(builder: _Builder, columns: dict[str, str]) -> None:
    """Makes the errors of the denoiser's output."""
    onnx = require("onnx", extra="export")
    raw = builder.node("Cast", ["output"], f"{_NAME}F", to=onnx.TensorProto.FLOAT)
    residual = ""
    for field, value in (("a", raw), ("b", "x0"), ("c", "noise")):
        term = builder.node("Mul", [columns[field], value], f"{_NAME}term.{field}")
        residual = builder.node("Add", [residual, term], f"{_NAME}sum.{field}") if residual else term
    square = builder.node("Mul", [residual, residual], f"{_NAME}square")
    mean = builder.node("ReduceMean", [square, builder.constant([1, 2, 3])], f"{_NAME}mean", keepdims=0)
    weight = builder.node("Reshape", [columns["weight"], builder.constant([-1])], f"{_NAME}weight.row")
    builder.node("Mul", [weight, mean], "errors")
