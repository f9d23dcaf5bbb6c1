"""A network given as a Python function on NumPy arrays: for other frameworks, and for worlds with known answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.host import HostBuffers, HostNetwork
from fastdc.backends.options import NetworkOptions
from fastdc.backends.protocol import AbstractSlot
from fastdc.backends.step_sizes import DEFAULT_BATCH
from fastdc.support import BackendError, Float32, Int64

NetworkFunction = Callable[[Float32, Float32, Int64], npt.NDArray[Any]]
"""(sample float32 (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) -> raw output F, any float type."""


class _FunctionSlot(HostBuffers):
    def __init__(self, function: NetworkFunction, batch: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__(batch, image_shape)
        self._function = function

    def run(self, count: int) -> None:
        result = np.asarray(self._function(self.sample[:count], self.timestep[:count], self.class_labels[:count]))
        if result.shape != self.sample[:count].shape:
            raise BackendError(
                f"the network function returned shape {result.shape}, expected {self.sample[:count].shape}"
            )
        self.output[:count] = result


class FunctionNetwork(HostNetwork):
    """Runs a Python function as the network, one step at a time.

    Args:
        function: Maps (sample float32 (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) to the network's
            raw output F, an array of any float type with the shape of sample.
        image_shape: (channels, height, width).
        options: Only the batch applies.

    Raises:
        BackendError: When it runs: the function returns another shape.

    Example:
        >>> from fastdc.backends import FunctionNetwork
        >>> FunctionNetwork(lambda sample, timestep, labels: 0 * sample, (1, 8, 8)).batch
        128
    """

    backend = "function"
    precision = "float32"

    def __init__(
        self, function: NetworkFunction, image_shape: tuple[int, int, int], options: NetworkOptions | None = None
    ) -> None:
        self.batch = (options or NetworkOptions()).batch or DEFAULT_BATCH
        self.slots: tuple[AbstractSlot, ...] = (_FunctionSlot(function, self.batch, image_shape),)
