"""Stable Diffusion 1, 2 and XL (Rombach et al., arXiv 2112.10752; Podell et al., arXiv 2307.01952).

The network is a UNet on the latents of an autoencoder, which reads a prompt through the states of text encoders:

    F = UNet(sample, timestep, encoder_hidden_states[class_labels])

with table ``encoder_hidden_states`` (P + 1, length, width): the last states of one CLIP, or, for XL, those before the
last layer of two CLIPs. XL also reads ``text_embeds`` (P + 1, width), the pooled text of the second, and the size at
which an image was cropped and scaled, here (H, W, 0, 0, H, W): an image as it is.

The last row of a table is that of no prompt: the empty prompt, or zeros where an XL pipeline says so
(force_zeros_for_empty_prompt).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdc.bundle import Model, Prompts
from fastdc.support import BundleError, InputError, require

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.folder import ModelFolder  # noqa: E402
from fastdc.sources.latents import LatentEncoder, open_encoder  # noqa: E402
from fastdc.sources.lora import Lora, fuse_lora  # noqa: E402
from fastdc.sources.schedule import schedule_of  # noqa: E402
from fastdc.sources.text import (  # noqa: E402
    LastState,
    PenultimateStates,
    TextSource,
    check_tokens,
    read_tokenizer,
)

PIPELINES = {"StableDiffusionPipeline": "stable-diffusion", "StableDiffusionXLPipeline": "stable-diffusion-xl"}

# Options of a UNet by which it wants inputs that a diffusion classifier has none of, and the value without them.
_NEEDS_MORE: dict[str, Any] = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "cross_attention_norm": None,
}


class TextUNet(nn.Module):
    """diffusers' UNet2DConditionModel, called with rows of a table of prompts."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """F (b, c, h, w) of sample (b, c, h, w), timestep (b,), class_labels int64 (b,) and a table (rows, L, D)."""
        states = encoder_hidden_states.index_select(0, class_labels).to(sample.dtype)
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]
        return out


class TextSizeUNet(nn.Module):
    """The same of Stable Diffusion XL: pooled texts and sizes beside the states.

    Args:
        unet: diffusers' UNet2DConditionModel.
        image_size: (height, width) of images in pixels.
    """

    def __init__(self, unet: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.unet = unet
        # Whole numbers: a cast of the module to bfloat16 would round sizes above 256.
        self.register_buffer("time_ids", torch.tensor([[*image_size, 0, 0, *image_size]]), persistent=False)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
    ) -> Tensor:
        """F (b, c, h, w); as :class:`TextUNet`, and text_embeds (rows, width)."""
        states = encoder_hidden_states.index_select(0, class_labels).to(sample.dtype)
        pooled = text_embeds.index_select(0, class_labels).to(sample.dtype)
        sizes = self.get_buffer("time_ids").float().expand(sample.shape[0], -1)
        more = {"text_embeds": pooled, "time_ids": sizes}
        out: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=states, added_cond_kwargs=more, return_dict=False
        )[0]
        return out


def open_stable_diffusion(
    folder: ModelFolder | str | Path,
    *,
    prompts: Prompts,
    image_size: int | tuple[int, int] | None = None,
    lora: Sequence[Lora] = (),
) -> Source:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline in diffusers' format.

    Args:
        folder: The pipeline.
        prompts: What the model is asked to tell apart.
        image_size: Side or (height, width) of images in pixels; default what the UNet was trained for.
        lora: LoRAs to merge into the UNet and the text encoders.

    Raises:
        InputError: The size is none that the autoencoder can halve as often as it does.
        BundleError: The folder is another pipeline, is broken, or has a network that wants inputs of another kind.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    folder = ModelFolder.open(folder)
    family = PIPELINES.get(folder.pipeline)
    if family is None:
        raise BundleError(f"expected one of {', '.join(PIPELINES)}, got {folder.pipeline}")
    large = family == "stable-diffusion-xl"
    names = ("text_encoder", "text_encoder_2") if large else ("text_encoder",)
    unet, encoder = load_network(folder, "unet", "UNet2DConditionModel"), load_encoder(folder)
    _check_unet(unet.config, encoder.channels, large)
    clips = {name: load_clip(folder, name, pooled=name == "text_encoder_2") for name in names}
    fuse_lora(folder.pipeline, {"unet": unet, **clips}, lora)
    sides = image_sides(image_size, unet.config["sample_size"], factor=encoder.factor, multiple=encoder.factor)
    if large:
        module: nn.Module = PenultimateStates(*clips.values())
        denoiser: nn.Module = TextSizeUNet(unet, sides)
    else:
        module, denoiser = LastState(*clips.values()), TextUNet(unet)
    text = TextSource(
        tokenizers=tuple(clip_tokenizer(folder, name, clips[name]) for name in names),
        module=_frozen(module),
        names=("encoder_hidden_states", "text_embeds") if large else ("encoder_hidden_states",),
        null_is_zero=large and bool(folder.index.get("force_zeros_for_empty_prompt", True)),
    )
    tables = text.tables(prompts.texts)
    width = tables["encoder_hidden_states"].shape[-1]
    if width != unet.config["cross_attention_dim"]:
        raise BundleError(f"the unet reads texts of width {unet.config['cross_attention_dim']}, they have {width}")
    return Source(
        family=family,
        model=text_model(folder, prompts, sides, encoder),
        denoiser=_frozen(denoiser),
        tables=tables,
        encoder=encoder,
        text=text,
        provenance=provenance(folder, lora),
    )


def _check_unet(config: Mapping[str, Any], channels: int, large: bool) -> None:
    for name, plain in _NEEDS_MORE.items():
        if config.get(name) != plain:
            raise BundleError(f"a unet with {name} = {config[name]!r:.40} needs inputs that a classifier has not")
    added = "text_time" if large else None
    if config.get("addition_embed_type") != added:
        raise BundleError(f"the unet must have addition_embed_type {added}, got {config['addition_embed_type']!r:.40}")
    for name in ("in_channels", "out_channels"):
        if config[name] != channels:
            raise BundleError(f"the unet must have {channels} {name}, as the latents, got {config[name]}")


def load_network(folder: ModelFolder, name: str, kind: str) -> Any:
    """A network of diffusers from a folder."""
    diffusers = require("diffusers", extra="export")
    return folder.component(name, {kind: getattr(diffusers, kind)})


def load_encoder(folder: ModelFolder) -> LatentEncoder:
    """The encoder of a folder's autoencoder, which must read colour images."""
    channels = folder.config("vae").get("in_channels", 3)
    if channels != 3:
        raise BundleError(f"{folder.name}: the vae must read 3 channels, got {channels!r:.40}")
    return open_encoder(folder)


def load_clip(folder: ModelFolder, name: str, *, pooled: bool) -> Any:
    """A CLIP text encoder of a folder; `pooled`: one with a projection of the pooled text."""
    transformers = require("transformers", extra="export")
    kind = "CLIPTextModelWithProjection" if pooled else "CLIPTextModel"
    encoder = folder.component(name, {kind: getattr(transformers, kind)})
    if getattr(encoder.config, "use_attention_mask", False):
        raise BundleError(f"{name} wants an attention mask, which is not supported")
    return encoder


def clip_tokenizer(folder: ModelFolder, name: str, encoder: nn.Module, *, length: int | None = None) -> str:
    """The tokenizer that belongs to a text encoder, as JSON; `length` as in ``read_tokenizer``."""
    tokenizer = read_tokenizer(*tokenizer_of(folder, name), length=length)
    check_tokens(tokenizer, encoder, name)
    return tokenizer


def tokenizer_of(folder: ModelFolder, name: str) -> tuple[Path, str]:
    """Folder and class name of the tokenizer that belongs to a text encoder."""
    name = name.replace("text_encoder", "tokenizer")
    return folder.folder(name), folder.class_of(name)


def image_sides(
    image_size: int | tuple[int, int] | None, native: int | Sequence[int], *, factor: int, multiple: int
) -> tuple[int, int]:
    """(height, width) of images in pixels.

    Args:
        image_size: What was asked for; None: `native` times `factor`.
        native: Side or sides of the latents that the network was trained on.
        factor: Pixels that a side of a latent stands for.
        multiple: What sides must be divisible by.

    Raises:
        InputError: They are not.
    """
    if image_size is None:
        image_size = native * factor if isinstance(native, int) else (native[0] * factor, native[1] * factor)
    sides = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    if min(sides) < multiple or any(side % multiple for side in sides):
        raise InputError(f"image_size must be divisible by {multiple}, got {sides[0]} x {sides[1]}")
    return sides


def text_model(folder: ModelFolder, prompts: Prompts, sides: tuple[int, int], encoder: LatentEncoder) -> Model:
    """What fastdc must know of a text-conditional latent model."""
    schedule, parameterization = schedule_of(folder.config("scheduler"))
    return Model(
        name=folder.name,
        image_shape=(3, *sides),
        latent_shape=(encoder.channels, sides[0] // encoder.factor, sides[1] // encoder.factor),
        class_names=prompts.class_names,
        prompts=prompts.texts,
        class_of=prompts.class_of,
        schedule=schedule,
        parameterization=parameterization,
        null_class=len(prompts),
    )


def provenance(folder: ModelFolder, lora: Sequence[Lora]) -> dict[str, str | int | float]:
    """Where a text-conditional model comes from."""
    found: dict[str, str | int | float] = {"pipeline": folder.pipeline, "source": folder.name}
    if lora:
        found["lora"] = ", ".join(str(one) for one in lora)
    return found


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
