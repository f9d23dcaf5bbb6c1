"""Latents: the arrays that latent diffusion models (Rombach et al., arXiv 2112.10752) work on instead of images.

    z = (mean of q(z | x) - shift) * scaling

Here q is the autoencoder's posterior; its config gives the shift and the scaling, which bring z to about unit variance.
Training samples from q. fastdc uses the mean: it needs no noise, so an image has the same latents in every run, and it
differs little from a sample, because the posterior's spread is a small fraction of z's.
"""

from typing import Any

from fastdc.support import BundleError, checks, require, shown

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.folder import FolderLike, ModelFolder  # noqa: E402


class LatentEncoder(nn.Module):
    """Turns images (b, 3, H, W) in [-1, 1] into latents (b, c, H / f, W / f).

    Args:
        vae: diffusers' AutoencoderKL.

    Raises:
        BundleError: The scaling or the shift is not a number, or the autoencoder normalises latents in another way.

    Attributes:
        factor: The factor f by which the autoencoder divides sides.
        channels: The number c of channels.
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
        # The decoder, half of the weights, is never used and not kept.
        self.encoder: nn.Module = vae.encoder
        self.quant_conv: nn.Module = nn.Identity() if vae.quant_conv is None else vae.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        """The latents (b, c, H / f, W / f)."""
        moments: Tensor = self.quant_conv(self.encoder(pixels))
        mean = moments[:, : self.channels]
        return (mean - self.shift) * self.scaling


class LatentDecoder(nn.Module):
    """Turns latents (b, c, h, w), as :class:`LatentEncoder` makes them, into images (b, 3, H, W) in [-1, 1] or so.

    Args:
        vae: diffusers' AutoencoderKL.

    Raises:
        BundleError: As for :class:`LatentEncoder`.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        encoder = LatentEncoder(vae)
        self.scaling, self.shift = encoder.scaling, encoder.shift
        self.decoder: nn.Module = vae.decoder
        self.post_quant_conv: nn.Module = nn.Identity() if vae.post_quant_conv is None else vae.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        """The images, which are not clipped."""
        pixels: Tensor = self.decoder(self.post_quant_conv(latents / self.scaling + self.shift))
        return pixels


def open_encoder(folder: ModelFolder) -> LatentEncoder:
    """Opens the encoder of a pipeline's AutoencoderKL, the component "vae", which must take colour images.

    Raises:
        BundleError: The component is missing or of another class, or its weights cannot be used.
    """
    return LatentEncoder(_vae_of(folder)).eval().requires_grad_(False)


def open_decoder(path: FolderLike) -> LatentDecoder:
    """Opens the decoder of a latent diffusion model, for a bundle that can draw its samples.

    Args:
        path: A pipeline's folder or that of an AutoencoderKL, or "hf://org/name[@revision]" of the HF hub.

    Returns:
        The decoder, in evaluation mode and without gradients.

    Raises:
        InputError: The folder does not exist, or cannot be fetched.
        BundleError: It has no AutoencoderKL that can be used.

    Example:
        >>> from fastdc import sources, testing
        >>> sources.open_decoder(testing.tiny_dit(folder / "dit")).training
        False
    """
    folder = ModelFolder.open(path).ready(networks=("vae",))
    return LatentDecoder(_vae_of(folder)).eval().requires_grad_(False)


def _vae_of(folder: ModelFolder) -> Any:
    """A pipeline's AutoencoderKL, which must take colour images.

    Raises:
        BundleError: The component is missing or of another class, or its weights cannot be used.
    """
    channels = folder.config("vae").get("in_channels", 3)
    if channels != 3:
        raise BundleError(f"{folder.name}: the vae must read 3 channels, got {shown(channels, 40)}")
    require("diffusers", extra="export")
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return folder.component("vae", {"AutoencoderKL": AutoencoderKL})


def open_vae(path: FolderLike) -> tuple[LatentEncoder, dict[str, str | int | float]]:
    """Opens the image encoder of a latent diffusion model alone, for a network of one's own on its latents.

    Args:
        path: A pipeline's folder or that of an AutoencoderKL, or "hf://org/name[@revision]" of the HF hub, of which
            nothing else is fetched.

    Returns:
        The encoder, in evaluation mode and without gradients, and its origin as plain values.

    Raises:
        InputError: The folder does not exist, or cannot be fetched.
        BundleError: It has no AutoencoderKL that can be used, or one that does not read colour images.

    Example:
        >>> from fastdc import sources, testing
        >>> sources.open_vae(testing.tiny_dit(folder / "dit"))[0].factor
        2
    """
    folder = ModelFolder.open(path).ready(networks=("vae",))
    return open_encoder(folder), folder.provenance(networks=("vae",))


def _number(value: Any, name: str) -> float:
    if not checks.is_finite(value):
        raise BundleError(f"vae: {name} must be a number, got {shown(value)}")
    return float(value)
