"""ONNX Runtime on the CPU: the default backend, a bundle's ``denoiser.onnx`` with I/O binding on our own buffers.

Parallelism is over steps, not inside one: the session runs single-threaded and as many slots as there are threads
evaluate different steps at once. For the small networks and large batches of a diffusion classifier that scales where
splitting each operator does not (bench/classify measures both), and no thread waits on another inside the network.
"""

import os
import re
from typing import Any

from fastdc.backends.base import DEFAULT_BATCH, AbstractSlot, HostArrays, HostBuffers, NetworkOptions, one_line
from fastdc.bundle import Bundle
from fastdc.exceptions import BackendError, BundleError
from fastdc.extras import require
from fastdc.manifest import DENOISER

OUTPUT = "output"

# Key of an ONNX tensor that lives in another file, as protobuf bytes: field 1, length 8, either in any of the padded
# forms that protobuf's readers accept. Bundles of format version 1 hold their weights in the graph, so a reference to a
# file elsewhere is never legitimate. (A graph that names a value "location" is refused as well: rename it.)
_EXTERNAL_DATA_KEY = re.compile(rb"(\x0a|\x8a\x80{0,8}\x00)(\x08|\x88\x80{0,8}\x00)location")


class _OnnxSlot(HostBuffers):
    """Buffers of one step and, per row count seen, the binding of the session to them."""

    def __init__(self, session: Any, batch: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(batch, image_shape)
        self._session = session
        self._bindings: dict[int, Any] = {}

    def run(self, count: int) -> None:
        binding = self._bindings.get(count)
        if binding is None:
            binding = self._bindings[count] = self._bind(count)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed on the network: {one_line(error)}") from None

    def _bind(self, count: int) -> Any:
        binding = self._session.io_binding()
        inputs = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        for name, buffer in inputs.items():
            shape = (count, *buffer.shape[1:])
            binding.bind_input(name, "cpu", 0, buffer.dtype, shape, buffer.ctypes.data)
        shape = (count, *self.output.shape[1:])
        binding.bind_output(OUTPUT, "cpu", 0, self.output.dtype, shape, self.output.ctypes.data)
        return binding


class OnnxNetwork(HostArrays):
    """A bundle's network in ONNX Runtime, CPU execution provider.

    Args:
        bundle: The bundle.
        options: batch (default 128), threads (default: the CPUs this process may use); device must be the CPU and
            precision float32.
        intra_op_threads: Threads inside each step; there are threads / intra_op_threads slots. More than 1 pays only
            for large networks at small batches.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: A device or precision that this backend does not have.
        BundleError: The graph is corrupt, or its inputs and outputs are not those of a bundle.
    """

    backend = "onnx"
    precision = "float32"

    def __init__(self, bundle: Bundle, options: NetworkOptions | None = None, *, intra_op_threads: int = 1) -> None:
        options = options or NetworkOptions()
        if options.device not in ("auto", "cpu"):
            raise BackendError(f"backend onnx runs on the CPU here, got device {options.device!r}")
        if options.precision not in ("auto", "float32"):
            raise BackendError(f"backend onnx runs in float32 on the CPU, got precision {options.precision!r}")
        self.batch = options.batch or DEFAULT_BATCH
        threads = options.threads or usable_cpus()
        session = _open_session(bundle, intra_op_threads)
        _check_graph(session, bundle)
        self.slots: tuple[AbstractSlot, ...] = tuple(
            _OnnxSlot(session, self.batch, bundle.image_shape) for _ in range(max(1, threads // intra_op_threads))
        )


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_session(bundle: Bundle, intra_op_threads: int) -> Any:
    ort = require("onnxruntime", extra="cpu")
    graph = bundle.read(DENOISER)
    if _EXTERNAL_DATA_KEY.search(graph):
        raise BundleError(f"{bundle.path / DENOISER} refers to data outside the file, which a bundle may not")
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come back as exceptions
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(f"{bundle.path / DENOISER} cannot be loaded by ONNX Runtime: {one_line(error)}") from None


def _check_graph(session: Any, bundle: Bundle) -> None:
    """Refuses graphs whose inputs or output are not what the engine binds to."""
    sample = ["batch", *bundle.image_shape]
    expected = (
        _signature(
            [("class_labels", "int64", ["batch"]), ("sample", "float", sample), ("timestep", "float", ["batch"])]
        ),
        _signature([(OUTPUT, "float", sample)]),
    )
    values = [
        [(node.name, node.type[len("tensor(") : -1], list(node.shape)) for node in nodes]
        for nodes in (session.get_inputs(), session.get_outputs())
    ]
    found = tuple(map(_signature, values))
    if found != expected:
        raise BundleError(
            f"{bundle.path / DENOISER} must map {expected[0]} to {expected[1]}, "
            f"it maps {found[0]:.300} to {found[1]:.300}"
        )


def _signature(values: list[tuple[str, str, list[Any]]]) -> str:
    """Names, types and shapes in one order, such as "timestep float[batch]"; a symbolic first dimension is a batch."""

    def text(shape: list[Any]) -> str:
        first = "batch" if shape and not isinstance(shape[0], int) else None
        return ", ".join(map(str, [first, *shape[1:]] if first else shape))

    return " ".join(f"{name} {kind}[{text(shape)}]" for name, kind, shape in sorted(values, key=lambda value: value[0]))
