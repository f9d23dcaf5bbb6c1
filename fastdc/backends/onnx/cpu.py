"""ONNX Runtime on the CPU, the default backend: a bundle's denoiser with I/O binding on fastdc's own buffers.

Steps run in parallel; the inside of a step does not. The session is single-threaded, and as many slots as there are
threads evaluate different steps at once. For the small networks and large batches of a diffusion classifier this scales
better than splitting each operator (bench/classify.py measures both), and no thread waits for another inside the
network.

If the bundle has the denoiser in parts, shared work is done once. The part that depends on the class alone is computed
when the network is opened. The part that depends on the image and the draw alone is computed once per step for all
classes that share them. Only the rest is computed for every cell.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.condition_tables import condition_rows, condition_tables
from fastdc.backends.host import HostBuffers, HostNetwork, usable_cpus
from fastdc.backends.onnx.graphs import (
    OUTPUT,
    Value,
    check_graph,
    denoiser_values,
    evaluate,
    open_graph,
    run_session,
    sample_precision,
    stop,
    values,
)
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractSlot
from fastdc.backends.step_sizes import DEFAULT_BATCH
from fastdc.bundle import CLASSES, DENOISER, PREFIX, REST, Bundle
from fastdc.support import BackendError, BundleError, Float32, one_line, require, shown

# Floating-point operations of the largest step that pays; the limit also bounds the memory for activations. A network
# of 680 GFLOP per evaluation, such as Stable Diffusion at 512 x 512, gets steps of one cell.
_STEP_FLOPS = 1e12

_SOON = 0.05  # seconds, which nobody who pressed Ctrl-C notices

# Element types of the rows that a graph of classes may give to the rest.
_ROW_TYPES = ("float", "float16", "int64")


class _Slot(HostBuffers):
    """Buffers of one step and a session that is bound to them.

    Args:
        session: Session of the denoiser, or of its rest.
        bound: Inputs that are the same in every step, by name.
        batch: Number of rows.
        sample_shape: Shape of a sample, (c, h, w).
        dtype: Element type of sample and output.
    """

    def __init__(
        self, session: Any, bound: dict[str, Any], batch: int, sample_shape: tuple[int, int, int], dtype: Any
    ) -> None:
        super().__init__(batch, sample_shape, dtype)
        self._session = session
        self._bound = bound
        self._inputs = {node.name for node in session.get_inputs()}
        self._bindings: dict[int, Any] = {}
        self._soon: set[tuple[bool, int]] = set()
        self._options: Any = require("onnxruntime", extra="cpu").RunOptions()
        # What it is anyway. ONNX Runtime 1.31 asks for it at every run and takes 25 us if it is not there.
        self._options.add_run_config_entry("gpu_graph_id", "-1")

    def stop(self) -> None:
        """Ends the step that runs now early, and refuses all later ones."""
        stop(self._options)

    def run(self, count: int) -> None:
        """Evaluates the first `count` rows."""
        binding = self._bindings.get(count)
        if binding is None:
            binding = self._bindings[count] = self._bind(count)
        self._evaluate(self._session, binding, count)

    def _evaluate(self, session: Any, binding: Any, rows: int) -> None:
        """Runs a session; directly if a run of as many rows came back soon, which saves 40 us on the main thread."""
        key, options = (session is self._session, rows), self._options
        try:
            if key in self._soon and not options.terminate:
                session.run_with_iobinding(binding, options)
                return
            start = time.perf_counter()
            run_session(lambda options: session.run_with_iobinding(binding, options), options)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed on the network: {one_line(error)}") from None
        if time.perf_counter() - start < _SOON:
            self._soon.add(key)

    def _bind(self, count: int) -> Any:
        buffers = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        return self._binding(self._session, {name: buffers[name][:count] for name in self._inputs & set(buffers)})

    def _binding(self, session: Any, buffers: dict[str, npt.NDArray[Any]], *, output: bool = True) -> Any:
        """A session bound to these arrays, to the constant inputs, and to the output buffer if `output`."""
        binding = session.io_binding()
        for name, buffer in buffers.items():
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        for name in {node.name for node in session.get_inputs()} & set(self._bound):
            binding.bind_ortvalue_input(name, self._bound[name])
        if output:
            count = len(buffers["class_labels"])
            shape = (count, *self.output.shape[1:])
            binding.bind_output(OUTPUT, "cpu", 0, self.output.dtype, shape, self.output.ctypes.data)
        return binding


class _SplitSlot(_Slot):
    """A slot that first evaluates each (image, draw) pair of a step in a session of its own.

    Consecutive rows of a step with the same image and draw have the same sample, to the bit. The engine lets classes
    run fastest, so the classes of a pair are mostly consecutive. A pair whose rows are apart is computed twice, which
    costs only time.

    Args:
        prefix: Session of the part that depends on image and draw alone.
        rest: Session of the remaining part.
        **more: As in :class:`_Slot`.
    """

    def __init__(self, prefix: Any, rest: Any, **more: Any) -> None:
        super().__init__(rest, **more)
        self._prefix = prefix
        self._names = [node.name for node in prefix.get_outputs()]
        batch = len(self.sample)
        self._pair = np.zeros(batch, np.int64)
        self._pairs = {
            node.name: np.zeros_like(getattr(self, node.name)) for node in prefix.get_inputs()
        }  # sample, timestep

    def run(self, count: int) -> None:
        """Evaluates the first `count` rows."""
        image_and_draw = self.cells[:count, [0, 2]]
        begins = np.ones(count, np.bool_)
        np.any(image_and_draw[1:] != image_and_draw[:-1], axis=1, out=begins[1:])
        first = np.flatnonzero(begins)
        self._pair[:count] = np.cumsum(begins) - 1
        pairs = {name: buffer[: len(first)] for name, buffer in self._pairs.items()}
        for name, buffer in pairs.items():
            np.take(getattr(self, name), first, axis=0, out=buffer)
        shared = self._binding(self._prefix, pairs, output=False)
        for name in self._names:
            shared.bind_output(name, "cpu")
        self._evaluate(self._prefix, shared, len(first))
        cells = {
            "pair": self._pair,
            "class_labels": self.class_labels,
            "timestep": self.timestep,
            "sample": self.sample,
        }
        binding = self._binding(
            self._session,
            {name: buffer[:count] for name, buffer in cells.items() if name in self._inputs or name == "class_labels"},
        )
        for name, value in zip(self._names, shared.get_outputs(), strict=True):
            binding.bind_ortvalue_input(name, value)
        self._evaluate(self._session, binding, count)


class OnnxNetwork(HostNetwork):
    """A bundle's network in ONNX Runtime's CPU execution provider; implements ``AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: batch (default 128, or as many evaluations as 1 TFLOP allows) and threads (default: all CPUs that the
            process may use). The device must be the CPU, and the precision that of the graph.
        intra_op_threads: Threads inside each step; there are threads / intra_op_threads slots. More than 1 pays only
            for large networks at small batches.
        split: Whether to run the denoiser in parts if the bundle has them; otherwise it runs as a whole.

    Attributes:
        split: Whether the denoiser runs in parts.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: The backend does not have this device or precision.
        BundleError: A graph is corrupt, or its inputs and outputs are not those of a bundle.
    """

    backend = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        options: NetworkOptions | None = None,
        *,
        intra_op_threads: int = 1,
        split: bool = True,
    ) -> None:
        options = options or NetworkOptions()
        if options.device not in ("auto", "cpu"):
            raise BackendError(f"backend onnx runs on the CPU here, got device {options.device!r}")
        self.precision = _precision(bundle, options)
        self.batch = options.batch or _default_batch(bundle)
        self.split = split and REST in bundle.files
        threads = options.threads or usable_cpus()
        make = _parts(bundle, intra_op_threads) if self.split else _whole(bundle, intra_op_threads)
        more = {"batch": self.batch, "sample_shape": bundle.model.sample_shape, "dtype": np.dtype(self.precision)}
        made = tuple(make(**more) for _ in range(max(1, threads // intra_op_threads)))
        self.slots: tuple[AbstractSlot, ...] = made
        self._made = made

    def stop(self) -> None:
        """Ends the steps that run now, each after the operator that it is at, and refuses all later ones."""
        for slot in self._made:
            slot.stop()


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Element type of sample and output, which is the graph's."""
    kind = sample_precision(bundle)
    if kind == "bfloat16":
        raise BackendError("backend onnx has no bfloat16 on the CPU: export the model in float32 or float16")
    if options.precision not in ("auto", kind):
        raise BackendError(f"backend onnx runs this bundle in {kind} on the CPU, got precision {options.precision!r}")
    return kind


def _default_batch(bundle: Bundle) -> int:
    return DEFAULT_BATCH if bundle.flops is None else max(1, min(DEFAULT_BATCH, int(_STEP_FLOPS / bundle.flops)))


def _whole(bundle: Bundle, threads: int) -> Callable[..., _Slot]:
    """Makes slots of the whole denoiser."""
    session = open_graph(bundle, DENOISER, threads=threads)
    tables = condition_tables(bundle)
    inputs, output = denoiser_values(bundle, tables)
    check_graph(bundle, DENOISER, session, inputs, [output])
    return lambda **more: _Slot(session, _ort_values(tables), **more)


def _parts(bundle: Bundle, threads: int) -> Callable[..., _Slot]:
    """Makes slots of the denoiser in parts, after evaluating the part that depends on the class alone."""
    tables = condition_tables(bundle)
    inputs, output = denoiser_values(bundle, tables)
    base = {value[0]: value for value in inputs}
    known = {**base, OUTPUT: output, "pair": ("pair", "int64", (None,))}
    bound: dict[str, npt.NDArray[Any]] = dict(tables)
    if CLASSES in bundle.files:
        arrays, rows = _class_rows(bundle, threads, tables)
        known |= rows
        bound |= arrays
    prefix = None
    if PREFIX in bundle.files:
        prefix = open_graph(bundle, PREFIX, threads=threads)
        shared = values(prefix.get_outputs())
        taken = [name for name, _, _ in values(prefix.get_inputs()) if name in ("sample", "timestep")]
        check_graph(bundle, PREFIX, prefix, [base[name] for name in taken], shared)
        known |= {value[0]: value for value in shared}
    rest = open_graph(bundle, REST, threads=threads)
    needed = [known.get(name, (name, "nothing that the other parts give", ())) for name, _, _ in _inputs(rest)]
    check_graph(bundle, REST, rest, needed, [output])
    fixed = _ort_values({name: array for name, array in bound.items() if name in {value[0] for value in needed}})
    if prefix is None:
        return lambda **more: _Slot(rest, fixed, **more)
    return lambda **more: _SplitSlot(prefix, rest, bound=fixed, **more)


def _inputs(session: Any) -> list[Value]:
    return values(session.get_inputs())


def _class_rows(
    bundle: Bundle, threads: int, tables: Mapping[str, Float32]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Value]]:
    """Outputs of the graph that depends on the class alone, one row per condition, and their types and shapes."""
    session = open_graph(bundle, CLASSES, threads=threads)
    given = {value[0]: value for value in denoiser_values(bundle, tables)[0] if value[0] not in ("sample", "timestep")}
    names = [value[0] for value in _inputs(session)]
    wanted = [given.get(name, (name, "nothing that the bundle has", ())) for name in names]
    outputs = values(session.get_outputs())
    check_graph(bundle, CLASSES, session, wanted, outputs)
    if any(kind not in _ROW_TYPES for _, kind, _ in outputs):
        raise BundleError(f"{bundle.path / CLASSES} gives values of unknown types: {shown(outputs, 200)}")
    feeds = {**tables, "class_labels": np.arange(condition_rows(bundle.model), dtype=np.int64)}
    made = evaluate(session, {name: feeds[name] for name in names}, CLASSES)
    arrays = {value[0]: array for value, array in zip(outputs, made, strict=True)}
    return arrays, {value[0]: value for value in outputs}


def _ort_values(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    ort = require("onnxruntime", extra="cpu")
    return {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
