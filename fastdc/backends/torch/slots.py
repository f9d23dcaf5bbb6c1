"""Buffers of a step as torch tensors, on the CPU and on a CUDA device.

On a device each slot has its own stream, and its table and errors travel through pinned memory. Memory is allocated on
the stream that writes it first: torch's allocator may hand out memory that was in use before, and the stream orders the
new contents after the old ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fastdc.backends.protocol import Buffer
from fastdc.support import BackendError, Float32

if TYPE_CHECKING:
    import torch


class TorchSlot:
    """Torch buffers of a step; implements ``AbstractSlot``.

    Args:
        call: The module, or its compiled form.
        batch: Number of rows.
        image_shape: Shape of a sample, (c, h, w).
        dtype: Element type of sample and output.
        device: Device that holds the buffers.
        channels_last: Whether the module takes its sample with the channels as the fastest axis.
        alone: Context in which the module is called, such as a lock; None for none.
    """

    stream = 0

    def __init__(
        self,
        call: Callable[..., "torch.Tensor"],
        batch: int,
        image_shape: tuple[int, int, int],
        *,
        dtype: "torch.dtype",
        device: str,
        channels_last: bool = False,
        alone: AbstractContextManager[Any] | None = None,
    ) -> None:
        import torch

        self._call = call
        self._channels_last = channels_last
        self._alone = alone or nullcontext()
        self.sample: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.timestep: Buffer = torch.zeros(batch, device=device)
        self.class_labels: Buffer = torch.zeros(batch, dtype=torch.int64, device=device)
        self.output: Buffer = torch.zeros((batch, *image_shape), dtype=dtype, device=device)
        self.cells: Buffer = torch.zeros((batch, 3), dtype=torch.int32, device=device)
        self.errors: Buffer = torch.zeros(batch, device=device)

    def run(self, count: int) -> None:
        """Evaluates the first `count` rows.

        Raises:
            BackendError: The module returns another shape than that of its sample.
        """
        import torch

        with torch.inference_mode():
            sample = self.sample[:count]
            if self._channels_last:
                sample = sample.contiguous(memory_format=torch.channels_last)
            with self._alone:
                result = self._call(sample, self.timestep[:count], self.class_labels[:count])
            if result.shape != sample.shape:
                raise BackendError(f"the module returned shape {tuple(result.shape)}, expected {tuple(sample.shape)}")
            self.output[:count].copy_(result)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies a host array into the first rows of a buffer."""
        import torch

        buffer[: len(array)].copy_(torch.from_numpy(array))

    def read(self, buffer: Buffer, count: int) -> Float32:
        """A copy of the first `count` values of a buffer."""
        copy: Float32 = buffer[:count].to("cpu", copy=True).numpy()
        return copy


class CudaSlot(TorchSlot):
    """A slot on a device, with its own stream and with pinned memory for the table and the errors.

    Args:
        *args: As in :class:`TorchSlot`.
        written: Event that the network records after its latest write.
        tf32: Whether products of float32 may round their factors; None if the network has no such products.
        device: Device that holds the buffers.
        **more: As in :class:`TorchSlot`.

    Attributes:
        queue: The slot's stream.
        pool: Handle of the memory pool that the slot's captured steps share.
    """

    def __init__(self, *args: Any, written: "torch.cuda.Event", tf32: bool | None, device: str, **more: Any) -> None:
        import torch

        self.queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.queue):
            super().__init__(*args, device=device, **more)
        self._tf32 = tf32
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = int(self.queue.cuda_stream)
        self._written = written
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staged: dict[int, torch.Tensor] = {}
        self._result = torch.zeros(len(self.errors), pin_memory=True)

    def run(self, count: int) -> None:
        """Enqueues the evaluation of the first `count` rows on the slot's stream."""
        import torch

        if self._tf32 is not None:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._tf32
        with torch.cuda.stream(self.queue):
            super().run(count)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Enqueues a copy of a host array into the first rows of a buffer, after the network's writes.

        The staging area is free: the device has read it by the time the errors of the previous step were returned.
        """
        import torch

        staged = self._staged.get(buffer.data_ptr())
        if staged is None:
            staged = self._staged[buffer.data_ptr()] = torch.zeros(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        staged.numpy()[: len(array)] = array
        with torch.cuda.stream(self.queue):
            self.queue.wait_event(self._written)
            buffer[: len(array)].copy_(staged[: len(array)], non_blocking=True)

    def read(self, buffer: Buffer, count: int) -> Float32:
        """Waits for the slot's stream and returns the first `count` errors; `buffer` is the slot's errors."""
        import torch

        with torch.cuda.stream(self.queue):
            self._result[:count].copy_(buffer[:count], non_blocking=True)
            self._done.record(self.queue)
        self._done.synchronize()  # without the GIL
        copy: Float32 = self._result[:count].numpy().copy()
        return copy
