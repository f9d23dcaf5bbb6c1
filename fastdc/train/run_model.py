"""The model of a run: how its network classifies, as its export will by default."""

import math
from typing import Any

from fastdc.bundle import Defaults, HaarTransform, Model
from fastdc.diffusion import AbstractSchedule, CosineSchedule, EDMSchedule, Parameterization
from fastdc.train.config import TrainConfig
from fastdc.train.presets import HAAR_FACTOR, RUN_DEFAULTS, preset_for
from fastdc.train.run import RunInfo

_SIDE = 64  # at which Hoogeboom et al. shift nothing


def run_model(info: RunInfo) -> Model:
    """The network of a run as a model that classifies, as its export will by default.

    Args:
        info: Description of the run.

    Example:
        >>> from fastdc import train
        >>> np.savez(folder / "data.npz", images=images, labels=labels % 2)
        >>> recipe = train.TrainConfig(data=f"{folder}/data.npz", out=f"{folder}/run", model="mlp", width=8, steps=2)
        >>> train.run_model(train.RunFolder(train.train(recipe, progress=False).path).info()).num_classes
        2
    """
    config = info.config
    edm = config.prediction == "edm"
    return Model(
        name="run",
        image_shape=info.shape,
        class_names=info.class_names,
        schedule=run_schedule(config, info.shape),
        parameterization=Parameterization("edm", info.sigma_data) if edm else Parameterization("v_prediction"),
        null_class=len(info.class_names),
        fit=config.fit or "crop",
        transform=transform_of(config),
        defaults=Defaults(**run_defaults(config), levels=info.levels),
    )


def run_schedule(config: TrainConfig, shape: tuple[int, int, int]) -> AbstractSchedule:
    """The noise levels of a recipe for images of a shape (c, h, w)."""
    if config.prediction == "edm":
        return EDMSchedule(timestep_scale=config.timestep_scale)
    smaller = 0.0 if config.shift == "none" else math.log(_SIDE / min(shape[1:]))
    ends = smaller if config.shift == "medical" else 0.0
    return CosineSchedule(-15 + ends, 15 + ends, 2 * smaller, timestep_scale=config.timestep_scale)


def run_levels(config: TrainConfig, shape: tuple[int, int, int]) -> tuple[float, float]:
    """The band of levels at which a new network classifies: that of its preset, or the whole of a cosine schedule."""
    if config.prediction != "edm":
        low, high = run_schedule(config, shape).levels([0.0, 1.0]).ratio.tolist()
        return low, high
    factor = 1.0 if config.transform is None else HAAR_FACTOR
    low, high = preset_for(str(config.model), *shape[1:]).levels
    return factor * low, factor * high


def run_defaults(config: TrainConfig) -> dict[str, Any]:
    """Draws, weighting and loss with which the network of a recipe classifies, unless its bundle says otherwise.

    Args:
        config: The recipe.

    Example:
        >>> from fastdc.train import TrainConfig, run_defaults
        >>> run_defaults(TrainConfig(data="photos", out="run"))["weighting"]
        'edm'
    """
    return RUN_DEFAULTS if config.prediction == "edm" else {**RUN_DEFAULTS, "weighting": "uniform"}


def transform_of(config: TrainConfig) -> HaarTransform | None:
    """The transform of images to what the network of a recipe works on."""
    return None if config.transform is None else HaarTransform(HAAR_FACTOR)
