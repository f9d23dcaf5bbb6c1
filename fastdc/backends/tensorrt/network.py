"""A bundle's network as a TensorRT engine, on buffers and streams of our own.

A slot has a stream, its buffers, and one execution context for each size of a step. A context is given its profile, its
shapes and its addresses once, when the size first comes up, and never changes after, so that a step that was captured
into a CUDA graph stays what it was. The contexts of a slot run one after the other and share one piece of device memory
for what lies between layers. Steps that are no size of their own are padded by the engine (``base.AbstractNetwork``).
Condition tables are on the device once, for all slots.

Nothing of this has run on a GPU: calls, their order and their arguments are tested against a double that has the
interface of TensorRT's real bindings, and engines are built by TensorRT-RTX. docs/gpu.md has the command that verifies
the rest.
"""

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.cuda_arrays import DeviceArrays, DeviceBuffers, DeviceNetwork, cuda_core
from fastdc.backends.onnx.graphs import graph_source, tables_of
from fastdc.backends.protocol import ELEMENT_BYTES, AbstractSlot, Buffer, NetworkOptions, device_batch, halves
from fastdc.backends.tensorrt.build import EngineOptions, build_engine, merge_timing_caches
from fastdc.backends.tensorrt.cache import EngineCache, Maker
from fastdc.backends.tensorrt.graph import GraphFacts, read_graph
from fastdc.backends.tensorrt.module import Gpu, TensorRT, check_driver, gpu, open_tensorrt, use_device
from fastdc.backends.tensorrt.selftest import Runner, self_test
from fastdc.bundle import DATA, DENOISER, Bundle
from fastdc.support import BackendError, InputError, require

Array = npt.NDArray[Any]

OUTPUT = "output"
SLOTS = 2
_ALIGNMENT = 256
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}

_SMALLER = 8


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine that is loaded.

    Attributes:
        trt: What runs it.
        engine: Its ICudaEngine.
        options: What it was built for.
        device: Number of the GPU.
        sample_shape: (c, h, w).
        precision: Type of sample and output.
    """

    trt: TensorRT
    engine: Any
    options: EngineOptions
    device: int
    sample_shape: tuple[int, int, int]
    precision: str

    def profile_of(self, size: int) -> int:
        """The profile of a step: one of exactly that size, else the range that it is in."""
        ranges = self.options.ranges
        fits = [index for index, (low, _, high) in enumerate(ranges) if low <= size <= high]
        if not fits:
            raise BackendError(f"the engine has no profile for a step of {size}: it has {ranges}")
        return min(fits, key=lambda index: ranges[index][2] - ranges[index][0])

    def failed(self, what: str, mark: int) -> BackendError:
        """The error of a call that TensorRT refused."""
        return BackendError(f"{self.trt.name} {what}: {self.trt.logger.error(mark)}")


class TensorRTSlot(DeviceBuffers):
    """Device buffers of a step and the contexts that run on them; see ``base.AbstractSlot``.

    Args:
        engine: What runs.
        arrays: The slot's buffers and stream.
        home: The network's.
        tables: Condition tables on the device.
    """

    def __init__(self, engine: Engine, arrays: DeviceArrays, home: DeviceArrays, tables: Mapping[str, Buffer]) -> None:
        super().__init__(arrays, home, engine.options.largest, engine.sample_shape, engine.precision)
        self._engine, self._tables = engine, tables
        profiles = range(len(engine.options.ranges))
        self._scratch_bytes = max(
            int(engine.engine.get_device_memory_size_for_profile_v2(profile)) for profile in profiles
        )
        self._scratch: Buffer = arrays.empty((max(1, -(-self._scratch_bytes // 4)),), "float32")
        self._contexts: dict[int, Any] = {}

    def run(self, count: int) -> None:
        """See ``base.AbstractSlot``."""
        use_device(self._engine.device)  # which is a thread's own
        context = self._contexts.get(count)
        if context is None:
            context = self._contexts[count] = self._context(count)
        mark = self._engine.trt.logger.mark()
        if not context.execute_async_v3(self.stream):
            raise self._engine.failed(f"does not run a step of {count}", mark)

    def runner(self) -> Runner:
        """Runs the engine on arrays of the host, for its self-test."""

        def run(sample: Array, timestep: Array, class_labels: Array) -> Array:
            given = ((self.sample, sample), (self.timestep, timestep), (self.class_labels, class_labels))
            for buffer, array in given:
                self.write(buffer, np.ascontiguousarray(array))
            self.run(len(sample))
            return self.read(self.output, len(sample)).astype(np.float32)

        return run

    def _context(self, size: int) -> Any:
        """A context that runs the first `size` rows of the buffers."""
        engine, trt = self._engine, self._engine.trt
        mark = trt.logger.mark()
        with trt.refusals("cannot make a context"):
            context = engine.engine.create_execution_context(context_options(trt, engine.engine))
        if context is None:
            raise engine.failed("cannot make a context", mark)
        context.set_device_memory(self._scratch.pointer, self._scratch_bytes)
        with trt.refusals(f"does not take the profile of {size}"):
            if not context.set_optimization_profile_async(engine.profile_of(size), self.stream):
                raise engine.failed(f"does not take the profile of {size}", mark)
        inputs = {"sample": self.sample, "timestep": self.timestep, "class_labels": self.class_labels}
        shapes = {name: (size, *buffer.shape[1:]) for name, buffer in inputs.items()}
        shapes |= {name: tuple(table.shape) for name, table in self._tables.items()}
        buffers = {**inputs, **self._tables, OUTPUT: self.output}
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise engine.failed(f"does not take {name} of shape {shape}", mark)
        with trt.refusals(f"does not know the shapes of a step of {size}"):
            missing = context.infer_shapes()
        if missing:
            raise engine.failed(f"lacks the shapes of {', '.join(missing)}", mark)
        found, wanted = tuple(context.get_tensor_shape(OUTPUT)), (size, *engine.sample_shape)
        if found != wanted:
            raise BackendError(f"the engine gives {OUTPUT} of shape {found}, expected {wanted}")
        for name, buffer in buffers.items():
            if buffer.pointer % _ALIGNMENT:
                raise BackendError(f"the buffer of {name} must start at a multiple of {_ALIGNMENT} bytes")
            if not context.set_tensor_address(name, buffer.pointer):
                raise engine.failed(f"does not take the buffer of {name}", mark)
        return context


class TensorRTNetwork(DeviceNetwork):
    """A bundle's network as a TensorRT engine; see ``base.AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: device, precision (must be the graph's), batch (the largest step), tf32, graphs.
        engine: What the engine is built for; default :func:`default_engine`.
        flavour: See :func:`fastdc.backends.tensorrt.module.open_tensorrt`.
        cache: Where engines are kept; default the user's.

    Attributes:
        plan: Path of the engine's plan.
        built: The engine was built now, which may have taken minutes.
        self_test: What the engine's self-test found when it was built.
        version: What runs it, such as "TensorRT 11.4.0.106".

    Raises:
        InputError: An engine that holds host code was asked for.
        MissingDependencyError: TensorRT, cuda-core or filelock is not installed; or what the self-test of a new engine
            needs.
        BackendError: There is no GPU, or the engine cannot be built, loaded, or fails its test.
        BundleError: The graph is corrupt.
    """

    backend = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        options: NetworkOptions | None = None,
        *,
        engine: EngineOptions | None = None,
        flavour: str = "auto",
        cache: EngineCache | None = None,
    ) -> None:
        options = options or NetworkOptions()
        index = _device_index(options.device)
        self.precision = _precision(bundle, options)
        if engine is not None and engine.version_compatible:
            raise InputError("a version-compatible engine holds code for the host, which fastdc does not run")
        trt = open_tensorrt(flavour)
        card = gpu(index)
        use_device(index)
        super().__init__(DeviceArrays(index), graphs=options.graphs)
        wanted = engine or default_engine(bundle, options, memory=self.home.memory)
        self.batch = wanted.largest
        self.sizes: tuple[int, ...] | None = sizes_of(wanted)
        tables = {name: self.place(np.ascontiguousarray(table)) for name, table in tables_of(bundle).items()}

        def slot(loaded: Engine) -> TensorRTSlot:
            return TensorRTSlot(loaded, DeviceArrays(index), self.home, tables)

        maker = _maker(bundle, trt, wanted, index, self.precision, slot)
        entry = (cache or EngineCache()).open(engine_key(bundle, wanted, trt, card), maker)
        self.plan, self.built, self.self_test = entry.path, entry.built, entry.self_test
        self.version = trt.name
        self.slots: tuple[AbstractSlot, ...] = tuple(slot(entry.engine) for _ in range(SLOTS))


def check_usable(flavour: str = "auto") -> None:
    """Refuses a machine on which no engine could be built, tested and kept, before anything is done for one.

    Raises:
        MissingDependencyError: TensorRT, cuda-core, filelock or onnxruntime is not installed.
        BackendError: There is no GPU, or TensorRT does not start.
    """
    open_tensorrt(flavour)
    cuda_core()
    require("filelock", extra="tensorrt")
    require("onnxruntime", extra="cpu")  # of the self-test


def default_engine(bundle: Bundle, options: NetworkOptions, *, memory: int) -> EngineOptions:
    """An engine for steps of `options.batch` or ``base.device_batch`` rows at most, on a device of `memory` bytes.

    Kernels are chosen for that size, for an eighth of it, and for 8 rows in a range that goes up to its half: so no
    step is padded to more than twice its cells.
    """
    sample_bytes = math.prod(bundle.model.sample_shape) * ELEMENT_BYTES[_precision(bundle, options)]
    largest = options.batch or device_batch(bundle.flops, sample_bytes=sample_bytes, slots=SLOTS, memory=memory)
    small, half = max(1, largest // _SMALLER), -(-largest // 2)
    batches = tuple(sorted({small, largest}))
    return EngineOptions(
        batches=batches, latency=None if half in batches else (1, min(_SMALLER, half), half), tf32=options.tf32
    )


def sizes_of(options: EngineOptions) -> tuple[int, ...]:
    """The sizes of steps that an engine runs: its static batches, and in its range those that halving meets."""
    sizes = set(options.batches)
    if options.latency is not None:
        low, usual, high = options.latency
        sizes |= {size for size in halves(high) if size >= low} | {low, usual}
    return tuple(sorted(sizes))


def engine_key(bundle: Bundle, options: EngineOptions, trt: TensorRT, card: Gpu) -> dict[str, Any]:
    """Everything that a plan depends on."""
    facts = read_graph(bundle.read(DENOISER))
    return {
        "graph": facts.digest,
        "weights": bundle.manifest["files"][DATA]["sha256"] if DATA in bundle.files else None,
        "precision": str(bundle.manifest.get("precision", "float32")),
        "opset": facts.opset,
        "conditions": _rows(bundle),
        "profiles": [list(batch) for batch in options.ranges],
        "options": {name: value for name, value in asdict(options).items() if name not in ("batches", "latency")},
        "flavour": trt.flavour,
        "tensorrt": trt.version,
        "gpu": card.name,
        "sm": card.sm,
        "driver": card.driver,
        "machine": platform.machine(),
    }


def context_options(trt: TensorRT, engine: Any) -> Any:
    """How a context gets its memory: from us. Of TensorRT-RTX also when it compiles its kernels.

    TensorRT-RTX compiles kernels for a shape while it runs, by default in the background, with others in their place
    until they are there: steps would change their bits after the self-test, and a captured step would stay with the
    others. Here the first step of a shape waits for its kernels.
    """
    strategy = trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
    specialization = getattr(trt.module, "DynamicShapesKernelSpecializationStrategy", None)
    if specialization is None:
        return strategy
    with trt.refusals("cannot make a context's options"):
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        runtime_config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
    return runtime_config


def load_engine(trt: TensorRT, plan: bytes) -> Any:
    """The ICudaEngine of a plan. Code for the host that a plan may bring is never run.

    Raises:
        BackendError: There is no GPU, or TensorRT does not take the plan.
    """
    check_driver()  # a runtime object without a driver ends the process
    mark = trt.logger.mark()
    runtime: Any = trt.make("Runtime")
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{trt.name} does not load the plan: {trt.logger.error(mark)}")
    return engine


def _maker(
    bundle: Bundle,
    trt: TensorRT,
    options: EngineOptions,
    index: int,
    precision: str,
    slot: Callable[[Engine], TensorRTSlot],
) -> Maker[Engine]:
    """How the engine of a bundle comes about."""
    tables = tables_of(bundle)

    def load(plan: bytes) -> Engine:
        engine = load_engine(trt, plan)
        check_tensors(engine, precision, tuple(tables))
        return Engine(trt, engine, options, index, bundle.model.sample_shape, precision)

    def test(engine: Engine) -> dict[str, Any]:
        batches = sorted({1, *(size for batch in options.ranges for size in batch)} & set(sizes_of(options)))
        facts: GraphFacts = read_graph(bundle.read(DENOISER))
        found = self_test(bundle, facts, slot(engine).runner(), batches, dtype=precision, tf32=options.tf32)
        return found.to_dict()

    def build(timing: bytes) -> Any:
        require("onnxruntime", extra="cpu")  # of the self-test: missed now, not after minutes
        if precision == "bfloat16":
            require("onnx", extra="export")
        return build_engine(trt, graph_source(bundle, DENOISER), _rows(bundle), options, timing_cache=timing)

    return Maker(build, load, test, lambda new, old: merge_timing_caches(trt, new, old))


def check_tensors(engine: Any, precision: str, tables: tuple[str, ...]) -> None:
    """Refuses an engine whose inputs and output are not those that buffers will be bound to.

    Raises:
        BackendError: They are not.
    """
    kinds = {"sample": precision, "timestep": "float32", "class_labels": "int64", OUTPUT: precision}
    wanted = {name: _TYPES[kind] for name, kind in {**kinds, **dict.fromkeys(tables, "float32")}.items()}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: engine.get_tensor_dtype(name).name for name in names}
    outputs = [name for name in names if engine.get_tensor_mode(name).name == "OUTPUT"]
    if found != wanted or outputs != [OUTPUT]:
        raise BackendError(f"the engine must map {wanted} to {OUTPUT}, it has {found} with outputs {outputs}")


def _rows(bundle: Bundle) -> int:
    return max(len(bundle.model.conditions), 1 + (bundle.model.null_class or 0))


def _device_index(device: str) -> int:
    if device == "cpu":
        raise BackendError("backend tensorrt runs on an NVIDIA GPU, got device 'cpu'")
    return int(device.partition(":")[2] or 0)


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Type of sample and output: the graph's, which no engine changes."""
    kind = str(bundle.manifest.get("precision", "float32"))
    kind = "float32" if kind == "int8" else kind
    if options.precision not in ("auto", kind):
        raise BackendError(
            f"an engine has its graph's precision, here {kind}: export the model in {options.precision} to run it so"
        )
    return kind
