"""The files of a bundle's denoiser: its graph, checked against torch, its parts if they save work, and its cost.

The weights of a single graph of ordinary size lie inside it. They lie in ``denoiser.data`` if several graphs share
them, or if the graph would exceed the 2 GiB of a protobuf message.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdc.bundle import CLASSES, DATA, DENOISER, PREFIX, REST, SCORED
from fastdc.export.float16_range import check_range
from fastdc.export.flops import Flops, input_shapes, measure_flops
from fastdc.export.graph import DEFAULT_OPSET, export_graph
from fastdc.export.options import Files, Notify
from fastdc.export.scored import scored_graph
from fastdc.export.split import Split, check_split, split_graph
from fastdc.export.storage import LARGE, external, weight_bytes
from fastdc.export.verify import CHECKED_BATCHES, Feed, GraphCheck, denoiser_feeds, tolerance, verify_graph
from fastdc.sources import Source
from fastdc.support import BackendError, InputError, require

if TYPE_CHECKING:
    import onnx

# Limit of the operations of a comparison with torch: some minutes at 100 GFLOP/s. A network that takes more at a batch
# of 65 is compared at batches of 1 and 3 alone.
_CHECK_FLOPS = 2e13
_CASES = 4  # inputs of denoiser_feeds per batch


@dataclass(frozen=True, eq=False)
class DenoiserFiles:
    """A denoiser's files, and what was found about them.

    Attributes:
        files: Content, or path in the working folder, by name.
        check: Comparison of the graph with torch.
        flops: Cost of the graph.
        split: The parts of the graph, or None.
        split_difference: Largest difference of an output between the parts and the whole.
        largest: Largest magnitude of a value inside a float16 graph; None in other precisions.
    """

    files: Files = field(repr=False)
    check: GraphCheck
    flops: Flops
    split: Split | None = field(repr=False)
    split_difference: float
    largest: float | None = None

    def cost(self) -> dict[str, int]:
        """The manifest's field ``cost``: parameters, and operations per row of the whole and of the parts."""
        entry = {"parameters": self.flops.parameters, "flops": self.flops.per_row}
        if self.split is not None:
            report = self.split.report
            entry |= {"pair_flops": report.prefix, "class_flops": report.classes, "cell_flops": report.rest}
        return entry


def denoiser_files(
    source: Source,
    folder: Path,
    *,
    precision: str = "float32",
    opset: int = DEFAULT_OPSET,
    split: bool = True,
    scored: bool = False,
    notify: Notify = lambda _: None,
) -> DenoiserFiles:
    """Exports the denoiser of a source.

    Args:
        source: The model.
        folder: An empty working folder, for weights that do not fit into memory twice.
        precision: "float32", "float16" or "bfloat16".
        opset: Version of the ONNX operator set.
        split: Whether to make the parts too, if they save work.
        scored: Whether to make a graph that returns errors too.
        notify: Called with one line about each step.

    Raises:
        InputError: Precision and opset do not fit each other, or the denoiser returns another shape than its sample's.
        BackendError: The graph or its parts do not compute what torch computes, or float16 overflows.
        MissingDependencyError: A package of the extra export is not installed.
    """
    require("onnx", extra="export")
    notify("exporting the denoiser")
    model = _graph(source, precision, opset)
    rows = conditions(source)
    flops = measure_flops(model, input_shapes(model, batch=1, conditions=rows))
    small = weight_bytes(model) < LARGE
    inside = model.SerializeToString(deterministic=True) if small else b""
    if split or not small:
        external(model, folder / DATA)
        (folder / DENOISER).write_bytes(model.SerializeToString(deterministic=True))
    feeds = denoiser_feeds(source.model.sample_shape, rows, timesteps(source), tables=source.tables)
    batches = checked_batches(flops.per_row)
    notify(f"comparing it with torch at batches of {', '.join(map(str, batches))}")
    check = verify_graph(inside or folder / DENOISER, source.denoiser, feeds, precision=precision, batches=batches)
    largest = check_range(model, feeds, folder) if precision == "float16" else None
    parts, difference = None, 0.0
    if split:
        notify("looking for what is computed twice")
        parts, difference = _parts(source, model, folder, precision)
    files: Files = {DENOISER: inside}
    if parts is not None or not small:
        files = {DENOISER: folder / DENOISER, DATA: folder / DATA}
    for name, graph in _named(parts):
        files[name] = graph.SerializeToString(deterministic=True)
    if scored:
        files[SCORED] = _scored(model, inside, external_weights=DATA in files)
    return DenoiserFiles(files, check, flops, parts, difference, largest)


def checked_batches(flops: int) -> tuple[int, ...]:
    """Batches at which to compare a denoiser with torch; only small ones if it is costly.

    Args:
        flops: Operations per row.
    """
    return tuple(batch for batch in CHECKED_BATCHES if batch * _CASES * flops <= _CHECK_FLOPS) or (1, 3)


def conditions(source: Source) -> int:
    """Number of rows of the tables, or of labels that the network knows."""
    null = source.model.null_class
    return max(len(source.model.conditions), 0 if null is None else null + 1)


def timesteps(source: Source) -> tuple[float, float]:
    """The least and the largest time input of the schedule."""
    found = source.model.schedule.levels([0.0, 1.0]).timestep
    return float(found.min()), float(found.max())


def _graph(source: Source, precision: str, opset: int) -> "onnx.ModelProto":
    import torch

    inputs = {
        "sample": torch.zeros(2, *source.model.sample_shape),
        "timestep": torch.full((2,), timesteps(source)[0]),
        "class_labels": torch.arange(2) % conditions(source),
    }
    leading = dict.fromkeys(inputs, "batch") | dict.fromkeys(source.tables, "conditions")
    # An example needs two rows; the tables themselves stay out of the graph.
    tables = {name: torch.from_numpy(np.resize(table, (2, *table.shape[1:]))) for name, table in source.tables.items()}
    inputs["class_labels"] %= 2
    model = export_graph(
        source.denoiser, {**inputs, **tables}, ("output",), leading=leading, opset=opset, precision=precision
    )
    got = tuple(extent.dim_value for extent in model.graph.output[0].type.tensor_type.shape.dim)[1:]
    if got != source.model.sample_shape:
        raise InputError(f"the denoiser must return the shape of its sample, {source.model.sample_shape}, got {got}")
    return model


def _named(parts: Split | None) -> list[tuple[str, "onnx.ModelProto"]]:
    if parts is None:
        return []
    named = ((PREFIX, parts.prefix), (CLASSES, parts.classes), (REST, parts.rest))
    return [(name, graph) for name, graph in named if graph is not None]


def _parts(source: Source, model: "onnx.ModelProto", folder: Path, precision: str) -> tuple[Split | None, float]:
    """The graph in parts, and their largest difference from the whole.

    The parts of a bfloat16 graph are not compared, because ONNX Runtime has no bfloat16.
    """
    found = split_graph(model)
    if found is None or precision == "bfloat16":
        return found, 0.0
    rng = np.random.default_rng(0)
    low, high = timesteps(source)
    kind = np.float16 if precision == "float16" else np.float32
    feeds: dict[str, Any] = {
        "sample": rng.standard_normal((3, *source.model.sample_shape)).astype(kind),
        "timestep": np.linspace(low, high, 3).astype(np.float32),
        "class_labels": np.unique(np.linspace(0, conditions(source) - 1, 4).astype(np.int64)),
    }
    difference = check_split(model, found, {**feeds, **source.tables}, folder=folder)
    allowed = tolerance(source.denoiser, precision=precision) * max(1.0, _largest(source, feeds))
    if not difference <= allowed:
        raise BackendError(f"the denoiser in parts differs from the whole by {difference:.2g}, allowed {allowed:.2g}")
    return found, difference


def _largest(source: Source, feeds: Feed) -> float:
    """The largest output of the denoiser on a few inputs; tolerances are relative to it."""
    import torch

    count = len(feeds["sample"])
    labels = torch.from_numpy(np.resize(feeds["class_labels"], count))
    with torch.inference_mode():
        out = source.denoiser(
            torch.from_numpy(feeds["sample"]).float(),
            torch.from_numpy(feeds["timestep"]),
            labels,
            *map(torch.from_numpy, source.tables.values()),
        )
    return float(out.abs().max())


def _scored(model: "onnx.ModelProto", inside: bytes, *, external_weights: bool) -> bytes:
    """The graph that returns errors; its weights lie where those of the denoiser lie."""
    import onnx

    whole = model if external_weights else onnx.load_from_string(inside)
    return bytes(scored_graph(whole).SerializeToString(deterministic=True))
