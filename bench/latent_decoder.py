"""A small decoder of latents, trained to invert a bundle's encoder, for models whose own decoder is not at hand.

It minimises E |decoder(z) - x|^2 over latents z = encoder(x) of training images. It is not part of the diffusion model,
and it blurs details that the latents do not hold.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastdc import DiffusionClassifier
from fastdc.inference import to_model_range

Floats = npt.NDArray[np.float32]


def train_decoder(
    clf: DiffusionClassifier, images: npt.NDArray[np.uint8], *, steps: int = 800, batch: int = 32, seed: int = 0
) -> Callable[[Floats], Floats]:
    """A function from latents (n, c, h, w) to images (n, C, H, W) in the model's value range.

    Args:
        clf: The classifier, with its encoder.
        images: uint8 (n, C, H, W), training images.
        steps: Number of steps of AdamW.
        batch: Images per step.
        seed: Seed of the weights and the order.
    """
    assert clf.encoder is not None
    x = to_model_range(images, clf.model)
    z = np.concatenate([clf.encoder.encode(x[start : start + 256]) for start in range(0, len(x), 256)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _decoder(z.shape[1], x.shape[1], x.shape[2] // z.shape[2])
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        latents, targets = torch.from_numpy(z), torch.from_numpy(x)
        for _ in range(steps):
            pick = torch.randint(len(x), (batch,))
            loss = (network(latents[pick]) - targets[pick]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)

    def decode(given: Floats) -> Floats:
        made: Floats = torch.cat([network(part) for part in torch.split(torch.from_numpy(given), 64)]).numpy()
        return made

    return decode


def _decoder(channels: int, out: int, factor: int) -> nn.Module:
    """Convolutions; each time the sides double, four channels become one (Shi et al., arXiv 1609.05158)."""
    width = 96
    parts: list[Any] = [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
    parts += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
    while factor > 1:
        factor //= 2
        last = factor == 1
        parts.append(nn.Conv2d(width, 4 * (out if last else width // 2), 3, padding=1))
        parts += [nn.PixelShuffle(2), *([] if last else [nn.SiLU()])]
        width //= 2
    return nn.Sequential(*parts)
