"""The images of each step: in shuffled epochs or balanced, changed at random, some without their class.

A batch is a function of (seed, step): ``order`` says which images, and everything else is drawn from a generator that
is seeded for the step.
"""

import torch
from torch import Tensor

from fastdc.bundle import torch_samples
from fastdc.train.augment import augmentation
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.order import Balanced, Epochs, Order
from fastdc.train.run_model import transform_of
from fastdc.train.torch_state import STEP, on_device, seed_torch


class Batches:
    """The training images on a device, and the batch of every step.

    Args:
        config: The recipe; batch, seed, balance, augment, flip, transform, label_dropout are read.
        data: The data; the training images are used.
        device: Device of the images.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, device: torch.device) -> None:
        assert config.batch is not None
        self._config, self._batch, self._device = config, config.batch, device
        self._mirrored = None if data.mirrored is None else on_device(data.mirrored, device)
        self._images, self._labels = on_device(data.images, device), on_device(data.labels, device)
        self._transform = transform_of(config)
        self._null_class = len(data.class_names)
        # Mirrored latents are not latents of mirrored images, which are there in place of them.
        self._augment = augmentation(config.augment, flip=config.flip and self._mirrored is None)
        self._order: Order = (
            Balanced(data.labels, config.seed) if config.balance else Epochs(len(data.labels), config.seed)
        )

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step. Seeds torch's generator for the step, so that noise may be drawn next.

        Returns:
            Images in [-1, 1], their transform or latents, float32 (b, c, h, w), and their classes or the null class,
            int64 (b,).
        """
        config = self._config
        index = torch.from_numpy(self._order.batch(step, self._batch)).to(self._device)
        seed_torch(config.seed, STEP, step)
        x0 = torch_samples(self._transform, self._augment(to_model(self._images[index])))
        labels = self._labels[index]
        if self._mirrored is not None:
            mirrored = torch.rand(self._batch, device=self._device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], self._mirrored[index], x0)
        if config.label_dropout > 0:
            dropped = torch.rand(self._batch, device=self._device) < config.label_dropout
            labels = torch.where(dropped, self._null_class, labels)
        return x0, labels


def to_model(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; latents, which are float32, as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1.0
