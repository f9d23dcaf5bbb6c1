"""The recipe of a training run, and the network that fits an image shape; ``presets`` has what a recipe leaves open."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from fastdc.bundle import prompts_of
from fastdc.data import check_window
from fastdc.support import FITS, InputError, checks, shown
from fastdc.train.presets import FINE_TUNING, MODELS, preset_for

MAX_SIDE = 1024  # pixels

AUTO = "auto"
"""In place of validation images: the split "val" of the data, or a tenth of them if every class has enough images."""

TEMPLATE = "a photo of a {}."
"""The text that the name of a class fills, unless a recipe says otherwise."""

RANK = 8
"""Rank of a LoRA, unless a recipe says otherwise."""

PRECISIONS = ("float32", "bfloat16", "float16")

AUGMENTATIONS = ("none", "flip", "shift", "photo", "medical")
"""Named sets of random changes of training images; ``augment`` has them."""

_HOW = {"data", "val", "split", "skip_bad", "max_pixels", "out", "threads", "device", "checkpoint_every", "log_every"}
_HOW |= {"base", "vae", "accumulate"}
_HOW_LONG = {"steps", "minutes", "patience"}

OPERATIONAL = frozenset(_HOW | _HOW_LONG)
"""Options that may change when a run is resumed.

The numbers of a step do not depend on them (on threads, device and accumulate only up to rounding), or, for data, val,
split, skip_bad, base and vae, a hash is compared instead. The number of steps decides how the learning rate falls from
there on.
"""

_PRESET = ("width", "steps", "batch", "lr", "p_mean", "p_std", "dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of a training run. None means the value of the preset for the model and the size of the images.

    Attributes:
        data: Labelled images: a folder with one sub-folder per class, a manifest, or an .npz with ``images`` and
            ``labels``.
        out: The run folder, created by the run.
        base: Model to fine-tune: the name of a shipped model, a bundle with torch weights, a run folder, a folder in
            diffusers' format, "hf://org/name[@revision]" of the HF hub, or an EDM ``.pkl`` file. Its network takes the
            place of ``model``; all its weights are trained, or, if its classes are prompts, a LoRA. Images are
            converted to its shape.
        vae: Folder with an AutoencoderKL, or "hf://...": the network is a new one on its latents. Needs ``size``.
        template: Text with one ``{}``, which the name of a class fills, for a text-conditional base; None:
            "a photo of a {}.".
        rank: Rank of the LoRA for a text-conditional base; None: 8.
        model: ``unet`` (accurate) or ``mlp`` (many times cheaper, for small images); None: ``unet`` without a base.
        width: Channels of the UNet's first level or the MLP's width.
        size: Side to which images are resized and cropped; needed if they differ in size.
        channels: Number of channels to which images are converted, 1 (grey) or 3 (RGB); needs ``size``, and is needed
            if a folder has both.
        steps: Number of optimizer steps. A run can be resumed with more.
        minutes: Time that the training may take, in place of ``steps``, which then follow from the time of the first
            ones; for a new run.
        batch: Images per step, of all parts and processes together.
        accumulate: Number of parts in which a process evaluates its images of a step, one after the other, to need less
            memory; the gradients are added up.
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
        augment: Random changes of training images that keep their class: "none"; "flip" (mirrored left to right; not
            for digits or text); "shift" (a tenth of the sides); "photo" (mirrored, cropped to 80 to 100 %, contrast,
            brightness and saturation by a tenth); "medical" (rotated by 10 degrees, shifted by 5 %, contrast and
            brightness by a tenth, not mirrored).
        flip: Whether to mirror images as well.
        balance: Whether all classes are drawn equally often, rather than all images.
        precision: Element type in which the network is evaluated and its gradients are computed: "float32"; "bfloat16";
            "float16", on a CUDA device, with scaled gradients. Weights and optimizer are float32 always.
        seed: Seed of the initial weights, the order of the data, the noise, the dropout and the validation split.
        val: Validation images: a fraction of the data, such as "0.1"; a source like ``data``; "auto": the split
            "val" of the data, or a tenth of them if every class has 10 images or more; None or "0": none.
        patience: Number of measured checkpoints after the best one at which the training ends early; None or 0: never.
        window: Values that are black and white in images of more than 8 bits; None: what the files state.
        fit: How images come to one height and width: "crop" or "stretch"; None: as those of the base, otherwise "crop".
        max_pixels: Most pixels of one image, and a 4096th of those of all images; None: 2^26.
        skip_bad: Whether image files that cannot be read are left out, with a note each.
        split: Split of ``data`` to train on; None: "train", if there are splits.
        threads: Number of torch threads; None: torch's own choice.
        device: Name of a torch device, such as ``cpu`` or ``cuda``, or a torch.device.
        checkpoint_every: Number of steps between checkpoints.
        log_every: Number of steps between lines of the log.
    """

    data: str
    out: str
    base: str | None = None
    vae: str | None = None
    template: str | None = None
    rank: int | None = None
    model: str | None = None
    width: int | None = None
    size: int | None = None
    channels: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
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
    augment: str = "none"
    flip: bool = False
    balance: bool = False
    precision: str = "float32"
    seed: int = 0
    val: str | None = AUTO
    patience: int | None = None
    window: tuple[float, float] | None = None
    fit: str | None = None
    max_pixels: int | None = None
    skip_bad: bool = False
    split: str | None = None
    threads: int | None = None
    device: str = "cpu"
    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        self._check_base()
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.one_of("augment", self.augment, AUGMENTATIONS)
        for name in ("flip", "balance", "skip_bad"):
            checks.flag(name, getattr(self, name))
        self._check()

    def _check_base(self) -> None:
        """Refuses what does not go with a base or without one."""
        for name in ("base", "vae"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, str) or not path):
                raise InputError(f"{name} must be a path, got {shown(path)}")
        if self.base is None:
            object.__setattr__(self, "model", checks.one_of("model", self.model or "unet", MODELS))
            for name in ("template", "rank"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} needs a text-conditional model to fine-tune (--from), got none")
        else:
            for name in ("vae", "model", "width", "channels", "dropout"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} cannot be given with a model to fine-tune (--from), which has its own")
        if self.vae is not None and (self.size is None or self.channels not in (None, 3)):
            raise InputError("size must be given with vae (--size), and channels be 3 or not given")
        if self.template is not None:
            prompts_of(("class",), (self.template,))

    def _check(self) -> None:
        object.__setattr__(self, "device", checks.device_text(self.device))
        integers = {
            "rank": (1, 4096),
            "width": (4, 65_536),
            "size": (2, MAX_SIDE),
            "steps": (1, 100_000_000),
            "batch": (1, 65_536),
            "accumulate": (1, 65_536),
            "warmup": (0, 100_000_000),
            "seed": (0, 2**63 - 1),
            "patience": (0, 100_000_000),
            "max_pixels": (1, 2**48),
            "threads": (1, 4096),
            "checkpoint_every": (1, 100_000_000),
            "log_every": (1, 100_000_000),
        }
        for name, (low, high) in integers.items():
            value = getattr(self, name)
            if value is None and name in ("rank", "size", "max_pixels", "threads", "patience", *_PRESET):
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
            "minutes": (0.01, 1e6),
        }
        for name, (lo, hi) in reals.items():
            value = getattr(self, name)
            if value is None and name in ("sigma_data", "minutes", *_PRESET):
                continue
            object.__setattr__(self, name, checks.number(name, value, low=lo, high=hi))
        self._check_together()
        for name in ("data", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name} must be a path, got {shown(getattr(self, name))}")
        if self.val is not None and _number(self.val) == 0:
            object.__setattr__(self, "val", None)
        if self.patience and self.val is None:
            raise InputError("patience needs validation images (val), got none")

    def _check_together(self) -> None:
        """Refuses options that do not go together."""
        if self.precision == "float16" and self.device == "cpu":
            raise InputError("precision float16 trains on a CUDA device: expected float32 or bfloat16 on the CPU")
        if self.minutes is not None and self.steps is not None:
            raise InputError("steps or minutes say how long a training takes: expected one of them, got both")
        if self.batch is not None and self.accumulate > self.batch:
            raise InputError(f"accumulate must be at most the batch, {self.batch}, got {self.accumulate}")
        if self.channels not in (None, 1, 3):
            raise InputError(f"channels must be 1 or 3, got {shown(self.channels)}")
        if self.channels is not None and self.size is None:
            raise InputError("size must be given with channels, got none")
        if self.window is not None:
            object.__setattr__(self, "window", check_window(self.window))
        if self.fit is not None:
            checks.one_of("fit", self.fit, FITS)

    @property
    def val_fraction(self) -> float | None:
        """The fraction of the data kept aside; None if ``val`` is a source, automatic or absent."""
        fraction = None if self.val is None else _number(self.val)
        if fraction is not None and not 0.0 < fraction <= 0.5:
            raise InputError(f"val as a fraction must be above 0 and at most 0.5, got {self.val}")
        return fraction

    @property
    def val_source(self) -> str | None:
        """Where the validation images are, if they are not a part of the data."""
        return None if self.val in (None, AUTO) or self.val_fraction is not None else self.val

    def for_shape(self, shape: tuple[int, int, int]) -> "TrainConfig":
        """The recipe for images of a shape (c, h, w), with the values of the preset where it has none."""
        left = [name for name in _PRESET if name != "steps" or self.minutes is None]
        if self.base is not None:
            return self._filled({name: value for name, value in FINE_TUNING.items() if name in left})
        preset = preset_for(self.model or "unet", *shape[1:])
        return self._filled({name: getattr(preset, name) for name in left})

    def as_in(self, run: "TrainConfig") -> "TrainConfig":
        """The recipe to continue a run with: with the run's values where it has none."""
        kept = self._filled({name: getattr(run, name) for name in (*_PRESET, "patience")})
        return dataclasses.replace(kept, val=run.val) if self.val == AUTO else kept

    def _filled(self, values: dict[str, Any]) -> "TrainConfig":
        return dataclasses.replace(self, **{n: value for n, value in values.items() if getattr(self, n) is None})

    def absolute(self) -> "TrainConfig":
        """The recipe with full paths."""
        val = None if self.val_source is None else str(Path(self.val_source).absolute())
        data, out = (str(Path(path).absolute()) for path in (self.data, self.out))  # base and vae are so already
        return dataclasses.replace(self, data=data, out=out, val=val or self.val)

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


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def network_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> tuple[str, dict[str, Any]]:
    """The network for images of a shape, as (kind, config) for :func:`fastdc.bundle.build_network`.

    Args:
        config: The recipe; model, width and dropout are read.
        shape: Image shape (c, h, w).
        classes: Number of classes, without the null class, which becomes index ``classes``.

    Raises:
        InputError: The shape or the width does not fit the model.
    """
    config = config.for_shape(shape)
    if config.model == "mlp":
        sizes = {"width": config.width, "blocks": 2, "code_width": 64}
        mlp = {"shape": list(shape), "num_class_embeds": classes + 1, **sizes}
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
    preset = preset_for("unet", height, width)
    base = config.width or preset.width
    if base % 16:
        raise InputError(f"width of the unet must be a multiple of 16, got {base}")
    multipliers = preset.multipliers
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
        "layers_per_block": preset.layers,
        "norm_num_groups": 8,
        "attention_head_dim": 16 if base < 64 else math.gcd(base, 64),
        "dropout": config.dropout,
    }
