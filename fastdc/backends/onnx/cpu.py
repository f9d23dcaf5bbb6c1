"""ONNX Runtime on the CPU: the default backend, a bundle's denoiser with I/O binding on our own buffers.

Parallelism is over steps, not inside one: the session runs single-threaded and as many slots as there are threads
evaluate different steps at once. For the small networks and large batches of a diffusion classifier that scales where
splitting each operator does not (bench/classify measures both), and no thread waits on another inside the network.

Where the bundle has the denoiser in parts, nothing is computed twice: what depends on the class alone is computed here,
once; what depends on the image and the draw alone, once a step for all classes that share them; the rest for every
cell.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.onnx.graphs import TYPES, Value, check_graph, open_graph, run, tables_of, values
from fastdc.backends.protocol import DEFAULT_BATCH, AbstractSlot, HostArrays, HostBuffers, NetworkOptions, one_line
from fastdc.bundle import CLASSES, DENOISER, PREFIX, REST, Bundle
from fastdc.support import BackendError, BundleError, require

OUTPUT = "output"

# Floating-point operations of a step that is as large as pays: its activations are bounded with it. A network of 680
# GFLOP an evaluation, such as Stable Diffusion's at 512 x 512, gets steps of one cell.
_STEP_FLOPS = 1e12


class _Slot(HostBuffers):
    """Buffers of one step and a session that is bound to them.

    Args:
        session: Of the denoiser, or of its rest.
        bound: What does not change from step to step, by the name of the input.
        batch: Rows.
        sample_shape: (c, h, w).
        dtype: Of sample and output.
    """

    def __init__(
        self, session: Any, bound: dict[str, Any], batch: int, sample_shape: tuple[int, int, int], dtype: Any
    ) -> None:
        super().__init__(batch, sample_shape, dtype)
        self._session = session
        self._bound = bound
        self._inputs = {node.name for node in session.get_inputs()}
        self._bindings: dict[int, Any] = {}

    def run(self, count: int) -> None:
        """See ``base.AbstractSlot``."""
        binding = self._bindings.get(count)
        if binding is None:
            binding = self._bindings[count] = self._bind(count)
        self._run(self._session, binding)

    def _bind(self, count: int) -> Any:
        buffers = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        return self._binding(self._session, {name: buffers[name][:count] for name in self._inputs & set(buffers)})

    def _binding(self, session: Any, buffers: dict[str, npt.NDArray[Any]], *, output: bool = True) -> Any:
        """A session bound to arrays where they lie, and to what does not change."""
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

    @staticmethod
    def _run(session: Any, binding: Any) -> None:
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BackendError(f"ONNX Runtime failed on the network: {one_line(error)}") from None


class _SplitSlot(_Slot):
    """A slot whose (image, draw) pairs go through a session of their own first.

    Rows of a step that follow each other with the same image and draw have the same sample, to the bit; the engine lets
    classes run fastest, so that most classes of a pair stand together. A pair whose rows are apart is computed twice,
    which costs time and nothing else.

    Args:
        prefix: Session of the part that depends on image and draw alone.
        rest: Session of what is left.
        **more: See :class:`_Slot`.
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
        """See ``base.AbstractSlot``."""
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
        self._run(self._prefix, shared)
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
        self._run(self._session, binding)


class OnnxNetwork(HostArrays):
    """A bundle's network in ONNX Runtime, CPU execution provider.

    Args:
        bundle: The bundle.
        options: batch (default 128, or as many evaluations as 1 TFLOP pays for), threads (default: the CPUs this
            process may use); device must be the CPU and precision that of the graph.
        intra_op_threads: Threads inside each step; there are threads / intra_op_threads slots. More than 1 pays only
            for large networks at small batches.
        split: Run the parts of the denoiser where the bundle has them; False: the whole.

    Attributes:
        split: Whether parts run.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: A device or precision that this backend does not have.
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
        self.slots: tuple[AbstractSlot, ...] = tuple(make(**more) for _ in range(max(1, threads // intra_op_threads)))


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Element type of sample and output: the graph's."""
    graph = bundle.manifest.get("precision", "float32")
    if graph == "bfloat16":
        raise BackendError("backend onnx has no bfloat16 on the CPU: export the model in float32 or float16")
    kind = "float32" if graph == "int8" else str(graph)
    if options.precision not in ("auto", kind):
        raise BackendError(f"backend onnx runs this bundle in {kind} on the CPU, got precision {options.precision!r}")
    return kind


def _default_batch(bundle: Bundle) -> int:
    return DEFAULT_BATCH if bundle.flops is None else max(1, min(DEFAULT_BATCH, int(_STEP_FLOPS / bundle.flops)))


def _base(bundle: Bundle) -> dict[str, Value]:
    """Inputs and output that every denoiser has."""
    kind = "float16" if bundle.manifest.get("precision") == "float16" else "float"
    sample = (None, *bundle.model.sample_shape)
    return {
        "sample": ("sample", kind, sample),
        "timestep": ("timestep", "float", (None,)),
        "class_labels": ("class_labels", "int64", (None,)),
        OUTPUT: (OUTPUT, kind, sample),
    }


def _table_values(tables: dict[str, npt.NDArray[np.float32]]) -> dict[str, Value]:
    return {name: (name, "float", (None, *table.shape[1:])) for name, table in tables.items()}


def _whole(bundle: Bundle, threads: int) -> Any:
    """Makes slots of the whole denoiser."""
    session = open_graph(bundle, DENOISER, threads=threads)
    tables = tables_of(bundle)
    base = _base(bundle)
    inputs = [base["sample"], base["timestep"], base["class_labels"], *_table_values(tables).values()]
    check_graph(bundle, DENOISER, session, inputs, [base[OUTPUT]])
    return lambda **more: _Slot(session, _ort_values(tables), **more)


def _parts(bundle: Bundle, threads: int) -> Any:
    """Makes slots of the denoiser in parts, after computing what depends on the class alone."""
    tables = tables_of(bundle)
    base = _base(bundle)
    known = {**base, **_table_values(tables), "pair": ("pair", "int64", (None,))}
    bound = dict(tables)
    if CLASSES in bundle.files:
        made = _class_tables(bundle, threads, tables)
        known |= made[1]
        bound |= made[0]
    prefix = None
    if PREFIX in bundle.files:
        prefix = open_graph(bundle, PREFIX, threads=threads)
        shared = values(prefix.get_outputs())
        inputs = [value for value in values(prefix.get_inputs()) if value[0] in ("sample", "timestep")]
        check_graph(bundle, PREFIX, prefix, [base[name] for name, _, _ in inputs], shared)
        known |= {value[0]: value for value in shared}
    rest = open_graph(bundle, REST, threads=threads)
    needed = [known.get(name, (name, "nothing that the other parts give", ())) for name, _, _ in _inputs(rest)]
    check_graph(bundle, REST, rest, needed, [base[OUTPUT]])
    fixed = _ort_values({name: array for name, array in bound.items() if name in {value[0] for value in needed}})
    if prefix is None:
        return lambda **more: _Slot(rest, fixed, **more)
    return lambda **more: _SplitSlot(prefix, rest, bound=fixed, **more)


def _inputs(session: Any) -> list[Value]:
    return values(session.get_inputs())


def _class_tables(
    bundle: Bundle, threads: int, tables: dict[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Value]]:
    """What depends on the class alone, a row a condition, and what it is."""
    session = open_graph(bundle, CLASSES, threads=threads)
    label = ("class_labels", "int64", (None,))
    given = {label[0]: label, **_table_values(tables)}
    names = [value[0] for value in _inputs(session)]
    wanted = [given.get(name, (name, "nothing that the bundle has", ())) for name in names]
    outputs = values(session.get_outputs())
    check_graph(bundle, CLASSES, session, wanted, outputs)
    if any(kind not in TYPES for _, kind, _ in outputs):
        raise BundleError(f"{bundle.path / CLASSES} gives values of types that are not known: {outputs!r:.200}")
    rows = max(len(bundle.model.conditions), 1 + (bundle.model.null_class or 0))
    feeds = {**tables, label[0]: np.arange(rows, dtype=np.int64)}
    made = run(session, {name: feeds[name] for name in names}, CLASSES)
    arrays = {value[0]: array for value, array in zip(outputs, made, strict=True)}
    return arrays, {value[0]: value for value in outputs}


def _ort_values(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    ort = require("onnxruntime", extra="cpu")
    return {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
