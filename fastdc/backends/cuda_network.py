"""Buffers and networks on a CUDA device, for the backends other than torch: the twins of :mod:`fastdc.backends.host`.

Each slot has arrays and a stream of its own. The network has arrays and a stream for everything that all slots read,
and the work of a slot comes after the writes of the network.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.cuda_arrays import DeviceArrays
from fastdc.backends.protocol import AbstractSlot, Buffer
from fastdc.backends.reopening import Reopened
from fastdc.support import Float32


class DeviceBuffers:
    """Buffers of a slot on a device, with a stream of their own; implements ``AbstractSlot`` except for ``run``.

    Args:
        arrays: Arrays and stream of this slot alone.
        home: Arrays and stream of the network, whose writes come before the slot's work.
        batch: Number of rows.
        sample_shape: Shape of a sample, (c, h, w).
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
        """Enqueues a copy of a host array into the first rows of a buffer, after the network's writes."""
        self.arrays.after(self.home)
        self.arrays.write(buffer, array)

    def read(self, buffer: Buffer, count: int) -> Float32:
        """Waits for the slot's stream and returns the first `count` values of a buffer."""
        return self.arrays.read(buffer, count)


class DeviceNetwork(Reopened):
    """Base of networks on a device; implements ``AbstractNetwork`` except for the slots.

    Args:
        home: Arrays and stream of everything that all slots read.
        graphs: Whether steps are captured.
    """

    def __init__(self, home: DeviceArrays, *, graphs: bool = True) -> None:
        self.home = home
        self.device = f"cuda:{home.index}"
        self.stream = home.stream
        self.graphs = graphs
        self.kept: dict[str, Any] = {}

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """A copy of the array on the device."""
        return self.home.place(array)

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Enqueues a copy of a host array into the first rows of a buffer, before all later work of the slots."""
        self.home.write(buffer, array)
        self.home.mark()

    def read(self, buffer: Buffer, count: int) -> Float32:
        """Waits for the network's stream and returns the first `count` values of a buffer."""
        return self.home.read(buffer, count)

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """A function that replays the captured work of `launch`; None if steps are not captured."""
        if not self.graphs or not isinstance(slot, DeviceBuffers):
            return None
        return slot.arrays.capture(launch)

    def stop(self) -> None:
        """Nothing: the library cannot be asked to stop."""
