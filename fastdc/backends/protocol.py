"""The protocol between the engine and whatever runs the network.

A network owns one or more slots. A slot is a set of buffers for one step in flight, placed where the network runs; the
engine fills ``sample``, ``timestep`` and ``class_labels`` (by ``kernels.add_noise``, in place), calls ``run(count)``
and reduces ``output`` (by ``kernels.denoising_error``). Buffers belong to the backend: NumPy on the CPU, torch tensors
in the torch backend, cuda-core's memory in the other CUDA backends. Nothing is allocated in the loop.

On a CUDA device a slot has a stream of its own, and a network says with ``sizes`` which numbers of rows it runs: the
engine pads a step to the next of them, captures what it launches for each size once into a CUDA graph
(``capture``), and replays that.
"""

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fastdc.support import InputError

Buffer: TypeAlias = Any
"""An array of the backend's library that speaks DLPack."""

PRECISIONS = ("float32", "float16", "bfloat16")
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
DEFAULT_BATCH = 128
DEVICE_BATCH = 512
MAX_BATCH = 65_536
MAX_THREADS = 1024

CAPTURING = threading.Lock()
"""Held while something is captured: one at a time in a process, for torch waits for the whole device before a capture,
and CUDA refuses that while a stream of the device is being captured by anybody."""

# What a step on a device may cost where nobody chose its size: operations (a few hundred milliseconds in float32 on a
# large GPU), and half of the memory. For each byte of a sample, the network of a text-to-image model such as Stable
# Diffusion's does ten million operations and has some thousand bytes between layers; networks of pixels are cheaper.
_STEP_FLOPS = 2e13
_FLOPS_A_BYTE = 1e7
_BETWEEN_LAYERS = 4096


@dataclass(frozen=True)
class NetworkOptions:
    """How a network is to be run; None and "auto" leave the choice to the backend.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto" or one of :data:`PRECISIONS`: the element type of the network's input and output.
        batch: Largest number of cells in a step; default 128 on the CPU, :func:`device_batch` on a CUDA device.
        threads: CPU threads, for the CPU.
        compile: Whether the torch backend compiles its module with torch.compile.
        graphs: Whether steps on a CUDA device are captured into CUDA graphs, by the backends that can.
        tf32: Whether a float32 network on a CUDA device may round the factors of its products to TF32's 10 bits.
        provider_options: Options of ONNX Runtime's execution provider on a CUDA device, as its documentation names
            them, besides those that fastdc sets; "provider" chooses the provider: "cuda" (the default) or "tensorrt".
    """

    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    threads: int | None = None
    compile: bool = False
    graphs: bool = True
    tf32: bool = False
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise InputError(f"precision must be auto or one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, value, most in (("batch", self.batch, MAX_BATCH), ("threads", self.threads, MAX_THREADS)):
            if value is not None and not (_is_whole(value) and 1 <= value <= most):
                raise InputError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        for name, flag in (("compile", self.compile), ("graphs", self.graphs), ("tf32", self.tf32)):
            if not isinstance(flag, bool):
                raise InputError(f"{name} must be True or False, got {flag!r}")
        given = self.provider_options
        if not isinstance(given, Mapping) or not all(isinstance(word, str) for pair in given.items() for word in pair):
            raise InputError(f"provider_options must be a mapping of strings to strings, got {given!r:.200}")


def one_line(error: BaseException) -> str:
    """What an exception of another library says, cut to fit a one-line message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_cause(error: BaseException) -> BaseException:
    """What was raised first, of errors that came of each other: a capture that fails, fails again when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def device_batch(flops: float | None, *, sample_bytes: int, slots: int, memory: int) -> int:
    """Rows of a step on a CUDA device where nobody chose: enough to fill it, and no more than it holds.

    The largest power of two up to 512, of which a step costs at most 20 TFLOP, and of which the steps in flight need at
    most half of the device's memory between layers, taken as 4096 bytes for each byte of a sample. A cost that is not
    known is taken as 10 MFLOP for each byte of a sample. Steps with fewer cells run in smaller sizes (:func:`halves`):
    a lone image does not pay for it.

    Args:
        flops: Floating-point operations of an evaluation; None: not known.
        sample_bytes: Of a network's input.
        slots: Steps in flight.
        memory: Bytes of the device.
    """
    affordable = _STEP_FLOPS / (flops or _FLOPS_A_BYTE * sample_bytes)
    most = min(DEVICE_BATCH, affordable, memory / (2 * slots * sample_bytes * _BETWEEN_LAYERS))
    return 1 << max(0, int(most).bit_length() - 1)


def halves(batch: int) -> tuple[int, ...]:
    """The batch and its halves, rounded up, down to 1, increasing: sizes of steps, none more than twice too large."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(reversed(sizes))


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


class AbstractSlot(Protocol):
    """Buffers for one step in flight.

    Attributes:
        sample: (batch, c, h, w) of the network's precision, u.
        timestep: float32 (batch,).
        class_labels: int64 (batch,).
        output: (batch, c, h, w) of the network's precision, F.
        cells: int32 (batch, 3), the cell table.
        errors: float32 (batch,).
        stream: CUDA stream handle of the step's work, 0 on the CPU.
    """

    sample: Buffer
    timestep: Buffer
    class_labels: Buffer
    output: Buffer
    cells: Buffer
    errors: Buffer
    stream: int

    def run(self, count: int) -> None:
        """Evaluates the first `count` rows: output = F(sample, timestep, class_labels). Releases the GIL.

        On a device it enqueues that on the slot's stream; `count` is one of the network's sizes.
        """

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer, after all that the network was told to write before.

        On a device it enqueues that on the slot's stream; the array may change once it has returned.
        """

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """The first `count` values of a buffer as a new host array, after all work of the slot's stream."""


class AbstractNetwork(Protocol):
    """A network ready to run.

    Attributes:
        backend: Name of the backend.
        device: Where it runs, such as "cpu" or "cuda:0".
        precision: Element type of sample and output.
        batch: Rows of a slot.
        slots: Steps that may be in flight at once, each driven by its own thread.
        stream: CUDA stream handle of place, write and read; 0 on the CPU.
        sizes: The numbers of rows that a slot runs, increasing up to batch; None: any.
    """

    backend: str
    device: str
    precision: str
    batch: int
    slots: tuple[AbstractSlot, ...]
    stream: int
    sizes: tuple[int, ...] | None

    @property
    def kept(self) -> dict[str, Any]:
        """The engine's, for what it keeps from run to run where there are sizes; empty when the network is made."""

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """The array where the network runs: itself on the CPU, a copy on a device."""

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer, before anything that a slot is told to write later."""

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """The first `count` values of a buffer as a new host array."""

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """What launches the same work again as one CUDA graph; None: this network has no such thing.

        Args:
            slot: Whose stream the work is enqueued on.
            launch: Enqueues it; called once or more, and no other step of the network is launched meanwhile. It was run
                before, by any thread.
        """


class AbstractEncoder(Protocol):
    """What makes latents of images, for a model whose network works on latents."""

    def encode(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Latents float32 (n, c, h, w) of images float32 (n, C, H, W) in the model's value range."""


class _HostCopies:
    """write and read of NumPy buffers."""

    stream = 0

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """See :class:`AbstractNetwork`."""
        buffer[: len(array)] = array

    def read(self, buffer: Buffer, count: int) -> npt.NDArray[np.float32]:
        """See :class:`AbstractNetwork`."""
        copy: npt.NDArray[np.float32] = buffer[:count].copy()
        return copy


class HostArrays(_HostCopies):
    """What networks whose buffers are NumPy arrays have in common; see :class:`AbstractNetwork`."""

    device = "cpu"
    sizes: tuple[int, ...] | None = None

    @cached_property
    def kept(self) -> dict[str, Any]:
        """See :class:`AbstractNetwork`."""
        return {}

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """See :class:`AbstractNetwork`."""
        return array

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """See :class:`AbstractNetwork`."""
        return None


class HostBuffers(_HostCopies):
    """NumPy buffers of a slot; see :class:`AbstractSlot`."""

    def __init__(self, batch: int, sample_shape: tuple[int, int, int], dtype: npt.DTypeLike = np.float32) -> None:
        self.sample: Buffer = np.zeros((batch, *sample_shape), dtype)
        self.timestep: Buffer = np.zeros(batch, np.float32)
        self.class_labels: Buffer = np.zeros(batch, np.int64)
        self.output: Buffer = np.zeros((batch, *sample_shape), dtype)
        self.cells: Buffer = np.zeros((batch, 3), np.int32)
        self.errors: Buffer = np.zeros(batch, np.float32)
