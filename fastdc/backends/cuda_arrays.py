"""Arrays, streams and captures on a CUDA device without an array library, for the backends other than torch.

Memory, streams, events and captures come from NVIDIA's cuda-core, which is a few MB and needs neither torch nor an SDK.
A :class:`DeviceArray` is a pointer with a shape and an element type that speaks DLPack. A :class:`DeviceArrays` is a
stream of its own with these operations:

* `write` copies to pinned memory and from there asynchronously; a staging area is reused once its copy has run;
* `read` copies to pinned memory and waits for the stream, without the GIL;
* `capture` makes a CUDA graph of the work that a function enqueues on the stream.

Nothing else waits for the device, and `write`, `read` and a replay allocate nothing on it. Several threads may write
and read at once: one may prepare a run on a network while another uses it.

The current device is a property of each thread, and other libraries set it too. Every public method therefore sets it,
which takes a microsecond. Without a driver nothing of cuda-core is touched. None of this has run on a device yet;
docs/gpu.md has the command that verifies it.
"""

import contextlib
import ctypes
import importlib
import math
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.capturing import CAPTURING, first_cause
from fastdc.backends.step_sizes import ELEMENT_BYTES
from fastdc.diffusion import kernels
from fastdc.support import BackendError, InputError, MissingDependencyError, checks, install_hint, one_line

ALIGNMENT = 256
"""Device memory starts at a multiple of this many bytes, as the kernels and TensorRT need it."""

# Size of a staging area in pinned memory, and the number of areas used in turn. Larger arrays are copied in pieces.
_STAGE_BYTES = 1 << 24
_STAGES = 4

_BYTES = {**ELEMENT_BYTES, "int32": 4, "int64": 8}


def cuda_core() -> ModuleType:
    """The package cuda.core.

    Raises:
        MissingDependencyError: cuda-core, or cuda-bindings which it needs, is not installed.
    """
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:  # cuda.core without cuda.bindings raises an ImportError that names no module
        message = f"cuda-core is needed here and is not installed: {install_hint('tensorrt')}"
        raise MissingDependencyError(f"{message} ({one_line(error)})", name="cuda.core") from None


def device_index(device: str) -> int:
    """Index of a device given as "cuda" or "cuda:N", after checking that the device exists.

    Raises:
        BackendError: The device does not exist, fastdc was built without CUDA, or the driver is missing or too old.
    """
    index = int(device.partition(":")[2] or 0)
    count = kernels.cuda_device_count()
    if index < count:
        return index
    if not kernels.build_config()["cuda"]:
        raise BackendError(f"device {device!r} was asked for, but fastdc was built without CUDA: see docs/building.md")
    if not count:
        raise BackendError(f"device {device!r} was asked for, but there is no CUDA device or its driver is too old")
    raise BackendError(f"device {device!r} was asked for, but there are {count} CUDA devices")


class DeviceArray:
    """A row-major array on a device; made by :meth:`DeviceArrays.empty`.

    Args:
        pointer: Address of the first element.
        shape: Extents.
        dtype: Name of the element type.
        device: Index of the device.
        owner: Object that keeps the memory alive, as long as the array and its parts.
    """

    def __init__(self, pointer: int, shape: Sequence[int], dtype: str, device: int, owner: object) -> None:
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.owner = owner

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> "DeviceArray":
        """A row, or consecutive rows, of the first axis, in the same memory."""
        rows = self.shape[0]
        row_bytes = math.prod(self.shape[1:]) * _BYTES[self.dtype]
        if isinstance(index, slice):
            start, stop, step = index.indices(rows)
            if step != 1:
                raise InputError(f"rows of a device array must be consecutive, got step {step}")
            shape: tuple[int, ...] = (max(0, stop - start), *self.shape[1:])
        else:
            start, shape = index + rows if index < 0 else index, self.shape[1:]
            if not 0 <= start < rows:
                raise IndexError(f"row {index} of {rows}")
        return type(self)(self.pointer + start * row_bytes, shape, self.dtype, self.device, self.owner)

    @cached_property
    def view(self) -> kernels.TensorView:
        """The array as the kernels take it."""
        return kernels.view_memory(self.pointer, self.shape, self.dtype, device=self.device, owner=self.owner)

    def __dlpack__(self, **asked: Any) -> Any:
        """The DLPack capsule. The caller must know that the contents are complete: nothing is synchronised here."""
        return self.view.__dlpack__(**asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's (device type, device index)."""
        return self.view.__dlpack_device__()

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {self.shape} on cuda:{self.device})"


class _Stage:
    """A staging area in pinned memory, and the event at which the last copy has left it."""

    def __init__(self, core: Any, device: Any) -> None:
        self._core = core
        self._event = device.create_event()
        self._used = False
        self._buffer: Any = None
        self.bytes = np.empty(0, np.uint8)

    def room(self, nbytes: int) -> Any:
        """A buffer of `nbytes` bytes, visible in `bytes`; waits until the last copy has left the area."""
        if self._used:
            self._event.sync()
        if len(self.bytes) < nbytes:
            size = 1 << max(12, (nbytes - 1).bit_length())
            self._buffer = self._core.LegacyPinnedMemoryResource().allocate(size)
            self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(self._buffer.handle)))
        return self._core.Buffer.from_handle(int(self._buffer.handle), nbytes, owner=self._buffer)

    def leaves(self, stream: Any) -> None:
        """Marks the point of the stream at which the copy has left the area."""
        stream.record(self._event)
        self._used = True


class DeviceArrays:
    """Memory on a device, and a stream that is not the default one.

    Args:
        device_index: Index of the device.
        core: The module cuda.core, or a double of it.

    Attributes:
        index: Index of the device.
        stream: Handle of the stream.

    Raises:
        BackendError: The device does not exist, or CUDA failed.
        MissingDependencyError: cuda-core is not installed.
    """

    array_type = DeviceArray

    def __init__(self, device_index: int, core: Any = None) -> None:
        self.index = device_index
        self._core: Any = core or _probed(device_index)
        try:
            device = self._device()
            self._stream = device.create_stream()
            self._mark = device.create_event()
            self._stages = [_Stage(self._core, device) for _ in range(_STAGES)]
            self._result = _Stage(self._core, device)
        except Exception as error:
            raise _failed("open", error) from None
        self._turn = 0
        self._staging = threading.Lock()
        self._written = False
        self.stream = int(self._stream.handle)

    @property
    def memory(self) -> int:
        """Memory of the device in bytes, in use or not."""
        self._device()
        status, nbytes = importlib.import_module("cuda.bindings.driver").cuDeviceTotalMem(self.index)
        if int(status):
            raise BackendError(f"CUDA could not tell its memory: {status!r:.80}")
        return int(nbytes)

    def _device(self) -> Any:
        """The device, made current in this thread."""
        device = self._core.Device(self.index)
        device.set_current()
        return device

    def empty(self, shape: Sequence[int], dtype: str | npt.DTypeLike) -> DeviceArray:
        """A new array with undefined contents, aligned to 256 bytes and usable on every stream.

        Args:
            shape: Extents.
            dtype: float32, float16, bfloat16, int32 or int64, as a name or a NumPy type (ml_dtypes' for bfloat16).

        Raises:
            BackendError: The device has too little memory left.
            InputError: The element type is another one.
        """
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        checks.one_of("dtype", name, _BYTES)
        nbytes = max(1, math.prod(shape) * _BYTES[name])
        try:
            device = self._device()
            buffer = device.allocate(nbytes, stream=self._stream)
            self._stream.sync()  # an allocation is ordered on the stream that asked for it
        except Exception as error:
            raise _failed(f"allocate {nbytes} bytes", error) from None
        pointer = int(buffer.handle)
        if pointer % ALIGNMENT:
            raise BackendError(f"CUDA gave memory at {pointer:#x}, expected a multiple of {ALIGNMENT}")
        return self.array_type(pointer, shape, name, self.index, buffer)

    def place(self, array: npt.NDArray[Any]) -> DeviceArray:
        """A copy of a host array on the device; the copy is complete when this returns."""
        made = self.empty(array.shape, array.dtype)
        self.write(made, array)
        self.synchronize()
        return made

    def write(self, array: DeviceArray, values: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows, in the stream's order; `values` may change afterwards.

        Raises:
            InputError: `values` has another element type or row shape, or more rows.
            BackendError: CUDA failed.
        """
        fits = values.dtype.name == array.dtype and values.shape[1:] == array.shape[1:]
        if not fits or values.ndim != len(array.shape) or values.shape[:1] > array.shape[:1]:
            raise InputError(f"expected {array.dtype} in rows of {array!r}, got {values.dtype.name} {values.shape}")
        source = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        try:
            with self._staging:
                self._device()
                for start in range(0, len(source), _STAGE_BYTES):
                    self._stage(array, start, source[start : start + _STAGE_BYTES])
        except Exception as error:
            raise _failed("copy to the device", error) from None

    def _stage(self, array: DeviceArray, start: int, piece: npt.NDArray[np.uint8]) -> None:
        stage = self._stages[self._turn]
        self._turn = (self._turn + 1) % _STAGES
        staged = stage.room(len(piece))
        stage.bytes[: len(piece)] = piece
        self._window(array, start, len(piece)).copy_from(staged, stream=self._stream)
        stage.leaves(self._stream)

    def read(self, array: DeviceArray, count: int) -> npt.NDArray[Any]:
        """The first `count` rows as a new host array, after all work of the stream.

        Raises:
            BackendError: CUDA failed, in this copy or in work that was enqueued earlier.
        """
        rows = array[:count]
        made = np.empty(rows.shape, _numpy_dtype(array.dtype))
        target = made.reshape(-1).view(np.uint8)
        try:
            with self._staging:
                self._device()
                for start in range(0, len(target), _STAGE_BYTES):
                    piece = target[start : start + _STAGE_BYTES]
                    staged = self._result.room(len(piece))
                    staged.copy_from(self._window(array, start, len(piece)), stream=self._stream)
                    self._stream.sync()
                    piece[:] = self._result.bytes[: len(piece)]
                if not len(target):
                    self._stream.sync()
        except Exception as error:
            raise _failed("copy from the device", error) from None
        return made

    def _window(self, array: DeviceArray, start: int, nbytes: int) -> Any:
        return self._core.Buffer.from_handle(array.pointer + start, nbytes, owner=array.owner)

    def synchronize(self) -> None:
        """Waits for all work of the stream."""
        try:
            self._device()
            self._stream.sync()
        except Exception as error:
            raise _failed("run", error) from None

    def mark(self) -> None:
        """Marks the work enqueued so far, for :meth:`after`."""
        try:
            self._device()
            self._stream.record(self._mark)
        except Exception as error:
            raise _failed("mark a stream", error) from None
        self._written = True

    def after(self, other: "DeviceArrays") -> None:
        """Lets work enqueued from now on run after everything that `other` has marked; the host does not wait."""
        if not other._written:
            return
        try:
            self._device()
            self._stream.wait(other._mark)
        except Exception as error:
            raise _failed("let a stream wait", error) from None

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """A function that replays, as one CUDA graph, the work that `launch` enqueues on the stream.

        Args:
            launch: Enqueues the work. It is called once, has run before, allocates nothing and waits for nothing.

        Raises:
            BackendError: The work cannot be captured.
        """
        self._device()
        stream = self._stream
        with CAPTURING:
            builder = stream.create_graph_builder()
            try:
                builder.begin_building(mode="thread_local")  # other threads go on launching and waiting meanwhile
                try:
                    launch()
                finally:
                    builder.end_building()
                graph = builder.complete()
                graph.upload(stream)
            except Exception as error:
                cause = first_cause(error)
                what = "capture a step, run it with graphs=False"
                raise (cause if isinstance(cause, BackendError) else _failed(what, cause)) from None
            finally:
                with contextlib.suppress(Exception):  # closing fails after a failed capture, which is reported above
                    builder.close()

        def replay() -> None:
            try:
                self._device()
                graph.launch(stream)
            except Exception as error:
                raise _failed("launch a captured step", error) from None

        return replay


def _probed(index: int) -> ModuleType:
    """The module cuda.core, after checking for a driver and the device: without them it fails in many ways."""
    core = cuda_core()
    device_index(f"cuda:{index}")
    return core


def _failed(what: str, error: BaseException) -> BackendError:
    return BackendError(f"CUDA could not {what}: {one_line(error)}")


def _numpy_dtype(name: str) -> npt.DTypeLike:
    if name != "bfloat16":
        return name
    import ml_dtypes

    bfloat16: npt.DTypeLike = ml_dtypes.bfloat16
    return bfloat16
