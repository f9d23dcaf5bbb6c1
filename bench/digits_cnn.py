"""A small convolutional network on the digits: a discriminative classifier to compare diffusion classifiers with.

Three 3x3 convolutions and a linear layer, trained with AdamW on the cross-entropy. Training takes seconds on one core;
the network classifies 99 % of the test digits correctly. With ``noise`` the training images get Gaussian noise, as for
the base classifier of randomized smoothing (Cohen et al., arXiv 1902.02918).
"""

import math
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdc.data import LabelledImages, load_labelled

ROOT = Path(__file__).parents[1]


def training_digits(folder: Path) -> LabelledImages:
    """The 1200 training digits of the shipped models, written by models/make_digits.py, which needs scikit-learn."""
    subprocess.run([sys.executable, ROOT / "models" / "make_digits.py", folder], check=True, capture_output=True)
    return load_labelled(folder / "digits-train.npz")


def train_cnn(
    data: LabelledImages, *, epochs: int = 20, batch: int = 64, noise: float = 0.0, seed: int = 0
) -> nn.Module:
    """A trained network, float images (n, c, h, w) in [0, 1] -> logits (n, K).

    torch's global random state stays as it was.

    Args:
        data: Training images and labels.
        epochs: Number of passes over the training images.
        batch: Number of images per step.
        noise: Standard deviation of the noise added to training images, in [0, 1]-pixel units.
        seed: Seed of the weights, the order and the noise.
    """
    images = torch.from_numpy(data.images).float() / 255
    labels = torch.from_numpy(data.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = math.prod((side + 1) // 2 for side in images.shape[2:])
        network = nn.Sequential(
            *(nn.Conv2d(images.shape[1], 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * size, len(data.class_names))),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        steps = epochs * -(-len(images) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for index in torch.split(order, batch):
                noisy = images[index] + noise * torch.randn(images[index].shape)
                loss = nn.functional.cross_entropy(network(noisy), labels[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return network.eval().requires_grad_(False)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is that of their label."""
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())
