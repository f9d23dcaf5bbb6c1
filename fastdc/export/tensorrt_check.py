"""Checks that TensorRT parses a graph and builds an engine from it, without running the engine.

``tensorrt_rtx`` builds on a machine without a GPU, so that every exported graph can be checked anywhere.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fastdc.backends.tensorrt import BATCH, EngineOptions, Range, build_plan, check_range, use_module

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class BuildReport:
    """A build that worked.

    Attributes:
        seconds: Seconds of parsing and building.
        plan_bytes: Size of the engine.
        layers: Number of layers of the network as parsed.
        inputs: Type of each input by name, as TensorRT calls it.
        outputs: Type of each output by name.
    """

    seconds: float
    plan_bytes: int
    layers: int
    inputs: dict[str, str]
    outputs: dict[str, str]


def build_check(
    model: "bytes | str | Path | onnx.ModelProto",
    trt: ModuleType,
    *,
    batch: Range = (1, 2, 4),
    leading: Mapping[str, Range] | None = None,
) -> BuildReport:
    """Parses a graph and builds an engine.

    Args:
        model: The graph, the content of its file, or its path if weights lie beside it.
        trt: The package ``tensorrt`` (needs a GPU) or ``tensorrt_rtx``.
        batch: Least, usual and largest size of the dimension "batch".
        leading: The same three sizes for other named dimensions, such as "conditions"; omitted ones are as the batch.

    Raises:
        InputError: The sizes are not in order.
        BackendError: The graph cannot be parsed, with the nodes that are to blame, or cannot be built.

    Example:
        >>> import tensorrt_rtx
        >>> from fastdc import bundle, export
        >>> model = bundle.load_bundle(bundle.find_model("digits-mlp")).read("denoiser.onnx")
        >>> export.build_check(model, tensorrt_rtx).outputs
        {'output': 'FLOAT'}
    """
    ranges = defaultdict(lambda: batch, {**(leading or {}), BATCH: batch})
    for name, given in ranges.items():
        check_range(name, given)
    graph = model if isinstance(model, (bytes, str, Path)) else model.SerializeToString()
    built = build_plan(use_module(trt, trt.__name__), graph, [ranges], EngineOptions())
    return BuildReport(built.seconds, len(built.plan), built.layers, dict(built.inputs), dict(built.outputs))
