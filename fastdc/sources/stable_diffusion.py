"""Stable Diffusion 1, 2 and XL (Rombach et al., arXiv 2112.10752; Podell et al., arXiv 2307.01952).

The network is a UNet on the latents of an autoencoder. It reads a prompt as the hidden states of text encoders:

    F = UNet(sample, timestep, encoder_hidden_states[class_labels])

The table ``encoder_hidden_states`` (P + 1, length, width) holds the last states of one CLIP or, for XL, the states
before the last layer of two CLIPs. XL also reads ``text_embeds`` (P + 1, width), the pooled text of the second CLIP,
and the size to which an image was scaled and cropped, here (H, W, 0, 0, H, W): an unchanged image.

The last row of a table belongs to the empty prompt; it is zero if an XL pipeline says so
(force_zeros_for_empty_prompt).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdc.bundle import Defaults, Model, Prompts
from fastdc.support import BundleError, checks, require, shown

require("torch", extra="export")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.folder import FolderLike, ModelFolder  # noqa: E402
from fastdc.sources.image_size import ImageSize, image_sides  # noqa: E402
from fastdc.sources.latents import LatentEncoder, open_encoder  # noqa: E402
from fastdc.sources.lora import Lora, fuse_lora  # noqa: E402
from fastdc.sources.pipelines import PLAIN, family_of  # noqa: E402
from fastdc.sources.schedule import schedule_of  # noqa: E402
from fastdc.sources.text import (  # noqa: E402
    LastState,
    PenultimateStates,
    TextSource,
    check_tokens,
    read_tokenizer,
)

FAMILIES = ("stable-diffusion", "stable-diffusion-xl")

# Options of a UNet for inputs that a diffusion classifier does not have, with their values if the UNet needs none.
_NEEDS_MORE: dict[str, Any] = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "cross_attention_norm": None,
}


class TextUNet(nn.Module):
    """diffusers' UNet2DConditionModel, called with rows of a prompt table.

    Args:
        unet: The network.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """F (b, c, h, w) for sample (b, c, h, w), timestep (b,), class_labels int64 (b,) and a table (rows, L, D)."""
        states = encoder_hidden_states.index_select(0, class_labels).to(sample.dtype)
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]
        return out


class TextSizeUNet(nn.Module):
    """diffusers' UNet2DConditionModel of Stable Diffusion XL, which also takes pooled texts and image sizes.

    Args:
        unet: The network.
        image_size: Pair (height, width) of the images in pixels.
    """

    def __init__(self, unet: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.unet = unet
        # Stored as integers, because a cast of the module to bfloat16 would round sizes above 256.
        self.register_buffer("time_ids", torch.tensor([[*image_size, 0, 0, *image_size]]), persistent=False)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
    ) -> Tensor:
        """F (b, c, h, w) for the inputs of :class:`TextUNet` and the table text_embeds (rows, width)."""
        states = encoder_hidden_states.index_select(0, class_labels).to(sample.dtype)
        pooled = text_embeds.index_select(0, class_labels).to(sample.dtype)
        sizes = self.get_buffer("time_ids").float().expand(sample.shape[0], -1)
        more = {"text_embeds": pooled, "time_ids": sizes}
        out: Tensor = self.unet(
            sample, timestep, encoder_hidden_states=states, added_cond_kwargs=more, return_dict=False
        )[0]
        return out


def open_stable_diffusion(
    folder: FolderLike,
    *,
    prompts: Prompts,
    image_size: ImageSize = None,
    lora: Sequence[Lora] = (),
) -> Source:
    """Opens a StableDiffusionPipeline, a StableDiffusionXLPipeline or a variant with the same networks.

    Args:
        folder: The pipeline's folder, or a model of the hub.
        prompts: The prompts that describe the classes.
        image_size: Side or (height, width) of the images in pixels; default: the size that the UNet was trained on.
        lora: LoRAs to merge into the UNet and the text encoders.

    Raises:
        InputError: The sides are not divisible by the autoencoder's factor, or prompts of two classes become the same
            tokens.
        BundleError: The folder holds another pipeline, is broken, or has a network that needs other inputs.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    folder = ModelFolder.open(folder)
    family = family_of(folder.pipeline)
    if family not in FAMILIES:
        raise BundleError(f"expected Stable Diffusion 1, 2 or XL, got {folder.pipeline}")
    folder = folder.ready()
    if folder.index.get("requires_aesthetics_score"):
        raise BundleError(f"{folder.name} is a refiner, which reads an aesthetic score: expected a base model")
    large = family == "stable-diffusion-xl"
    names = ("text_encoder", "text_encoder_2") if large else ("text_encoder",)
    unet, encoder = load_network(folder, "unet", "UNet2DConditionModel"), open_encoder(folder)
    _check_unet(unet.config, encoder.channels, large)
    clips = {name: load_clip(folder, name, pooled=name == "text_encoder_2") for name in names}
    fuse_lora(PLAIN[family], {"unet": unet, **clips}, lora)
    sides = image_sides(image_size, unet.config["sample_size"], scale=encoder.factor, multiple=encoder.factor)
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
    text.check(prompts)
    tables = text.tables(prompts.texts)
    width, expected = tables["encoder_hidden_states"].shape[-1], unet.config["cross_attention_dim"]
    if width != expected:
        raise BundleError(f"the unet reads texts of width {expected}, but they have width {width}")
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
    """Refuses a UNet that needs other inputs than a prompt, or other latents than the autoencoder's."""
    for name, plain in _NEEDS_MORE.items():
        if config.get(name) != plain:
            raise BundleError(
                f"a unet with {name} = {shown(config[name], 40)} needs inputs that a classifier does not have"
            )
    added = "text_time" if large else None
    if config.get("addition_embed_type") != added:
        raise BundleError(
            f"the unet must have addition_embed_type {added}, got {shown(config['addition_embed_type'], 40)}"
        )
    check_further_channels("unet", config["in_channels"], channels)
    for name in ("in_channels", "out_channels"):
        if config[name] != channels:
            raise BundleError(f"the unet must have {channels} {name}, as the latents, got {config[name]}")


def check_further_channels(name: str, taken: Any, channels: int) -> None:
    """Refuses a network that reads further channels beside the latents, as for inpainting."""
    if checks.is_whole(taken) and taken > channels:
        raise BundleError(
            f"the {name} reads {taken} channels, {taken - channels} more than the latents: models for inpainting, "
            "depth or editing that read a mask or another image cannot be exported"
        )


def load_network(folder: ModelFolder, name: str, kind: str) -> Any:
    """The network `name` of a folder, which must be of the diffusers class `kind`."""
    diffusers = require("diffusers", extra="export")
    return folder.component(name, {kind: getattr(diffusers, kind)})


def load_clip(folder: ModelFolder, name: str, *, pooled: bool) -> Any:
    """A CLIP text encoder of a folder; with `pooled`, one that projects the pooled text."""
    transformers = require("transformers", extra="export")
    kind = "CLIPTextModelWithProjection" if pooled else "CLIPTextModel"
    encoder = folder.component(name, {kind: getattr(transformers, kind)})
    if getattr(encoder.config, "use_attention_mask", False):
        raise BundleError(f"{name} needs an attention mask, which is not supported")
    return encoder


def clip_tokenizer(folder: ModelFolder, name: str, encoder: nn.Module, *, length: int | None = None) -> str:
    """The tokenizer of a text encoder as JSON; `length` as in :func:`read_tokenizer`."""
    tokenizer = read_tokenizer(*tokenizer_of(folder, name), length=length)
    check_tokens(tokenizer, encoder, name)
    return tokenizer


def tokenizer_of(folder: ModelFolder, name: str) -> tuple[Path, str]:
    """The folder and the class name of a text encoder's tokenizer."""
    name = name.replace("text_encoder", "tokenizer")
    return folder.folder(name), folder.class_of(name)


def text_model(
    folder: ModelFolder,
    prompts: Prompts,
    sides: tuple[int, int],
    encoder: LatentEncoder,
    *,
    weighting: str = "uniform",
) -> Model:
    """The description of a text-conditional model on latents, with its default weighting."""
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
        defaults=Defaults(weighting=weighting),
    )


def provenance(folder: ModelFolder, lora: Sequence[Lora]) -> dict[str, str | int | float]:
    """The origin of a text-conditional model."""
    found = folder.provenance()
    if lora:
        found["lora"] = ", ".join(str(one) for one in lora)
    return found


def _frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)
