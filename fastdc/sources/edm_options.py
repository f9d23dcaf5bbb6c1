"""The options of the EDM networks (:mod:`fastdc.sources.edm_networks`), named as in NVlabs' files.

They come from a file that anybody may have written. Therefore every name must be on a list and every value in a range;
both are checked before a network is laid out. The defaults are those of the original classes, because files omit
options that training left alone (their meaning: Karras et al., arXiv 2206.00364, table 7).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastdc.support import BundleError, checks, shown

_MAX_SIDE = 4096
_MAX_WIDTH = 8192
_MAX_ENTRIES = 16

# The values that each option may have. Options in no table are fractions; the dataclasses check the rest.
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
        img_resolution: Side of the training images in pixels; it names the levels.
        in_channels: Number of channels of the sample.
        out_channels: Number of channels of the output.
        label_dim: Number of classes; 0: unconditional.
        augment_dim: Width of the augmentation labels of training, which are zero at inference.
        model_channels: Base width, which the multipliers scale.
        channel_mult: Width of each level as a multiple of the base width, finest first.
        channel_mult_emb: Width of the embedding as a multiple of the base width.
        num_blocks: Number of blocks per level of the encoder; the decoder has one more.
        attn_resolutions: Sides of the levels whose blocks have attention.
        dropout: Dropout of training; unused at inference.
        label_dropout: Share of labels that training dropped; if it is above 0, the network knows "no class".

    Raises:
        BundleError: The sides of the levels are not whole numbers, or the base width is odd.
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
        """Pair (side, width) of each level, finest first."""
        return tuple(
            (self.img_resolution >> level, self.model_channels * mult) for level, mult in enumerate(self.channel_mult)
        )


@dataclass(frozen=True)
class SongOptions(DhariwalOptions):
    """Options of a ``SongUNet`` (DDPM++, NCSN++).

    Attributes:
        embedding_type: Features of the noise level: "positional" (DDPM++) or "fourier" (NCSN++).
        channel_mult_noise: Width of these features as a multiple of the base width: 1 (DDPM++) or 2 (NCSN++).
        encoder_type: Variant of the encoder: "standard" (DDPM++), "residual" (NCSN++) or "skip".
        decoder_type: Variant of the decoder: "standard" or "skip".
        resample_filter: One side of the separable filter: (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++).

    Raises:
        BundleError: The filter has an odd length, or as for the base class.
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
    """Checks the options of a network, which anybody may have written.

    Args:
        kind: Class of the network, one of :data:`KINDS`.
        given: Options by name, as the file holds them; lists become tuples.

    Raises:
        BundleError: The class or an option is unknown, or a value is missing or out of range.
    """
    if kind not in KINDS:
        raise BundleError(f"network must be one of {', '.join(KINDS)}, got {shown(kind)}")
    known = {entry.name for entry in fields(KINDS[kind])}
    values: dict[str, object] = {}
    for name, value in given.items():
        if name not in known:
            raise BundleError(f"{kind} has no option {shown(name)}")
        values[name] = _checked(name, tuple(value) if isinstance(value, list) else value)
    missing = [name for name in ("img_resolution", "in_channels", "out_channels") if name not in values]
    if missing:
        raise BundleError(f"{kind} needs the options {', '.join(missing)}")
    return KINDS[kind](**values)  # type: ignore[arg-type]


def _checked(name: str, value: Any) -> object:
    """The value of an option that is known by name.

    Raises:
        BundleError: The value is out of range.
    """
    if name in _WHOLE:
        fine = _is_whole(value, *_WHOLE[name])
    elif name in _LISTS:
        fewest = 0 if name == "attn_resolutions" else 1
        fine = isinstance(value, tuple) and fewest <= len(value) <= _MAX_ENTRIES
        fine = fine and all(_is_whole(item, *_LISTS[name]) for item in value)
    elif name in _CHOICES:
        fine = value in _CHOICES[name]
    else:
        fine = checks.is_number(value) and 0 <= value <= 1
    if not fine:
        raise BundleError(f"option {name} has a value that is not supported: {shown(value)}")
    return value


def _is_whole(value: Any, low: int, high: int) -> bool:
    return checks.is_whole(value) and low <= value <= high
