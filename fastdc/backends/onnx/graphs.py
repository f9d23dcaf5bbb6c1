"""ONNX graphs of a bundle in ONNX Runtime's CPU provider: opened once verified, and if they are what they should be.

A graph may keep its weights in the bundle's ``denoiser.data``, which several graphs share; a reference to any other
file is refused before ONNX Runtime sees it.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.protocol import one_line
from fastdc.bundle import DATA, TABLES, Bundle
from fastdc.support import BackendError, BundleError, require

# Key of an ONNX tensor that lives in another file, as protobuf bytes: field 1, length 8, either in any of the padded
# forms that protobuf's readers accept. (A graph that names a value "location" is refused as well: rename it.)
_EXTERNAL_KEY = re.compile(rb"(\x0a|\x8a\x80{0,8}\x00)(\x08|\x88\x80{0,8}\x00)location")

# The one reference that is allowed, whole and in its shortest form: an entry (field 13) of 25 bytes with this key and
# value, which leaves no room for a second value that would count in place of the first.
_SHARED_DATA = re.compile(rb"\x6a\x19\x0a\x08location\x12\x0d" + re.escape(DATA.encode()))

TYPES: dict[str, npt.DTypeLike] = {"float": np.float32, "float16": np.float16, "int64": np.int64}
"""ONNX Runtime's names of the element types that graphs of a bundle take and give."""

Value = tuple[str, str, tuple[Any, ...]]
"""Name, element type and shape of an input or output; extents that are not fixed are None."""


def open_graph(bundle: Bundle, name: str, *, threads: int = 1) -> Any:
    """A session of one of a bundle's graphs.

    Args:
        bundle: The bundle.
        name: Of the file.
        threads: Inside the session.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BundleError: The graph is corrupt, or refers to files outside the bundle.
    """
    require("onnxruntime", extra="cpu")
    return session_of(graph_source(bundle, name), bundle.path / name, threads=threads)


def graph_source(bundle: Bundle, name: str) -> bytes | str:
    """One of a bundle's graphs, verified: its bytes, or its path where weights lie beside it.

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
    """A session of a graph's bytes or path; `path` is what it is called in messages.

    Raises:
        BundleError: ONNX Runtime does not take it.
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
    """Inputs or outputs of a session."""
    return [
        (
            node.name,
            node.type[len("tensor(") : -1],
            tuple(extent if isinstance(extent, int) else None for extent in node.shape),
        )
        for node in nodes
    ]


def check_graph(bundle: Bundle, name: str, session: Any, inputs: Iterable[Value], outputs: Iterable[Value]) -> None:
    """Refuses a graph whose inputs and outputs are not the ones that buffers will be bound to.

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


def tables_of(bundle: Bundle) -> dict[str, npt.NDArray[np.float32]]:
    """The condition tables of a bundle, float32 (rows, ...) by name; none where conditions are an index and no more.

    Raises:
        BundleError: The file is corrupt, or not of float32 tables with a row for each condition.
    """
    if bundle.tables is not None:
        return dict(bundle.tables)
    if TABLES not in bundle.files:
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tables: dict[str, npt.NDArray[Any]] = load(bundle.read(TABLES))
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{bundle.path / TABLES} cannot be read: {one_line(error)}") from None
    rows = max(len(bundle.model.conditions), 1 + (bundle.model.null_class or 0))
    for name, table in tables.items():
        if table.dtype != np.float32 or table.ndim < 2 or len(table) != rows:
            raise BundleError(
                f"{bundle.path / TABLES}: {name!r:.60} must be float32 with {rows} rows, one a condition, "
                f"got {table.dtype} of shape {table.shape}"
            )
    return tables


def run(session: Any, feeds: Mapping[str, Any], name: str) -> list[Any]:
    """All outputs of a session.

    Raises:
        BackendError: ONNX Runtime fails.
    """
    try:
        outputs: list[Any] = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BackendError(f"ONNX Runtime failed on {name}: {one_line(error)}") from None
    return outputs
