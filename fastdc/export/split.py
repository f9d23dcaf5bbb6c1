"""Splits a denoiser's graph so that nothing is computed twice.

A diffusion classifier runs the network on cells (image, draw, class), and many classes share a draw. Values that depend
on the noisy image and its level alone are the same for all classes. Values that depend on the class alone, such as the
keys and values that cross-attention takes from a text, are the same for all images. So the graph F(sample, timestep,
class_labels, tables) becomes

    prefix    sample, timestep      -> pair.0, pair.1, ...      once per pair (image, draw)
    classes   class_labels, tables  -> class.0, class.1, ...    once per condition
    rest      pair, class_labels, pair.i, class.i -> output     once per cell

where ``pair`` is the row of the pair.i that belongs to a cell, and ``class_labels`` the row of the class.i. With K
cells per pair, a cell then takes rest + prefix / K operations. The same nodes run on the same numbers, so the results
are the same, except that an engine may fuse other nodes and then rounds differently.

Not every node that could run ahead should, because fetching rows costs memory traffic. A node that runs ahead saves its
operations per cell; a value that is fetched costs its bytes times *flops_per_byte*, the number of operations in the
time that it takes to gather a byte. The best frontier is a minimum cut (:mod:`fastdc.export.split_cut`). A convolution
is worth fetching a second large tensor; an elementwise function is not. Only values that have the batch as their first
dimension, and nowhere else, can be fetched by row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.export.split_cut import Candidate, best_ahead
from fastdc.export.split_parts import CLASS, IMAGE, Dependence, Port, find_dependence, part, reads
from fastdc.support import BackendError, InputError, one_line, require

require("onnx", extra="export")

import onnx  # noqa: E402
from onnx import helper  # noqa: E402

FLOPS_PER_BYTE = 8.0
"""Operations that cost as much as fetching a byte: a core of 50 GFLOP/s that copies 6 GB/s. GPUs have more of both."""

CLASS_BYTES = 32 << 20
"""Limit of the bytes stored per condition; Stable Diffusion 1.x takes 8 MB in float32."""

_CLASSES = 10
_LEAST_SAVING = 0.02  # share of the operations at ten classes; three graphs and their borders are not worth less
_LEAST_PART = 0.001  # share of the operations that the prefix or the class part has

_LABELS, _OUTPUT = "class_labels", "output"
_PAIR_INPUTS = ("sample", "timestep")


@dataclass(frozen=True)
class SplitReport:
    """Operations and bytes of a split.

    Attributes:
        total: Operations of the whole graph per row.
        prefix: Operations of the prefix per pair.
        classes: Operations of the class part per condition.
        rest: Operations of the rest per cell.
        pair_bytes: Bytes stored per pair.
        class_bytes: Bytes stored per condition, for as long as the network is in use.
    """

    total: int
    prefix: int
    classes: int
    rest: int
    pair_bytes: int
    class_bytes: int

    def cell(self, cells_per_pair: float) -> float:
        """Operations per cell if so many cells share image and draw; the class part, which runs once, is neglected."""
        return self.rest + self.prefix / cells_per_pair

    def saving(self, cells_per_pair: float) -> float:
        """Share of the operations saved, in [0, 1), if so many cells share image and draw."""
        return 1 - self.cell(cells_per_pair) / self.total if self.total else 0.0


@dataclass(frozen=True, eq=False)
class Split:
    """A denoiser's graph in parts; inputs and outputs as in the module docstring.

    Attributes:
        prefix: The part that runs once per pair; None if it would save nothing. ``rest`` then takes ``sample`` and
            ``timestep``.
        classes: The part that runs once per condition; None if it would save nothing. ``rest`` then takes the tables.
        rest: The part that runs once per cell.
        report: Operations and bytes of the parts.
    """

    prefix: onnx.ModelProto | None = field(repr=False)
    classes: onnx.ModelProto | None = field(repr=False)
    rest: onnx.ModelProto = field(repr=False)
    report: SplitReport


@dataclass(frozen=True)
class _Ahead:
    """The nodes that run ahead on one side, by place, and the values that are fetched from them."""

    nodes: tuple[int, ...] = ()
    values: tuple[str, ...] = ()
    flops: int = 0
    row_bytes: int = 0


def split_graph(
    model: onnx.ModelProto, *, flops_per_byte: float = FLOPS_PER_BYTE, class_bytes: int = CLASS_BYTES
) -> Split | None:
    """Splits a denoiser's graph.

    Args:
        model: A graph with inputs sample, timestep, class_labels and any tables, and output ``output``; opset 20 or
            later. The parts refer to external weights at the same places. Move weights out first
            (:mod:`fastdc.export.storage`), or each part gets a copy of the weights that it uses.
        flops_per_byte: Operations that cost as much as fetching a byte for a cell.
        class_bytes: Limit of the bytes stored per condition; if the best split takes more, less of it is stored.

    Returns:
        The parts; None if they would save less than 2 % of the operations with ten classes.

    Raises:
        InputError: The graph has other inputs or outputs.
    """
    names = [value.name for value in model.graph.input]
    if not {*_PAIR_INPUTS, _LABELS} <= set(names) or [value.name for value in model.graph.output] != [_OUTPUT]:
        outputs = ", ".join(value.name for value in model.graph.output)
        wanted = "inputs sample, timestep, class_labels and one output"
        raise InputError(f"a denoiser's graph has {wanted}, got {', '.join(names)} and {outputs}")
    found = find_dependence(model, {name: IMAGE if name in _PAIR_INPUTS else CLASS for name in names})
    if found.of.get(_OUTPUT) != IMAGE | CLASS:
        return None  # the class makes no difference, or nothing else does
    total = sum(found.flops)
    pairs = _ahead(model, found, IMAGE, _PAIR_INPUTS, flops_per_byte)
    classes = _class_part(model, found, names, flops_per_byte, class_bytes)
    pairs, classes = (side if side.flops >= _LEAST_PART * total else _Ahead() for side in (pairs, classes))
    rest = total - pairs.flops - classes.flops
    report = SplitReport(total, pairs.flops, classes.flops, rest, pairs.row_bytes, classes.row_bytes)
    if report.saving(_CLASSES) < _LEAST_SAVING:
        return None
    return _build(model, found, pairs, classes, report)


def check_split(
    model: onnx.ModelProto,
    split: Split,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    folder: str | Path | None = None,
) -> float:
    """Runs a graph and its parts in ONNX Runtime on the same n x k cells.

    The cells are shuffled, so that neighbours share neither pair nor class.

    Args:
        model: The whole graph.
        split: Its parts.
        feeds: ``sample`` (n, c, h, w) and ``timestep`` (n,), one row per pair; ``class_labels`` int64 (k,), conditions
            of the tables or of the network; the tables, if there are any.
        folder: The folder of external weights.

    Returns:
        The largest difference of an output.

    Raises:
        BackendError: ONNX Runtime cannot run one of the graphs.
    """
    labels = feeds[_LABELS]
    pairs = np.arange(len(feeds["sample"]))
    pair, label = (grid.ravel() for grid in np.meshgrid(pairs, labels, indexing="ij"))
    order = np.random.default_rng(0).permutation(len(pair))
    pair, label = pair[order].astype(np.int64), label[order].astype(np.int64)
    tables = {name: array for name, array in feeds.items() if name not in (*_PAIR_INPUTS, _LABELS)}
    per_pair = {name: feeds[name] for name in _PAIR_INPUTS}
    whole = _run(model, {name: array[pair] for name, array in per_pair.items()} | {_LABELS: label} | tables, folder)
    given = {_LABELS: label}
    if split.prefix is None:
        given |= {name: array[pair] for name, array in per_pair.items()}
    else:
        given |= {"pair": pair} | _run(split.prefix, per_pair, folder)
    if split.classes is None:
        given |= tables
    else:
        rows = np.arange(int(labels.max()) + 1 if not tables else len(next(iter(tables.values()))), dtype=np.int64)
        given |= _run(split.classes, {_LABELS: rows} | tables, folder)
    parts = _run(split.rest, given, folder)
    return float(np.abs(whole[_OUTPUT].astype(np.float64) - parts[_OUTPUT].astype(np.float64)).max())


def _run(
    model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]], folder: str | Path | None
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a graph by name."""
    require("onnxruntime", extra="cpu")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # ONNX Runtime raises plain RuntimeErrors and types of its own
        raise BackendError(f"ONNX Runtime cannot run a part of the network: {one_line(error)}") from error


def _class_part(model: onnx.ModelProto, found: Dependence, names: Sequence[str], price: float, limit: int) -> _Ahead:
    """The class part within the limit of bytes: the price of a fetch rises until the part fits."""
    tables = tuple(name for name in names if name not in _PAIR_INPUTS)
    for _ in range(64):
        side = _ahead(model, found, CLASS, tables, price)
        if side.row_bytes <= limit:
            return side
        price = 2 * max(price, 1.0)
    return _Ahead()  # the tables alone take more


def _ahead(
    model: onnx.ModelProto, found: Dependence, kind: int, sources: Sequence[str], flops_per_byte: float
) -> _Ahead:
    """The best part to run ahead, out of the nodes that depend on one kind of input alone."""
    graph = model.graph
    places = [place for place, bits in enumerate(found.nodes) if bits == kind]

    def of_kind(node: onnx.NodeProto) -> tuple[str, ...]:
        return tuple(name for name in reads(node) if found.of.get(name) == kind)

    made = [name for place in places for name in graph.node[place].output if name]
    prices: dict[str, int | None] = {}
    for name in (*sources, *made):
        if name in found.rows and found.values[name].is_float:
            prices[name] = round(flops_per_byte * found.row_bytes(name))
    if kind == CLASS:
        prices[_LABELS] = 0  # an input of the rest in any case
    candidates = [
        Candidate(
            found.flops[place], of_kind(graph.node[place]), tuple(name for name in graph.node[place].output if name)
        )
        for place in places
    ]
    mixed = [place for place, bits in enumerate(found.nodes) if bits not in (0, kind)]
    needed = [name for place in mixed for name in of_kind(graph.node[place])]
    ahead = {places[index] for index in best_ahead(candidates, prices, sources=sources, needed=needed)}
    if not any(found.flops[place] for place in ahead):
        return _Ahead()
    behind = [place for place, bits in enumerate(found.nodes) if bits and place not in ahead]
    fetched = dict.fromkeys(name for place in behind for name in of_kind(graph.node[place]))
    available = {*sources, *(name for place in ahead for name in graph.node[place].output)}
    values = tuple(name for name in fetched if name in available and not (kind == CLASS and name == _LABELS))
    if any(prices.get(name) is None for name in values):  # a node that cannot run ahead reads a whole table
        return _Ahead()
    flops = sum(found.flops[place] for place in ahead)
    return _Ahead(tuple(sorted(ahead)), values, flops, sum(found.row_bytes(name) for name in values))


def _build(model: onnx.ModelProto, found: Dependence, pairs: _Ahead, classes: _Ahead, report: SplitReport) -> Split:
    given = {value.name: value for value in model.graph.input}
    pair_ports = [Port(f"pair.{i}", name, "pair") for i, name in enumerate(pairs.values)]
    class_ports = [Port(f"class.{i}", name, _LABELS) for i, name in enumerate(classes.values)]
    tables = [value for name, value in given.items() if name not in (*_PAIR_INPUTS, _LABELS)]
    sides: list[onnx.ModelProto | None] = []
    for side, ports, inputs in (
        (pairs, pair_ports, [given[name] for name in _PAIR_INPUTS]),
        (classes, class_ports, [given[_LABELS], *tables]),
    ):
        outputs = [(port, _declare(found, port, "batch")) for port in ports]
        size_of = inputs[0].name
        sides.append(
            part(model, found, side.nodes, inputs=inputs, outputs=outputs, size_of=size_of) if side.nodes else None
        )
    prefix, class_part = sides
    inputs = [helper.make_tensor_value_info("pair", onnx.TensorProto.INT64, ["batch"])] if prefix else []
    inputs += [] if prefix else [given[name] for name in _PAIR_INPUTS]
    inputs.append(given[_LABELS])
    inputs += [_declare(found, port, "pairs") for port in pair_ports]
    inputs += [_declare(found, port, "conditions") for port in class_ports] if class_part else tables
    ahead = {*pairs.nodes, *classes.nodes}
    rest = part(
        model,
        found,
        [place for place, bits in enumerate(found.nodes) if bits and place not in ahead],
        inputs=inputs,
        outputs=[(Port(_OUTPUT, _OUTPUT), model.graph.output[0])],
        fetched=[*pair_ports, *class_ports],
        size_of=_LABELS,
    )
    return Split(prefix, class_part, rest, report)


def _declare(found: Dependence, port: Port, first: str) -> onnx.ValueInfoProto:
    value = found.values[port.value]
    return helper.make_tensor_value_info(port.name, value.elem_type, [first, *(value.shape or ())[1:]])
