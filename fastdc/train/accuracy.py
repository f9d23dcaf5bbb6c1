"""The accuracy of the averaged weights while they are trained: a quick race over some validation images.

The images are half of the validation images, every second in the order of classes, at most 200, the same at every
checkpoint. They choose the best checkpoint, and so the other half is left to calibrate with: no calibration sees what a
choice has seen.

A measurement may cost about a tenth of the training between two checkpoints. A step of b images takes about 3 b
evaluations of the network (backward passes cost two), a measurement of n images and K classes at most n K draws. If
that is too much, it takes fewer images, and then only every second, third, ... checkpoint is measured. All of this
follows from the recipe and the data, not from a clock, so that a resumed run measures what an uninterrupted one does. A
run that is resumed with another distance between checkpoints keeps its images, and measures at other checkpoints.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastdc.backends import NetworkOptions
from fastdc.backends.torch import TorchNetwork
from fastdc.bundle import Model
from fastdc.classifier import DiffusionClassifier
from fastdc.support import Int64
from fastdc.train.config import TrainConfig
from fastdc.train.dataset import TrainingData
from fastdc.train.presets import RUN_DEFAULTS
from fastdc.train.torch_state import SUBSET

_MOST_IMAGES, _FEWEST_IMAGES = 200, 50
_DRAWS = int(RUN_DEFAULTS["draws"])
_SHARE = 0.1  # of the cost of the training


@dataclass(frozen=True)
class Accuracy:
    """A number of images, and how many of them were classified rightly."""

    correct: int
    images: int

    @property
    def share(self) -> float:
        """The share of right answers, in [0, 1]."""
        return self.correct / self.images

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % ({self.correct}/{self.images})"


class _StoppedError(Exception):
    """Ends a measurement."""


class QuickScore:
    """Measures a network on some of the images that may choose.

    Args:
        config: The recipe.
        model: How the network classifies images, or latents in place of images.
        data: The data; the validation images are used.
        network: A network like those to measure; it is copied.
    """

    def __init__(self, config: TrainConfig, model: Model, data: TrainingData, network: nn.Module) -> None:
        assert config.batch is not None
        self._half, self._model, self._seed = (data.val_images[::2], data.val_labels[::2]), model, config.seed
        self._budget = _SHARE * 3 * config.batch * config.checkpoint_every
        # A copy, because a backend may lay out its weights anew.
        self._module = copy.deepcopy(network)
        options = NetworkOptions(device=config.device, graphs=False, batch=config.batch if config.base else None)
        self._network = TorchNetwork(self._module, model.sample_shape, options)
        self.keep(None)

    def keep(self, scored: int | None) -> None:
        """Measures on as many images as before, and hence on the same ones, so that accuracies compare.

        Args:
            scored: Their number; None: as many as the recipe affords.
        """
        images, labels = self._half
        count, self._period = measurement_plan(len(images), self._model.num_classes, self._budget, scored)
        chosen = stratified(labels, count, self._seed)
        model, self._images = _in_unit_range(self._model, images[chosen])
        self._labels = labels[chosen]
        self._classifier = DiffusionClassifier(model, self._network)

    def due(self, step: int, every: int, *, last: bool) -> bool:
        """Whether the checkpoint of a step is measured, if there is one every so many steps."""
        return last or step // every % self._period == 0

    def __call__(self, network: nn.Module, stopped: Callable[[], bool]) -> Accuracy | None:
        """The accuracy of a network; None if stopped.

        Args:
            network: The network.
            stopped: Asked before every batch.
        """

        def check(_: Any) -> None:
            if stopped():
                raise _StoppedError

        self._module.load_state_dict(network.state_dict())
        if next(self._module.parameters()).is_cuda:
            torch.cuda.synchronize()  # the backend has streams of its own
        try:
            found = self._classifier.classify(self._images, layout="NCHW", rule="paired", progress=check)
        except _StoppedError:
            return None
        return Accuracy(int((found.labels == self._labels).sum()), len(self._labels))


def _in_unit_range(model: Model, samples: NDArray[Any]) -> tuple[Model, NDArray[Any]]:
    """Latents as pixels in [0, 1] of a model whose value range holds them; uint8 images as they are."""
    if samples.dtype == np.uint8:
        return model, samples
    low, high = float(samples.min()), float(samples.max()) + 1e-6
    return dataclasses.replace(model, value_range=(low, high)), ((samples - low) / (high - low)).astype(np.float32)


def measurement_plan(images: int, classes: int, budget: float, scored: int | None = None) -> tuple[int, int]:
    """How many images to measure, and at which of the checkpoints: at every first, second, ...

    Args:
        images: Number of images that there are.
        classes: Number of classes.
        budget: Evaluations of the network that a measurement at every checkpoint may take.
        scored: Number of images that the run has measured so far; None: none.
    """
    each = classes * _DRAWS
    most = min(images, _MOST_IMAGES)
    count = min(most, max(_FEWEST_IMAGES, int(budget // each)) if scored is None else scored)
    return count, max(1, math.ceil(count * each / budget))


def stratified(labels: Int64, count: int, seed: int) -> Int64:
    """Indices of about the same share of every class, increasing, int64 (count,); chosen at random by the seed.

    Args:
        labels: Classes of the images, int64 (n,).
        count: Number of images to choose, at most n.
        seed: Seed of the choice.
    """
    order = np.random.default_rng([seed, SUBSET]).permutation(len(labels))
    place = np.empty(len(labels))
    for k in np.unique(labels):
        members = order[labels[order] == k]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")][:count])
