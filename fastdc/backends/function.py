"""A network given as a Python function on NumPy arrays: for other frameworks, and for worlds with known answers.

The function gets (sample float32 (b, c, h, w), timestep float32 (b,), class_labels int64 (b,)) and returns the raw
output F, any float array of the shape of sample.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdc.backends.protocol import DEFAULT_BATCH, AbstractSlot, HostArrays, HostBuffers, NetworkOptions
from fastdc.support import BackendError

NetworkFunction = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[Any]]


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


class FunctionNetwork(HostArrays):
    """Runs a Python function as the network, one step at a time.

    Args:
        function: See the module's docstring.
        image_shape: (channels, height, width).
        options: Batch; other options do not apply.
    """

    backend = "function"
    precision = "float32"

    def __init__(
        self, function: NetworkFunction, image_shape: tuple[int, int, int], options: NetworkOptions | None = None
    ) -> None:
        self.batch = (options or NetworkOptions()).batch or DEFAULT_BATCH
        self.slots: tuple[AbstractSlot, ...] = (_FunctionSlot(function, self.batch, image_shape),)
