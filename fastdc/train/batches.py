"""The images of each step: drawn in shuffled epochs, mirrored, some without their class.

A batch is a function of (seed, step): the order of the images is drawn for every epoch, everything else from a
generator that is seeded for the step.
"""

import numpy as np
import torch
from torch import Tensor

from fastdc.support import Int64
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.torch_state import ORDER, STEP, on_device, seed_torch


class Batches:
    """The training images on a device, and the batch of every step.

    Args:
        config: The recipe; batch, seed, flip and label_dropout are read.
        data: The data; the training images are used.
        device: Device of the images.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, device: torch.device) -> None:
        assert config.batch is not None
        self._config, self._batch, self._device = config, config.batch, device
        self._images, self._labels = on_device(data.images, device), on_device(data.labels, device)
        self._null_class = len(data.class_names)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step. Seeds torch's generator for the step, so that noise may be drawn next.

        Returns:
            Images in [-1, 1], float32 (b, c, h, w), and their classes or the null class, int64 (b,).
        """
        config = self._config
        index = torch.from_numpy(self._indices(step)).to(self._device)
        seed_torch(config.seed, STEP, step)
        x0 = to_model(self._images[index])
        labels = self._labels[index]
        if config.flip:
            mirrored = torch.rand(self._batch, device=self._device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)
        if config.label_dropout > 0:
            dropped = torch.rand(self._batch, device=self._device) < config.label_dropout
            labels = torch.where(dropped, self._null_class, labels)
        return x0, labels

    def _indices(self, step: int) -> Int64:
        """Indices of the images of a step; epochs are shuffled one by one and laid end to end."""
        count = len(self._images)
        positions = np.arange(step * self._batch, (step + 1) * self._batch)
        index = np.empty(self._batch, dtype=np.int64)
        for epoch in range(positions[0] // count, positions[-1] // count + 1):
            if epoch != self._epoch:
                order = np.random.default_rng([self._config.seed, ORDER, epoch]).permutation(count)
                self._epoch, self._order = epoch, order
            here = positions // count == epoch
            index[here] = self._order[positions[here] % count]
        return index


def to_model(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0
