"""The denoiser networks that fastdc builds itself from a bundle's config, in torch.

All compute the raw output F of a class-conditional denoiser, ``F(sample, timestep, class_labels)``, with

    sample: float (b, c, h, w), the scaled noisy image c_in * x_t;
    timestep: float (b,), the noise level as the network sees it (``timestep_scale * ln sigma`` for EDM models);
    class_labels: int64 (b,), where the last index may be the null class;
    returns: (b, c, h, w).

``unet2d`` is diffusers' ``UNet2DModel``. ``mlp`` flattens the image and runs residual blocks whose normalised input is
scaled and shifted by a code of (timestep, class): the modulation of FiLM (arXiv:1709.07871), as in DiT
(arXiv:2212.09748). ``unet2d_cross`` and ``dit`` are in :mod:`fastdc.bundle.published_networks`.

Because a config may come from an untrusted file, unknown keys are refused and every value is checked. The module is
first built without memory (on torch's meta device) and refused if it is absurdly large.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastdc.support import BundleError, checks, require

require("torch", extra="train")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

KINDS = ("unet2d", "mlp", "unet2d_cross", "dit")

# Larger than any published class-conditional pixel UNet (ADM has 0.55e9): beyond it, a config is a typo or an attack.
MAX_PARAMETERS = 2_000_000_000

_MAX_PERIOD = 10_000.0  # period of the slowest sinusoidal timestep feature, as in diffusers' positional embedding

_Check = Callable[[object], bool]


def _integer(low: int, high: int) -> _Check:
    return lambda value: checks.is_whole(value) and low <= value <= high


def _real(low: float, high: float) -> _Check:
    return lambda value: checks.is_number(value) and low <= value <= high


def _one_of(*choices: object) -> _Check:
    # Types must match too: True == 1 in Python.
    return lambda value: any(type(value) is type(choice) and value == choice for choice in choices)


def _optional(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _sequence(check: _Check, low: int, high: int) -> _Check:
    return lambda value: (
        isinstance(value, (list, tuple)) and low <= len(value) <= high and all(check(item) for item in value)
    )


_CHANNELS = _integer(1, 8192)
_SIDE = _integer(1, 4096)
_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")

_UNET_KEYS: dict[str, _Check] = {
    "sample_size": lambda value: _SIDE(value) or _sequence(_SIDE, 2, 2)(value),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_class_embeds": _integer(1, 1_000_000),
    "block_out_channels": _sequence(_CHANNELS, 1, 8),
    "down_block_types": _sequence(_one_of(*_DOWN), 1, 8),
    "up_block_types": _sequence(_one_of(*_UP), 1, 8),
    "mid_block_type": _one_of("UNetMidBlock2D", None),
    "layers_per_block": _integer(1, 16),
    "norm_num_groups": _integer(1, 1024),
    "attn_norm_num_groups": _optional(_integer(1, 1024)),
    "attention_head_dim": _optional(_integer(1, 1024)),
    "norm_eps": _real(1e-12, 1.0),
    "dropout": _real(0.0, 0.99),
    "act_fn": _one_of("silu", "swish", "mish", "gelu", "relu"),
    "add_attention": _one_of(True, False),
    "center_input_sample": _one_of(True, False),
    "downsample_padding": _integer(0, 1),
    "downsample_type": _one_of("conv", "resnet"),
    "upsample_type": _one_of("conv", "resnet"),
    "flip_sin_to_cos": _one_of(True, False),
    "freq_shift": _real(0, 1),
    "mid_block_scale_factor": _real(0.01, 100.0),
    "resnet_time_scale_shift": _one_of("default", "scale_shift"),
    "time_embedding_type": _one_of("positional"),
    "time_embedding_dim": _optional(_CHANNELS),
}
_UNET_REQUIRED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "num_class_embeds",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
)
_MLP_KEYS: dict[str, _Check] = {
    "shape": _sequence(_integer(1, 4096), 3, 3),
    "num_class_embeds": _integer(1, 1_000_000),
    "width": _integer(1, 65_536),
    "blocks": _integer(1, 64),
    "code_width": _integer(2, 8192),
    "dropout": _real(0.0, 0.99),
}
_MLP_REQUIRED = ("shape", "num_class_embeds", "width")
_CROSS_KEYS: dict[str, _Check] = {
    "shape": _sequence(_integer(1, 8192), 3, 3),
    "num_class_embeds": _integer(1, 1_000_000),
    "block_out_channels": _sequence(_CHANNELS, 1, 8),
    "attention": _sequence(_one_of(True, False), 1, 8),
    "layers_per_block": _integer(1, 16),
    "embedding": _CHANNELS,
    "heads": _integer(1, 1024),
    "norm_num_groups": _integer(1, 1024),
    "dropout": _real(0.0, 0.99),
}
_CROSS_REQUIRED = ("shape", "num_class_embeds", "block_out_channels", "attention")
_DIT_KEYS: dict[str, _Check] = {
    "shape": _sequence(_integer(1, 8192), 3, 3),
    "num_class_embeds": _integer(2, 1_000_000),
    "patch_size": _integer(1, 1024),
    "layers": _integer(1, 256),
    "heads": _integer(1, 1024),
    "head_width": _integer(1, 1024),
    "dropout": _real(0.0, 0.99),
}
_DIT_REQUIRED = ("shape", "num_class_embeds")


class UNetDenoiser(nn.Module):
    """diffusers' UNet2DModel, called with three plain tensors and returning one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        require("diffusers", extra="train")
        from diffusers.models.unets.unet_2d import UNet2DModel

        self.unet = UNet2DModel(**config)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F; shapes as in the module docstring."""
        out: Tensor = self.unet(sample, timestep, class_labels=class_labels).sample
        return out


class _ModulatedBlock(nn.Module):
    """h + W2 dropout(silu(W1 (norm(h) * (1 + scale(code)) + shift(code)))), with W2 = 0 at the start."""

    def __init__(self, width: int, code_width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(code_width, 2 * width)
        self.linear1 = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(width, width)
        nn.init.zeros_(self.linear2.weight)
        nn.init.zeros_(self.linear2.bias)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.modulation(code).chunk(2, dim=-1)
        y = self.norm(h) * (1 + scale) + shift
        out: Tensor = h + self.linear2(self.dropout(nn.functional.silu(self.linear1(y))))
        return out


class MLPDenoiser(nn.Module):
    """A residual MLP on the flattened image, modulated by (noise level, class).

    Args:
        shape: Image shape (c, h, w).
        num_class_embeds: Number of class labels, the null class included.
        width: Hidden width.
        blocks: Number of residual blocks.
        code_width: Width of the (noise level, class) code.
        dropout: Probability of dropout inside the blocks.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_class_embeds: int,
        width: int,
        *,
        blocks: int = 2,
        code_width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        pixels = math.prod(shape)
        self.features = 2 * (code_width // 2)
        self.embed_timestep = nn.Linear(self.features, code_width)
        self.embed_class = nn.Embedding(num_class_embeds, code_width)
        self.linear_in = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(_ModulatedBlock(width, code_width, dropout) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, pixels)
        # F starts at zero, so that D starts as the best linear denoiser c_skip * x.
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F; shapes as in the module docstring."""
        half = self.features // 2
        ladder = torch.arange(half, dtype=torch.float32, device=sample.device)
        frequencies = torch.exp(ladder * (-math.log(_MAX_PERIOD) / half))
        # Angles reach some hundreds of radians, so they stay float32 if the weights have half precision.
        angles = timestep.float()[:, None] * frequencies[None, :]
        features = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1).to(self.linear_in.weight.dtype)
        code = nn.functional.silu(self.embed_timestep(features) + self.embed_class(class_labels))
        h = self.linear_in(sample.flatten(1))
        for block in self.blocks:
            h = block(h, code)
        out: Tensor = self.linear_out(nn.functional.silu(self.norm_out(h))).reshape(sample.shape)
        return out


def build_network(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """Builds a denoiser from a config, with new random weights from torch's global generator.

    Args:
        kind: Kind of network, one of :data:`KINDS`.
        config: Options of the network: arguments of diffusers' UNet2DModel for ``unet2d``, and those of
            :class:`MLPDenoiser`, ``CrossUNetDenoiser`` and ``DiTDenoiser`` for ``mlp``, ``unet2d_cross`` and ``dit``.

    Returns:
        A module in training mode; the module docstring describes its inputs and output.

    Raises:
        BundleError: The kind or a key is unknown, a value is missing or out of range, or the network is too large.
        MissingDependencyError: diffusers is not installed, which all but ``mlp`` need.

    Example:
        >>> from fastdc.bundle import build_network
        >>> build_network("mlp", {"shape": [1, 8, 8], "num_class_embeds": 11, "width": 32}).training
        True
    """
    if kind not in KINDS:
        raise BundleError(f"network kind must be one of {', '.join(KINDS)}, got {_short(kind)}")
    if kind == "unet2d":
        _check(kind, config, _UNET_KEYS, _UNET_REQUIRED)
        _check_unet(config)
        # Without num_class_embeds the UNet would not be class-conditional: here diffusers' default does not apply.
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        require("diffusers", extra="train")
        return _build(kind, lambda: UNetDenoiser(plain))
    if kind == "mlp":
        _check(kind, config, _MLP_KEYS, _MLP_REQUIRED)
        return _build(kind, lambda: MLPDenoiser(**config))
    return _published(kind, config)


def _published(kind: str, config: Mapping[str, Any]) -> nn.Module:
    require("diffusers", extra="train")
    from fastdc.bundle.published_networks import CrossUNetDenoiser, DiTDenoiser

    if kind == "unet2d_cross":
        _check(kind, config, _CROSS_KEYS, _CROSS_REQUIRED)
        _check_levels(kind, config, config["shape"][1:], "attention")
        heads, widths = config.get("heads", 8), config["block_out_channels"]
        attending = [width for width, here in zip(widths, config["attention"], strict=True) if here]
        if any(width % heads for width in (*attending, widths[-1])):
            raise BundleError(f"{kind} config: heads must divide the widths of the levels with attention")
        return _build(kind, lambda: CrossUNetDenoiser(**config))
    _check(kind, config, _DIT_KEYS, _DIT_REQUIRED)
    _, height, width = config["shape"]
    if height != width or height % config.get("patch_size", 4):
        raise BundleError(f"{kind} config: sides must be equal and divisible by patch_size, got {height}x{width}")
    return _build(kind, lambda: DiTDenoiser(**config))


def parameter_count(network: nn.Module) -> int:
    """Number of weights of a network.

    Args:
        network: A torch module.

    Example:
        >>> from fastdc.bundle import build_network, parameter_count
        >>> parameter_count(build_network("mlp", {"shape": [1, 8, 8], "num_class_embeds": 11, "width": 32}))
        21664
    """
    return sum(parameter.numel() for parameter in network.parameters())


def _build(kind: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            count = parameter_count(make())
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # what diffusers and torch raise
        raise BundleError(f"{kind} network cannot be built from its config: {_short(error)}") from error
    if count > MAX_PARAMETERS:
        raise BundleError(f"{kind} network must have at most {MAX_PARAMETERS:,} parameters, its config gives {count:,}")
    return make()


def _check(kind: str, config: Mapping[str, Any], keys: Mapping[str, _Check], required: tuple[str, ...]) -> None:
    if not isinstance(config, Mapping):
        raise BundleError(f"{kind} config must be an object of options, got {type(config).__name__}")
    for key, value in config.items():
        if key not in keys:
            raise BundleError(f"{kind} config has the unknown key {_short(key)}; known: {', '.join(sorted(keys))}")
        if not keys[key](value):
            raise BundleError(f"{kind} config: {key} has a value that is not supported: {_short(value)}")
    missing = [key for key in required if key not in config]
    if missing:
        raise BundleError(f"{kind} config must give {', '.join(missing)}")


def _check_unet(config: Mapping[str, Any]) -> None:
    size = config["sample_size"]
    sides = (size, size) if checks.is_whole(size) else size
    _check_levels("unet2d", config, sides, "down_block_types", "up_block_types")


def _check_levels(kind: str, config: Mapping[str, Any], sides: Sequence[int], *per_level: str) -> None:
    """Refuses a UNet whose widths, sides and lists do not fit its number of levels."""
    channels, groups = config["block_out_channels"], config.get("norm_num_groups", 32)
    if any(len(config[name]) != len(channels) for name in per_level):
        raise BundleError(f"{kind} config: block_out_channels, {' and '.join(per_level)} differ in length")
    if any(width % groups for width in channels):
        raise BundleError(f"{kind} config: norm_num_groups {groups} must divide every width of {list(channels)}")
    factor = 2 ** (len(channels) - 1)
    if any(side % factor for side in sides):
        raise BundleError(f"{kind} config: {len(channels)} levels need sides divisible by {factor}, got {tuple(sides)}")


def _short(value: object) -> str:
    """A value on one line of at most 80 characters, for an error message."""
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= 80 else text[:77] + "..."
