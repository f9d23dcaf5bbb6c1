"""What the averaged weights are worth on the validation images, at the same noise every time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastdc.bundle import torch_samples
from fastdc.train.accuracy import QuickScore
from fastdc.train.batches import to_model
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.run_model import transform_of
from fastdc.train.torch_state import EVALUATION, on_device, seed_torch
from fastdc.train.trainee import Trainee

_REPEATS = 4  # noise draws per validation image, which steady the validation loss
_BATCH = 256


class Validation:
    """The validation images on a device; false if there are none.

    Args:
        config: The recipe.
        trainee: What is trained, with the loss to measure.
        data: The data; the validation images are used.
        network: A network like those to measure; it is copied.
        device: Device of the images.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee,
        data: TrainingData,
        network: nn.Module,
        device: torch.device,
    ) -> None:
        assert config.batch is not None
        self._config, self._objective, self._transform = config, trainee.objective, transform_of(config)
        # As many as fit for training; an even number, see below.
        self._batch = _BATCH if config.base is None else max(2, min(_BATCH, config.batch) // 2 * 2)
        self._images, self._labels = on_device(data.val_images, device), on_device(data.val_labels, device)
        self._score = QuickScore(config, trainee.model, data, network) if self else None

    def __bool__(self) -> bool:
        return len(self._images) > 0

    def keep(self, scored: int) -> None:
        """Measures accuracies on as many images as before, see :meth:`QuickScore.keep`."""
        if self._score is not None:
            self._score.keep(scored)

    def results(
        self, network: nn.Module, step: int, stopped: Callable[[], bool], *, last: bool
    ) -> dict[str, Any] | None:
        """What a network in evaluation mode is worth after a step, as a line of the log; None if stopped.

        Args:
            network: The network.
            step: Number of steps done.
            stopped: Asked before every batch.
            last: Whether it is the last step.
        """
        losses = self._losses(network, stopped)
        if losses is None:
            return None
        record: dict[str, Any] = {"step": step, "val_loss": losses[0]}
        if self._score is not None and self._score.due(step, self._config.checkpoint_every, last=last):
            accuracy = self._score(network, stopped)
            if accuracy is None:
                return None
            record |= {"choosing_loss": losses[1], "val_accuracy": accuracy.share, "val_scored": accuracy.images}
        return record

    @torch.no_grad()
    def _losses(self, network: nn.Module, stopped: Callable[[], bool]) -> tuple[float, float] | None:
        """Mean loss on all images, and on those that choose, at the same noise every time; None if stopped."""
        seed_torch(self._config.seed, EVALUATION, 0)
        total, count, choosing, choosers = 0.0, 0, 0.0, 0
        for _ in range(_REPEATS):
            for start in range(0, len(self._images), self._batch):
                if stopped():
                    return None
                x0 = torch_samples(self._transform, to_model(self._images[start : start + self._batch]))
                labels = self._labels[start : start + self._batch]
                losses = self._objective.losses(network, x0, labels)
                total += float(losses.sum())
                count += len(x0)
                choosing += float(losses[::2].sum())  # batches begin with an image that chooses, for their size is even
                choosers += len(losses[::2])
        return total / count, choosing / choosers
