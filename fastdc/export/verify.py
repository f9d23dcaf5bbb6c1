"""Checks that an exported graph computes what its torch module computes.

Exporters may write a graph that is right only at the batch at which it was traced. Before a bundle is written, ONNX
Runtime therefore runs each graph at batches of 1, 3 and 65, and the outputs are compared with torch's, on random inputs
and on inputs with structure: zeros, constants, the extreme noise levels, every condition.

The allowed difference, relative to the largest output, is derived in :mod:`fastdc.backends.rounding`.

ONNX Runtime has no bfloat16 on the CPU. A bfloat16 graph is run in float32 on the same rounded weights, which checks
everything but the engine's own rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastdc.backends import PRECISIONS, rounding_tolerance, widen
from fastdc.support import BackendError, checks, one_line, require

if TYPE_CHECKING:
    import onnx
    from torch import nn

Feed = Mapping[str, NDArray[Any]]
"""Inputs of a graph by name, in the order in which its module takes them."""

Feeds = Callable[[int, np.random.Generator], Iterable[Feed]]
"""Function (batch, rng) -> inputs of that batch."""

CHECKED_BATCHES = (1, 3, 65)
"""Batches at which a denoiser is compared with torch."""

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
"""Noise levels of EDM's sampler (arXiv:2206.00364, table 1); a classifier's levels are in the bundle's defaults."""


@dataclass(frozen=True)
class GraphCheck:
    """Result of a comparison with torch.

    Attributes:
        difference: Largest absolute difference of an output.
        relative: Largest difference relative to the largest output of the same inputs, or to 1 if that output is less.
        allowed: Upper limit of ``relative``.
        batches: Batches that were compared.
        widened: Whether the graph was run in float32, because no engine on the CPU has its precision.
    """

    difference: float
    relative: float
    allowed: float
    batches: tuple[int, ...]
    widened: bool = False


def verify_graph(
    model: "bytes | str | Path | onnx.ModelProto",
    module: "nn.Module",
    feeds: Feeds,
    *,
    precision: str = "float32",
    batches: tuple[int, ...] = CHECKED_BATCHES,
) -> GraphCheck:
    """Compares an exported graph with its module.

    Args:
        model: The graph, the content of its file, or its path if weights lie beside it.
        module: The module from which it was made, float32, in evaluation mode, on the CPU.
        feeds: Inputs for each batch, such as those of :func:`denoiser_feeds`; float inputs in float32.
        precision: Precision of the graph: "float32", "float16" or "bfloat16".
        batches: Batches to compare at.

    Returns:
        The differences; ``relative`` is at most ``allowed``.

    Raises:
        InputError: The precision is unknown.
        BackendError: The graph differs by more, or ONNX Runtime cannot run it.
    """
    checks.one_of("precision", precision, PRECISIONS)
    torch = require("torch", extra="export")
    allowed = tolerance(module, precision=precision)
    worst = worst_relative = 0.0
    rng = np.random.default_rng(0)
    try:
        session = _session(model, widen_it=precision == "bfloat16")
        types = {item.name: item.type for item in session.get_inputs()}
        for batch in batches:
            for feed in feeds(batch, rng):
                typed = {name: _as(value, types.get(name, "")) for name, value in feed.items()}
                got = session.run(None, typed)
                with torch.no_grad():
                    want = module(*(torch.from_numpy(_plain(value)) for value in typed.values()))
                wanted = [one.numpy() for one in (want if isinstance(want, tuple) else (want,))]
                difference, relative = _compare(got, wanted, batch, allowed)
                worst, worst_relative = max(worst, difference), max(worst_relative, relative)
    except BackendError:
        raise
    except Exception as error:  # ONNX Runtime raises plain RuntimeErrors and types of its own
        raise BackendError(f"ONNX Runtime cannot run the exported network: {one_line(error)}") from error
    return GraphCheck(worst, worst_relative, allowed, batches, precision == "bfloat16")


def _compare(got: list[Any], want: list[Any], batch: int, allowed: float) -> tuple[float, float]:
    worst = worst_relative = 0.0
    for ours, theirs in zip(got, want, strict=True):
        if ours.shape != theirs.shape:
            raise BackendError(f"the exported network returns {ours.shape} at batch {batch}, torch {theirs.shape}")
        difference = float(np.abs(ours.astype(np.float32) - theirs).max())
        scale = max(1.0, float(np.abs(theirs).max()))
        if not difference <= allowed * scale:
            found = f"{difference:.2g} at batch {batch}, allowed {allowed * scale:.2g}"
            raise BackendError(f"the exported network differs from torch by {found}")
        worst, worst_relative = max(worst, difference), max(worst_relative, difference / scale)
    return worst, worst_relative


def verify_onnx(
    model: bytes,
    network: "nn.Module",
    shape: tuple[int, int, int],
    num_class_embeds: int,
    *,
    timestep_scale: float = 1.0,
    timesteps: tuple[float, float] | None = None,
) -> float:
    """Compares the graph of a training run with its network at several batches, noise levels and classes.

    Args:
        model: Content of the ONNX file.
        network: The torch module from which it was made, in evaluation mode, on the CPU.
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.
        timestep_scale: Factor of the time input of an EDM network, timestep_scale * ln sigma.
        timesteps: The time inputs at both ends of the schedule, in either order; None: those of EDM's sigmas.

    Returns:
        The largest absolute difference of an output.

    Raises:
        BackendError: The difference is above :func:`tolerance`, or ONNX Runtime cannot run the graph.

    Example:
        >>> from fastdc import bundle, export
        >>> network = fastdc.load("digits-mlp", backend="torch").network.module
        >>> model = bundle.load_bundle(bundle.find_model("digits-mlp")).read("denoiser.onnx")
        >>> export.verify_onnx(model, network, (1, 8, 8), 11, timestep_scale=100.0) < 1e-4
        True
    """
    usual = timestep_scale * math.log(SIGMA_MIN), timestep_scale * math.log(SIGMA_MAX)
    low, high = sorted(usual if timesteps is None else timesteps)

    def feeds(batch: int, rng: np.random.Generator) -> Iterator[Feed]:
        sample = rng.standard_normal((batch, *shape)).astype(np.float32)
        timestep = rng.uniform(low, high, batch).astype(np.float32)
        yield {"sample": sample, "timestep": timestep, "class_labels": rng.integers(0, num_class_embeds, batch)}

    return verify_graph(model, network, feeds).difference


def denoiser_feeds(
    shape: tuple[int, int, int],
    conditions: int,
    timesteps: tuple[float, float],
    *,
    tables: Feed | None = None,
) -> Feeds:
    """Inputs that bring out the errors a denoiser's graph may have: random ones, and ones with structure.

    Args:
        shape: Shape of a sample (c, h, w).
        conditions: Number of class labels or rows of a table, the null class included; all of them come up in order.
        timesteps: The least and the largest timestep; both come up, and values between them.
        tables: Condition tables, passed on unchanged.
    """
    low, high = timesteps

    def feeds(batch: int, rng: np.random.Generator) -> Iterator[Feed]:
        noise = rng.standard_normal((batch, *shape)).astype(np.float32)
        every = np.arange(batch, dtype=np.int64) % conditions
        span = np.linspace(low, high, batch) if batch > 1 else np.full(1, (low + high) / 2)
        cases = (
            (noise, rng.uniform(low, high, batch), rng.integers(0, conditions, batch)),
            (3 * noise, np.where(every % 2, low, high), every),
            (np.zeros_like(noise), span, conditions - 1 - every),
            (np.ones_like(noise) * np.where(every % 2, -1, 1)[:, None, None, None], span[::-1], every),
        )
        for sample, timestep, labels in cases:
            yield {
                "sample": sample.astype(np.float32),
                "timestep": timestep.astype(np.float32),
                "class_labels": labels.astype(np.int64),
                **(tables or {}),
            }

    return feeds


def tolerance(network: "nn.Module", *, precision: str = "float32") -> float:
    """Difference between two engines, relative to the largest output, that rounding alone may cause.

    The formula is in the docstring of :mod:`fastdc.backends.rounding`.

    Args:
        network: A torch module; its weights of two or more dimensions give the number of products per output.
        precision: "float32", "float16", "bfloat16", "int8" or "tf32".

    Example:
        >>> from fastdc.export import tolerance
        >>> import torch
        >>> tolerance(torch.nn.Linear(64, 10)) == 64 / 2**24
        True
    """
    fan_in = [math.prod(weight.shape[1:]) for weight in network.parameters() if weight.ndim > 1]
    return rounding_tolerance(fan_in, precision)


def _session(model: "bytes | str | Path | onnx.ModelProto", *, widen_it: bool) -> Any:
    runtime = require("onnxruntime", extra="cpu")
    if widen_it:
        onnx = require("onnx", extra="export")
        if isinstance(model, bytes):
            model = onnx.load_from_string(model)
        elif isinstance(model, (str, Path)):
            model = onnx.load(str(model))
        model = widen(model)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    given = str(model) if isinstance(model, (str, Path)) else model
    if not isinstance(given, (str, bytes)):
        given = given.SerializeToString()
    return runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def _as(value: NDArray[Any], kind: str) -> NDArray[Any]:
    return np.ascontiguousarray(value.astype(np.float16) if kind == "tensor(float16)" else value)


def _plain(value: NDArray[Any]) -> NDArray[Any]:
    """The rounded input in float32, as torch's module takes it, so that its rounding does not count as an error."""
    return value.astype(np.float32) if value.dtype == np.float16 else value
