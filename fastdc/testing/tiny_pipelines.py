"""Tiny diffusion pipelines with random weights, made of diffusers' and transformers' classes and saved as folders.

Each ``tiny_*`` function of a pipeline writes a folder with ``save_pretrained``, safetensors weights included, and
returns it. Weights come from a fixed seed; tokenizers are built in code from a tiny vocabulary. Networks have some ten
thousand parameters, so that a forward pass takes milliseconds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ("a", "photo", "of", "red", "blue", "cube", "cone", "the")
"""Words that the tokenizers encode as one token; they spell out any other text."""

CLIP_LENGTH = 12
"""Number of tokens of a CLIP text encoder, including start and end."""

T5_LENGTH = 16
"""Number of tokens that the T5 tokenizer states."""

DDPM: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False}
"""Scheduler options of the class-conditional pipelines."""

_SCALED: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch inside the block, and restores its random numbers afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _spread(module: nn.Module) -> Any:
    """Randomises biases and norms; fresh ones are zeros and ones, which would hide errors in their use."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def _scheduler(name: str, config: Mapping[str, Any]) -> Any:
    return getattr(diffusers, name)(**config)


def tiny_unet2d(
    folder: Path,
    *,
    classes: int | None = 4,
    channels: int = 3,
    learned_variance: bool = False,
    scheduler: str = "DDPMScheduler",
    pipeline: str = "DDPMPipeline",
    bare: bool = False,
    unet: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A pipeline of a UNet2DModel on 8 x 8 images.

    Args:
        folder: The folder to write; it is made if it does not exist.
        classes: Number of rows of the class embedding; None: the network takes no classes.
        channels: Number of channels of the images.
        learned_variance: Whether the network outputs twice the channels, as improved DDPM does.
        scheduler: Class name of the scheduler in diffusers.
        pipeline: Class name of the pipeline, "DDPMPipeline" or "DDIMPipeline".
        bare: Whether to write the UNet's own folder, without a pipeline.
        unet: Further options of the network.
        **config: Options of the scheduler, such as prediction_type.

    Returns:
        The folder.
    """
    options: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": 2 * channels if learned_variance else channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": classes,
        **(unet or {}),
    }
    with _seeded(0):
        network = _spread(UNet2DModel(**options))
    if bare:
        network.save_pretrained(folder, safe_serialization=True)
        return folder
    made = getattr(diffusers, pipeline)(unet=network, scheduler=_scheduler(scheduler, {**DDPM, **config}))
    if made.scheduler.__class__.__name__ != scheduler:  # DDIMPipeline converts its scheduler
        made.register_modules(scheduler=_scheduler(scheduler, {**DDPM, **config}))
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_vae(*, channels: int = 4, **config: Any) -> AutoencoderKL:
    """An AutoencoderKL whose latents have half the side of the images.

    Args:
        channels: Number of channels of the latents.
        **config: Further options of the autoencoder.
    """
    options: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": channels,
        "sample_size": 16,
        **config,
    }
    with _seeded(1):
        return _spread(AutoencoderKL(**options))


def tiny_dit(folder: Path, *, names: bool = True, **config: Any) -> Path:
    """A DiTPipeline on 16 x 16 images with latents (4, 8, 8), learned variance, 5 classes and a null class.

    Args:
        folder: The folder to write.
        names: Whether to write names of the classes, as ``id2label``.
        **config: Options of the scheduler.

    Returns:
        The folder.

    Example:
        >>> from fastdc import testing
        >>> (testing.tiny_dit(folder / "dit") / "model_index.json").is_file()
        True
    """
    classes = 5
    options: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": classes,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
    }
    with _seeded(0):
        network = _spread(DiTTransformer2DModel(**options))
    labels = {k: f"thing {k}, also {k}" for k in range(classes)} if names else None
    made = diffusers.DiTPipeline(
        transformer=network, vae=tiny_vae(), scheduler=_scheduler("DDIMScheduler", {**DDPM, **config}), id2label=labels
    )
    if labels is not None:  # the pipeline does not write the labels itself, but published folders have them
        made.register_to_config(id2label=labels)
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def clip_tokenizer() -> CLIPTokenizer:
    """A lower-case byte-level BPE tokenizer like CLIP's, with merges for :data:`WORDS`."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]  # how BPE writes the other bytes
    merges: list[Any] = []  # pairs: the class accepts them, although its annotation does not
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer like T5's over letters and :data:`WORDS`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -3.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,'0123456789"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_LENGTH)


def tiny_clip(
    tokenizer: CLIPTokenizer, *, width: int = 16, projection: int | None = None, seed: int = 2, **config: Any
) -> Any:
    """A CLIP text encoder.

    Args:
        tokenizer: The tokenizer whose ids it reads.
        width: Width of the hidden states.
        projection: Width of the pooled text of a CLIPTextModelWithProjection; None makes a CLIPTextModel.
        seed: Seed of the weights.
        **config: Further options of the encoder.
    """
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "projection_dim": projection or width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
    with _seeded(seed):
        return _spread(kind(CLIPTextConfig(**options)))


def tiny_t5(tokenizer: T5Tokenizer) -> Any:
    """A T5 encoder for a tokenizer, with hidden states of width 32."""
    width = 32
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 8,
        "d_ff": width,
        "num_layers": 1,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }
    with _seeded(4):
        return _spread(T5EncoderModel(T5Config(**options)))


def _text_unet(options: Mapping[str, Any]) -> UNet2DConditionModel:
    """A UNet on latents (4, 8, 8) that reads texts."""
    common: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    with _seeded(0):
        return _spread(UNet2DConditionModel(**{**common, **options}))


def tiny_sd(
    folder: Path,
    *,
    scheduler: str = "PNDMScheduler",
    unet: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A StableDiffusionPipeline like version 1 on 16 x 16 images with latents (4, 8, 8).

    Args:
        folder: The folder to write.
        scheduler: Class name of the scheduler in diffusers.
        unet: Further options of the UNet.
        **config: Options of the scheduler.

    Returns:
        The folder.

    Example:
        >>> from fastdc import testing
        >>> (testing.tiny_sd(folder / "sd") / "model_index.json").is_file()
        True
    """
    options: dict[str, Any] = {
        "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **(unet or {}),
    }
    noise = {**_SCALED, "skip_prk_steps": True} if scheduler == "PNDMScheduler" else _SCALED
    tokenizer = clip_tokenizer()
    made = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_clip(tokenizer),
        tokenizer=tokenizer,
        unet=_text_unet(options),
        scheduler=_scheduler(scheduler, {**noise, **config}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_sdxl(
    folder: Path,
    *,
    scheduler: str = "EulerDiscreteScheduler",
    zeros_for_empty: bool = True,
    unet: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A StableDiffusionXLPipeline on 16 x 16 images with latents (4, 8, 8) and two text encoders.

    Args:
        folder: The folder to write.
        scheduler: Class name of the scheduler in diffusers.
        zeros_for_empty: Whether the embedding of the empty prompt is zeros.
        unet: Further options of the UNet.
        **config: Options of the scheduler.

    Returns:
        The folder.
    """
    tokenizers = (clip_tokenizer(), clip_tokenizer())
    encoders = (tiny_clip(tokenizers[0]), tiny_clip(tokenizers[1], width=24, projection=12, seed=3))
    options: dict[str, Any] = {
        "cross_attention_dim": 16 + 24,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12,
        **(unet or {}),
    }
    made = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=_text_unet(options),
        scheduler=_scheduler(scheduler, {**_SCALED, **config}),
        force_zeros_for_empty_prompt=zeros_for_empty,
        add_watermarker=False,
    )
    made.save_pretrained(folder, safe_serialization=True)
    return folder


def tiny_sd3(folder: Path, *, t5: bool = True, transformer: Mapping[str, Any] | None = None) -> Path:
    """A StableDiffusion3Pipeline on 16 x 16 images with latents (4, 8, 8).

    To load a folder without the third text encoder with diffusers, give ``text_encoder_3=None, tokenizer_3=None``, as
    for published folders.

    Args:
        folder: The folder to write.
        t5: Whether to write the third text encoder.
        transformer: Further options of the transformer.

    Returns:
        The folder.
    """
    tokenizers = (clip_tokenizer(), clip_tokenizer())
    third = t5_tokenizer() if t5 else None
    encoders = (
        tiny_clip(tokenizers[0], width=8, projection=8),
        tiny_clip(tokenizers[1], width=16, projection=12, seed=3),
        None if third is None else tiny_t5(third),
    )
    options: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "joint_attention_dim": 32,  # as in the published model, wider than the two CLIPs' 24: they are padded
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8 + 12,
        "pos_embed_max_size": 12,
        **(transformer or {}),
    }
    with _seeded(0):
        network = _spread(SD3Transformer2DModel(**options))
    made = diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=encoders[2],
        tokenizer_3=third,
    )
    made.save_pretrained(folder, safe_serialization=True)
    return folder
