"""The values that a recipe leaves open, by model and by size of the images: one table.

The numbers of 8x8 images are those of the shipped ``digits`` models, and measured (models/README.md). So were those of
28x28 images, on digits (docs/training.md), whose best single level is some four times that of the smaller ones. Rows
marked "not measured" extend them by two known facts: larger images need more channels and levels (the UNet of EDM,
arXiv:2206.00364, has multipliers of this kind), and they keep their class under more noise, because neighbouring pixels
repeat each other (Hoogeboom et al., arXiv:2301.11093).

All of them depart from EDM's table 1 in one respect: ln sigma ~ N(-0.6, 1.2) for 8x8 images instead of N(-1.2, 1.2). A
classifier works at the noise levels at which the class is decided, so the network is trained most at these.
"""

import dataclasses
from typing import Any

MODELS = ("unet", "mlp", "unet-cross", "dit")

HAAR_FACTOR = 0.5
"""Factor of the Haar coefficients that a network is trained on: those of images in [-1, 1] stay in it."""

RUN_DEFAULTS: dict[str, Any] = {"draws": 16, "weighting": "edm", "loss": "l2"}
"""How the network of a run classifies, unless its bundle says otherwise; the band of levels is the preset's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of the table.

    Attributes:
        side: Images whose smaller side has at most this many pixels take this row.
        width: Channels of the UNet's first level, or the width of the MLP or the DiT.
        multipliers: Channels of each level of the UNet in units of the first level's.
        layers: Residual blocks per level of the UNet, or blocks of the DiT.
        steps: Number of optimizer steps.
        batch: Images per step.
        lr: Peak learning rate.
        p_mean: Mean of ln sigma.
        p_std: Standard deviation of ln sigma.
        dropout: Dropout inside the network.
        levels: Band of noise levels at which the network classifies.
    """

    side: int
    width: int
    multipliers: tuple[int, ...] = ()
    layers: int = 0
    steps: int
    batch: int
    lr: float = 1e-3
    p_mean: float
    p_std: float
    dropout: float = 0.0
    levels: tuple[float, float] = (0.2, 2.0)


FINE_TUNING: dict[str, Any] = {"steps": 1000, "batch": 32, "lr": 1e-4}
"""What a recipe leaves open if a model is fine-tuned; noise levels and dropout are the model's own."""

_ANY = 2**31  # pixels

_UNET: dict[str, Any] = {"steps": 1340, "batch": 64, "p_mean": -0.6, "p_std": 1.2}
_UNET_32: dict[str, Any] = {"steps": 5000, "batch": 64, "p_mean": 0.4, "p_std": 1.2}
_PUBLISHED: dict[str, Any] = {"steps": 5000, "batch": 64, "lr": 1e-4, "p_mean": 0.4, "p_std": 1.2, "levels": (0.7, 7.0)}
_MLP: dict[str, Any] = {"width": 256, "steps": 4640, "batch": 256, "p_mean": -0.4, "p_std": 1.0, "dropout": 0.1}

PRESETS: dict[str, tuple[Preset, ...]] = {
    "unet": (
        # Measured: models/README.md.
        Preset(side=8, width=32, multipliers=(1, 1), layers=1, **_UNET),
        # Not measured: between the rows of 8x8 and 28x28.
        Preset(side=16, width=32, multipliers=(1, 2, 2, 4), layers=1, **{**_UNET, "p_mean": 0.0}, levels=(0.4, 4.0)),
        # Measured with 28x28 digits: docs/training.md.
        Preset(side=32, width=32, multipliers=(1, 2, 2), layers=1, **_UNET_32, levels=(0.7, 7.0)),
        # Not measured: multipliers as in EDM, for a GPU; noise as for 28x28.
        Preset(side=_ANY, width=64, multipliers=(1, 2, 2, 4), layers=2, **_UNET_32, levels=(0.7, 7.0)),
    ),
    "mlp": (
        # Measured for 8x8 (models/README.md) and 28x28 (docs/training.md).
        Preset(side=16, **_MLP),
        Preset(side=32, **_MLP, levels=(0.5, 5.0)),
        Preset(side=_ANY, **_MLP, levels=(0.5, 5.0)),  # not measured
    ),
    # The networks of Favero et al., arXiv 2502.03687; not measured with EDM's loss.
    "unet-cross": (Preset(side=_ANY, width=128, multipliers=(1, 1, 2, 4, 8), layers=2, **_PUBLISHED),),
    "dit": (Preset(side=_ANY, width=768, layers=12, **_PUBLISHED),),
}

_MEDICAL: dict[str, Any] = {
    "size": 256,
    "channels": 3,
    "fit": "stretch",
    "transform": "haar",
    "prediction": "v_prediction",
    "shift": "medical",
    "timestep_scale": 1.0,
    "loss_weighting": "medical",
    "label_dropout": 0.15,
    "batch": 128,
    "lr": 1e-4,
    "weight_decay": 0.0,
    "ema_every": 5,
}

NAMED: dict[str, dict[str, Any]] = {
    "medical-unet": {**_MEDICAL, "model": "unet-cross", "warmup": 100, "steps": 89_000},
    "medical-dit": {**_MEDICAL, "model": "dit", "warmup": 250, "steps": 65_000},
}
"""Published recipes as options of :class:`TrainConfig`: Favero et al., arXiv 2502.03687, and its released code.

Their 700 and 512 epochs of 16,324 radiographs are about these steps. Not run here in full size.
"""


def preset_for(model: str, height: int, width: int) -> Preset:
    """The row of a model, one of :data:`MODELS`, for images of a size in pixels."""
    return next(row for row in PRESETS[model] if min(height, width) <= row.side)
