"""ONNX graphs of a bundle: verified, screened, opened in ONNX Runtime on the CPU, and checked for inputs and outputs.

A graph may keep its weights in the bundle's ``denoiser.data``, which several graphs share. ONNX Runtime is given the
bytes of both, as they were verified: it opens no file.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.backends.onnx.screen import External, screen
from fastdc.bundle import DATA, Bundle
from fastdc.support import BackendError, BundleError, Float32, interruptible, one_line, require, shown

OUTPUT = "output"
"""Name of a denoiser's output."""

Value = tuple[str, str, tuple[Any, ...]]
"""Name, element type and shape of a graph's input or output; extents that are not fixed are None."""

_TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
"""ONNX Runtime's names of the element types of samples."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A verified and screened graph.

    Attributes:
        content: Content of its file.
        data: Content of ``denoiser.data``, if some of its weights lie there.
        external: These weights.
    """

    content: bytes = field(repr=False)
    data: bytes = field(default=b"", repr=False)
    external: tuple[External, ...] = field(default=(), repr=False)

    def weight(self, one: External) -> memoryview:
        """The bytes of a weight that lies in ``denoiser.data``."""
        return memoryview(self.data)[one.offset : one.offset + one.length]


def sample_precision(bundle: Bundle) -> str:
    """Element type of the denoiser's sample and output; an int8 graph takes and returns float32."""
    precision = str(bundle.manifest.get("precision", "float32"))
    return "float32" if precision == "int8" else precision


def denoiser_values(bundle: Bundle, tables: Mapping[str, Float32]) -> tuple[list[Value], Value]:
    """The inputs and the output that a bundle's denoiser must have.

    Args:
        bundle: The bundle.
        tables: Its condition tables.
    """
    kind, sample = _TYPE_NAMES[sample_precision(bundle)], (None, *bundle.model.sample_shape)
    inputs: list[Value] = [("sample", kind, sample), ("timestep", "float", (None,)), ("class_labels", "int64", (None,))]
    inputs += [(name, "float", (None, *table.shape[1:])) for name, table in tables.items()]
    return inputs, (OUTPUT, kind, sample)


def open_graph(bundle: Bundle, name: str, *, threads: int = 1) -> Any:
    """A session of one of a bundle's graphs on the CPU.

    Args:
        bundle: The bundle.
        name: Name of the graph's file.
        threads: Number of threads inside the session.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The graph is corrupt, or holds what no denoiser needs.
    """
    require("onnxruntime", extra="cpu")
    return session_of(graph_source(bundle, name), bundle.path / name, threads=threads)


def graph_source(bundle: Bundle, name: str) -> Graph:
    """One of a bundle's graphs, after verifying its bytes and screening what they hold.

    Raises:
        BundleError: The graph is corrupt, or holds what no denoiser needs.
    """
    content = bundle.read(name)
    try:
        external = screen(content, bundle.manifest["files"][DATA]["bytes"] if DATA in bundle.files else None)
    except ValueError as error:
        raise BundleError(f"{bundle.path / name} cannot be loaded: {one_line(error)}") from None
    return Graph(content, bundle.read(DATA) if external else b"", external)


def session_of(graph: Graph | str, path: Path, *, threads: int = 1) -> Any:
    """A session of a graph, or of a file that this process made; `path` names the graph in messages.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        return new_session(ort, graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {one_line(error)}") from None


def new_session(ort: Any, graph: Graph | str, options: Any, **more: Any) -> Any:
    """A session of a graph, which is read as ONNX and nothing else, with its weights from memory.

    Args:
        ort: The module onnxruntime.
        graph: The graph, or the path of a file that this process made.
        options: Options of the session.
        **more: Further arguments of ``InferenceSession``.
    """
    options.log_severity_level = 4  # errors come back as exceptions
    options.add_session_config_entry("session.load_model_format", "ONNX")  # and not what the first bytes look like
    if isinstance(graph, str):
        return ort.InferenceSession(graph, options, **more)
    kept = _give_weights(ort, options, graph) if graph.external else None
    session = interruptible(
        lambda: ort.InferenceSession(graph.content, options, **more), lambda: _stop_loading(options)
    )
    session.fastdc_weights = kept
    return session


def _stop_loading(options: Any) -> None:
    """Asks a session that is being made to give up, from ONNX Runtime 1.22 on."""
    if hasattr(options, "set_load_cancellation_flag"):
        options.set_load_cancellation_flag(True)


def run_session(call: Callable[[Any], Any], options: Any) -> Any:
    """What a call of a session with these options returns; the session can be interrupted between two nodes.

    Args:
        call: Runs the session with the options that it is given.
        options: Options of the run, as of ``onnxruntime.RunOptions``; :func:`stop` ends the call early.
    """
    if options.terminate:
        raise BackendError("a step did not return and was given up: load the model again")
    return interruptible(lambda: call(options), lambda: stop(options))


def stop(options: Any) -> None:
    """Ends the runs with these options early, and refuses all later ones."""
    options.terminate = True


def _give_weights(ort: Any, options: Any, graph: Graph) -> list[Any]:
    """Gives a session the weights in ``denoiser.data``; returns what must live as long as the session."""
    give_files = getattr(options, "add_external_initializers_from_files_in_memory", None)
    if give_files is not None:  # the session copies them
        give_files([DATA], [graph.data], [len(graph.data)])
        return []
    made = []  # until ONNX Runtime 1.23
    for one in graph.external:
        width = one.length // max(1, math.prod(one.shape))
        array = np.frombuffer(graph.weight(one), f"u{width}").reshape(one.shape)
        made.append(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, one.kind))
    options.add_external_initializers([one.name for one in graph.external], made)
    return made


def values(nodes: Iterable[Any]) -> list[Value]:
    """The inputs or outputs of a session."""
    return [
        (
            node.name,
            node.type[len("tensor(") : -1],
            tuple(extent if isinstance(extent, int) else None for extent in node.shape),
        )
        for node in nodes
    ]


def check_graph(bundle: Bundle, name: str, session: Any, inputs: Iterable[Value], outputs: Iterable[Value]) -> None:
    """Refuses a graph whose inputs and outputs are not the expected ones, or that gives one of them twice.

    Raises:
        BundleError: They are not.
    """
    names = [value[0] for value in values(session.get_outputs())]
    if len(set(names)) != len(names):
        raise BundleError(f"{bundle.path / name} must give each output once, it gives {shown(names)}")
    wanted, found = (
        (_text(given), _text(made))
        for given, made in ((inputs, outputs), (values(session.get_inputs()), values(session.get_outputs())))
    )
    if found != wanted:
        raise BundleError(
            f"{bundle.path / name} must map {wanted[0]:.300} to {wanted[1]:.300}, "
            f"it maps {found[0]:.300} to {found[1]:.300}"
        )


def _text(given: Iterable[Value]) -> str:
    """Names, types and shapes in one order, such as "timestep float[*]"."""
    parts = []
    for name, kind, shape in sorted(given):
        parts.append(f"{name} {kind}[{', '.join('*' if extent is None else str(extent) for extent in shape)}]")
    return " ".join(parts)


def evaluate(session: Any, feeds: Mapping[str, Any], name: str) -> list[Any]:
    """All outputs of a session for these inputs; `name` is the graph's file in messages.

    Raises:
        BackendError: ONNX Runtime fails.
    """
    ort = require("onnxruntime", extra="cpu")
    try:
        outputs: list[Any] = run_session(lambda options: session.run(None, dict(feeds), options), ort.RunOptions())
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"ONNX Runtime failed on {name}: {one_line(error)}") from None
    return outputs
