"""A denoiser's graph with its products in int8.

Every matrix product and convolution gets Quantize/Dequantize pairs on its inputs (the QDQ form that ONNX Runtime and
TensorRT both fuse): q = clip(round(v / s), -127, 127), symmetric about zero, as TensorRT asks. A weight has one s a
channel, an activation one s for the whole tensor, the largest magnitude on calibration inputs over 127 (Jacob et al.,
arXiv:1712.05877). A denoiser sees every noise level, and its activations differ between them (Q-Diffusion,
arXiv:2302.04304), so those inputs must cover the levels that the classifier draws.

The first and last product stay as they are: they touch the noisy image and F themselves, where a rounding goes into
the error in full, and they cost little.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdc.backends import one_line
from fastdc.export.graph import strip
from fastdc.export.storage import value_types
from fastdc.support import BackendError, InputError, require

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "MatMul", "Gemm")

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def quantize_graph(
    model: bytes,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    products: tuple[str, ...] = PRODUCTS,
    method: str = "minmax",
    keep_ends: bool = True,
    exclude: tuple[str, ...] = (),
) -> bytes:
    """Quantises a float32 graph to int8.

    Args:
        model: An ONNX file's content, its weights inside.
        feeds: Calibration inputs: every input of the graph by name, see :func:`calibration_feeds`.
        products: Operators to quantise, of :data:`PRODUCTS`.
        method: How an activation's range is found: "minmax", "entropy" or "percentile".
        keep_ends: Leave the first and last product alone.
        exclude: Names of further nodes to leave alone.

    Returns:
        The ONNX file's content; inputs and outputs are as before.

    Raises:
        InputError: An operator or the method is not known, or there is no input to calibrate on.
        BackendError: ONNX Runtime cannot quantise the graph.
    """
    if unknown := set(products) - set(PRODUCTS):
        raise InputError(f"products must be of {', '.join(PRODUCTS)}, got {', '.join(sorted(unknown))}")
    if method not in _METHODS:
        raise InputError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    onnx = require("onnx", extra="export")
    quantization = require("onnxruntime.quantization", extra="cpu")
    graph = onnx.load_from_string(model)
    borders = {value.name for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer)}
    types = value_types(graph)  # the quantiser leaves alone what it knows no type of
    graph.graph.value_info.extend(value for name, value in types.items() if name not in borders)
    ends = product_ends(graph, products) if keep_ends else ()
    reader = _Reader(feeds)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser's advice goes to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "model.onnx", Path(folder) / "quantised.onnx"
            onnx.save(graph, str(given))  # a file, because a ModelProto would lose its weights on the way
            quantization.quantize_static(
                given,
                out,
                reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(products),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=[*ends, *exclude],
                calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[method]),
                calibration_providers=["CPUExecutionProvider"],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    # Inputs alone: outputs are wanted in float by the normalisations that follow. TensorRT fuses this
                    # form and takes no int32 bias; ONNX Runtime runs it, its convolutions as float.
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(products),
                },
            )
            quantised = onnx.load(str(out))
    except Exception as error:  # plain ValueErrors and RuntimeErrors of the quantiser
        raise BackendError(f"ONNX Runtime cannot quantise the graph: {one_line(error)}") from error
    finally:
        logger.setLevel(level)
    strip(quantised)
    return bytes(quantised.SerializeToString(deterministic=True))


def calibration_feeds(
    images: NDArray[np.float32],
    levels: Iterable[tuple[float, float, float]],
    conditions: int,
    *,
    batch: int = 8,
    seed: int = 0,
    tables: Mapping[str, NDArray[np.float32]] | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Noisy images as a classifier gives them to the network: every image at every level, classes in turn.

    Args:
        images: x, float32 (n, c, h, w), in the model's value range (latents, where the network works on those).
        levels: (gx, ge, timestep) of each level, the columns of a coefficient row: u = gx x + ge e.
        conditions: Number of class labels that may come up, the null class included where it is used.
        batch: Rows of a feed.
        seed: Of the noise.
        tables: The condition tables, given as they are.
    """
    rng = np.random.default_rng(seed)
    turn = 0
    for gx, ge, timestep in levels:
        for start in range(0, len(images), batch):
            x = images[start : start + batch]
            labels = (turn + np.arange(len(x), dtype=np.int64)) % conditions
            turn += len(x)
            yield {
                "sample": (gx * x + ge * rng.standard_normal(x.shape)).astype(np.float32),
                "timestep": np.full(len(x), timestep, np.float32),
                "class_labels": labels,
                **(tables or {}),
            }


def product_ends(model: "onnx.ModelProto", products: tuple[str, ...] = PRODUCTS) -> tuple[str, ...]:
    """Names of the product nodes next to ``sample`` and next to ``output``: the first and last that touch an image."""
    nodes = model.graph.node
    makers = {name: [node] for node in nodes for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    first = _nearest(["sample"], lambda node: node.output, lambda name: users.get(name, []), products)
    last = _nearest(["output"], lambda node: node.input, lambda name: makers.get(name, []), products)
    return tuple(sorted(first | last))


def _nearest(start: list[str], onward: Any, nodes_at: Any, products: tuple[str, ...]) -> set[str]:
    """Names of the products that are met first on every way from `start`; ways end at them."""
    found: set[str] = set()
    seen: set[str] = set()
    open_ = list(start)
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in nodes_at(name):
            if node.op_type in products:
                found.add(node.name)
            elif node.op_type != "Shape":  # knows the batch, not the image
                open_ += onward(node)
    return found


class _Reader:
    """Feeds as ONNX Runtime's quantiser asks for them."""

    def __init__(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self._feeds = [dict(feed) for feed in feeds]
        if not self._feeds:
            raise InputError("calibration needs at least one input, got none")
        self._next = 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        self._next += 1
        return self._feeds[self._next - 1] if self._next <= len(self._feeds) else None
