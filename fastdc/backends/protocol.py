"""The protocol between the engine and the backend that runs the network.

A network owns one or more slots. A slot is a set of buffers for one step in flight, placed where the network runs. The
engine fills ``sample``, ``timestep`` and ``class_labels`` in place (``kernels.add_noise``), calls ``run(count)``, and
reduces ``output`` to errors (``kernels.denoising_error``). Buffers belong to the backend: NumPy arrays on the CPU,
torch tensors in the torch backend, cuda-core memory in the other CUDA backends. The loop allocates nothing.

On a CUDA device each slot has its own stream, and the network states in ``sizes`` which numbers of rows it runs. The
engine pads a step to the next of these sizes, captures the step once per size (``capture``), and replays it afterwards.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from fastdc.support import Float32

Buffer: TypeAlias = Any
"""An array of the backend's library that speaks DLPack."""


class AbstractSlot(Protocol):
    """Buffers for one step in flight.

    Attributes:
        sample: Network inputs u, (batch, c, h, w) in the network's precision.
        timestep: Network timesteps, float32 (batch,).
        class_labels: Class indices, int64 (batch,).
        output: Network outputs F, (batch, c, h, w) in the network's precision.
        cells: Cell table, int32 (batch, 3).
        errors: Denoising errors, float32 (batch,).
        stream: Handle of the CUDA stream that the step runs on; 0 on the CPU.
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

        On a device the call only enqueues the work on the slot's stream, and `count` is one of the network's sizes.
        """

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer, after everything that the network was told to write.

        On a device the call only enqueues the copy on the slot's stream; the array may change once it has returned.
        """

    def read(self, buffer: Buffer, count: int) -> Float32:
        """Waits for the slot's stream and returns the first `count` values of a buffer as a new host array."""


class AbstractNetwork(Protocol):
    """A network ready to run.

    Attributes:
        backend: Name of the backend.
        device: Device that the network runs on, such as "cpu" or "cuda:0".
        precision: Element type of sample and output.
        batch: Number of rows of a slot.
        slots: One slot per step that may be in flight; each is driven by its own thread.
        stream: Handle of the CUDA stream of place, write and read; 0 on the CPU.
        sizes: Numbers of rows that a slot runs, increasing up to batch; None if it runs any number.
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
        """Cache owned by the engine; used only with fixed step sizes. Empty in a new network."""

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """The array where the network runs: the array itself on the CPU, a copy on a device."""

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer, before anything that a slot is told to write later."""

    def read(self, buffer: Buffer, count: int) -> Float32:
        """The first `count` values of a buffer as a new host array."""

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """Captures the work of `launch` and returns a function that replays it; None if the network cannot capture.

        Args:
            slot: Slot on whose stream the work is enqueued.
            launch: Enqueues the work. It has run before, on any thread; it is called once or more, and no other step of
                the network is launched meanwhile.
        """

    def stop(self) -> None:
        """Asks the steps that run now to end early, from another thread. The network is not used any more.

        Where the library cannot do that, nothing happens.
        """


class AbstractEncoder(Protocol):
    """Makes latents of images, for a model whose network works on latents."""

    def encode(self, images: Float32) -> Float32:
        """Latents float32 (n, c, h, w) of images float32 (n, C, H, W) in the model's value range."""


@runtime_checkable
class AbstractDecoder(Protocol):
    """Makes images of latents; an encoder that can do that as well implements it.

    Attributes:
        decodes: Whether it can, for a bundle that may have no decoder.
    """

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""

    def decode(self, latents: Float32) -> Float32:
        """Images float32 (n, C, H, W) in the model's value range of latents float32 (n, c, h, w)."""
