"""The layers of EDM's networks: linear maps, normalisations, convolutions that resample, and residual blocks.

A block receives (noise level, class) as an embedding:

    h = conv0(silu(norm0(x))), resampled on the way down or up
    h = conv1(silu(norm1(h + affine(emb))))                     SongUNet
    h = conv1(silu((1 + scale) norm1(h) + shift))               DhariwalUNet, (scale, shift) = affine(emb)
    x = (skip(x) + h) s;  with attention x = (x + proj(attention(norm2(x)))) s

Here s = sqrt(1/2) in SongUNet and 1 in DhariwalUNet (Karras et al., arXiv 2206.00364, appendix F and table 7). The
modules have the names of NVlabs' files, so that the files' parameters load strictly; the code is our own.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fastdc.support import BundleError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402


class Linear(nn.Module):
    """The linear map x W^T + b."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps features (b, in_features) to (b, out_features)."""
        return functional.linear(x, self.weight, self.bias)


class GroupNorm(nn.Module):
    """Normalises at most 32 groups of at least 4 channels each."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups = min(32, channels // 4)
        if self.groups < 1 or channels % self.groups:
            raise BundleError(f"normalisation in {self.groups} groups needs a width that they divide, got {channels}")
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises, scales and shifts x (b, channels, h, w)."""
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Conv2d(nn.Module):
    """A convolution that keeps the size, preceded by a resampling by 2 if `resample` is "up" or "down".

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        kernel: Odd side of the kernel; 0: resample only.
        resample: Direction of the resampling: "up", "down", or "" for none.
        taps: One side of the resampling filter.
        filter_last: With "down", filter after the convolution instead of before it. The padding of both is then applied
            at once, before the convolution, so the border differs as well.
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
            # The files hold it as a buffer (1, 1, n, n) with sum 1.
            self.register_buffer("resample_filter", torch.empty(1, 1, len(taps), len(taps)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b, in_channels, h, w) to (b, out_channels, h, w), with h and w halved or doubled by a resampling."""
        if self.filter_last and self.weight is not None:
            x = functional.conv2d(x, self.weight, padding=self.padding + self.filter_padding)
            x = self._shrunk(x, padding=0)
            return x if self.bias is None else x + self.bias[:, None, None]
        if self.resample == "down":
            x = self._shrunk(x, padding=self.filter_padding)
        if self.resample == "up":
            # The zeros between the pixels remove three quarters of the sum; the factor 4 restores it.
            kernels = (4 * self.resample_filter).expand(x.shape[1], -1, -1, -1)
            x = functional.conv_transpose2d(x, kernels, stride=2, padding=self.filter_padding, groups=x.shape[1])
        if self.weight is not None:
            x = functional.conv2d(x, self.weight, self.bias, padding=self.padding)
        return x

    def _shrunk(self, x: Tensor, padding: int) -> Tensor:
        """Filters each channel and keeps every second pixel."""
        kernels = self.resample_filter.expand(x.shape[1], -1, -1, -1)
        return functional.conv2d(x, kernels, stride=2, padding=padding, groups=x.shape[1])


@dataclass(frozen=True)
class BlockStyle:
    """The properties that all blocks of one network share.

    Attributes:
        emb_channels: Width of the embedding.
        adaptive_scale: Whether the embedding gives a scale and a shift instead of a shift alone.
        skip_scale: The factor s.
        eps: Constant added to the variance in normalisations.
        head_width: Number of channels per attention head; 0: a single head.
        taps: One side of the resampling filter.
        always_project: Whether a resampled skip has a 1x1 convolution even if the width stays the same.
    """

    emb_channels: int
    adaptive_scale: bool
    skip_scale: float
    eps: float
    head_width: int
    taps: tuple[int, ...]
    always_project: bool


class UNetBlock(nn.Module):
    """A residual block, as in the module's docstring.

    Args:
        cin: Number of channels of the input.
        cout: Number of channels of the output.
        style: Properties shared by the blocks of the network.
        resample: Direction of a resampling by 2: "up", "down", or "" for none.
        attention: Whether the block ends with self-attention.
    """

    def __init__(self, cin: int, cout: int, *, style: BlockStyle, resample: str = "", attention: bool = False) -> None:
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
        """Maps x (b, cin, h, w) and the embedding (b, emb_channels) to (b, cout, h, w), h and w halved or doubled."""
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
        """Self-attention over the pixels of x (b, c, h, w)."""
        batch, channels, height, width = x.shape
        # The 3 c channels are ordered by head, then by channel, then query, key and value.
        qkv = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).unbind(0)
        out = functional.scaled_dot_product_attention(query, key, value)
        return out.transpose(2, 3).reshape(batch, channels, height, width)


class Frequencies(nn.Module):
    """The random frequencies (features / 2,) of the "fourier" features, a buffer of the files."""

    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(features // 2))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Frequencies":
        # Angles reach hundreds of radians, so frequencies stay float32 when the network is cast to half precision.
        exact = self.freqs
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.freqs = exact if self.freqs.is_meta else exact.to(self.freqs.device)
        return self
