"""ONNX graphs of a bundle: verified, opened in ONNX Runtime on the CPU, and checked for their inputs and outputs.

A graph may keep its weights in the bundle's ``denoiser.data``, which several graphs share. A reference to any other
file is refused before ONNX Runtime sees it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdc.bundle import DATA, Bundle
from fastdc.support import BackendError, BundleError, Float32, one_line, require

OUTPUT = "output"
"""Name of a denoiser's output."""

# Key of an ONNX tensor that lives in another file, as protobuf bytes: field 1, length 8, either in any of the padded
# forms that protobuf readers accept. (A graph with a value named "location" is refused as well: rename the value.)
_EXTERNAL_KEY = re.compile(rb"(\x0a|\x8a\x80{0,8}\x00)(\x08|\x88\x80{0,8}\x00)location")

# The only reference that is allowed, whole and in its shortest form: an entry (field 13) of 25 bytes with this key and
# value. It leaves no room for a second value, which would override the first.
_SHARED_DATA = re.compile(rb"\x6a\x19\x0a\x08location\x12\x0d" + re.escape(DATA.encode()))

Value = tuple[str, str, tuple[Any, ...]]
"""Name, element type and shape of a graph's input or output; extents that are not fixed are None."""

_TYPE_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
"""ONNX Runtime's names of the element types of samples."""


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
        BundleError: The graph is corrupt, or refers to files outside the bundle.
    """
    require("onnxruntime", extra="cpu")
    return session_of(graph_source(bundle, name), bundle.path / name, threads=threads)


def graph_source(bundle: Bundle, name: str) -> bytes | str:
    """The content of one of a bundle's graphs after verification, or its path if its weights lie beside it.

    Raises:
        BundleError: The graph is corrupt, or refers to files outside the bundle.
    """
    content = bundle.read(name)
    path = bundle.path / name
    references = len(_EXTERNAL_KEY.findall(content))
    if references != len(_SHARED_DATA.findall(content)) or (references and DATA not in bundle.files):
        raise BundleError(f"{path} refers to data outside the file, which may only be {DATA} of the same bundle")
    if not references:
        return content
    bundle.file(DATA)
    return str(path)


def session_of(graph: bytes | str, path: Path, *, threads: int = 1) -> Any:
    """A session of a graph given by its content or path; `path` names the graph in messages.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
    """
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come back as exceptions
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {one_line(error)}") from None


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
    """Refuses a graph whose inputs and outputs are not the expected ones.

    Raises:
        BundleError: They are not.
    """
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
    try:
        outputs: list[Any] = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"ONNX Runtime failed on {name}: {one_line(error)}") from None
    return outputs
