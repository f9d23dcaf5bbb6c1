"""Graphs of training runs whose architecture was exported before, in this process: the known graph with other weights.

torch takes about a second to trace the smallest network, which is longer than a small one trains, and a
cross-validation exports the same architecture many times. A graph names its weights as the module does, so that they
can be exchanged. The result is the graph that torch would write, byte for byte, and is compared with torch like every
other one. A graph that does not hold each weight under its name is traced afresh: a UNet's, some of whose weights torch
transposes.
"""

import json
from typing import TYPE_CHECKING, Any

from fastdc.export.graph import export_onnx
from fastdc.export.verify import verify_onnx
from fastdc.support import BackendError, require

if TYPE_CHECKING:
    from torch import nn

_MOST = 16  # graphs
_LARGEST = 2**23  # bytes: the graph of a larger network takes longer to train than to trace

_known: dict[str, bytes] = {}


def traced_and_verified(
    network: "nn.Module",
    description: dict[str, Any],
    shape: tuple[int, int, int],
    labels: int,
    *,
    timesteps: tuple[float, float],
) -> tuple[bytes, float]:
    """The ONNX file of a training run's denoiser, and its largest difference from torch.

    Args:
        network: The denoiser, in evaluation mode.
        description: The architecture, ``RunInfo.network``.
        shape: Shape (c, h, w) of what the network works on.
        labels: Number of class labels, the null class included.
        timesteps: The time inputs at both ends of the schedule.

    Raises:
        BackendError: torch cannot export the network, or ONNX Runtime and torch disagree about it.
    """
    key = json.dumps([description, shape, labels], sort_keys=True)
    model = with_weights(_known[key], network) if key in _known else None
    if model is not None:
        try:
            return model, verify_onnx(model, network, shape, labels, timesteps=timesteps)
        except BackendError:  # the graph holds more of the weights than their names say
            _known.pop(key, None)
    model = export_onnx(network, shape, labels)
    difference = verify_onnx(model, network, shape, labels, timesteps=timesteps)
    if len(model) <= _LARGEST:
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = model
    return model, difference


def with_weights(model: bytes, network: "nn.Module") -> bytes | None:
    """A graph with the weights of another network of its architecture.

    Args:
        model: Content of the graph's file, its weights inside.
        network: The network, float32, on the CPU.

    Returns:
        The content of the file; None if the graph does not hold each weight under its name, in its shape.
    """
    onnx = require("onnx", extra="export")
    graph = onnx.load_from_string(model)
    held = {one.name: one for one in graph.graph.initializer}
    for name, weight in network.state_dict().items():
        tensor = held.get(name)
        if tensor is None or tuple(tensor.dims) != tuple(weight.shape) or not tensor.HasField("raw_data"):
            return None
        tensor.raw_data = weight.detach().contiguous().numpy().tobytes()
    return bytes(graph.SerializeToString(deterministic=True))
