"""Whether TensorRT parses a graph and builds an engine of it, without running it.

``tensorrt`` and ``tensorrt_rtx`` share their interface, which is why the module is a parameter. The latter builds on a
machine without a GPU, so that every exported graph can be checked anywhere.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fastdc.exceptions import BackendError, InputError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class BuildReport:
    """A build that worked.

    Attributes:
        seconds: Parsing and building.
        plan_bytes: Size of the engine.
        layers: Of the network as parsed.
        inputs: Type of each input by name, as TensorRT calls it.
        outputs: Likewise.
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
    batch: tuple[int, int, int] = (1, 2, 4),
    leading: Mapping[str, tuple[int, int, int]] | None = None,
) -> BuildReport:
    """Parses a graph and builds an engine.

    Args:
        model: The graph, its file's content, or its path where weights lie beside it.
        trt: ``tensorrt`` (needs a GPU) or ``tensorrt_rtx``.
        batch: Least, usual and largest size of the dimension "batch".
        leading: The same for other named dimensions, such as "conditions"; those not given are as the batch.

    Raises:
        InputError: The sizes are not in order.
        BackendError: The graph cannot be parsed, with the nodes that are to blame, or built.
    """
    ranges = {**(leading or {}), "batch": batch}
    for name, (low, usual, high) in ranges.items():
        if not 1 <= low <= usual <= high:
            raise InputError(f"{name} must be three sizes in increasing order from 1, got {(low, usual, high)}")
    start = time.perf_counter()
    logger = _logger(trt)
    builder: Any = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    # Version 10 has to be told that types are the graph's; later ones know nothing else.
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    parser: Any = trt.OnnxParser(network, logger)
    if not _parse(parser, model):
        raise BackendError(f"TensorRT cannot parse the graph: {parser_errors(parser)}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    names = _dimension_names(network)
    for name, shape in names.items():
        sides = [ranges.get(side, batch) if isinstance(side, str) else (side,) * 3 for side in shape]
        profile.set_shape(name, *(tuple(side[i] for side in sides) for i in range(3)))
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the range of shapes: {logger.last}")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"TensorRT cannot build the graph: {logger.last}")
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return BuildReport(
        time.perf_counter() - start,
        int(plan.nbytes),
        int(network.num_layers),
        {one.name: one.dtype.name for one in inputs},
        {one.name: one.dtype.name for one in outputs},
    )


def parser_errors(parser: Any) -> str:
    """What a parser has against a graph, in one line: node, operator and description of each error."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [f"{one.node_name() or '?'} ({one.node_operator() or '?'}): {one.desc()}" for one in errors]
    return " ".join("; ".join(lines).split())[:500] or "no reason given"


def _parse(parser: Any, model: "bytes | str | Path | onnx.ModelProto") -> bool:
    if isinstance(model, (str, Path)):
        return bool(parser.parse_from_file(str(model)))
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return bool(parser.parse(content))


def _dimension_names(network: Any) -> dict[str, list[int | str]]:
    """Each input's shape, with names in the place of dynamic dimensions."""
    names: dict[str, list[int | str]] = {}
    for index in range(network.num_inputs):
        value = network.get_input(index)
        names[value.name] = [
            (value.get_dimension_name(i) or "batch") if size < 0 else int(size) for i, size in enumerate(value.shape)
        ]
    return names


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        """Keeps the last error, prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason given"

        def log(self, severity: Any, msg: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = " ".join(msg.split())[:300]

    return Logger()
