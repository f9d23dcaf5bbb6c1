"""The options of the EDM networks (:mod:`fastdc.sources.edm_networks`), by the names that NVlabs' files use for them.

They come from a file that anybody may have written: every name is on a list and every value in a range, and both are
checked before a network is laid out. Defaults are those of the original classes, whose files leave out what was not
said (Karras et al., arXiv 2206.00364, table 7, for their meaning).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import cast

from fastdc.support import BundleError

_MAX_SIDE = 4096
_MAX_WIDTH = 8192

_MAX_ENTRIES = 16

# What an option may be; the rest is checked by the dataclasses.
_WHOLE = {
    "img_resolution": (1, _MAX_SIDE),
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "label_dim": (0, 1_000_000),
    "augment_dim": (0, 1024),
    "model_channels": (4, _MAX_WIDTH),
    "channel_mult_emb": (1, 64),
    "num_blocks": (1, 32),
    "channel_mult_noise": (1, 64),
}
_LISTS = {"channel_mult": (1, 64), "attn_resolutions": (1, _MAX_SIDE), "resample_filter": (1, 1024)}
_CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}


@dataclass(frozen=True)
class DhariwalOptions:
    """Options of a ``DhariwalUNet`` (ADM); the defaults are those of ImageNet-64.

    Attributes:
        img_resolution: Side of the training images in pixels; names the levels.
        in_channels: Channels of the sample.
        out_channels: Channels of the output.
        label_dim: Classes; 0: unconditional.
        augment_dim: Width of the training's augmentation labels, all zero at inference.
        model_channels: Width that the multipliers refer to.
        channel_mult: Width of each level, finest first.
        channel_mult_emb: Width of the embedding.
        num_blocks: Blocks a level in the encoder; the decoder has one more.
        attn_resolutions: Sides at which blocks have attention.
        dropout: Not used at inference.
        label_dropout: Share of labels that training dropped: above 0, the network knows "no class".
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.img_resolution % 2 ** (len(self.channel_mult) - 1):
            raise BundleError(
                f"img_resolution must be divisible by 2 at each of {len(self.channel_mult)} levels, "
                f"got {self.img_resolution}"
            )
        if self.model_channels % 2:
            raise BundleError(f"model_channels must be even: half are sines, got {self.model_channels}")

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(side, width) of each level, finest first."""
        return tuple(
            (self.img_resolution >> level, self.model_channels * mult) for level, mult in enumerate(self.channel_mult)
        )


@dataclass(frozen=True)
class SongOptions(DhariwalOptions):
    """Options of a ``SongUNet`` (DDPM++, NCSN++).

    Attributes:
        embedding_type: Features of the noise level: "positional" (DDPM++) or "fourier" (NCSN++).
        channel_mult_noise: Width of these features: 1 (DDPM++) or 2 (NCSN++).
        encoder_type: "standard" (DDPM++), "residual" (NCSN++) or "skip".
        decoder_type: "standard" or "skip".
        resample_filter: One side of the separable filter: (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++).
    """

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.resample_filter) % 2:
            raise BundleError(f"resample_filter must have an even length, got {self.resample_filter}")


KINDS: dict[str, type[SongOptions] | type[DhariwalOptions]] = {"SongUNet": SongOptions, "DhariwalUNet": DhariwalOptions}
"""The options of each class of network."""


def options_from(kind: str, given: Mapping[str, object]) -> SongOptions | DhariwalOptions:
    """The options of a network from those of a file, which anybody may have written.

    Raises:
        BundleError: An unknown class or option, or a value that is missing or out of range.
    """
    if kind not in KINDS:
        raise BundleError(f"network must be one of {', '.join(KINDS)}, got {kind!r:.80}")
    known = {entry.name for entry in fields(KINDS[kind])}
    values: dict[str, object] = {}
    for name, value in given.items():
        if name not in known:
            raise BundleError(f"{kind} has no option {name!r:.80}")
        values[name] = _checked(name, tuple(value) if isinstance(value, list) else value)
    missing = [name for name in ("img_resolution", "in_channels", "out_channels") if name not in values]
    if missing:
        raise BundleError(f"{kind} needs the options {', '.join(missing)}")
    return KINDS[kind](**values)  # type: ignore[arg-type]


def _checked(name: str, value: object) -> object:
    if name in _WHOLE:
        fine = _is_whole(value, *_WHOLE[name])
    elif name in _LISTS:
        fewest = 0 if name == "attn_resolutions" else 1
        fine = isinstance(value, tuple) and fewest <= len(value) <= _MAX_ENTRIES
        fine = fine and all(_is_whole(item, *_LISTS[name]) for item in cast("tuple[object, ...]", value))
    elif name in _CHOICES:
        fine = value in _CHOICES[name]
    else:
        fine = isinstance(value, (int, float)) and 0 <= value <= 1
    if not fine:
        raise BundleError(f"option {name} has a value that is not supported: {value!r:.80}")
    return value


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
