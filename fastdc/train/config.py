"""The recipe of a training run; ``presets`` has what a recipe leaves open, and ``networks`` the network of a recipe."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from fastdc.bundle import Prompts, prompts_of
from fastdc.data import check_window
from fastdc.support import FITS, InputError, checks, shown
from fastdc.train.presets import FINE_TUNING, HAAR_FACTOR, MODELS, NAMED, preset_for

MAX_SIDE = 1024  # pixels

AUTO = "auto"
"""In place of validation images: the split "val" of the data, or a tenth of them if every class has enough images."""

TEMPLATE = "a photo of a {}."
"""The text that the name of a class fills, unless a recipe says otherwise."""

RANK = 8
"""Rank of a LoRA, unless a recipe says otherwise."""

PRECISIONS = ("float32", "bfloat16", "float16")

PREDICTIONS = ("edm", "v_prediction")
"""What a new network predicts: EDM's mixture, or v on the cosine schedule."""

SHIFTS = ("none", "size", "medical")
"""Shifts of the cosine schedule, see :class:`TrainConfig`."""

LOSS_WEIGHTINGS = ("none", "min_snr", "medical")
"""Weightings of the training loss over noise levels, see ``loss``."""

TRANSFORMS = ("haar",)

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
        prompts: Pairs of the name of a class and the text that describes it, in place of `template`, so that classes of
            several data sets may have sentences of their own.
        rank: Rank of the LoRA for a text-conditional base; None: 8.
        model: ``unet`` (accurate), ``mlp`` (many times cheaper, for small images), ``unet-cross`` (a UNet that attends
            to its class at one level) or ``dit`` (a diffusion transformer); None: ``unet`` without a base.
        width: Channels of the UNet's first level or the width of the MLP or the DiT.
        layers: Residual blocks per level of a UNet, or blocks of the DiT.
        prediction: "edm", or "v_prediction" on the cosine schedule.
        shift: Shift of the cosine schedule for images of side d: "none"; "size", 2 ln(64 / d) (Hoogeboom et al., arXiv
            2301.11093); "medical", that and limits moved by ln(64 / d), as the released code of Favero et al. has it.
        loss_weighting: Weights of the loss, see ``loss``: "none", "min_snr" or "medical"; for v_prediction.
        transform: "haar": the network works on Haar coefficients of images, times 1/2; None: on pixels.
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
        ema_every: Number of steps between updates of the average, each with that decay.
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
    prompts: tuple[tuple[str, str], ...] | None = None
    rank: int | None = None
    model: str | None = None
    width: int | None = None
    layers: int | None = None
    prediction: str = "edm"
    shift: str = "none"
    loss_weighting: str = "none"
    transform: str | None = None
    size: int | None = None
    channels: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    accumulate: int = 1
    lr: float | None = None
    warmup: int = 100
    ema: float = 0.999
    ema_every: int = 1
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
        self._check_diffusion()
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
            for name in ("template", "prompts", "rank"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} needs a text-conditional model to fine-tune (--from), got none")
        else:
            for name in ("vae", "model", "width", "layers", "channels", "dropout", "transform"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} cannot be given with a model to fine-tune (--from), which has its own")
        if self.vae is not None and (self.size is None or self.channels not in (None, 3)):
            raise InputError("size must be given with vae (--size), and channels be 3 or not given")
        if self.template is not None:
            prompts_of(("class",), (self.template,))
        if self.prompts is not None:
            self._check_prompts(self.prompts)

    def _check_prompts(self, given: Any) -> None:
        """Refuses prompts that are not one text per class, and makes tuples of what JSON has as lists."""
        if self.template is not None:
            raise InputError("template or prompts describe the classes: expected one of them, got both")
        pairs = isinstance(given, (list, tuple)) and all(
            isinstance(one, (list, tuple)) and len(one) == 2 for one in given
        )
        if not pairs or not all(isinstance(text, str) for one in given for text in one):
            raise InputError(f"prompts must be pairs of a class and its text, got {shown(given)}")
        names = [name for name, _ in given]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise InputError(f"prompts must be one text for each class, got several for {shown(repeated)}")
        Prompts(tuple(text for _, text in given), tuple(range(len(given))), tuple(names))
        object.__setattr__(self, "prompts", tuple((str(name), str(text)) for name, text in given))

    def _check_diffusion(self) -> None:
        """Refuses words for the schedule and the loss that do not go together."""
        checks.one_of("prediction", self.prediction, PREDICTIONS)
        checks.one_of("shift", self.shift, SHIFTS)
        checks.one_of("loss_weighting", self.loss_weighting, LOSS_WEIGHTINGS)
        if self.transform is not None:
            checks.one_of("transform", self.transform, TRANSFORMS)
            if self.vae is not None:
                raise InputError("transform is of images: expected none with vae, whose latents the network works on")
        if self.prediction == "edm":
            for name in ("shift", "loss_weighting"):
                if getattr(self, name) != "none":
                    raise InputError(f"{name} is for prediction v_prediction, got prediction edm")
        elif self.base is not None or self.vae is not None:
            raise InputError("prediction v_prediction is for a new network on images: expected no base and no vae")

    def _check(self) -> None:
        object.__setattr__(self, "device", checks.device_text(self.device))
        integers = {
            "rank": (1, 4096),
            "width": (4, 65_536),
            "layers": (1, 256),
            "size": (2, MAX_SIDE),
            "steps": (1, 100_000_000),
            "batch": (1, 65_536),
            "accumulate": (1, 65_536),
            "ema_every": (1, 100_000_000),
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
            if value is None and name in ("rank", "layers", "size", "max_pixels", "threads", "patience", *_PRESET):
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
        values = {name: getattr(preset, name) for name in left}
        if self.prediction != "edm":  # levels are uniform on the schedule
            return self._filled({name: value for name, value in values.items() if name not in ("p_mean", "p_std")})
        if self.transform is not None:
            values["p_mean"] += math.log(HAAR_FACTOR)
        return self._filled(values)

    def as_in(self, run: "TrainConfig") -> "TrainConfig":
        """The recipe to continue a run with: with the run's values where it has none."""
        kept = self._filled({name: getattr(run, name) for name in (*_PRESET, "patience")})
        return dataclasses.replace(kept, val=run.val) if self.val == AUTO else kept

    def _filled(self, values: dict[str, Any]) -> "TrainConfig":
        return dataclasses.replace(self, **{n: value for n, value in values.items() if getattr(self, n) is None})

    @classmethod
    def named(cls, name: str, **options: Any) -> "TrainConfig":
        """A published recipe; options win over its own.

        Args:
            name: "medical-unet" or "medical-dit", of Favero et al. (arXiv 2502.03687).
            **options: Fields of the recipe; data and out are needed.

        Raises:
            InputError: There is no such recipe, or an option is out of range.
        """
        return cls(**{**NAMED[checks.one_of("preset", name, tuple(NAMED))], **options})

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
