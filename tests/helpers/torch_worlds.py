"""Small torch networks that several test files share: the Gaussian world's denoiser, and a tiny MLP.

Import it after ``pytest.importorskip("torch")``.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdc import DiffusionClassifier, Model
from fastdc.backends import NetworkOptions
from fastdc.backends.torch import TorchNetwork
from fastdc.bundle.architectures import build_network
from fastdc.bundle.model import Defaults
from fastdc.diffusion import AbstractSchedule, EDMSchedule
from fastdc.diffusion.parameterization import Parameterization
from fastdc.testing.gaussian_world import GaussianWorld
from helpers.worlds import SHAPE, gaussian

# EDM's schedule with timestep ln sigma, the default of tiny models.
TINY_SCHEDULE = EDMSchedule(sigma_min=0.05, sigma_max=5.0, timestep_scale=1.0)


class GaussianDenoiser(nn.Module):
    """The denoiser of a Gaussian world. The label after the last class is the null class; its mean is the classes'."""

    def __init__(self, world: GaussianWorld) -> None:
        super().__init__()
        means = np.concatenate([world.means, world.means.mean(axis=0, keepdims=True)])
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float32))
        self.scale, self.inside = world.schedule.timestep_scale, world.spread**2

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        variance = torch.exp(2 * timestep / self.scale)[:, None, None, None]
        return (self.inside * sample + variance * self.means[class_labels]) / (self.inside + variance)


class Counting(nn.Module):
    """A network that records the class labels of its calls in a list shared by copies of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = _Calls()

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        self.calls.labels.append(class_labels.tolist())
        out: Tensor = self.network(sample, timestep, class_labels)
        return out


class _Calls:
    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    @property
    def flat(self) -> list[int]:
        return [label for labels in self.labels for label in labels]

    def __deepcopy__(self, _: Any) -> "_Calls":
        return self


def on_torch(model: Model, network: nn.Module, *, batch: int = 128, precision: str = "float32") -> DiffusionClassifier:
    options = NetworkOptions(device="cpu", batch=batch, precision=precision)
    return DiffusionClassifier(model, TorchNetwork(network, model.image_shape, options))


def gaussian_on_torch(classes: int = 3, **options: Any) -> tuple[GaussianWorld, DiffusionClassifier]:
    """A Gaussian world and its classifier on the torch backend, with a null class."""
    world = gaussian(classes)
    return world, on_torch(replace(world.model, null_class=classes), GaussianDenoiser(world), **options)


def tiny_mlp(classes: int = 3, *, seed: int = 0) -> nn.Module:
    """An MLP denoiser whose weights are all random; a new network's last layer would be zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {"shape": list(SHAPE), "num_class_embeds": classes + 1, "width": 12, "blocks": 1, "code_width": 8}
        network = build_network("mlp", {**config, "dropout": 0.5})
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


def tiny_model(
    classes: int = 3,
    *,
    kind: str = "edm",
    schedule: AbstractSchedule = TINY_SCHEDULE,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Model:
    """The model of :func:`tiny_mlp`."""
    return Model(
        name="tiny",
        image_shape=SHAPE,
        class_names=tuple(f"class {k}" for k in range(classes)),
        schedule=schedule,
        parameterization=Parameterization(kind, 0.5 if kind == "edm" else None),
        value_range=value_range,
        null_class=classes,
        defaults=Defaults(draws=5, levels=(0.2, 2.0), weighting="edm", temperature=0.5),
    )
