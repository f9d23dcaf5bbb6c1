"""The networks of EDM: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM), as modules that take the files' parameters.

Both are UNets whose residual blocks are told (noise level, class) by an embedding:

    h = conv0(silu(norm0(x))), resampled on a way down or up
    h = conv1(silu(norm1(h + affine(emb))))                     SongUNet
    h = conv1(silu((1 + scale) norm1(h) + shift))               DhariwalUNet, (scale, shift) = affine(emb)
    x = (skip(x) + h) s;  with attention x = (x + proj(attention(norm2(x)))) s

with s = sqrt(1/2) in SongUNet and 1 in DhariwalUNet (Karras et al., arXiv 2206.00364, appendix F and table 7; Song et
al., arXiv 2011.13456; Dhariwal & Nichol, arXiv 2105.05233). SongUNet has variants: features of the noise level at fixed
("positional") or random ("fourier") frequencies; the image joins every level of the encoder again through 1x1
convolutions of its shrunk copies ("skip") or through a chain of convolutions ("residual"); every level of the decoder
adds to the output ("skip"). NCSN++ is fourier, residual, standard with filter (1, 3, 3, 1).

The names of the modules are those of the original files, so that their parameters load strictly; the code is our own.
It is for inference alone: no dropout, no initial values. Both networks compute F(sample, timestep, class_labels) with

    sample: (b, in_channels, h, w), c_in x_t, in the dtype of the parameters; h and w are multiples of 2^(levels - 1);
    timestep: float32 (b,), c_noise = ln(sigma) / 4;
    class_labels: int64 (b,) in [0, label_dim], where label_dim is "no class" (a label vector of zeros);
    returns: (b, out_channels, h, w).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastdc.sources.edm_options import DhariwalOptions, SongOptions
from fastdc.support import BundleError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

_MAX_PERIOD = 10_000.0
_HEAD_WIDTH = 64  # of DhariwalUNet's attention


class Linear(nn.Module):
    """x W^T + b."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Features (b, in_features) -> (b, out_features)."""
        return functional.linear(x, self.weight, self.bias)


class GroupNorm(nn.Module):
    """Normalises groups of at least 4 channels, at most 32 groups."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups = min(32, channels // 4)
        if self.groups < 1 or channels % self.groups:
            raise BundleError(f"normalisation in {self.groups} groups needs a width that they divide, got {channels}")
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, scaled and shifted, (b, channels, h, w)."""
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Conv2d(nn.Module):
    """A convolution that keeps the size, after a resampling by 2 where `resample` is "up" or "down".

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Odd side of the kernel; 0: resample only.
        resample: "", "up" or "down".
        taps: One side of the resampling filter.
        filter_last: With "down": filter after the convolution, not before it. The padding of both is then applied at
            once, before the convolution, so the border differs as well.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        resample: str = "",
        taps: tuple[int, ...] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.filter_last = filter_last
        self.padding = kernel // 2
        self.filter_padding = (len(taps) - 1) // 2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if kernel else None
        if resample:
            # In the files as a buffer (1, 1, n, n) with sum 1.
            self.register_buffer("resample_filter", torch.empty(1, 1, len(taps), len(taps)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) -> (b, out_channels, h, w), h and w halved or doubled."""
        if self.filter_last and self.weight is not None:
            x = functional.conv2d(x, self.weight, padding=self.padding + self.filter_padding)
            x = self._shrunk(x, padding=0)
            return x if self.bias is None else x + self.bias[:, None, None]
        if self.resample == "down":
            x = self._shrunk(x, padding=self.filter_padding)
        if self.resample == "up":
            # Zeros between the pixels take away three quarters of the sum, which the factor 4 gives back.
            kernels = (4 * self.resample_filter).expand(x.shape[1], -1, -1, -1)
            x = functional.conv_transpose2d(x, kernels, stride=2, padding=self.filter_padding, groups=x.shape[1])
        if self.weight is not None:
            x = functional.conv2d(x, self.weight, self.bias, padding=self.padding)
        return x

    def _shrunk(self, x: Tensor, padding: int) -> Tensor:
        kernels = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return functional.conv2d(x, kernels, stride=2, padding=padding, groups=x.shape[1])


@dataclass(frozen=True)
class _BlockStyle:
    """What the blocks of one network have in common.

    Attributes:
        emb_channels: Width of the embedding.
        adaptive_scale: The embedding gives a scale and a shift, not a shift alone.
        skip_scale: s of the module's docstring.
        eps: Of the normalisations.
        head_width: Channels a head of attention; 0: one head.
        taps: One side of the resampling filter.
        always_project: A resampled skip has a 1x1 convolution even where the width stays.
    """

    emb_channels: int
    adaptive_scale: bool
    skip_scale: float
    eps: float
    head_width: int
    taps: tuple[int, ...]
    always_project: bool


class UNetBlock(nn.Module):
    """A residual block, optionally resampling by 2, optionally with self-attention; see the module's docstring."""

    def __init__(self, cin: int, cout: int, *, style: _BlockStyle, resample: str = "", attention: bool = False) -> None:
        super().__init__()
        self.adaptive_scale = style.adaptive_scale
        self.skip_scale = style.skip_scale
        self.heads = (cout // style.head_width if style.head_width else 1) if attention else 0
        if self.heads and cout % self.heads:
            raise BundleError(f"attention of {self.heads} heads needs a width that they divide, got {cout}")
        self.norm0 = GroupNorm(cin, style.eps)
        self.conv0 = Conv2d(cin, cout, 3, resample=resample, taps=style.taps)
        self.affine = Linear(style.emb_channels, 2 * cout if style.adaptive_scale else cout)
        self.norm1 = GroupNorm(cout, style.eps)
        self.conv1 = Conv2d(cout, cout, 3)
        self.skip = None
        if cin != cout or resample:
            kernel = 1 if cin != cout or style.always_project else 0
            self.skip = Conv2d(cin, cout, kernel, resample=resample, taps=style.taps)
        if self.heads:
            self.norm2 = GroupNorm(cout, style.eps)
            self.qkv = Conv2d(cout, 3 * cout, 1)
            self.proj = Conv2d(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(b, cin, h, w) and the embedding (b, emb_channels) -> (b, cout, h, w), h and w halved or doubled."""
        h = self.conv0(functional.silu(self.norm0(x)))
        code = self.affine(emb)[:, :, None, None]
        if self.adaptive_scale:
            scale, shift = code.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + code)
        h = self.conv1(functional.silu(h))
        out: Tensor = ((x if self.skip is None else self.skip(x)) + h) * self.skip_scale
        if self.heads:
            out = (out + self.proj(self._attention(self.norm2(out)))) * self.skip_scale
        return out

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # Of the 3 c channels, one head's lie together, and in it each channel's query, key and value.
        qkv = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).unbind(0)
        out = functional.scaled_dot_product_attention(query, key, value)
        return out.transpose(2, 3).reshape(batch, channels, height, width)


class _Frequencies(nn.Module):
    """Random frequencies of the "fourier" features, (features / 2,); a buffer of the files."""

    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(features // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Frequencies":
        # Angles reach hundreds of radians: they stay float32 when the network is made half precision.
        exact = self.freqs
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.freqs = exact if self.freqs.is_meta else exact.to(self.freqs.device)
        return self


def _positional(timestep: Tensor, features: int, *, endpoint: bool) -> Tensor:
    """Angles (b, features / 2) at frequencies from 1 down to 1/10000, which `endpoint` includes."""
    half = features // 2
    powers = torch.arange(half, dtype=torch.float32, device=timestep.device) / (half - int(endpoint))
    return timestep[:, None] * torch.exp(powers * -math.log(_MAX_PERIOD))[None, :]


def _one_hot(class_labels: Tensor, classes: int) -> Tensor:
    """Label vectors float32 (b, classes); a label that is no class, as `classes` itself, gives zeros."""
    return (class_labels[:, None] == torch.arange(classes, device=class_labels.device)[None, :]).float()


def _add_encoder(enc: nn.ModuleDict, options: DhariwalOptions, style: _BlockStyle) -> list[int]:
    """The blocks of an encoder; returns the widths of their outputs, which the decoder takes from the end."""
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
    """What joins the image to a level of the encoder of the given width."""
    side = options.img_resolution >> level
    channels, taps = options.in_channels, options.resample_filter
    if options.encoder_type == "skip":
        enc[f"{side}x{side}_aux_down"] = Conv2d(channels, channels, 0, resample="down", taps=taps)
        enc[f"{side}x{side}_aux_skip"] = Conv2d(channels, width, 1)
    elif options.encoder_type == "residual":
        before = channels if level == 1 else options.levels[level - 2][1]
        enc[f"{side}x{side}_aux_residual"] = Conv2d(before, width, 3, resample="down", taps=taps, filter_last=True)


def _add_decoder(
    dec: nn.ModuleDict, options: DhariwalOptions, style: _BlockStyle, widths: list[int], *, last_only: bool
) -> None:
    """The blocks of a decoder; `last_only`: of a level's blocks, only the last has attention."""
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
    """What a level of the decoder gives to the output: the finest always, the others with decoder "skip"."""
    side, width = options.levels[level]
    channels = options.out_channels
    skip = options.decoder_type == "skip"
    if skip and level < len(options.levels) - 1:
        dec[f"{side}x{side}_aux_up"] = Conv2d(channels, channels, 0, resample="up", taps=options.resample_filter)
    if skip or level == 0:
        dec[f"{side}x{side}_aux_norm"] = GroupNorm(width, 1e-6)
        dec[f"{side}x{side}_aux_conv"] = Conv2d(width, channels, 3)


class SongUNet(nn.Module):
    """DDPM++ and NCSN++; see the module's docstring.

    Args:
        options: Its shape.
    """

    def __init__(self, options: SongOptions) -> None:
        super().__init__()
        self.options = options
        self.noise_channels = options.model_channels * options.channel_mult_noise
        emb = options.model_channels * options.channel_mult_emb
        style = _BlockStyle(
            emb_channels=emb,
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            head_width=0,
            taps=options.resample_filter,
            always_project=True,
        )
        self.map_noise = _Frequencies(self.noise_channels) if options.embedding_type == "fourier" else None
        self.map_label = Linear(options.label_dim, self.noise_channels) if options.label_dim else None
        # Training alone uses it; here it takes the file's parameters, so that none is left over.
        self.map_augment = Linear(options.augment_dim, self.noise_channels, bias=False) if options.augment_dim else None
        self.map_layer0 = Linear(self.noise_channels, emb)
        self.map_layer1 = Linear(emb, emb)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        widths = _add_encoder(self.enc, options, style)
        _add_decoder(self.dec, options, style, widths, last_only=True)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The raw output F; shapes as in the module's docstring."""
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
    """One level of a decoder; takes its skips from the end of the list."""
    for name in ("in0", "in1", "up"):
        if here + name in dec:
            x = dec[here + name](x, emb)
    index = 0
    while f"{here}block{index}" in dec:
        x = dec[f"{here}block{index}"](torch.cat([x, skips.pop()], dim=1), emb)
        index += 1
    return x


class DhariwalUNet(nn.Module):
    """ADM; see the module's docstring.

    Args:
        options: Its shape.
    """

    def __init__(self, options: DhariwalOptions) -> None:
        super().__init__()
        self.options = options
        width = options.model_channels
        emb = width * options.channel_mult_emb
        style = _BlockStyle(
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
        """The raw output F; shapes as in the module's docstring."""
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


def build(options: SongOptions | DhariwalOptions) -> nn.Module:
    """The network of these options, with memory for its parameters but no values, in evaluation mode."""
    made = SongUNet(options) if isinstance(options, SongOptions) else DhariwalUNet(options)
    return made.eval().requires_grad_(False)
