"""The networks of EDM: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM).

Both are UNets of the blocks in :mod:`fastdc.sources.edm_layers` (Karras et al., arXiv 2206.00364, appendix F and table
7; Song et al., arXiv 2011.13456; Dhariwal & Nichol, arXiv 2105.05233). SongUNet has variants. The features of the noise
level have fixed ("positional") or random ("fourier") frequencies. The image may join every level of the encoder again,
through 1x1 convolutions of its downsampled copies ("skip") or through a chain of convolutions ("residual"). Every level
of the decoder may add to the output ("skip"). NCSN++ is fourier, residual and standard, with filter (1, 3, 3, 1).

The modules have the names of the original files, so that the files' parameters load strictly; the code is our own. It
is for inference only: no dropout, no initial values. Both networks compute F(sample, timestep, class_labels) with

    sample: (b, in_channels, h, w), c_in x_t, in the dtype of the parameters; h and w are multiples of 2^(levels - 1);
    timestep: float32 (b,), c_noise of the preconditioning (EDM: ln(sigma) / 4);
    class_labels: int64 (b,) in [0, label_dim]; label_dim means "no class" (a label vector of zeros);
    returns: (b, out_channels, h, w).
"""

import math
from collections.abc import Mapping

from fastdc.sources.edm_layers import BlockStyle, Conv2d, Frequencies, GroupNorm, Linear, UNetBlock
from fastdc.sources.edm_options import DhariwalOptions, SongOptions, options_from
from fastdc.support import require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

_MAX_PERIOD = 10_000.0
_HEAD_WIDTH = 64  # channels per attention head of DhariwalUNet


def _positional(timestep: Tensor, features: int, *, endpoint: bool) -> Tensor:
    """Angles (b, features / 2) at frequencies from 1 down to 1/10000; `endpoint` includes the last."""
    half = features // 2
    powers = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - int(endpoint))
    return timestep[:, None] * torch.exp(powers * -math.log(_MAX_PERIOD))[None, :]


def _one_hot(class_labels: Tensor, classes: int) -> Tensor:
    """Label vectors float32 (b, classes); the label `classes`, "no class", gives zeros."""
    return (class_labels[:, None] == torch.arange(classes, device=class_labels.device)[None, :]).float()


def _add_encoder(enc: nn.ModuleDict, options: DhariwalOptions, style: BlockStyle) -> list[int]:
    """Adds the blocks of an encoder; returns the widths of their outputs, which the decoder takes from the end."""
    width = options.model_channels * (1 if isinstance(options, SongOptions) else options.channel_mult[0])
    widths = [width]
    for level, (side, wanted) in enumerate(options.levels):
        if level == 0:
            enc[f"{side}x{side}_conv"] = Conv2d(options.in_channels, width, 3)
        else:
            enc[f"{side}x{side}_down"] = UNetBlock(width, width, style=style, resample="down")
            if isinstance(options, SongOptions):
                _add_image_path(enc, options, level, width)
            widths.append(width)
        for index in range(options.num_blocks):
            attention = side in options.attn_resolutions
            enc[f"{side}x{side}_block{index}"] = UNetBlock(width, wanted, style=style, attention=attention)
            width = wanted
            widths.append(width)
    return widths


def _add_image_path(enc: nn.ModuleDict, options: SongOptions, level: int, width: int) -> None:
    """Adds the layers that join the image to a level of the encoder, whose width is given."""
    side = options.img_resolution >> level
    channels, taps = options.in_channels, options.resample_filter
    if options.encoder_type == "skip":
        enc[f"{side}x{side}_aux_down"] = Conv2d(channels, channels, 0, resample="down", taps=taps)
        enc[f"{side}x{side}_aux_skip"] = Conv2d(channels, width, 1)
    elif options.encoder_type == "residual":
        before = channels if level == 1 else options.levels[level - 2][1]
        enc[f"{side}x{side}_aux_residual"] = Conv2d(before, width, 3, resample="down", taps=taps, filter_last=True)


def _add_decoder(
    dec: nn.ModuleDict, options: DhariwalOptions, style: BlockStyle, widths: list[int], *, last_only: bool
) -> None:
    """Adds the blocks of a decoder; with `last_only`, only the last block of a level has attention."""
    width = options.levels[-1][1]
    for level, (side, wanted) in reversed(list(enumerate(options.levels))):
        if level == len(options.levels) - 1:
            dec[f"{side}x{side}_in0"] = UNetBlock(width, width, style=style, attention=True)
            dec[f"{side}x{side}_in1"] = UNetBlock(width, width, style=style)
        else:
            dec[f"{side}x{side}_up"] = UNetBlock(width, width, style=style, resample="up")
        for index in range(options.num_blocks + 1):
            attention = side in options.attn_resolutions and (index == options.num_blocks or not last_only)
            dec[f"{side}x{side}_block{index}"] = UNetBlock(
                width + widths.pop(), wanted, style=style, attention=attention
            )
            width = wanted
        if isinstance(options, SongOptions):
            _add_output(dec, options, level)


def _add_output(dec: nn.ModuleDict, options: SongOptions, level: int) -> None:
    """Adds a level's layers for the output: the finest level always has them, the others with decoder "skip"."""
    side, width = options.levels[level]
    channels = options.out_channels
    skip = options.decoder_type == "skip"
    if skip and level < len(options.levels) - 1:
        dec[f"{side}x{side}_aux_up"] = Conv2d(channels, channels, 0, resample="up", taps=options.resample_filter)
    if skip or level == 0:
        dec[f"{side}x{side}_aux_norm"] = GroupNorm(width, 1e-6)
        dec[f"{side}x{side}_aux_conv"] = Conv2d(width, channels, 3)


class SongUNet(nn.Module):
    """DDPM++ and NCSN++, as in the module's docstring.

    Args:
        options: Shape and variant of the network.
    """

    def __init__(self, options: SongOptions) -> None:
        super().__init__()
        self.options = options
        self.noise_channels = options.model_channels * options.channel_mult_noise
        emb = options.model_channels * options.channel_mult_emb
        style = BlockStyle(
            emb_channels=emb,
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            head_width=0,
            taps=options.resample_filter,
            always_project=True,
        )
        self.map_noise = Frequencies(self.noise_channels) if options.embedding_type == "fourier" else None
        self.map_label = Linear(options.label_dim, self.noise_channels) if options.label_dim else None
        # Only training uses this layer; here it takes the file's parameters, so that all of them load.
        self.map_augment = Linear(options.augment_dim, self.noise_channels, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(self.noise_channels, emb)
        self.map_layer1 = Linear(emb, emb)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        widths = _add_encoder(self.enc, options, style)
        _add_decoder(self.dec, options, style, widths, last_only=True)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F, with shapes as in the module's docstring."""
        emb = self._embedding(timestep, class_labels)
        x, skips = self._encoded(sample, emb)
        out: Tensor | None = None
        for side, _ in reversed(self.options.levels):
            here = f"{side}x{side}_"
            x = _decoded_level(self.dec, here, x, skips, emb)
            if f"{here}aux_up" in self.dec:
                out = self.dec[f"{here}aux_up"](out)
            if f"{here}aux_conv" in self.dec:
                part = self.dec[f"{here}aux_conv"](functional.silu(self.dec[f"{here}aux_norm"](x)))
                out = part if out is None else out + part
        assert out is not None  # the finest level gives an output in every variant
        return out

    def _embedding(self, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The embedding (b, emb_channels) of noise level and class."""
        if self.map_noise is not None:
            angles = timestep[:, None] * (2 * math.pi * self.map_noise.freqs)[None, :]
        else:
            angles = _positional(timestep, self.noise_channels, endpoint=True)
        emb = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            classes = self.options.label_dim
            emb = emb + self.map_label(_one_hot(class_labels, classes).to(emb.dtype) * math.sqrt(classes))
        emb = functional.silu(self.map_layer0(emb))
        return functional.silu(self.map_layer1(emb))

    def _encoded(self, sample: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's last output, and all its outputs in order."""
        x = image = sample
        skips: list[Tensor] = []
        for level, (side, _) in enumerate(self.options.levels):
            here = f"{side}x{side}_"
            x = self.enc[f"{here}conv"](x) if level == 0 else self.enc[f"{here}down"](x, emb)
            if f"{here}aux_skip" in self.enc:
                image = self.enc[f"{here}aux_down"](image)
                x = x + self.enc[f"{here}aux_skip"](image)
            elif f"{here}aux_residual" in self.enc:
                x = image = (x + self.enc[f"{here}aux_residual"](image)) * math.sqrt(0.5)
            skips.append(x)
            for index in range(self.options.num_blocks):
                x = self.enc[f"{here}block{index}"](x, emb)
                skips.append(x)
        return x, skips


def _decoded_level(dec: nn.ModuleDict, here: str, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
    """Runs one level of a decoder, which takes its skips from the end of the list."""
    for name in ("in0", "in1", "up"):
        if here + name in dec:
            x = dec[here + name](x, emb)
    index = 0
    while f"{here}block{index}" in dec:
        x = dec[f"{here}block{index}"](torch.cat([x, skips.pop()], dim=1), emb)
        index += 1
    return x


class DhariwalUNet(nn.Module):
    """ADM, as in the module's docstring.

    Args:
        options: Shape of the network.
    """

    def __init__(self, options: DhariwalOptions) -> None:
        super().__init__()
        self.options = options
        width = options.model_channels
        emb = width * options.channel_mult_emb
        style = BlockStyle(
            emb_channels=emb,
            adaptive_scale=True,
            skip_scale=1.0,
            eps=1e-5,
            head_width=_HEAD_WIDTH,
            taps=(1, 1),
            always_project=False,
        )
        self.map_augment = Linear(options.augment_dim, width, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(width, emb)
        self.map_layer1 = Linear(emb, emb)
        self.map_label = Linear(options.label_dim, emb, bias=False) if options.label_dim else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        widths = _add_encoder(self.enc, options, style)
        _add_decoder(self.dec, options, style, widths, last_only=False)
        self.out_norm = GroupNorm(options.levels[0][1], 1e-5)
        self.out_conv = Conv2d(options.levels[0][1], options.out_channels, 3)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F, with shapes as in the module's docstring."""
        angles = _positional(timestep, self.options.model_channels, endpoint=False)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.map_layer0.weight.dtype)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(_one_hot(class_labels, self.options.label_dim).to(emb.dtype))
        emb = functional.silu(emb)
        x = sample
        skips: list[Tensor] = []
        for name, block in self.enc.items():
            x = block(x) if name.endswith("_conv") else block(x, emb)
            skips.append(x)
        for side, _ in reversed(self.options.levels):
            x = _decoded_level(self.dec, f"{side}x{side}_", x, skips, emb)
        out: Tensor = self.out_conv(functional.silu(self.out_norm(x)))
        return out


class FirstChannels(nn.Module):
    """A network without the outputs after its first ones, such as those that predict a variance.

    Args:
        network: The network F(sample, timestep, class_labels).
        channels: Number of output channels to keep.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The first channels of F, (b, channels, h, w)."""
        out: Tensor = self.network(sample, timestep, class_labels)
        return out[:, : self.channels]


def build(options: SongOptions | DhariwalOptions) -> nn.Module:
    """The network of these options in evaluation mode; its parameters have memory but no values."""
    made = SongUNet(options) if isinstance(options, SongOptions) else DhariwalUNet(options)
    return made.eval().requires_grad_(False)


def edm_network(kind: str, options: Mapping[str, object]) -> nn.Module:
    """A network of EDM, from options as NVlabs' files name them. Its parameters have memory but no values.

    Args:
        kind: Class of the network: "SongUNet" (DDPM++, NCSN++) or "DhariwalUNet" (ADM).
        options: Options by name; img_resolution, in_channels and out_channels are required.

    Returns:
        The module F(sample, timestep, class_labels), in evaluation mode and without gradients.

    Raises:
        BundleError: The class or an option is unknown, or a value is missing or out of range.

    Source:
        Karras et al., arXiv 2206.00364, appendix F and table 7.

    Example:
        >>> from fastdc.sources import edm_network
        >>> shape = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 10}
        >>> edm_network("SongUNet", {**shape, "channel_mult": [1], "num_blocks": 1}).map_label.weight.shape
        torch.Size([128, 10])
    """
    return build(options_from(kind, options))
