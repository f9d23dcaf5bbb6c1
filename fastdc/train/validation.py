"""What the averaged weights are worth on the validation images, at the same noise every time."""

from collections.abc import Callable

import torch
from torch import nn

from fastdc.train.batches import to_model
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.loss import Objective
from fastdc.train.torch_state import EVALUATION, on_device, seed_torch

_REPEATS = 4  # noise draws per validation image, which steady the validation loss
_BATCH = 256


class Validation:
    """The validation images on a device; false if there are none.

    Args:
        config: The recipe; seed is read.
        data: The data; the validation images are used.
        objective: The loss to measure.
        device: Device of the images.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, objective: Objective, device: torch.device) -> None:
        self._seed, self._objective = config.seed, objective
        self._images, self._labels = on_device(data.val_images, device), on_device(data.val_labels, device)

    def __bool__(self) -> bool:
        return len(self._images) > 0

    @torch.no_grad()
    def loss(self, network: nn.Module, stopped: Callable[[], bool]) -> float | None:
        """Mean loss of a network in evaluation mode; None if stopped.

        Args:
            network: The network.
            stopped: Asked before every batch.
        """
        seed_torch(self._seed, EVALUATION, 0)
        total, count = 0.0, 0
        for _ in range(_REPEATS):
            for start in range(0, len(self._images), _BATCH):
                if stopped():
                    return None
                x0 = to_model(self._images[start : start + _BATCH])
                labels = self._labels[start : start + _BATCH]
                total += float(self._objective.losses(network, x0, labels).sum())
                count += len(x0)
        return total / count
