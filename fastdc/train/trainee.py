"""The network of a run as it is trained: new, or made of a base; with the loss that such a network is trained with."""

import dataclasses
from typing import Any

from torch import nn

from fastdc.bundle import Model, build_network
from fastdc.support import InputError, one_line
from fastdc.train.base import Base
from fastdc.train.config import RANK, TrainConfig
from fastdc.train.loss import Objective
from fastdc.train.presets import RUN_DEFAULTS
from fastdc.train.run import RunInfo
from fastdc.train.run_model import run_model
from fastdc.train.torch_state import WEIGHTS, seed_torch

_CLASS_RATE = 0.1
"""Learning rate of the embedding of new classes, in units of the spread of the old one.

New classes begin alike, and must move as far apart as the old ones are: at the rate of the other weights they would
stay together for thousands of steps. Measured on the shipped digits, see docs/training.md.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Trainee:
    """A network to train.

    Attributes:
        network: F(sample, timestep, class_labels). Parameters that are trained require gradients.
        model: How it classifies samples: images, or latents in place of images.
        objective: Its loss.
        rates: Peak learning rates of the parameters that have one of their own, by name.
    """

    network: nn.Module
    model: Model
    objective: Objective
    rates: dict[str, float]


def make_trainee(config: TrainConfig, info: RunInfo, base: Base | None, sample: tuple[int, int, int]) -> Trainee:
    """The network of a run, before its first step. New weights are a function of the recipe's seed.

    Args:
        config: The recipe.
        info: Description of the run.
        base: What the run begins with; its network is changed.
        sample: Shape (c, h, w) of the images or latents that the network works on.

    Raises:
        InputError: The base does not take these classes.
    """
    seed_torch(config.seed, WEIGHTS, 0)
    if base is None or base.source is None:
        network = _built(info.network)
        return _trainee(config, network, dataclasses.replace(run_model(info), image_shape=sample), {})
    from fastdc.sources import WithTables, add_lora

    source, scales = base.for_classes(info.class_names, config)
    network = source.denoiser
    if base.kind == "prompts":
        add_lora(source, config.rank or RANK)
        network = WithTables(network, source.tables)
    else:
        network.requires_grad_(True)
        for name, parameter in network.named_parameters():
            if "map_augment" in name:  # of EDM's own augmentation, which is not part of F
                parameter.requires_grad_(False)
    model = source.model
    if base.kind == "own":
        model = run_model(info)
    else:
        model = dataclasses.replace(model, defaults=dataclasses.replace(model.defaults, draws=RUN_DEFAULTS["draws"]))
    rates = {name: _CLASS_RATE * scale for name, scale in scales.items()}
    return _trainee(config, network, dataclasses.replace(model, image_shape=sample, latent_shape=None), rates)


def _trainee(config: TrainConfig, network: nn.Module, model: Model, rates: dict[str, float]) -> Trainee:
    objective = Objective(model.schedule, model.parameterization, config.p_mean, config.p_std, config.loss_weighting)
    return Trainee(network, model, objective, rates)


def network_of(base: Base, classes: int) -> dict[str, Any]:
    """What a run notes of a network that comes from a base, for its number of classes."""
    if base.network is None:
        return {"kind": base.kind, "config": {}}
    return {**base.network, "config": {**base.network["config"], "num_class_embeds": classes + 1}}


def _built(description: dict[str, Any]) -> nn.Module:
    """The network that a run's config.json describes.

    Raises:
        InputError: It describes none.
    """
    try:
        return build_network(description["kind"], description["config"])
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"the run's config.json describes no network: {one_line(error)}") from error
