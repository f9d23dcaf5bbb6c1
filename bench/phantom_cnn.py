"""A small convolutional network on phantoms: an independent classifier, with nothing in common with a diffusion model.

Four 3x3 convolutions, the maximum over all places, and a linear layer, trained with AdamW on the cross-entropy. Trained
on 4000 phantoms for 15 epochs, half a minute on one core, it has an AUROC of about 0.985 on test images.
"""

import numpy as np
import torch
from torch import Tensor, nn

from fastdc.data import Phantoms
from fastdc.support import Float32, Float64


def train_phantom_cnn(data: Phantoms, *, epochs: int = 15, batch: int = 64, seed: int = 0) -> nn.Module:
    """A trained network, float images (n, 1, 32, 32) in [0, 1] -> logits (n, 2); torch's random state stays."""
    images, labels = torch.from_numpy(data.images).float() / 255, torch.from_numpy(data.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for channels, width, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        network = nn.Sequential(
            *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, len(data.class_names))
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(images) // batch))
        for _ in range(epochs):
            for index in torch.split(torch.randperm(len(images)), batch):
                loss = nn.functional.cross_entropy(network(2 * images[index] - 1), labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return Scaled(network).eval().requires_grad_(False)


class Scaled(nn.Module):
    """A network for images in [-1, 1], of images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(2 * images - 1)
        return logits


def lesion_probability(network: nn.Module, images: Float32) -> Float64:
    """The probability of the second class, float64 (n,), for images in [0, 1]."""
    with torch.no_grad():
        logits = network(torch.from_numpy(np.ascontiguousarray(images)))
    return np.asarray(torch.softmax(logits.double(), 1)[:, 1].numpy())
