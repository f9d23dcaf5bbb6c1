"""A double of cuda-core on the CPU that keeps the promises of streams and no others.

Work enqueued on a stream is not done until someone waits for the stream, or for an event behind the work. A copy that
leaves pinned memory too late, or arrives too late, therefore shows as a wrong number. `calls` records the calls.
"""

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdc.backends.cuda_arrays import DeviceArray, DeviceArrays
from fastdc.diffusion import kernels


class Event:
    """A point in the work of a stream."""

    def __init__(self, core: "Core") -> None:
        self.core = core
        self.stream: Stream | None = None
        self.place = 0

    def sync(self) -> None:
        self.core.calls.append("event.sync")
        self.reach()

    def reach(self) -> None:
        if self.stream is not None:
            self.stream.run_to(self.place)


class Graph:
    """Captured work."""

    def __init__(self, core: "Core", work: list[Callable[[], None]]) -> None:
        self.core = core
        self.work = work

    def upload(self, stream: "Stream") -> None:
        self.core.calls.append("upload")

    def launch(self, stream: "Stream") -> None:
        self.core.check_current()
        self.core.check_well()
        self.core.calls.append("launch")
        for work in self.work:
            stream.enqueue(work)


class Builder:
    """Captures the work of a stream."""

    def __init__(self, stream: "Stream") -> None:
        self.stream = stream
        self.work: list[Callable[[], None]] | None = None

    def begin_building(self, mode: str = "relaxed") -> "Builder":
        self.stream.core.check_current()
        self.stream.core.calls.append(f"begin {mode}")
        self.stream.captured = []
        return self

    def end_building(self) -> "Builder":
        self.stream.core.calls.append("end")
        self.work, self.stream.captured = self.stream.captured, None
        return self

    def complete(self, options: Any = None) -> Graph:
        assert self.work is not None
        return Graph(self.stream.core, self.work)

    def close(self) -> None:
        self.stream.core.calls.append("close")


class Stream:
    """Work in order, done as late as possible if the core is lazy."""

    def __init__(self, core: "Core") -> None:
        self.core = core
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.lock = threading.RLock()
        self.captured: list[Callable[[], None]] | None = None
        core.handles += 1
        self.handle = 0x5000 + core.handles

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.captured is not None:
            self.captured.append(work)
            return
        self.queue.append(work)
        if not self.core.lazy:
            self.run_to(len(self.queue))

    def run_to(self, place: int) -> None:
        with self.lock:
            while self.done < place:
                work = self.queue[self.done]
                self.queue[self.done] = lambda: None
                self.done += 1
                work()

    def sync(self) -> None:
        assert self.captured is None, "a stream cannot be waited for while it is captured"
        self.core.check_current()
        self.core.calls.append("stream.sync")
        self.core.check_well()
        self.run_to(len(self.queue))

    def record(self, event: Event) -> Event:
        self.core.check_current()
        event.stream, event.place = self, len(self.queue)
        return event

    def wait(self, event: Event) -> None:
        self.core.check_current()
        self.core.calls.append("wait")
        stream, place = event.stream, event.place
        assert stream is not None
        self.enqueue(lambda: stream.run_to(place))

    def create_graph_builder(self) -> Builder:
        return Builder(self)


class Buffer:
    """Memory of the CPU, which `owner` keeps alive."""

    def __init__(self, core: "Core", handle: int, size: int, owner: Any = None) -> None:
        self.core, self.handle, self.size, self.owner = core, handle, size, owner

    def copy_from(self, source: "Buffer", *, stream: Stream) -> None:
        assert source.size == self.size
        self.core.check_current()
        self.core.calls.append("copy")
        to, origin, size = self.handle, source.handle, self.size
        keep = (self, source)

        def copy() -> None:
            assert keep
            ctypes.memmove(to, origin, size)

        stream.enqueue(copy)


class Core:
    """The part of the module cuda.core that fastdc uses.

    Args:
        lazy: Whether work is left undone until someone waits for it.

    Attributes:
        broken: Whether every later call fails, as after an illegal memory access.
        calls: Names of the calls, in order.
        memory: Largest allocation that succeeds, in bytes.
    """

    def __init__(self, *, lazy: bool = True) -> None:
        self.lazy = lazy
        self.broken = False
        self.calls: list[str] = []
        self.handles = 0
        self.current = threading.local()
        self.memory = 1 << 30
        core = self

        class Pinned:
            def allocate(self, size: int, *, stream: Any = None) -> Buffer:
                core.calls.append("pin")
                return core.allocated(size)

        class Buffers:
            @staticmethod
            def from_handle(pointer: int, size: int, mr: Any = None, owner: Any = None) -> Buffer:
                return Buffer(core, pointer, size, owner)

        self.LegacyPinnedMemoryResource, self.Buffer = Pinned, Buffers

    def check_current(self) -> None:
        assert getattr(self.current, "index", None) is not None, "no device is current in this thread"

    def check_well(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access\nwas encountered")

    def allocated(self, size: int, alignment: int = 256) -> Buffer:
        if size > self.memory:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed")
        # Not zeros: memory that nobody has written must not look right.
        memory = np.full(size + alignment, 0xA5, np.uint8)
        return Buffer(self, -(-memory.ctypes.data // alignment) * alignment, size, memory)

    def Device(self, index: int) -> "Device":  # noqa: N802  (cuda.core's name)
        return Device(self, index)


class Device:
    """A device, current in a thread once `set_current` was called there."""

    def __init__(self, core: Core, index: int) -> None:
        self.core = core
        self.index = index

    def set_current(self) -> None:
        self.core.current.index = self.index

    def create_stream(self) -> Stream:
        return Stream(self.core)

    def create_event(self) -> Event:
        return Event(self.core)

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        self.core.check_current()
        self.core.calls.append("allocate")
        return self.core.allocated(size)


class HostedArray(DeviceArray):
    """A device array in the CPU's memory. The kernels take it, and `numpy` is a view of it."""

    @property
    def view(self) -> kernels.TensorView:
        return kernels.view_memory(self.pointer, self.shape, self.dtype, owner=self.owner)

    @property
    def numpy(self) -> Any:
        # Not np.from_dlpack, whose arrays are read-only in NumPy 2.1 and 2.2.
        interface = {
            "data": (self.pointer, False),
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "version": 3,
        }
        return np.asarray(SimpleNamespace(__array_interface__=interface, owner=self.owner))


class HostedArrays(DeviceArrays):
    """Device arrays in the CPU's memory.

    Args:
        core: The double of cuda-core; default: one that does all work at once.
    """

    array_type = HostedArray
    memory = 1 << 37

    def __init__(self, core: Core | None = None) -> None:
        self.core = core or Core(lazy=False)
        super().__init__(0, self.core)

    @property
    def queue(self) -> Stream:
        """The stream."""
        stream: Stream = self._stream
        return stream
