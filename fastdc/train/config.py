"""The recipe of a training run, and the network that fits an image shape.

The defaults are the recipes of the shipped ``digits`` models. They differ from EDM's (arXiv:2206.00364, table 1) in one
respect: ln sigma ~ N(-0.6, 1.2) instead of N(-1.2, 1.2). A classifier works at the noise levels at which the class is
decided (sigma between 0.2 and 2 for such images), so the network is trained most at these.
"""

import dataclasses
import math
from typing import Any

from fastdc.data import check_window
from fastdc.support import InputError, checks, shown

MODELS = ("unet", "mlp")
MAX_SIDE = 1024  # pixels

OPERATIONAL = frozenset(
    {"data", "val", "split", "skip_bad", "max_pixels", "out", "threads", "device", "checkpoint_every", "log_every"}
)
"""Options that may change when a run is resumed.

The numbers do not depend on them (on threads and device only up to rounding), or, for data, val, split and skip_bad,
the hash of the images is compared instead.
"""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "unet": {"steps": 1340, "batch": 64, "p_mean": -0.6, "p_std": 1.2, "dropout": 0.0},
    "mlp": {"steps": 4640, "batch": 256, "p_mean": -0.4, "p_std": 1.0, "dropout": 0.1},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of a training run. None means the value of the model preset.

    Attributes:
        data: Labelled images: a folder with one sub-folder per class, a manifest, or an .npz with ``images`` and
            ``labels``.
        out: The run folder, created by the run.
        model: ``unet`` (accurate) or ``mlp`` (many times cheaper, for small images).
        width: Channels of the UNet's first level (default 32, or 64 above 16 pixels) or the MLP's width (default 256).
        size: Side to which images are resized and cropped; needed if they differ in size.
        channels: Number of channels to which images are converted, 1 (grey) or 3 (RGB); needs ``size``, and is needed
            if a folder has both.
        steps: Number of optimizer steps (default 1340 for the UNet, 4640 for the MLP: the digits recipes).
        batch: Images per step (default 64 for the UNet, 256 for the MLP).
        lr: Peak learning rate of AdamW, after the warm-up and before the cosine decay.
        warmup: Number of steps of linear warm-up.
        ema: Decay of the moving average of the weights, warmed up as min(ema, (1 + n) / (10 + n)).
        clip: Largest norm of the gradient.
        weight_decay: Weight decay of AdamW.
        label_dropout: Fraction of images whose label is replaced by the null class.
        p_mean: Mean of ln sigma (sigma in the units of images in [-1, 1]).
        p_std: Standard deviation of ln sigma.
        sigma_data: Standard deviation of the data in [-1, 1]; None: measured.
        timestep_scale: Factor of the time input, timestep_scale * ln sigma; 100 suits diffusers' positional code.
        dropout: Dropout inside the network.
        flip: Whether to mirror images left to right at random; not for digits or text.
        seed: Seed of the initial weights, the order of the data, the noise, the dropout and the validation split.
        val: Validation images: a fraction of the data, such as "0.1", or a source like ``data``; None: no images.
        window: Values that are black and white in images of more than 8 bits; None: what the files state.
        max_pixels: Most pixels of one image, and a 4096th of those of all images; None: 2^26.
        skip_bad: Whether image files that cannot be read are left out, with a note each.
        split: Split of ``data`` to train on; None: "train", if there are splits. Then "val" is the default of ``val``.
        threads: Number of torch threads; None: torch's own choice.
        device: Name of a torch device, such as ``cpu`` or ``cuda``, or a torch.device.
        checkpoint_every: Number of steps between checkpoints.
        log_every: Number of steps between lines of the log.
    """

    data: str
    out: str
    model: str = "unet"
    width: int | None = None
    size: int | None = None
    channels: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.01
    label_dropout: float = 0.1
    p_mean: float | None = None
    p_std: float | None = None
    sigma_data: float | None = None
    timestep_scale: float = 100.0
    dropout: float | None = None
    flip: bool = False
    seed: int = 0
    val: str | None = None
    window: tuple[float, float] | None = None
    max_pixels: int | None = None
    skip_bad: bool = False
    split: str | None = None
    threads: int | None = None
    device: str = "cpu"
    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        checks.one_of("model", self.model, MODELS)
        for name, value in _DEFAULTS[self.model].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        object.__setattr__(self, "device", checks.device_text(self.device))
        integers = {
            "width": (4, 65_536),
            "size": (2, MAX_SIDE),
            "steps": (1, 100_000_000),
            "batch": (1, 65_536),
            "warmup": (0, 100_000_000),
            "seed": (0, 2**63 - 1),
            "max_pixels": (1, 2**48),
            "threads": (1, 4096),
            "checkpoint_every": (1, 100_000_000),
            "log_every": (1, 100_000_000),
        }
        for name, (low, high) in integers.items():
            value = getattr(self, name)
            if value is None and name in ("width", "size", "max_pixels", "threads"):
                continue
            object.__setattr__(self, name, checks.whole(name, value, low=low, high=high))
        reals = {
            "lr": (1e-9, 10.0),
            "ema": (0.0, 0.999999),
            "clip": (1e-6, 1e9),
            "weight_decay": (0.0, 10.0),
            "label_dropout": (0.0, 0.9),
            "p_mean": (-10.0, 10.0),
            "p_std": (0.01, 10.0),
            "sigma_data": (1e-3, 10.0),
            "timestep_scale": (1e-3, 1e4),
            "dropout": (0.0, 0.9),
        }
        for name, (lo, hi) in reals.items():
            value = getattr(self, name)
            if value is None and name == "sigma_data":
                continue
            object.__setattr__(self, name, checks.number(name, value, low=lo, high=hi))
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels must be 1 or 3, got {shown(self.channels)}")
        if self.channels is not None and self.size is None:
            raise InputError("size must be given with channels, got None")
        if self.window is not None:
            object.__setattr__(self, "window", check_window(self.window))
        checks.flag("skip_bad", self.skip_bad)
        for name in ("data", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name} must be a path, got {shown(getattr(self, name))}")

    @property
    def val_fraction(self) -> float | None:
        """The fraction of the data kept aside; None if ``val`` is a source or absent."""
        if self.val is None:
            return None
        try:
            fraction = float(self.val)
        except ValueError:
            return None
        if not 0.0 < fraction <= 0.5:
            raise InputError(f"val as a fraction must be above 0 and at most 0.5, got {self.val}")
        return fraction

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The recipe of plain values, the reverse of :meth:`to_dict`.

        Raises:
            InputError: A name is unknown, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"training config has unknown fields: {', '.join(unknown)}")
        return cls(**values)


def network_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> tuple[str, dict[str, Any]]:
    """The network for images of a shape, as (kind, config) for :func:`fastdc.bundle.build_network`.

    Args:
        config: The recipe; model, width and dropout are read.
        shape: Image shape (c, h, w).
        classes: Number of classes, without the null class, which becomes index ``classes``.

    Raises:
        InputError: The shape or the width does not fit the model.
    """
    if config.model == "mlp":
        width = config.width or 256
        mlp = {"shape": list(shape), "num_class_embeds": classes + 1, "width": width, "blocks": 2, "code_width": 64}
        return "mlp", {**mlp, "dropout": config.dropout}
    return "unet2d", _unet_config(config, shape, classes)


def _unet_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    channels, height, width = shape
    # Halve as long as both sides stay whole and at least 4 pixels: 8 -> 8, 4 and 64 -> 64, 32, 16, 8.
    smallest, levels = min(height, width), 1
    while levels < 4 and height % 2**levels == width % 2**levels == 0 and smallest >> levels >= 4:
        levels += 1
    low = (height >> (levels - 1), width >> (levels - 1))
    if math.prod(low) > 16 * 16:
        raise InputError(
            f"the unet needs sides that can be halved down to 16 or less, {height}x{width} stops at {low[0]}x{low[1]}: "
            f"resize, for example to {max(8, 8 * round(smallest / 8))}"
        )
    base = config.width or (32 if smallest <= 16 else 64)
    if base % 16:
        raise InputError(f"width of the unet must be a multiple of 16, got {base}")
    multipliers = (1, 1) if smallest <= 8 else (1, 2, 2, 4)
    widths = [base * multipliers[min(level, len(multipliers) - 1)] for level in range(levels)]
    # Attention at the cheap levels: those of at most 8x8 positions, and the last one, which has at most 16x16. The
    # level of full size has none if others follow.
    sizes = [(height >> level) * (width >> level) for level in range(levels)]
    attention = [size <= 64 or level == levels - 1 for level, size in enumerate(sizes)]
    attention[0] = levels == 1
    return {
        "sample_size": [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": classes + 1,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        "up_block_types": ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
        "layers_per_block": 1 if smallest <= 16 else 2,
        "norm_num_groups": 8,
        "attention_head_dim": 16 if base < 64 else math.gcd(base, 64),
        "dropout": config.dropout,
    }
