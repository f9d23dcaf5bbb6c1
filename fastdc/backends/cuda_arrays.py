"""Arrays, streams and graphs on a CUDA device without an array library: what the backends other than torch stand on.

Memory, streams, events and capture come from NVIDIA's cuda-core (a few MB; no torch, no SDK). A :class:`DeviceArray` is
a pointer with a shape and an element type that speaks DLPack. A :class:`DeviceArrays` is a stream of its own and what
is done on it:

* `write` copies to pinned memory and from there, asynchronously; a staging area is used again when its copy has run;
* `read` copies to pinned memory and waits for the stream, without the GIL;
* `capture` makes a CUDA graph of what a function enqueues on the stream.

Nothing else waits for the device, and nothing in `write`, `read` and a replay allocates there. Threads may write and
read at once: a run may be prepared on a network while another one works.

:class:`DeviceBuffers` and :class:`DeviceNetwork` are the twins of ``base.HostBuffers`` and ``base.HostArrays``: the
buffers of a slot, each slot with a stream of its own, and what networks on a device have in common.

The current device belongs to a thread, and other libraries set it too; every entrance sets it, which takes a
microsecond. Without a driver nothing of cuda-core is touched. Not run on a device yet: docs/gpu.md has the command.
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

from fastdc.backends.protocol import CAPTURING, ELEMENT_BYTES, AbstractSlot, Buffer, first_cause, one_line
from fastdc.diffusion import kernels
from fastdc.support import BackendError, InputError, MissingDependencyError

ALIGNMENT = 256

# Pinned memory of one staging area, and areas in turn: larger arrays go in pieces.
_STAGE_BYTES = 1 << 24
_STAGES = 4

_BYTES = {**ELEMENT_BYTES, "int32": 4, "int64": 8}


def cuda_core() -> ModuleType:
    """The package cuda.core.

    Raises:
        MissingDependencyError: It, or the bindings it needs, is not installed.
    """
    try:
        return importlib.import_module("cuda.core")
    except ImportError as error:  # cuda.core without cuda.bindings raises an ImportError that names no module
        message = "cuda-core is needed here and is not installed: pip install 'fastdc[tensorrt]'"
        raise MissingDependencyError(f"{message} ({one_line(error)})", name="cuda.core") from None


def device_index(device: str) -> int:
    """The index of a device such as "cuda" or "cuda:1"; checks that it is there.

    Raises:
        BackendError: There is no such device, or nothing that could use one.
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
    """A row-major array on a device; see :meth:`DeviceArrays.empty`.

    Args:
        pointer: Address of the first element.
        shape: Extents.
        dtype: Name of the element type.
        device: Index of the device.
        owner: What keeps the memory; it lives as long as the array and its parts.
    """

    def __init__(self, pointer: int, shape: Sequence[int], dtype: str, device: int, owner: object) -> None:
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.owner = owner

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> "DeviceArray":
        """A row, or rows that follow each other, of the first axis; the same memory."""
        rows = self.shape[0]
        row_bytes = math.prod(self.shape[1:]) * _BYTES[self.dtype]
        if isinstance(index, slice):
            start, stop, step = index.indices(rows)
            if step != 1:
                raise InputError(f"rows of a device array must follow each other, got step {step}")
            shape: tuple[int, ...] = (max(0, stop - start), *self.shape[1:])
        else:
            start, shape = index + rows if index < 0 else index, self.shape[1:]
            if not 0 <= start < rows:
                raise IndexError(f"row {index} of {rows}")
        return type(self)(self.pointer + start * row_bytes, shape, self.dtype, self.device, self.owner)

    @cached_property
    def view(self) -> kernels.TensorView:
        """What the kernels take."""
        return kernels.view_memory(self.pointer, self.shape, self.dtype, device=self.device, owner=self.owner)

    def __dlpack__(self, **asked: Any) -> Any:
        """See the protocol. Who asks must know that the contents are there: nothing is synchronised here."""
        return self.view.__dlpack__(**asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        """See the protocol."""
        return self.view.__dlpack_device__()

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {self.shape} on cuda:{self.device})"


class _Stage:
    """Pinned memory that arrays are copied through, and when the last copy has left it."""

    def __init__(self, core: Any, device: Any) -> None:
        self._core = core
        self._event = device.create_event()
        self._used = False
        self._buffer: Any = None
        self.bytes = np.empty(0, np.uint8)

    def room(self, nbytes: int) -> Any:
        """A buffer of so many bytes, which `bytes` shows, once the last copy has left it."""
        if self._used:
            self._event.sync()
        if len(self.bytes) < nbytes:
            size = 1 << max(12, (nbytes - 1).bit_length())
            self._buffer = self._core.LegacyPinnedMemoryResource().allocate(size)
            self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(self._buffer.handle)))
        return self._core.Buffer.from_handle(int(self._buffer.handle), nbytes, owner=self._buffer)

    def leaves(self, stream: Any) -> None:
        """Marks the place on the stream where the copy has left."""
        stream.record(self._event)
        self._used = True


class DeviceArrays:
    """Memory on a device and a stream that is not the default one.

    Args:
        device_index: Which device.
        core: cuda.core, or a stand-in.

    Attributes:
        index: The device's index.
        stream: The stream's handle.

    Raises:
        BackendError: There is no such device, or CUDA failed.
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
        """Bytes of the device, in use or not."""
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
        """A new array whose contents are anything, aligned to 256 bytes; usable on every stream.

        Args:
            shape: Extents.
            dtype: float32, float16, bfloat16, int32 or int64: a name or a NumPy type (ml_dtypes' for bfloat16).

        Raises:
            BackendError: The device has no such memory left.
            InputError: Another element type.
        """
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in _BYTES:
            raise InputError(f"dtype must be one of {', '.join(_BYTES)}, got {name!r}")
        nbytes = max(1, math.prod(shape) * _BYTES[name])
        try:
            device = self._device()
            buffer = device.allocate(nbytes, stream=self._stream)
            self._stream.sync()  # memory is ordered on the stream that asked for it
        except Exception as error:
            raise _failed(f"allocate {nbytes} bytes", error) from None
        pointer = int(buffer.handle)
        if pointer % ALIGNMENT:
            raise BackendError(f"CUDA gave memory at {pointer:#x}, expected a multiple of {ALIGNMENT}")
        return self.array_type(pointer, shape, name, self.index, buffer)

    def place(self, array: npt.NDArray[Any]) -> DeviceArray:
        """A copy of a host array; it is there when this returns."""
        made = self.empty(array.shape, array.dtype)
        self.write(made, array)
        self.synchronize()
        return made

    def write(self, array: DeviceArray, values: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows, in the stream's order; `values` may change afterwards.

        Raises:
            InputError: Another element type or shape, or more rows.
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
            BackendError: CUDA failed, now or in work that was enqueued before.
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
        """What is enqueued from here on runs after all that `other` had marked; nobody waits for it here."""
        if not other._written:
            return
        try:
            self._device()
            self._stream.wait(other._mark)
        except Exception as error:
            raise _failed("let a stream wait", error) from None

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        """A function that launches, as one graph, what `launch` enqueues on the stream.

        Args:
            launch: Called once; allocates nothing, waits for nothing, and has run before.

        Raises:
            BackendError: It does something that a graph cannot hold.
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
                with contextlib.suppress(Exception):  # of a capture that failed, which was said above
                    builder.close()

        def replay() -> None:
            try:
                self._device()
                graph.launch(stream)
            except Exception as error:
                raise _failed("launch a captured step", error) from None

        return replay


class DeviceBuffers:
    """Buffers of a slot on a device, with a stream of their own; see ``base.AbstractSlot``.

    Args:
        arrays: The slot's; no other slot's.
        home: The network's, whose writes come before the slot's work.
        batch: Rows.
        sample_shape: (c, h, w).
        dtype: Name of the element type of sample and output.
    """

    def __init__(
        self, arrays: DeviceArrays, home: DeviceArrays, batch: int, sample_shape: tuple[int, int, int], dtype: str
    ) -> None:
        self.arrays = arrays
        self.home = home
        self.stream = arrays.stream
        self.sample: Buffer = arrays.empty((batch, *sample_shape), dtype)
        self.timestep: Buffer = arrays.place(np.zeros(batch, np.float32))
        self.class_labels: Buffer = arrays.place(np.zeros(batch, np.int64))  # networks use it as an index
        self.output: Buffer = arrays.empty((batch, *sample_shape), dtype)
        self.cells: Buffer = arrays.place(np.zeros((batch, 3), np.int32))
        self.errors: Buffer = arrays.empty((batch,), "float32")

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractSlot``."""
        self.arrays.after(self.home)
        self.arrays.write(buffer, array)

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractSlot``."""
        return self.arrays.read(buffer, count)


class DeviceNetwork:
    """What networks on a device have in common; see ``base.AbstractNetwork``.

    Args:
        home: Arrays and stream of what all slots read.
        graphs: Whether steps are captured.
    """

    def __init__(self, home: DeviceArrays, *, graphs: bool = True) -> None:
        self.home = home
        self.device = f"cuda:{home.index}"
        self.stream = home.stream
        self.graphs = graphs
        self.kept: dict[str, Any] = {}

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """See ``base.AbstractNetwork``."""
        return self.home.place(array)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See ``base.AbstractNetwork``."""
        self.home.write(buffer, array)
        self.home.mark()

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See ``base.AbstractNetwork``."""
        return self.home.read(buffer, count)

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """See ``base.AbstractNetwork``."""
        if not self.graphs or not isinstance(slot, DeviceBuffers):
            return None
        return slot.arrays.capture(launch)


def _probed(index: int) -> ModuleType:
    """cuda.core, after looking whether there is a driver and the device: without one it fails in many ways."""
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
