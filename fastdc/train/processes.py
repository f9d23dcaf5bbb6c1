"""The processes that train one model together: their number, and what they have to agree on.

``fastdc train --processes``, torchrun and accelerate launch start the processes, and tell each in its environment how
many there are (WORLD_SIZE) and which it is (RANK, LOCAL_RANK). Each reads the data and draws the whole batch of a step,
but evaluates only its rows; the gradients are averaged, so that all have the same weights. The first one, RANK 0,
writes the run folder, measures and speaks.

This module is imported without torch; ``together`` has the processes if there are several, and ``joining`` chooses.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from fastdc.support import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_TOLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK")


class Processes:
    """One process alone; the base of several.

    Attributes:
        count: Number of processes.
        index: Which of them this is, from 0.
        device: Device of this process; None: as the recipe says.
    """

    count: int = 1
    index: int = 0
    device: "torch.device | None" = None

    @property
    def main(self) -> bool:
        """Whether this process writes, measures and speaks."""
        return self.index == 0

    def wrapped(self, network: "nn.Module") -> "nn.Module":
        """The network as it is called in training, such that gradients are averaged over the processes."""
        return network

    def gathering(self, network: "nn.Module", *, last: bool) -> AbstractContextManager[None]:
        """The context of a part's passes forward and back; gradients are averaged in the last part of a step.

        Args:
            network: A wrapped network.
            last: Whether it is the last part.
        """
        return nullcontext()

    def mean(self, value: "Tensor") -> "Tensor":
        """The mean of a tensor over the processes, in each of them."""
        return value

    def largest(self, number: int) -> int:
        """The largest of the numbers of the processes, in each of them; they wait for each other."""
        return number

    def of_main(self, number: int) -> int:
        """The number, at least 0, that the main process has, in each of them; they wait for each other."""
        return self.largest(number if self.main else 0)


def told() -> tuple[int, int]:
    """Number of processes that train together, and which of them this is, as the environment says.

    Returns:
        The values of WORLD_SIZE and RANK; (1, 0) unless WORLD_SIZE, RANK and LOCAL_RANK are set.

    Raises:
        InputError: They are no whole numbers.

    Example:
        >>> from fastdc.train import told
        >>> told()
        (1, 0)
    """
    words = [os.environ.get(name) for name in _TOLD]
    if None in words:
        return 1, 0
    try:
        count, index, _ = map(int, filter(None, words))
    except ValueError:
        said = ", ".join(f"{name}={word}" for name, word in zip(_TOLD, words, strict=True))
        raise InputError(f"the environment must have whole numbers for several processes, got {said}") from None
    return count, index
