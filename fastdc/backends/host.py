"""Buffers and networks in the CPU's memory: the twins of :mod:`fastdc.backends.cuda_network`."""

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.protocol import AbstractSlot, Buffer
from fastdc.backends.reopening import Reopened
from fastdc.support import Float32


def usable_cpus() -> int:
    """Number of CPUs that this process may run on, at least 1.

    Example:
        >>> from fastdc.backends import usable_cpus
        >>> usable_cpus() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _HostCopies:
    """write and read of NumPy buffers."""

    stream = 0

    def write(self, buffer: Buffer, array: npt.NDArray[Any]) -> None:
        """Copies an array into the first rows of a buffer."""
        buffer[: len(array)] = array

    def read(self, buffer: Buffer, count: int) -> Float32:
        """A copy of the first `count` values of a buffer."""
        copy: Float32 = buffer[:count].copy()
        return copy


class HostNetwork(_HostCopies, Reopened):
    """Base of networks whose buffers are NumPy arrays; implements ``AbstractNetwork`` except for the slots."""

    device = "cpu"
    sizes: tuple[int, ...] | None = None

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Cache owned by the engine."""
        return {}

    def place(self, array: npt.NDArray[Any]) -> Buffer:
        """The array itself."""
        return array

    def capture(self, slot: AbstractSlot, launch: Callable[[], None]) -> Callable[[], None] | None:
        """None: the CPU has nothing to capture."""
        return None

    def stop(self) -> None:
        """Nothing: a function cannot be asked to stop."""


class HostBuffers(_HostCopies):
    """NumPy buffers of a slot; implements ``AbstractSlot`` except for ``run``.

    Args:
        batch: Number of rows.
        sample_shape: Shape of a sample, (c, h, w).
        dtype: Element type of sample and output.
    """

    def __init__(self, batch: int, sample_shape: tuple[int, int, int], dtype: npt.DTypeLike = np.float32) -> None:
        self.sample: Buffer = np.zeros((batch, *sample_shape), dtype)
        self.timestep: Buffer = np.zeros(batch, np.float32)
        self.class_labels: Buffer = np.zeros(batch, np.int64)
        self.output: Buffer = np.zeros((batch, *sample_shape), dtype)
        self.cells: Buffer = np.zeros((batch, 3), np.int32)
        self.errors: Buffer = np.zeros(batch, np.float32)
