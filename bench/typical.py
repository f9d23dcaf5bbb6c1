"""Networks of every family for benchmarks, with random weights and of a size that suits a CPU.

Each is a published architecture with reduced widths, heads and depth, so that an evaluation takes some GFLOP. Blocks,
attention and the lengths of texts are unchanged, because they determine what a split saves and which operators take the
time. Weights affect neither; biases and norms are random, so that exporters cannot fold them away.

The conditions of text models are tables of random numbers instead of prompts: no benchmark times a text encoder.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from fastdc.bundle import DATA, DENOISER, Bundle, Model, write_bundle
from fastdc.diffusion import AbstractSchedule, DiscreteSchedule, EDMSchedule, FlowSchedule, Parameterization, make_plan
from fastdc.export import denoiser, export_source
from fastdc.export.int8_graph import calibration_feeds, quantize_graph
from fastdc.inference import plan_config
from fastdc.sources import Source
from fastdc.sources.base import Tables
from fastdc.sources.class_conditional import DiTDenoiser, UNet2DDenoiser
from fastdc.sources.edm_networks import build
from fastdc.sources.edm_options import options_from
from fastdc.sources.stable_diffusion import TextUNet
from fastdc.sources.stable_diffusion_3 import JointTransformer
from random_weights import fill

CONDITIONS = 64  # conditions of every network, without "no class"
TOKENS = 77  # length of a prompt, as for CLIP

_FEW_FLOPS = 1e11  # limits the comparison with torch to batches of 1 and 3


class FromLatents(nn.Module):
    """A stand-in for an encoder, which no benchmark times: latents are channels of the image."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels, pixels[:, :1]], dim=1)


def unet2d() -> Source:
    """UNet2DModel on 32 x 32 images with attention at 16 x 16, like the published ones for CIFAR-10."""
    network = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=16,
        num_class_embeds=CONDITIONS + 1,
    )
    return _source("unet2d", UNet2DDenoiser(network, 3, conditional=True), (3, 32, 32), _ddpm())


def dit() -> Source:
    """DiT-S/2 on latents of 16 x 16."""
    network = diffusers.DiTTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=8,
        num_layers=12,
        num_attention_heads=6,
        attention_head_dim=64,
        num_embeds_ada_norm=CONDITIONS,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    return _source("dit", DiTDenoiser(network, 4), (4, 16, 16), _ddpm())


def stable_diffusion() -> Source:
    """The UNet of Stable Diffusion 1.x at a tenth of its width, on latents of 32 x 32."""
    network = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64, 128, 128),
        cross_attention_dim=128,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    tables = _tables(encoder_hidden_states=(TOKENS, 128))
    return _source("stable-diffusion", TextUNet(network), (4, 32, 32), _ddpm(0.00085, 0.012, "scaled_linear"), tables)


def stable_diffusion_3() -> Source:
    """The transformer of Stable Diffusion 3 at a quarter of its blocks and of its width, on latents of 16 x 16."""
    network = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=64,
        joint_attention_dim=512,
        caption_projection_dim=384,
        pooled_projection_dim=256,
        pos_embed_max_size=24,
    )
    tables = _tables(encoder_hidden_states=(TOKENS, 512), pooled_projections=(256,))
    return _source("stable-diffusion-3", JointTransformer(network, 0), (4, 16, 16), FlowSchedule(shift=3.0), tables)


def song() -> Source:
    """EDM's DDPM++ for CIFAR-10 at half its width, with one block per level instead of four."""
    options = {
        "img_resolution": 32,
        "in_channels": 3,
        "out_channels": 3,
        "label_dim": CONDITIONS,
        "label_dropout": 0.1,
        "model_channels": 64,
        "channel_mult": [2, 2, 2],
        "num_blocks": 1,
        "attn_resolutions": [16],
    }
    schedule = EDMSchedule(sigma_min=0.002, sigma_max=80.0, timestep_scale=0.25)
    network = build(options_from("SongUNet", options))
    fill(network)
    return _source("edm", network, (3, 32, 32), schedule)


NETWORKS: dict[str, Callable[[], Source]] = {
    "UNet2D": unet2d,
    "DiT-S/2": dit,
    "SD-like": stable_diffusion,
    "SD3-like": stable_diffusion_3,
    "SongUNet": song,
}
"""Functions that make the networks, by the names in tables."""


def open_network(name: str) -> Source:
    """One of :data:`NETWORKS`, with the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]()


@contextmanager
def exported(source: Source, *, split: bool) -> Iterator[Bundle]:
    """The bundle of a network, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(denoiser, "_CHECK_FLOPS", _FEW_FLOPS):
        yield export_source(source, Path(folder) / "bundle", split=split, text=False)


@contextmanager
def quantised(source: Source, bundle: Bundle, *, images: int = 4) -> Iterator[Bundle]:
    """The bundle in int8, calibrated on random images at four levels."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (images, *source.model.sample_shape)).astype(np.float32)
    rows = make_plan(source.model.schedule, source.model.parameterization, plan_config(source.model, {"draws": 4})).rows
    levels = [(float(row[0]), float(row[1]), float(row[7])) for row in rows]
    feeds = calibration_feeds(x, levels, CONDITIONS, tables=source.tables)
    others = {name: bundle.read(name) for name in bundle.files if name not in (DENOISER, DATA)}
    content = quantize_graph(bundle.read(DENOISER), feeds)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("format", "files")}
    with tempfile.TemporaryDirectory() as folder:
        yield write_bundle(Path(folder) / "bundle", {**manifest, "precision": "int8"}, {**others, DENOISER: content})


def _source(
    family: str,
    network: nn.Module,
    shape: tuple[int, int, int],
    schedule: AbstractSchedule,
    tables: Tables | None = None,
) -> Source:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    kinds = {"edm": Parameterization("edm", sigma_data=0.5), "stable-diffusion-3": Parameterization("flow")}
    latent = shape[0] == 4
    return Source(
        family=family,
        model=Model(
            name=family,
            image_shape=(3, *shape[1:]),
            latent_shape=shape if latent else None,
            class_names=tuple(f"class {k}" for k in range(CONDITIONS)),
            schedule=schedule,
            parameterization=kinds.get(family, Parameterization("epsilon")),
            null_class=CONDITIONS,
        ),
        denoiser=network.eval().requires_grad_(False),
        tables=tables or {},
        encoder=FromLatents() if latent else None,
    )


def _ddpm(start: float = 0.0001, end: float = 0.02, kind: str = "linear") -> AbstractSchedule:
    return DiscreteSchedule(num_train_timesteps=1000, beta_start=start, beta_end=end, beta_schedule=kind)


def _tables(**shapes: tuple[int, ...]) -> Tables:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {name: rng.standard_normal((CONDITIONS + 1, *shape)) for name, shape in shapes.items()}
    return {name: table.astype(np.float32) for name, table in made.items()}
