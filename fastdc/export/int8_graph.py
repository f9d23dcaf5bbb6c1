"""A denoiser's graph with its products in int8.

Every matrix product and convolution gets Quantize/Dequantize pairs on its inputs (the QDQ form that ONNX Runtime and
TensorRT both fuse): q = clip(round(v / s), -127, 127), symmetric about zero, as TensorRT requires. A weight has one s
per channel, an activation one s for the whole tensor: its largest magnitude on calibration inputs over 127 (Jacob et
al., arXiv:1712.05877). A denoiser sees every noise level, and its activations differ between them (Q-Diffusion,
arXiv:2302.04304), so the calibration inputs must cover the levels that the classifier draws.

The first and last product stay in float: they touch the noisy image and F themselves, where a rounding enters the error
in full, and they cost little.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdc.export.graph import strip
from fastdc.export.inspection import value_types
from fastdc.support import BackendError, Float32, InputError, one_line, require, temporary_folder

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "MatMul", "Gemm")
"""Operators that become int8."""

_BATCH = 8  # rows of a calibration input


def quantize_graph(model: bytes, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> bytes:
    """Quantises a float32 graph to int8.

    Args:
        model: Content of an ONNX file, its weights inside.
        feeds: Calibration inputs, such as those of :func:`calibration_feeds`: every input of the graph by name.

    Returns:
        The content of the new ONNX file; inputs and outputs are as before.

    Raises:
        InputError: There is no calibration input.
        BackendError: ONNX Runtime cannot quantise the graph.

    Example:
        >>> from fastdc import bundle, export
        >>> model = bundle.load_bundle(bundle.find_model("digits-mlp")).read("denoiser.onnx")
        >>> feeds = export.calibration_feeds(images / np.float32(127.5) - 1, [(0.7, 0.7, 0.0)], conditions=11)
        >>> len(export.quantize_graph(model, feeds)) < len(model)
        True
    """
    onnx = require("onnx", extra="export")
    quantization = require("onnxruntime.quantization", extra="cpu")
    graph = onnx.load_from_string(model)
    borders = {value.name for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer)}
    types = value_types(graph)  # the quantiser leaves alone every value whose type it does not know
    graph.graph.value_info.extend(value for name, value in types.items() if name not in borders)
    reader = _Reader(feeds)
    try:
        with temporary_folder() as folder, _quiet():
            given, out = folder / "model.onnx", folder / "quantised.onnx"
            onnx.save(graph, str(given))  # a file, because the quantiser would lose the weights of a ModelProto
            _quantize_file(quantization, given, out, reader, product_ends(graph))
            quantised = onnx.load(str(out))
    except Exception as error:  # plain ValueErrors and RuntimeErrors of the quantiser
        raise BackendError(f"ONNX Runtime cannot quantise the graph: {one_line(error)}") from error
    strip(quantised)
    return bytes(quantised.SerializeToString(deterministic=True))


def _quantize_file(quantization: Any, given: Path, out: Path, reader: "_Reader", exclude: tuple[str, ...]) -> None:
    """Quantises the graph in a file, except for some nodes."""
    quantization.quantize_static(
        given,
        out,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(exclude),
        calibrate_method=quantization.CalibrationMethod.MinMax,
        calibration_providers=["CPUExecutionProvider"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # Quantise inputs alone: the normalisations that follow want float outputs. TensorRT fuses this form and
            # takes no int32 bias; ONNX Runtime runs it, its convolutions in float.
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
        },
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the quantiser's advice, which goes to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def calibration_feeds(
    images: Float32,
    levels: Iterable[tuple[float, float, float]],
    conditions: int,
    *,
    tables: Mapping[str, Float32] | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Noisy images as a classifier gives them to the network: every image at every level, with the classes in turn.

    Args:
        images: Images x, float32 (n, c, h, w), in the model's value range; latents if the network works on those.
        levels: (gx, ge, timestep) of each level, the columns of a coefficient row: u = gx x + ge e.
        conditions: Number of class labels that may come up, the null class included if it is used.
        tables: Condition tables, passed on unchanged.

    Yields:
        The inputs of up to 8 rows by name.

    Example:
        >>> from fastdc.export import calibration_feeds
        >>> [len(feed["sample"]) for feed in calibration_feeds(images / np.float32(255), [(1.0, 0.5, 10.0)], 10)]
        [8, 8, 4]
    """
    rng = np.random.default_rng(0)
    turn = 0
    for gx, ge, timestep in levels:
        for start in range(0, len(images), _BATCH):
            x = images[start : start + _BATCH]
            labels = (turn + np.arange(len(x), dtype=np.int64)) % conditions
            turn += len(x)
            yield {
                "sample": (gx * x + ge * rng.standard_normal(x.shape)).astype(np.float32),
                "timestep": np.full(len(x), timestep, np.float32),
                "class_labels": labels,
                **(tables or {}),
            }


def product_ends(model: "onnx.ModelProto") -> tuple[str, ...]:
    """Names of the product nodes next to ``sample`` and next to ``output``: the first and last that touch an image."""
    nodes = model.graph.node
    makers = {name: [node] for node in nodes for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    first = _nearest("sample", lambda node: node.output, lambda name: users.get(name, []))
    last = _nearest("output", lambda node: node.input, lambda name: makers.get(name, []))
    return tuple(sorted(first | last))


def _nearest(start: str, onward: Any, nodes_at: Any) -> set[str]:
    """Names of the products that come first on the ways from `start`.

    Args:
        start: Name of a value.
        onward: Function from a node to the values behind it.
        nodes_at: Function from a value to the nodes behind it.
    """
    found: set[str] = set()
    seen: set[str] = set()
    open_ = [start]
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in nodes_at(name):
            if node.op_type in PRODUCTS:
                found.add(node.name)
            elif node.op_type != "Shape":  # knows the batch, not the image
                open_ += onward(node)
    return found


class _Reader:
    """Hands calibration inputs to ONNX Runtime's quantiser, one per call.

    Raises:
        InputError: There are none.
    """

    def __init__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self._feeds = [dict(feed) for feed in feeds]
        if not self._feeds:
            raise InputError("calibration needs at least one input, got none")
        self._next = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None
