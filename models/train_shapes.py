"""Trains a text-to-image latent diffusion model on the shapes of make_shapes.py, saved as a StableDiffusionPipeline.

    python models/train_shapes.py DATA OUT [--seed 0]

The model is a small Stable Diffusion, with the same classes and files: an AutoencoderKL (32x32 pixels to 4x8x8
latents), a CLIPTokenizer and a CLIPTextModel, a UNet2DConditionModel with cross attention, and the scaled linear
schedule of 1000 steps. One core trains it in 15 to 30 minutes, in two stages:

1. The autoencoder (Kingma & Welling, arXiv 1312.6114): E |decoder(z) - x|^2 + KL_WEIGHT KL(z | N(0, 1)), each a mean
   over elements. Its scaling_factor then brings the means of the training images to unit variance.
2. The UNet and the text encoder, together and from scratch: at step t uniform in 0 ... 999, alpha^2 = alpha_bar_t and
   sigma^2 = 1 - alpha_bar_t, the network sees alpha z + sigma eps and predicts v = alpha eps - sigma z (Salimans & Ho,
   arXiv 2202.00512). One prompt in ten is empty. The moving average of the weights is saved.

The tokenizer is learnt from the prompts by byte pair encoding with CLIP's rules: each word of a prompt is one token,
and any other text can be tokenized too.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from make_shapes import CLASS_NAMES, SIZE, prompt

LATENT = 8  # latents per side
LENGTH = 12  # tokens per prompt: begin, "a photo of a colour shape", end, and a reserve
WIDTH = 48  # width of the text encoder
KL_WEIGHT = 1e-4
DROPOUT = 0.1  # share of empty prompts
AVERAGE = 0.998  # decay of the moving average of the weights, per step
STEPS = {"autoencoder": 1200, "denoiser": 4500}
RATE = {"autoencoder": 2e-3, "denoiser": 1.5e-3}  # highest learning rate
BATCH = {"autoencoder": 32, "denoiser": 64}


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over a small vocabulary in CLIP's order: bytes, bytes that end a word, merges, begin, end."""
    begin, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = CLIPTokenizer(vocab={begin: 0, end: 1}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2000,  # more than needed, so that every word becomes one token
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[begin, end],
        show_progress=False,
    )
    learner.train_from_iterator([prompt(name) for name in CLASS_NAMES], trainer)
    merges: list[Any] = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges), begin, end]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def make_autoencoder() -> AutoencoderKL:
    """The autoencoder between 3 x 32 x 32 pixels in [-1, 1] and 4 x 8 x 8 latents."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder of two layers for the tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """A UNet like Stable Diffusion's: attention to the text in the middle and at every resolution except the lowest."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # the number of heads, by an old mistake in the name of the option
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule; the network predicts v."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def token_table(tokenizer: CLIPTokenizer) -> Tensor:
    """Tokens of every class's prompt and, last, of the empty prompt: int64 (classes + 1, LENGTH)."""
    texts = [*(prompt(name) for name in CLASS_NAMES), ""]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert isinstance(ids, Tensor)
    return ids


def steps(stage: str, parameters: list[nn.Parameter]) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Yields once per step; the caller then computes gradients, and the optimizer applies them.

    The learning rate rises over the first 100 steps and falls to zero along a half cosine.
    """
    total, rate = STEPS[stage], RATE[stage]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(total):
        optimizer.zero_grad(set_to_none=True)
        yield step, optimizer
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = (
            rate * min((step + 1) / 100, 1.0) * 0.5 * (1 + math.cos(math.pi * step / total))
        )
        optimizer.step()


class Progress:
    """Prints the mean loss of every 250 steps and the time since the start."""

    def __init__(self, what: str) -> None:
        self._what, self._start, self._losses = what, time.perf_counter(), list[float]()

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a step."""
        self._losses.append(loss.item())
        if len(self._losses) % 250 == 0:
            seconds = time.perf_counter() - self._start
            mean = np.mean(self._losses[-250:])
            print(f"{self._what}, step {len(self._losses)}: loss {mean:.5f}, {seconds:.0f} s", flush=True)


def train_autoencoder(images: Tensor, rng: torch.Generator) -> AutoencoderKL:
    """Stage 1: trains the autoencoder on images (n, 3, SIZE, SIZE) in [-1, 1]."""
    model = make_autoencoder()
    progress = Progress("autoencoder")
    for _ in steps("autoencoder", list(model.parameters())):
        pick = torch.randint(len(images), (BATCH["autoencoder"],), generator=rng)
        batch = flip_some(images[pick], rng)
        latents = model.encode(batch).latent_dist
        loss = (model.decode(latents.sample(rng)).sample - batch).square().mean()
        (loss + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()).backward()
        progress.add(loss.detach())
    model.eval().requires_grad_(False)
    model.register_to_config(scaling_factor=float(1.0 / encode(model, images[::10]).std()))
    return model


def flip_some(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability one half; a shape and its mirror image are equally likely."""
    mirrored = torch.rand(len(batch), 1, 1, 1, generator=rng) < 0.5
    return torch.where(mirrored, batch.flip(3), batch)


def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the latents of images, before scaling."""
    parts = [images[start : start + 128] for start in range(0, len(images), 128)]
    return torch.cat([model.encode(part).latent_dist.mean for part in parts])


def train_denoiser(
    latents: Tensor, labels: Tensor, ids: Tensor, text: CLIPTextModel, rng: torch.Generator
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Stage 2: trains the UNet and the text encoder.

    Args:
        latents: Scaled latents of training images, (n, 4, LATENT, LATENT).
        labels: Classes of the images, int64 (n,).
        ids: Tokens from :func:`token_table`.
        text: The text encoder to train; its weights change.
        rng: Generator of images, noise and steps.

    Returns:
        The averaged UNet and text encoder, in evaluation mode.
    """
    unet, alpha_bar = make_unet().train(), make_scheduler().alphas_cumprod
    text.train()
    average_unet, average_text = copy.deepcopy((unet, text))
    parameters = [*unet.parameters(), *text.parameters()]
    averages = [*average_unet.parameters(), *average_text.parameters()]
    progress = Progress("denoiser")
    for step, _ in steps("denoiser", parameters):
        pick = torch.randint(len(latents), (BATCH["denoiser"],), generator=rng)
        z, condition = latents[pick], labels[pick].clone()
        condition[torch.rand(len(pick), generator=rng) < DROPOUT] = len(ids) - 1
        t = torch.randint(len(alpha_bar), (len(pick),), generator=rng)
        alpha, sigma = (a.sqrt().reshape(-1, 1, 1, 1) for a in (alpha_bar[t], 1 - alpha_bar[t]))
        eps = torch.randn(z.shape, generator=rng)
        states = text(ids).last_hidden_state[condition]
        out = unet(alpha * z + sigma * eps, t, states).sample
        loss = (out - (alpha * eps - sigma * z)).square().mean()
        loss.backward()
        progress.add(loss.detach())
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, now in zip(averages, parameters, strict=True):
                average.lerp_(now, 1 - decay)
    return average_unet.train(False), average_text.train(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small text-to-image diffusion model on the shapes.")
    parser.add_argument("data", type=Path, help="folder of make_shapes.py")
    parser.add_argument("out", type=Path, help="folder for the pipeline")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, images, noise and steps (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = torch.Generator().manual_seed(arguments.seed)

    with np.load(arguments.data / "shapes-train.npz") as data:
        images = torch.from_numpy(data["images"]).float() / 127.5 - 1.0
        labels = torch.from_numpy(data["labels"])
    vae = train_autoencoder(images, rng)
    both = (encode(vae, images), encode(vae, images.flip(3)))
    latents = torch.cat(both) * vae.config.scaling_factor
    tokenizer = make_tokenizer()
    text = make_text_encoder(tokenizer)
    unet, text = train_denoiser(latents, torch.cat((labels, labels)), token_table(tokenizer), text, rng)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(arguments.out, safe_serialization=True)
    sizes = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("vae", "text_encoder", "unet")
    }
    print(f"{arguments.out}: parameters {sizes}, scaling factor {vae.config.scaling_factor:.4f}")


if __name__ == "__main__":
    main()
