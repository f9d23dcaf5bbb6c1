"""A loaded TensorRT engine: checked for its inputs and outputs, and the source of execution contexts."""

from dataclasses import dataclass
from typing import Any

from fastdc.backends.onnx.graphs import OUTPUT
from fastdc.backends.tensorrt import driver
from fastdc.backends.tensorrt.build import EngineOptions
from fastdc.backends.tensorrt.module import TensorRT
from fastdc.support import BackendError

_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}


@dataclass(frozen=True, eq=False)
class Engine:
    """An engine that is loaded.

    Attributes:
        trt: TensorRT that runs the engine.
        engine: The ICudaEngine.
        options: Options that the engine was built with.
        device: Number of the GPU.
        sample_shape: Shape of a sample, (c, h, w).
        precision: Element type of sample and output.
    """

    trt: TensorRT
    engine: Any
    options: EngineOptions
    device: int
    sample_shape: tuple[int, int, int]
    precision: str

    @property
    def scratch_bytes(self) -> int:
        """Device memory in bytes that a context of any profile needs between layers."""
        profiles = range(len(self.options.ranges))
        return max(int(self.engine.get_device_memory_size_for_profile_v2(profile)) for profile in profiles)

    def profile_of(self, size: int) -> int:
        """Index of the first profile that includes a step of `size` rows; static profiles come before the range.

        Raises:
            BackendError: No profile includes the size.
        """
        for index, (low, _, high) in enumerate(self.options.ranges):
            if low <= size <= high:
                return index
        raise BackendError(f"the engine has no profile for a step of {size}: it has {self.options.ranges}")

    def new_context(self) -> Any:
        """A context without memory, profile, shapes or buffers.

        Raises:
            BackendError: TensorRT cannot make one.
        """
        mark = self.trt.logger.mark()
        with self.trt.refusals("cannot make a context"):
            context = self.engine.create_execution_context(self._context_options())
        if context is None:
            raise self.failed("cannot make a context", mark)
        return context

    def _context_options(self) -> Any:
        """Options that let fastdc give a context its memory and, for TensorRT-RTX, that set when kernels are compiled.

        TensorRT-RTX compiles kernels for a shape at run time, by default in the background, and uses others until they
        are ready. Steps would then change their bits after the self-test, and a captured step would keep the other
        kernels. With these options the first step of a shape waits for its kernels.
        """
        trt = self.trt
        strategy = trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        specialization = getattr(trt.module, "DynamicShapesKernelSpecializationStrategy", None)
        if specialization is None:
            return strategy
        with trt.refusals("cannot make a context's options"):
            runtime_config = self.engine.create_runtime_config()
            runtime_config.set_execution_context_allocation_strategy(strategy)
            runtime_config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        return runtime_config

    def failed(self, what: str, mark: int) -> BackendError:
        """The error of a call that TensorRT refused; `mark` is the position in its log before the call."""
        return BackendError(f"{self.trt.name} {what}: {self.trt.logger.error(mark)}")


def load_engine(trt: TensorRT, plan: bytes) -> Any:
    """The ICudaEngine of a plan. Code for the host that a plan may contain is never run.

    Raises:
        BackendError: There is no GPU, or TensorRT refuses the plan.
    """
    driver.check_driver()  # a runtime object without a driver ends the process
    mark = trt.logger.mark()
    runtime: Any = trt.make("Runtime")
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{trt.name} does not load the plan: {trt.logger.error(mark)}")
    return engine


def check_tensors(engine: Any, precision: str, tables: tuple[str, ...]) -> None:
    """Refuses an engine whose inputs and output are not the expected ones.

    Args:
        engine: The ICudaEngine.
        precision: Element type of sample and output.
        tables: Names of the condition tables.

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
