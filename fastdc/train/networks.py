"""The network that fits an image shape, as :func:`fastdc.bundle.build_network` takes it."""

import math
from typing import Any

from fastdc.support import InputError
from fastdc.train.config import TrainConfig
from fastdc.train.presets import preset_for

_HEADS, _HEAD_WIDTH = 8, 64


def network_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> tuple[str, dict[str, Any]]:
    """The network for images of a shape, as (kind, config) for :func:`fastdc.bundle.build_network`.

    Args:
        config: The recipe; model, width, layers and dropout are read.
        shape: Shape (c, h, w) of what the network works on.
        classes: Number of classes, without the null class, which becomes index ``classes``.

    Raises:
        InputError: The shape or the width does not fit the model.
    """
    config = config.for_shape(shape)
    if config.model == "mlp":
        sizes = {"width": config.width, "blocks": 2, "code_width": 64}
        mlp = {"shape": list(shape), "num_class_embeds": classes + 1, **sizes}
        return "mlp", {**mlp, "dropout": config.dropout}
    if config.model == "unet-cross":
        return "unet2d_cross", _cross_config(config, shape, classes)
    if config.model == "dit":
        return "dit", _dit_config(config, shape, classes)
    return "unet2d", _unet_config(config, shape, classes)


def _cross_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Up to five levels, with attention at the last but one."""
    preset = preset_for("unet-cross", *shape[1:])
    base, levels = config.width or preset.width, _halvings(shape, len(preset.multipliers))
    if base % 16:
        raise InputError(f"width of the unet-cross must be a multiple of 16, got {base}")
    return {
        "shape": list(shape),
        "num_class_embeds": classes + 1,
        "block_out_channels": [base * times for times in preset.multipliers[:levels]],
        "attention": [level == max(0, levels - 2) for level in range(levels)],
        "layers_per_block": config.layers or preset.layers,
        "embedding": 4 * base,
        "heads": _HEADS,
        "norm_num_groups": math.gcd(base // 4, 32),  # of four channels or more, as at the published width
        "dropout": config.dropout,
    }


def _dit_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Heads of 64, and the largest patches of at most 4 that fit."""
    preset, (_, height, width) = preset_for("dit", *shape[1:]), shape
    base = config.width or preset.width
    if height != width or base % _HEAD_WIDTH:
        raise InputError(
            f"the dit needs square images and a width that is a multiple of {_HEAD_WIDTH}, got {height}x{width} and "
            f"{base}"
        )
    return {
        "shape": list(shape),
        "num_class_embeds": classes + 1,
        "patch_size": math.gcd(height, 4),
        "layers": config.layers or preset.layers,
        "heads": base // _HEAD_WIDTH,
        "head_width": _HEAD_WIDTH,
        "dropout": config.dropout,
    }


def _halvings(shape: tuple[int, int, int], most: int) -> int:
    """The number of levels of a UNet: it halves as long as both sides stay whole and at least 4 pixels."""
    _, height, width = shape
    smallest, levels = min(height, width), 1
    while levels < most and height % 2**levels == width % 2**levels == 0 and smallest >> levels >= 4:
        levels += 1
    return levels


def _unet_config(config: TrainConfig, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    channels, height, width = shape
    smallest, levels = min(height, width), _halvings(shape, 4)  # 8 -> 8, 4 and 64 -> 64, 32, 16, 8
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
        "layers_per_block": config.layers or preset.layers,
        "norm_num_groups": 8,
        "attention_head_dim": 16 if base < 64 else math.gcd(base, 64),
        "dropout": config.dropout,
    }
