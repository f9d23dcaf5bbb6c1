"""Latents against AutoencoderKL's own encode and its posterior's samples; unusable configs are refused."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from pathlib import Path  # noqa: E402

from fastdc import BundleError  # noqa: E402
from fastdc.sources.folder import ModelFolder  # noqa: E402
from fastdc.sources.latents import LatentDecoder, LatentEncoder, open_encoder  # noqa: E402
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_unet2d, tiny_vae  # noqa: E402
from helpers.worlds import assert_one_line  # noqa: E402


def pixels(n: int = 2, side: int = 16) -> Any:
    return 2 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(5)) - 1


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"scaling_factor": 0.13025},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False},
        {"latent_channels": 3},
        {"block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3,
         "up_block_types": ("UpDecoderBlock2D",) * 3},
    ],
    ids=["1.x", "xl", "3", "three channels", "factor 4"],
)  # fmt: skip
def test_latents_are_the_posteriors_mean(config: dict[str, Any]) -> None:
    channels = config.pop("latent_channels", 4)
    vae = tiny_vae(channels=channels, **config)
    encoder, x = LatentEncoder(vae), pixels()
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean.double()
        latents = encoder(x)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    assert (encoder.factor, encoder.channels) == (factor, channels)
    assert latents.shape == (2, channels, 16 // factor, 16 // factor)
    expected = (mean - config.get("shift_factor", 0.0)) * vae.config.scaling_factor
    np.testing.assert_allclose(latents.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert float(latents.std()) > 0.01  # not all zero


@pytest.mark.parametrize(
    "config", [{}, {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_post_quant_conv": False}]
)
def test_decoded_latents_are_the_autoencoders_images(config: dict[str, Any]) -> None:
    vae = tiny_vae(**config)
    with torch.no_grad():
        mean = vae.encode(pixels()).latent_dist.mean
        expected = vae.decode(mean).sample
        made = LatentDecoder(vae)(LatentEncoder(vae)(pixels()))
    np.testing.assert_allclose(made.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_samples_average_to_the_mean() -> None:
    vae = tiny_vae()
    x = pixels(1)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        draws = torch.stack([posterior.sample(torch.Generator().manual_seed(seed)) for seed in range(400)])
        latents = LatentEncoder(vae)(x) / vae.config.scaling_factor
    # Six standard errors: a chance of one in a billion per number.
    bound = 6 * posterior.std / np.sqrt(400)
    assert ((draws.mean(dim=0) - latents).abs() <= bound).all()


def test_the_decoder_is_not_kept(tmp_path: Path) -> None:
    folder = ModelFolder.open(tiny_dit(tmp_path / "m"))
    encoder = open_encoder(folder)
    vae = tiny_vae()
    used = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in used)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        np.testing.assert_allclose(encoder(pixels()).numpy(), LatentEncoder(vae)(pixels()).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scaling_factor": "0.18"}, "vae: scaling_factor must be a number, got '0.18'"),
        ({"scaling_factor": None}, "vae: scaling_factor must be a number, got None"),
        ({"scaling_factor": 0.0}, "vae: scaling_factor must not be 0"),
        ({"shift_factor": True}, "vae: shift_factor must be a number, got True"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "a mean and a spread for each channel"),
    ],
)
def test_configs_that_cannot_be_used_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        LatentEncoder(tiny_vae(**config))
    assert_one_line(caught.value, message)


def test_a_folder_without_an_autoencoder(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_encoder(ModelFolder.open(tiny_unet2d(tmp_path / "m")))
    assert_one_line(caught.value, "m has no component 'vae'")
