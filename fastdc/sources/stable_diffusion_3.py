"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206): a transformer on latents, trained by flow matching.

    F = transformer(sample, timestep, encoder_hidden_states[class_labels], pooled_projections[class_labels])

Here x_t = (1 - t) x + t e, the time input is 1000 t, and F estimates the velocity e - x; by default its error counts
alike at all levels. The table ``encoder_hidden_states`` (P + 1, tokens, width) holds the states of two CLIPs side by
side, padded with zeros to T5's width, and then T5's states; ``pooled_projections`` (P + 1, width) holds the pooled
texts of the CLIPs. A folder may come without T5, which has more weights than all other parts together. The pipeline
then reads zeros in place of T5's states. The zeros are the same for all prompts, so the table leaves them out and the
denoiser adds them.

The transformer's position codes are a table of pos_embed_max_size squared; the size of the latents is cut from its
middle.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastdc.bundle import Prompts
from fastdc.support import BundleError, InputError, require

require("torch", extra="export")

from torch import Tensor, nn  # noqa: E402

from fastdc.sources.base import Source  # noqa: E402
from fastdc.sources.folder import FolderLike, ModelFolder  # noqa: E402
from fastdc.sources.image_size import ImageSize, image_sides  # noqa: E402
from fastdc.sources.latents import open_encoder  # noqa: E402
from fastdc.sources.lora import Lora, fuse_lora  # noqa: E402
from fastdc.sources.pipelines import PLAIN, family_of  # noqa: E402
from fastdc.sources.stable_diffusion import (  # noqa: E402
    check_further_channels,
    clip_tokenizer,
    load_clip,
    load_network,
    provenance,
    text_model,
    tokenizer_of,
)
from fastdc.sources.text import (  # noqa: E402
    JointStates,
    TextSource,
    check_tokens,
    prompt_tokenizer,
    read_tokenizer,
    token_count,
)

FAMILY = "stable-diffusion-3"

T5_TOKENS = 256
"""Number of tokens that T5 reads of a prompt, the pipeline's default; without T5, the number of zero states."""


class JointTransformer(nn.Module):
    """diffusers' SD3Transformer2DModel, called with rows of prompt tables.

    Args:
        transformer: The transformer.
        zeros: Number of zero states to add in place of a missing T5. If it is above 0, the table's states are also
            padded to the transformer's width.
    """

    def __init__(self, transformer: Any, zeros: int) -> None:
        super().__init__()
        self.transformer = transformer
        self.zeros = zeros
        self.width = int(transformer.config["joint_attention_dim"])

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
    ) -> Tensor:
        """F (b, c, h, w) for sample (b, c, h, w), timestep (b,), class_labels int64 (b,) and two tables (rows, ...)."""
        states = encoder_hidden_states.index_select(0, class_labels).to(sample.dtype)
        pooled = pooled_projections.index_select(0, class_labels).to(sample.dtype)
        if self.zeros:
            states = nn.functional.pad(states, (0, self.width - states.shape[-1], 0, self.zeros))
        out: Tensor = self.transformer(
            hidden_states=sample,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=timestep,
            return_dict=False,
        )[0]
        return out


def open_stable_diffusion_3(
    folder: FolderLike,
    *,
    prompts: Prompts,
    image_size: ImageSize = None,
    lora: Sequence[Lora] = (),
) -> Source:
    """Opens a StableDiffusion3Pipeline or a variant with the same networks.

    Args:
        folder: The pipeline's folder, with or without the third text encoder, or a model of the hub.
        prompts: The prompts that describe the classes.
        image_size: Side or (height, width) of the images in pixels; default: the size that the transformer was trained
            on.
        lora: LoRAs to merge into the transformer and the CLIPs.

    Raises:
        InputError: The sides are not divisible by the autoencoder's factor times the patch size, or are larger than the
            position codes allow, or prompts of two classes become the same tokens.
        BundleError: The folder holds another pipeline, is broken, or its parts do not fit together.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    folder = ModelFolder.open(folder)
    if family_of(folder.pipeline) != FAMILY:
        raise BundleError(f"expected {PLAIN[FAMILY]}, got {folder.pipeline}")
    folder = folder.ready()
    transformer, encoder = load_network(folder, "transformer", "SD3Transformer2DModel"), open_encoder(folder)
    names = ("text_encoder", "text_encoder_2")
    clips = {name: load_clip(folder, name, pooled=True) for name in names}
    fuse_lora(PLAIN[FAMILY], {"transformer": transformer, **clips}, lora)
    sides = _sides(image_size, transformer.config, encoder.factor)
    text = _text(folder, clips)
    text.check(prompts)
    tables = text.tables(prompts.texts)
    zeros = 0 if len(text.tokenizers) == 3 else T5_TOKENS
    _check(transformer.config, encoder.channels, tables, exact=not zeros)
    return Source(
        family=FAMILY,
        model=text_model(folder, prompts, sides, encoder, weighting="velocity"),
        denoiser=JointTransformer(transformer, zeros).eval().requires_grad_(False),
        tables=tables,
        encoder=encoder,
        text=text,
        provenance=provenance(folder, lora),
    )


def _text(folder: ModelFolder, clips: Mapping[str, Any]) -> TextSource:
    """Two CLIPs, and T5 if the folder has one."""
    tokenizers: list[str] = []
    for name, encoder in clips.items():
        # The pipeline truncates texts for both CLIPs to the first tokenizer's length.
        first = token_count(tokenizers[0]) if tokenizers else None
        tokenizers.append(clip_tokenizer(folder, name, encoder, length=first))
    third = None
    if folder.has("text_encoder_3"):
        from transformers import T5EncoderModel

        third = folder.component("text_encoder_3", {"T5EncoderModel": T5EncoderModel})
        tokenizers.append(read_tokenizer(*tokenizer_of(folder, "text_encoder_3"), length=T5_TOKENS))
        check_tokens(tokenizers[2], third, "text_encoder_3")
    for one in map(prompt_tokenizer, tokenizers):
        if one.vectors:
            name = next(iter(one.vectors))
            raise BundleError(
                f"{folder.name}: {folder.pipeline} reads only the first vector of the placeholder {name!r}"
            )
    module = JointStates(clips["text_encoder"], clips["text_encoder_2"], third)
    return TextSource(
        tokenizers=tuple(tokenizers),
        module=module.eval().requires_grad_(False),
        names=("encoder_hidden_states", "pooled_projections"),
    )


def _sides(image_size: ImageSize, config: Mapping[str, Any], factor: int) -> tuple[int, int]:
    """The height and the width of images, within the reach of the position codes."""
    patch = int(config["patch_size"])
    sides = image_sides(image_size, config["sample_size"], scale=factor, multiple=factor * patch)
    largest = config["pos_embed_max_size"]
    if largest is not None and max(sides) > largest * factor * patch:
        most = largest * factor * patch
        raise InputError(
            f"the image size (--image-size) must be at most {most}, where position codes end, "
            f"got {sides[0]} x {sides[1]}"
        )
    return sides


def _check(config: Mapping[str, Any], channels: int, tables: Mapping[str, Any], *, exact: bool) -> None:
    """Refuses a transformer whose latents or texts have another width; texts may be narrower unless `exact`."""
    check_further_channels("transformer", config["in_channels"], channels)
    for name in ("in_channels", "out_channels"):
        if config[name] not in (channels, None):
            raise BundleError(f"the transformer must have {channels} {name}, as the latents, got {config[name]}")
    width, expected = tables["encoder_hidden_states"].shape[-1], config["joint_attention_dim"]
    if width != expected if exact else width > expected:
        raise BundleError(f"the transformer reads texts of width {expected}, but they have width {width}")
    width, expected = tables["pooled_projections"].shape[-1], config["pooled_projection_dim"]
    if width != expected:
        raise BundleError(f"the transformer reads pooled texts of width {expected}, but they have width {width}")
