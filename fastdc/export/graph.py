"""A torch module as an ONNX graph.

A denoiser's graph takes ``sample`` (batch, c, h, w), ``timestep`` float32 (batch,), ``class_labels`` int64 (batch,) and
its condition tables, float32 (conditions, ...), and returns ``output`` (batch, c, h, w), the raw network output F; the
first dimension of every input is dynamic. Everything that tells where or when the graph was made (stack traces, file
names) is removed, so the same network gives the same bytes.

In float16 and bfloat16 the module is cast before it is exported, not the graph afterwards, so that the parts that a
module computes in float32 by itself stay so. ``sample`` and ``output`` then have that type, because the kernels around
the network write and read it. Every other input and output stays float32 (``timestep`` reaches hundreds of radians;
tables and latents are shared between precisions) and is cast inside, ``timestep`` by the module itself.
"""

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastdc.backends import one_line
from fastdc.export.lower import lower_einsum, lower_single_group, lower_types
from fastdc.export.storage import check_graph
from fastdc.support import BackendError, InputError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

if TYPE_CHECKING:
    import onnx

# Of training runs. From 21 on, normalisation over groups is one operator, for which ONNX Runtime has no CPU kernel: it
# runs the ten small ones that define it, and the digits UNet takes 1.1 times as long. At 20 it is an
# InstanceNormalization, which has one.
OPSET = 20

# Of everything else: the first at which a convolution may be bfloat16, and at which GPU engines see whole GroupNorms.
# From 23 on attention is one operator that TensorRT refuses for many head sizes.
DEFAULT_OPSET = 22

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TYPED = ("sample", "output")  # what has the type of the weights at the border of the graph
_UNCAST = ("timestep",)  # float inputs that the module casts itself, after what it computes in float32


class _Cast(nn.Module):
    """A module in half precision behind the types of :mod:`fastdc.export.graph`."""

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
    """The ONNX graph of a module, as in the module docstring.

    Args:
        module: In evaluation mode, float32, on the CPU; called with the inputs in their order, without keywords. It
            returns one tensor, or a tuple of as many as there are outputs.
        inputs: Example inputs by name, float32 or int64, each with a first dimension of at least 2: at one the
            exporter bakes the batch into the graph without a word.
        outputs: Names of the outputs.
        leading: Name of the first dimension of each input, such as "batch" or "conditions".
        opset: Version of ONNX's operators; at least 22 for bfloat16.
        precision: One of :data:`PRECISIONS`; the module itself stays as it is.

    Returns:
        The graph, its weights inside; :func:`fastdc.export.storage.external` moves them out.

    Raises:
        InputError: The inputs, the precision or the opset do not fit each other.
        BackendError: torch cannot export the module, or the graph is not valid ONNX.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bfloat16" and opset < 22:
        raise InputError(f"bfloat16 convolutions need opset 22, got {opset}")
    if set(leading) != set(inputs):
        raise InputError(f"leading must name the inputs {', '.join(inputs)}, got {', '.join(leading)}")
    for name, value in inputs.items():
        if value.ndim == 0 or len(value) < 2:
            raise InputError(f"{name} must be an example of at least two rows, got shape {tuple(value.shape)}")
    if precision != "float32":
        dtype = PRECISIONS[precision]
        module = _Cast(_in_precision(module, dtype), tuple(inputs), outputs, dtype).eval()
        inputs = {name: value.to(dtype) if name in _TYPED else value for name, value in inputs.items()}
    model = _export(module, inputs, outputs, leading, opset)
    lower_einsum(model)
    if opset >= 21:  # below, torch writes no GroupNormalization
        lower_single_group(model)
    check_graph(model)
    return model


def export_onnx(network: nn.Module, shape: tuple[int, int, int], num_class_embeds: int) -> bytes:
    """The ONNX file of a training run's denoiser, float32, at :data:`OPSET`.

    Args:
        network: Called as ``network(sample, timestep, class_labels)``; put in evaluation mode by the caller.
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.

    Raises:
        BackendError: torch cannot export the network.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    labels = torch.arange(2) % num_class_embeds
    inputs = {"sample": torch.zeros(2, *shape), "timestep": torch.zeros(2), "class_labels": labels}
    model = export_graph(network, inputs, ["output"], leading=dict.fromkeys(inputs, "batch"), opset=OPSET)
    return bytes(model.SerializeToString(deterministic=True))


def _in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module with its floating weights in another type; what they were is never held twice.

    It is cast by its own ``to``, which a part may override to keep something. Parts may also name what of theirs stays
    float32 in ``_keep_in_fp32_modules``, as in diffusers.
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
    except Exception as error:  # the exporter's own types, and whatever tracing a module raises
        raise BackendError(f"torch cannot export the network: {one_line(error)}") from error
    assert program is not None  # nothing else comes of dynamo=True
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
