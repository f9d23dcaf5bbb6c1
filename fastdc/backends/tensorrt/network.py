"""A bundle's network as a TensorRT engine, on fastdc's own buffers and streams.

A slot has a stream, its buffers, and one execution context per step size. A context is given its profile, shapes and
addresses when its size first comes up, and never changes afterwards, so that a captured step stays valid. The contexts
of a slot run one after the other and share one piece of device memory for the values between layers. The engine of
fastdc pads steps to the sizes that the network states (``AbstractNetwork``). Condition tables are placed on the device
once, for all slots.

None of this has run on a GPU. Calls, their order and their arguments are tested against a double with the interface of
TensorRT's real bindings, and engines are built by TensorRT-RTX. docs/gpu.md has the command that verifies the rest.
"""

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fastdc.backends.condition_tables import condition_rows, condition_tables
from fastdc.backends.cuda_arrays import ALIGNMENT, DeviceArrays, cuda_core
from fastdc.backends.cuda_network import DeviceBuffers, DeviceNetwork
from fastdc.backends.onnx.graphs import OUTPUT, graph_source, sample_precision
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractSlot, Buffer
from fastdc.backends.step_sizes import DEVICE_SLOTS, ELEMENT_BYTES, device_batch, halves
from fastdc.backends.tensorrt import driver
from fastdc.backends.tensorrt.build import EngineOptions, build_engine, merge_timing_caches
from fastdc.backends.tensorrt.cache import EngineCache, Maker
from fastdc.backends.tensorrt.engine import Engine, check_tensors, load_engine
from fastdc.backends.tensorrt.graph import read_graph
from fastdc.backends.tensorrt.module import TensorRT, open_tensorrt
from fastdc.backends.tensorrt.selftest import Array, Runner, self_test
from fastdc.bundle import DATA, DENOISER, Bundle
from fastdc.support import BackendError, require

_SMALLER = 8  # divisor of the largest step for its small sibling, and usual size of the range of small steps


class TensorRTSlot(DeviceBuffers):
    """Device buffers of a step and the contexts that run on them; implements ``AbstractSlot``.

    Args:
        engine: The engine that runs the steps.
        arrays: Arrays and stream of this slot.
        home: Arrays and stream of the network.
        tables: Condition tables on the device.

    Attributes:
        scratch: Device memory that the contexts share for the values between layers.
    """

    def __init__(self, engine: Engine, arrays: DeviceArrays, home: DeviceArrays, tables: Mapping[str, Buffer]) -> None:
        super().__init__(arrays, home, engine.options.largest, engine.sample_shape, engine.precision)
        self._engine, self._tables = engine, tables
        self._scratch_bytes = engine.scratch_bytes
        self.scratch: Buffer = arrays.empty((max(1, -(-self._scratch_bytes // 4)),), "float32")
        self._contexts: dict[int, Any] = {}

    def run(self, count: int) -> None:
        """Enqueues the evaluation of the first `count` rows on the slot's stream."""
        driver.use_device(self._engine.device)  # the current device is a property of the thread
        context = self._contexts.get(count)
        if context is None:
            context = self._contexts[count] = self._context(count)
        mark = self._engine.trt.logger.mark()
        if not context.execute_async_v3(self.stream):
            raise self._engine.failed(f"does not run a step of {count}", mark)

    def runner(self) -> Runner:
        """A function that runs the engine on host arrays, for the self-test."""

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
        context = engine.new_context()
        context.set_device_memory(self.scratch.pointer, self._scratch_bytes)
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
            if buffer.pointer % ALIGNMENT:
                raise BackendError(f"the buffer of {name} must start at a multiple of {ALIGNMENT} bytes")
            if not context.set_tensor_address(name, buffer.pointer):
                raise engine.failed(f"does not take the buffer of {name}", mark)
        return context


class TensorRTNetwork(DeviceNetwork):
    """A bundle's network as a TensorRT engine; implements ``AbstractNetwork``.

    Args:
        bundle: The bundle.
        options: device, precision (must be the graph's), batch (the largest step), tf32, and graphs.
        engine: Options that the engine is built with; default :func:`default_engine`.
        flavour: "tensorrt", "tensorrt_rtx", or "auto" for the first of them that is installed.
        cache: Cache of engines; default the user's.

    Attributes:
        plan: Path of the engine's plan.
        built: Whether the engine was built just now, which may take minutes.
        self_test: Results of the engine's self-test when it was built.
        version: Name and version of TensorRT, such as "TensorRT 11.4.0.106".

    Raises:
        MissingDependencyError: TensorRT, cuda-core or filelock is not installed, or a package that the self-test of a
            new engine needs.
        BackendError: There is no GPU, or the engine cannot be built or loaded, or fails its test.
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
        trt = open_tensorrt(flavour)
        card = driver.gpu(index)
        driver.use_device(index)
        super().__init__(DeviceArrays(index), graphs=options.graphs)
        wanted = engine or default_engine(bundle, options, memory=self.home.memory)
        self.batch = wanted.largest
        self.sizes: tuple[int, ...] | None = sizes_of(wanted)
        tables = {name: self.place(np.ascontiguousarray(table)) for name, table in condition_tables(bundle).items()}

        def slot(loaded: Engine) -> TensorRTSlot:
            return TensorRTSlot(loaded, DeviceArrays(index), self.home, tables)

        maker = _maker(bundle, trt, wanted, index, self.precision, slot)
        entry = (cache or EngineCache()).open(engine_key(bundle, wanted, trt, card), maker)
        self.plan, self.built, self.self_test = entry.path, entry.built, entry.self_test
        self.version = trt.name
        self.slots: tuple[AbstractSlot, ...] = tuple(slot(entry.engine) for _ in range(DEVICE_SLOTS))


def check_usable() -> None:
    """Refuses a machine on which an engine cannot be built, tested and kept.

    Call it before other long work, such as an export, whose result an engine is to be built of.

    Raises:
        MissingDependencyError: TensorRT, cuda-core, filelock or onnxruntime is not installed.
        BackendError: There is no GPU, or TensorRT does not start.

    Example:
        >>> from fastdc.backends.tensorrt import check_usable
        >>> check_usable()  # doctest: +SKIP
    """
    open_tensorrt()
    cuda_core()
    require("filelock", extra="tensorrt")
    require("onnxruntime", extra="cpu")  # for the self-test


def default_engine(bundle: Bundle, options: NetworkOptions, *, memory: int) -> EngineOptions:
    """Engine options for steps of up to `options.batch` rows, or of the default number for a device of `memory` bytes.

    Kernels are chosen for the largest step, for an eighth of it, and for 8 rows in a range up to half of it. No step is
    then padded to more than twice its cells.

    Args:
        bundle: The bundle.
        options: Options of the network.
        memory: Memory of the device, in bytes.
    """
    sample_bytes = math.prod(bundle.model.sample_shape) * ELEMENT_BYTES[_precision(bundle, options)]
    largest = options.batch or device_batch(bundle.flops, sample_bytes=sample_bytes, memory=memory)
    small, half = max(1, largest // _SMALLER), -(-largest // 2)
    batches = tuple(sorted({small, largest}))
    return EngineOptions(
        batches=batches, latency=None if half in batches else (1, min(_SMALLER, half), half), tf32=options.tf32
    )


def sizes_of(options: EngineOptions) -> tuple[int, ...]:
    """Step sizes that an engine runs: its static batches, and the halves of its range's largest size."""
    sizes = set(options.batches)
    if options.latency is not None:
        low, usual, high = options.latency
        sizes |= {size for size in halves(high) if size >= low} | {low, usual}
    return tuple(sorted(sizes))


def engine_key(bundle: Bundle, options: EngineOptions, trt: TensorRT, card: driver.Gpu) -> dict[str, Any]:
    """Everything that a plan depends on, as JSON values."""
    facts = read_graph(bundle.read(DENOISER))
    return {
        "graph": facts.digest,
        "weights": bundle.manifest["files"][DATA]["sha256"] if DATA in bundle.files else None,
        "precision": str(bundle.manifest.get("precision", "float32")),
        "opset": facts.opset,
        "conditions": condition_rows(bundle.model),
        "profiles": [list(batch) for batch in options.ranges],
        "options": {name: value for name, value in asdict(options).items() if name not in ("batches", "latency")},
        "flavour": trt.flavour,
        "tensorrt": trt.version,
        "gpu": card.name,
        "sm": card.sm,
        "driver": card.driver,
        "machine": platform.machine(),
    }


def _maker(
    bundle: Bundle,
    trt: TensorRT,
    options: EngineOptions,
    index: int,
    precision: str,
    slot: Callable[[Engine], TensorRTSlot],
) -> Maker[Engine]:
    """How the cache builds, loads and tests the engine of a bundle."""
    tables = condition_tables(bundle)

    def load(plan: bytes) -> Engine:
        engine = load_engine(trt, plan)
        check_tensors(engine, precision, tuple(tables))
        return Engine(trt, engine, options, index, bundle.model.sample_shape, precision)

    def test(engine: Engine) -> dict[str, Any]:
        batches = sorted({1, *(size for batch in options.ranges for size in batch)} & set(sizes_of(options)))
        facts = read_graph(bundle.read(DENOISER))
        found = self_test(bundle, facts, slot(engine).runner(), batches, dtype=precision, tf32=options.tf32)
        return found.to_dict()

    def build(timing: bytes) -> Any:
        require("onnxruntime", extra="cpu")  # for the self-test: report it missing now, not after minutes
        if precision == "bfloat16":
            require("onnx", extra="export")
        rows = condition_rows(bundle.model)
        return build_engine(trt, graph_source(bundle, DENOISER), rows, options, timing_cache=timing)

    return Maker(build, load, test, lambda new, old: merge_timing_caches(trt, new, old))


def _device_index(device: str) -> int:
    if device == "cpu":
        raise BackendError("backend tensorrt runs on an NVIDIA GPU, got device 'cpu'")
    return int(device.partition(":")[2] or 0)


def _precision(bundle: Bundle, options: NetworkOptions) -> str:
    """Element type of sample and output, which is the graph's and does not depend on the engine."""
    kind = sample_precision(bundle)
    if options.precision not in ("auto", kind):
        raise BackendError(
            f"an engine has its graph's precision, here {kind}: export the model in {options.precision} to run it so"
        )
    return kind
