"""What a training sets in torch: the device, the number of threads, and the seed before everything random.

All randomness of a run is a function of (seed, purpose, step), because the generator is seeded before every step. So a
checkpoint holds no generator state, and the step after a resumption draws the same numbers as without an interruption.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.support import BackendError, InputError, one_line, shown
from fastdc.train.config import TrainConfig

# Purposes keep the random streams of one seed apart; 1 is the validation split of dataset.py.
WEIGHTS, ORDER, STEP, EVALUATION, BALANCED, WITHIN, SUBSET = 2, 3, 4, 5, 6, 7, 8


def seed_torch(seed: int, purpose: int, step: int) -> None:
    """Seeds torch's global generators for one purpose at one step."""
    state = np.random.SeedSequence([seed, purpose, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def torch_device(name: str) -> torch.device:
    """The device to train on.

    Raises:
        InputError: The name is not that of a CPU or a CUDA device.
        BackendError: There is no CUDA device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device must be a torch device such as cpu or cuda:0, got {shown(name)}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("device cuda was asked for, but this torch sees no CUDA device")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda, got {shown(name)}")
    return device


@contextmanager
def torch_state(threads: int | None, device: torch.device) -> Iterator[None]:
    """Sets the number of threads; restores it, and the states of torch's generators, afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def enough_memory(config: TrainConfig) -> Iterator[None]:
    """Says, if the memory of a device is too small, which option needs less.

    Raises:
        MemoryError: It is too small.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        batch, parts = config.batch or 1, config.accumulate
        way = "a smaller batch or width"
        if parts < batch:
            way = f"accumulate={min(2 * parts, batch)} (parts of the batch, one after the other), or {way}"
        raise MemoryError(f"give {way}; {one_line(error)}") from error


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; copied only if torch cannot share its memory."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
