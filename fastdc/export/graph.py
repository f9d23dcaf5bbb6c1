"""A torch denoiser as an ONNX graph.

The graph takes ``sample`` float32 (batch, c, h, w), ``timestep`` float32 (batch,) and ``class_labels`` int64 (batch,),
and returns ``output`` float32 (batch, c, h, w), the raw network output F. The batch is dynamic. Everything that tells
where or when the graph was made (stack traces, file names) is removed, so the same network gives the same bytes.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastdc.extras import require

if TYPE_CHECKING:
    import onnx
    from torch import nn

# From 21 on, normalisation over groups is one operator, for which ONNX Runtime has no CPU kernel: it runs the ten small
# ones that define it, and the digits UNet takes 1.1 times as long. At 20 it is an InstanceNormalization, which has one.
OPSET = 20


def export_onnx(network: "nn.Module", shape: tuple[int, int, int], num_class_embeds: int) -> bytes:
    """The ONNX graph of a denoiser, as in the module docstring, without any trace of the machine it was made on.

    Args:
        network: Called as ``network(sample, timestep, class_labels)``; put in evaluation mode by the caller.
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.

    Raises:
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    torch = require("torch", extra="train")
    require("onnxscript", extra="export")
    checker = require("onnx.checker", extra="export")
    # Two images, not one: at a batch of one the exporter bakes the batch into the graph without a word.
    example = (torch.zeros(2, *shape), torch.zeros(2), torch.arange(2) % num_class_embeds)
    with quiet():
        program = torch.onnx.export(
            network,
            example,
            None,
            input_names=["sample", "timestep", "class_labels"],
            output_names=["output"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: "batch"}, {0: "batch"}, {0: "batch"}),
            verbose=False,
        )
    model = program.model_proto
    strip(model)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


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
def quiet() -> Iterator[None]:
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
