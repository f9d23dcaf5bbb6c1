"""Turns a torch module into an ONNX graph.

A denoiser's graph takes ``sample`` (batch, c, h, w), ``timestep`` float32 (batch,), ``class_labels`` int64 (batch,) and
its condition tables, float32 (conditions, ...). It returns ``output`` (batch, c, h, w), the raw network output F. The
first dimension of every input is dynamic. Stack traces, file names and everything else that tells where or when the
graph was made are removed, so that the same network gives the same bytes.

In float16 and bfloat16 the module is cast before the export, not the graph after it: the parts that a module computes
in float32 by itself then stay in float32. ``sample`` and ``output`` have the type of the weights, because the kernels
around the network write and read them. Every other input and output stays float32, because ``timestep`` reaches
hundreds of radians and bundles of all precisions share tables and latents. The graph casts them; ``timestep`` is cast
by the module itself.
"""

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdc.backends import PRECISIONS
from fastdc.export.inspection import check_graph
from fastdc.export.lower import lower_einsum, lower_single_group, lower_types
from fastdc.support import BackendError, InputError, checks, one_line, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""Opset of training runs.

From 21 on, group normalisation is one operator, for which ONNX Runtime has no CPU kernel: it runs the ten small ones
that define it, and the digits UNet takes 1.1 times as long. At 20, torch writes an InstanceNormalization, which has
one.
"""

DEFAULT_OPSET = 22
"""Opset of all other models.

It is the first in which a convolution may be bfloat16, and GPU engines see whole GroupNorms. From 23 on, attention is
one operator, which TensorRT refuses for many head sizes.
"""

LEAST_OPSET_BFLOAT16 = 22
"""The first opset with bfloat16 convolutions."""

_LEAST_OPSET_GROUPS = 21  # below, torch writes no GroupNormalization
_TYPED = ("sample", "output")  # inputs and outputs of the graph that have the type of the weights
_UNCAST = ("timestep",)  # float inputs that the module casts itself, after what it computes in float32


class _Cast(nn.Module):
    """A module in half precision behind the input and output types of :mod:`fastdc.export.graph`."""

    def __init__(self, module: nn.Module, names: Sequence[str], outputs: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self._cast_input = [name not in _UNCAST for name in names]
        self._typed_output = [name in _TYPED for name in outputs]
        self._dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = (
            value.to(self._dtype) if cast and value.is_floating_point() else value
            for value, cast in zip(inputs, self._cast_input, strict=True)
        )
        out = self.module(*given)
        outputs = out if isinstance(out, tuple) else (out,)
        types = (self._dtype if typed else torch.float32 for typed in self._typed_output)
        return tuple(value.to(dtype) for value, dtype in zip(outputs, types, strict=True))


def export_graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    leading: Mapping[str, str],
    opset: int = DEFAULT_OPSET,
    precision: str = "float32",
) -> "onnx.ModelProto":
    """The ONNX graph of a module.

    Args:
        module: The module, float32, in evaluation mode, on the CPU. It is called with the inputs in their order,
            without keywords, and returns one tensor, or a tuple with one tensor per output.
        inputs: Example inputs by name, float32 or int64. The first dimension of each is at least 2: at 1, the exporter
            fixes the batch in the graph without a warning.
        outputs: Names of the outputs.
        leading: Name of the first dimension of each input, such as "batch" or "conditions".
        opset: Version of the ONNX operator set; at least 22 for bfloat16.
        precision: "float32", "float16" or "bfloat16"; the module itself is not changed.

    Returns:
        The graph, its weights inside; :func:`fastdc.export.storage.external` moves them out.

    Raises:
        InputError: The inputs, the precision or the opset do not fit each other.
        BackendError: torch cannot export the module, or the graph is not valid ONNX.
        MissingDependencyError: onnx or onnxscript is not installed.

    Example:
        >>> import torch
        >>> from fastdc.export import export_graph
        >>> module, inputs = torch.nn.Linear(3, 1).eval(), {"x": torch.zeros(2, 3)}
        >>> export_graph(module, inputs, ["y"], leading={"x": "batch"}).graph.output[0].name
        'y'
    """
    checks.one_of("precision", precision, PRECISIONS)
    if precision == "bfloat16" and opset < LEAST_OPSET_BFLOAT16:
        raise InputError(f"bfloat16 convolutions need opset {LEAST_OPSET_BFLOAT16}, got {opset}")
    if set(leading) != set(inputs):
        raise InputError(f"leading must name the inputs {', '.join(inputs)}, got {', '.join(leading)}")
    for name, value in inputs.items():
        if value.ndim == 0 or len(value) < 2:
            raise InputError(f"{name} must be an example of at least two rows, got shape {tuple(value.shape)}")
    if precision != "float32":
        dtype: torch.dtype = getattr(torch, precision)
        module = _Cast(_in_precision(module, dtype), tuple(inputs), outputs, dtype).eval()
        inputs = {name: value.to(dtype) if name in _TYPED else value for name, value in inputs.items()}
    model = _export(module, inputs, outputs, leading, opset)
    lower_einsum(model)
    if opset >= _LEAST_OPSET_GROUPS:
        lower_single_group(model)
    check_graph(model)
    return model


def export_onnx(network: nn.Module, shape: tuple[int, int, int], num_class_embeds: int) -> bytes:
    """The ONNX file of a training run's denoiser, float32, at opset 20.

    Args:
        network: The denoiser, in evaluation mode, called as ``network(sample, timestep, class_labels)``.
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.

    Raises:
        BackendError: torch cannot export the network.
        MissingDependencyError: torch, onnx or onnxscript is not installed.

    Example:
        >>> from fastdc.bundle import build_network
        >>> from fastdc.export import export_onnx
        >>> network = build_network("mlp", {"shape": [1, 4, 4], "num_class_embeds": 3, "width": 8, "blocks": 1}).eval()
        >>> len(export_onnx(network, (1, 4, 4), 3)) > 1000
        True
    """
    labels = torch.arange(2) % num_class_embeds
    inputs = {"sample": torch.zeros(2, *shape), "timestep": torch.zeros(2), "class_labels": labels}
    model = export_graph(network, inputs, ["output"], leading=dict.fromkeys(inputs, "batch"), opset=OPSET)
    return bytes(model.SerializeToString(deterministic=True))


def _in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module with its floating-point weights in another type; the float32 weights are never held twice.

    The copy is cast by its own ``to``, which a part may override to keep some of its values. A part may also name those
    that stay float32 in ``_keep_in_fp32_modules``, as in diffusers.
    """
    memo: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in module.parameters()}
    memo |= {id(one): one.detach() for one in module.buffers()}  # other objects on the same memory: to() replaces them
    cast = copy.deepcopy(module, memo).to(dtype)
    for whole, part in zip(module.modules(), cast.modules(), strict=True):
        names = set(getattr(whole, "_keep_in_fp32_modules", None) or ())
        parts = {**dict(part.named_parameters()), **dict(part.named_buffers())}
        for name, value in (*whole.named_parameters(), *whole.named_buffers()):
            if names & set(name.split(".")):
                parts[name].data = value.detach()
    return cast


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    leading: Mapping[str, str],
    opset: int,
) -> "onnx.ModelProto":
    require("onnxscript", extra="export")
    shapes: list[Any] = [{0: leading[name]} for name in inputs]
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [one for one in parameters if one.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(named) < len(parameters):  # a forward(..., *rest) takes its rest as one tuple
        first = next(i for i, one in enumerate(parameters) if one.kind is inspect.Parameter.VAR_POSITIONAL)
        shapes[first:] = [tuple(shapes[first:])]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                None,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                dynamic_shapes=tuple(shapes),
                verbose=False,
            )
    except Exception as error:  # the exporter's own types, and any error of the module under tracing
        # The exporter wraps the cause in advice of a page.
        raise BackendError(f"torch cannot export the network: {one_line(error.__cause__ or error)}") from error
    assert program is not None  # dynamo=True always returns a program
    model = program.model_proto
    lower_types(model)
    strip(model)
    return model


def strip(model: "onnx.ModelProto") -> None:
    """Removes stack traces, local paths and notes; the computation stays."""
    model.doc_string = ""
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: "onnx.GraphProto") -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: "Iterable[onnx.NodeProto]") -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's chatter: absent torchvision operators, axis names, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
