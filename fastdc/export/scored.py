"""A denoiser and its error in one ONNX graph of standard operators, for engines that fastdc does not drive itself.

Per row, with the columns of :data:`fastdc.diffusion.kernels.ROW_FIELDS` as coefficients and e the noise:

    u = gx x + ge e;   F = denoiser(u, timestep, class_labels);   r = a F + b x + c e (+ d z)
    error = weight * mean over pixels of rho(r),   rho: r^2, |r|, or Huber's

as :func:`fastdc.diffusion.kernels.add_noise` and :func:`fastdc.diffusion.kernels.denoising_error` compute it. It
departs from them in two points: the noise is an input, because ONNX has no generator that could be reproduced, and the
mean is summed in float32 in an order of the engine's choice.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.diffusion import LOSSES, ROW_FIELDS
from fastdc.export.storage import check_graph
from fastdc.support import InputError, require

if TYPE_CHECKING:
    import onnx

COLUMNS = ROW_FIELDS[:-1]
"""Columns of the input ``coefficients``: those of a coefficient row but the timestep, which is an input of its own."""

_NAME = "scored."  # before every name that is added, so that none can meet one of the denoiser's


def scored_graph(
    model: "onnx.ModelProto", *, loss: str = "l2", delta: float = 1.0, target: bool = False
) -> "onnx.ModelProto":
    """Wraps a denoiser's graph into one that returns errors.

    Args:
        model: A denoiser's graph as of :func:`fastdc.export.graph.export_graph`, of any precision; left as it is.
            Weights outside it stay where they are.
        loss: rho, one of :data:`fastdc.diffusion.kernels.LOSSES`.
        delta: Threshold of the Huber loss, positive.
        target: Whether there is an input z for the column d; without it d is not used.

    Returns:
        A graph with the inputs ``x0`` and ``noise`` float32 [batch, c, h, w], ``coefficients`` float32 [batch, 7] in
        the order of :data:`COLUMNS`, ``target`` like x0 if asked for, and the denoiser's inputs but its sample; its
        output is ``errors`` float32 [batch].

    Raises:
        InputError: The loss is not known, or the graph is no denoiser's.
        BackendError: The graph that comes out is not valid.
    """
    if loss not in LOSSES:
        raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if not delta > 0:
        raise InputError(f"delta must be a positive number, got {delta!r}")
    onnx = require("onnx", extra="export")
    scored = onnx.ModelProto()
    scored.CopyFrom(model)
    graph = scored.graph
    inputs = {value.name: value for value in graph.input}
    if "sample" not in inputs or [value.name for value in graph.output] != ["output"]:
        raise InputError("the graph must be a denoiser's, with an input 'sample' and the one output 'output'")
    sample = inputs["sample"]
    kind = sample.type.tensor_type.elem_type
    shape = [one.dim_param or one.dim_value for one in sample.type.tensor_type.shape.dim]
    dims = graph.output[0].type.tensor_type.shape.dim
    if [one.dim_value for one in dims[1:]] != shape[1:]:
        raise InputError(f"the output must be like the sample, {shape[1:]}, got {[one.dim_value for one in dims[1:]]}")
    builder = _Builder()
    before, columns = _before(builder, kind)
    after = _after(builder, columns, loss, delta, target=target)
    float32 = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(name, float32, shape) for name in ("x0", "noise")]
    values.append(onnx.helper.make_tensor_value_info("coefficients", float32, [shape[0], len(COLUMNS)]))
    if target:
        values.append(onnx.helper.make_tensor_value_info("target", float32, shape))
    others = [value for value in graph.input if value.name != "sample"]
    nodes = [*before, *graph.node, *after]
    made = onnx.helper.make_graph(
        nodes,
        "scored",
        [*values, *others],
        [onnx.helper.make_tensor_value_info("errors", float32, [shape[0]])],
        [*graph.initializer, *builder.constants],
    )
    graph.CopyFrom(made)
    check_graph(scored)
    return scored


class _Builder:
    """Makes named nodes and constants."""

    def __init__(self) -> None:
        self.constants: list[Any] = []
        self._count = 0

    def constant(self, values: Any, dtype: str) -> str:
        onnx = require("onnx", extra="export")
        name = f"{_NAME}constant.{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, nodes: list[Any], op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        onnx = require("onnx", extra="export")
        self._count += 1
        name = f"{_NAME}{op_type}.{self._count}"
        nodes.append(onnx.helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output


def _before(builder: _Builder, kind: int) -> tuple[list[Any], dict[str, str]]:
    """The nodes that make the denoiser's sample, and each column as (batch, 1, 1, 1)."""
    nodes: list[Any] = []
    column = builder.constant([-1, 1, 1, 1], "int64")
    columns = {}
    for index, field in enumerate(COLUMNS):
        at = builder.constant([index], "int64")
        picked = builder.node(nodes, "Gather", ["coefficients", at], f"{_NAME}{field}.flat", axis=1)
        columns[field] = builder.node(nodes, "Reshape", [picked, column], f"{_NAME}{field}")
    signal = builder.node(nodes, "Mul", [columns["gx"], "x0"], f"{_NAME}signal")
    noise = builder.node(nodes, "Mul", [columns["ge"], "noise"], f"{_NAME}noise")
    noisy = builder.node(nodes, "Add", [signal, noise], f"{_NAME}noisy")
    builder.node(nodes, "Cast", [noisy], "sample", to=kind)
    return nodes, columns


def _after(builder: _Builder, columns: dict[str, str], loss: str, delta: float, *, target: bool) -> list[Any]:
    """The nodes from the denoiser's output to the errors."""
    onnx = require("onnx", extra="export")
    nodes: list[Any] = []
    raw = builder.node(nodes, "Cast", ["output"], f"{_NAME}F", to=onnx.TensorProto.FLOAT)
    terms = [("a", raw), ("b", "x0"), ("c", "noise"), *([("d", "target")] if target else [])]
    residual = ""
    for field, value in terms:
        term = builder.node(nodes, "Mul", [columns[field], value], f"{_NAME}term.{field}")
        residual = builder.node(nodes, "Add", [residual, term], f"{_NAME}sum.{field}") if residual else term
    rho = _rho(builder, nodes, residual, loss, delta)
    pixels = builder.constant([1, 2, 3], "int64")
    mean = builder.node(nodes, "ReduceMean", [rho, pixels], f"{_NAME}mean", keepdims=0)
    flat = builder.constant([-1], "int64")
    weight = builder.node(nodes, "Reshape", [columns["weight"], flat], f"{_NAME}weight.row")
    builder.node(nodes, "Mul", [weight, mean], "errors")
    return nodes


def _rho(builder: _Builder, nodes: list[Any], residual: str, loss: str, delta: float) -> str:
    if loss == "l2":
        return builder.node(nodes, "Mul", [residual, residual], f"{_NAME}square")
    magnitude = builder.node(nodes, "Abs", [residual], f"{_NAME}magnitude")
    if loss == "l1":
        return magnitude
    # With m = min(|r|, delta), Huber's function is m (|r| - m / 2): the square below delta, the line above.
    limit, half = builder.constant(delta, "float32"), builder.constant(0.5, "float32")
    least = builder.node(nodes, "Min", [magnitude, limit], f"{_NAME}least")
    halved = builder.node(nodes, "Mul", [least, half], f"{_NAME}halved")
    rest = builder.node(nodes, "Sub", [magnitude, halved], f"{_NAME}rest")
    return builder.node(nodes, "Mul", [least, rest], f"{_NAME}huber")
