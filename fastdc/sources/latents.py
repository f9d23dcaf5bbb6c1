"""Latents: what latent diffusion models (Rombach et al., arXiv 2112.10752) work on instead of images.

    z = (mean of q(z | x) - shift) * scaling

with q the autoencoder's posterior, and the shift and the scaling of its config, which give z about unit variance. A
pipeline that trains takes a sample of q; the mean needs no noise and differs from a sample by little, since the
posterior's spread is a small fraction of z's. So the same image has the same latents in every run.
"""

import math
from typing import Any

from fastdc.support import BundleError, require

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.folder import ModelFolder  # noqa: E402


class LatentEncoder(nn.Module):
    """Images (b, 3, H, W) in [-1, 1] -> latents (b, c, H / f, W / f).

    Args:
        vae: diffusers' AutoencoderKL.

    Raises:
        BundleError: Its scaling or shift is no number, or it normalises latents in another way.

    Attributes:
        factor: f, by which the autoencoder divides sides.
        channels: c.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        config = vae.config
        if getattr(config, "latents_mean", None) is not None or getattr(config, "latents_std", None) is not None:
            raise BundleError("vae: a mean and a spread for each channel are not supported: expected scaling_factor")
        self.scaling = _number(getattr(config, "scaling_factor", None), "scaling_factor")
        shift = getattr(config, "shift_factor", None)
        self.shift = 0.0 if shift is None else _number(shift, "shift_factor")
        if self.scaling == 0:
            raise BundleError("vae: scaling_factor must not be 0")
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.channels: int = int(config.latent_channels)
        # The decoder is not kept: half of the weights, and never used.
        self.encoder: nn.Module = vae.encoder
        self.quant_conv: nn.Module = nn.Identity() if vae.quant_conv is None else vae.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        """The latents."""
        moments: Tensor = self.quant_conv(self.encoder(pixels))
        mean = moments[:, : self.channels]
        return (mean - self.shift) * self.scaling


def open_encoder(folder: ModelFolder) -> LatentEncoder:
    """The encoder of a pipeline's AutoencoderKL, component "vae".

    Raises:
        BundleError: There is none, of another class, or its weights cannot be used.
    """
    require("diffusers", extra="export")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = folder.component("vae", {"AutoencoderKL": AutoencoderKL})
    return LatentEncoder(vae).eval().requires_grad_(False)


def _number(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise BundleError(f"vae: {name} must be a number, got {value!r:.80}")
    return float(value)
