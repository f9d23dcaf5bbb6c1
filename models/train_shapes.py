"""Trains the text-to-image latent diffusion model of the scenes of make_scenes.py, saved as a StableDiffusionPipeline.

    python models/train_shapes.py DATA OUT [--seed 0] [--stop-at STEP]

The model is a small Stable Diffusion, with the same classes and files: an AutoencoderKL (32x32 pixels to 4x8x8
latents), a CLIPTokenizer and a CLIPTextModel, a UNet2DConditionModel with cross attention, and the scaled linear
schedule of 1000 steps. One core trains it in about an hour, in two stages:

1. The autoencoder (Kingma & Welling, arXiv 1312.6114): E |decoder(z) - x|^2 + KL_WEIGHT KL(z | N(0, 1)), each a mean
   over elements. Its scaling_factor then brings the means of the training images to unit variance.
2. The UNet and the text encoder, together and from scratch: at step t, alpha^2 = alpha_bar_t and sigma^2 = 1 -
   alpha_bar_t, the network sees alpha z + sigma eps and predicts v = alpha eps - sigma z (Salimans & Ho, arXiv
   2202.00512). t / 1000 is the logistic function of a normal variable (Esser et al., arXiv 2403.03206), since neither
   little noise nor much tells texts apart. One text in ten is empty. The moving average of the weights is saved.

Images of all tasks are mixed. The text is that of the image's folder. For a relation, it is as often the same statement
from the other object's side, and for a negation any colour that the object does not have. Images without a relation are
mirrored at random, which is as likely a scene.

The tokenizer is learnt from the texts by byte pair encoding with CLIP's rules: each word is one token, and any other
text can be tokenized too. Every 500 steps, OUT gets the averaged weights as a pipeline and state.pt, from which the
script continues when it is started again; the result is the same.
"""

import argparse
import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fastdc.support import whole_file
from scene_captions import clip_tokenizer

SIZE = 32  # pixels per side
LATENT = 8  # latents per side
LENGTH = 16  # tokens per text: begin, "a photo of a cone to the left of a cube", end, and a reserve
WIDTH = 48  # width of the text encoder
KL_WEIGHT = 1e-4
DROPOUT = 0.1  # share of empty texts
AVERAGE = 0.999  # decay of the moving average of the weights, per step
AUTOENCODER = (4500, 2e-3)  # steps, highest learning rate
BATCH = {"autoencoder": 32, "denoiser": 64}
SAVED = 500  # steps between two states of the denoiser on disk


class Phase(NamedTuple):
    """A part of the denoiser's training.

    Attributes:
        steps: Number of steps.
        rate: Highest learning rate.
        cosine: Steps of the half cosine along which the rate falls to zero; some may be left.
        middle: Mean of the normal variable whose logistic function is the share of the schedule.
        relational: Share of images of relations; None: as many as there are.
        left: Whether relations are told from the side that says "left".
        renewed: Words whose embeddings are drawn anew at the start.
    """

    steps: int
    rate: float
    cosine: int
    middle: float
    relational: float | None
    left: bool = False
    renewed: tuple[str, ...] = ()


# Relations are decided at high noise, at which the first phase, made for colours and shapes, hardly trains. It leaves
# left and right alike to the text encoder, whose states differ by 3 % of their length, those of two shapes by 50 %. The
# second phase says "left" alone, so that the order of the words is learnt before what turns it round.
PHASES = (
    Phase(12000, 1.5e-3, 15000, -0.3, None),
    Phase(3000, 1.5e-3, 9000, 0.7, 0.5, left=True, renewed=("left", "right")),
    Phase(4500, 1.2e-3, 4500, 0.4, 0.35),
)
RENEWED = 0.2  # standard deviation of renewed embeddings


class Examples(NamedTuple):
    """The training images of all tasks with their texts.

    Attributes:
        images: (n, 3, SIZE, SIZE) in [-1, 1].
        texts: All texts, each once.
        options: Texts of each image, one of which a step takes: indices (n, m), repeated where there are fewer.
        mirrored: Whether the image may be mirrored, (n,): not if it shows a relation.
        left: The statement of each relation that says "left"; -1 for other images, (n,).
    """

    images: Tensor
    texts: list[str]
    options: Tensor
    mirrored: Tensor
    left: Tensor


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
    """A UNet like Stable Diffusion's that attends to the text everywhere: even 4x4 latents tell two objects apart."""
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
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


def token_table(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Tokens of every text and, last, of the empty one: int64 (texts + 1, LENGTH)."""
    ids = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert isinstance(ids, Tensor)
    return ids


def read_examples(path: Path) -> Examples:
    """Reads the file scenes-train.npz of make_scenes.py."""
    with np.load(path) as data:
        pixels, tasks = data["images"], data["tasks"]
        first, others = data["captions"].tolist(), data["other_captions"].tolist()
    # The second object of a pair is the first of another folder.
    true = [
        [one, *(more.split("\n") if more and task != "two_object" else ())]
        for one, more, task in zip(first, others, tasks.tolist(), strict=True)
    ]
    texts = sorted({text for several in true for text in several})
    number = {text: index for index, text in enumerate(texts)}
    most = math.lcm(*(len(several) for several in true))  # so that each is as likely
    options = [[number[text] for text in several] * (most // len(several)) for several in true]
    images = torch.from_numpy(pixels).float() / 127.5 - 1.0
    left = [next((number[text] for text in several if " left " in text), -1) for several in true]
    may = torch.from_numpy(tasks != "relational")
    return Examples(images, texts, torch.tensor(options), may, torch.tensor(left))


def falling(step: int, length: int, highest: float) -> float:
    """A learning rate that rises over 100 steps and falls to zero along a half cosine."""
    return highest * min((step + 1) / 100, 1.0) * 0.5 * (1 + math.cos(math.pi * step / length))


def phase_of(step: int) -> tuple[int, Phase]:
    """The phase of a step of the denoiser, and the step within it."""
    for phase in PHASES:
        if step < phase.steps:
            return step, phase
        step -= phase.steps
    raise ValueError("the training is over")


class Optimizer:
    """AdamW with clipped gradients; prints the mean loss of every 250 steps."""

    def __init__(self, name: str, parameters: list[nn.Parameter]) -> None:
        self.step, self.inner = 0, torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)
        self._name, self._parameters = name, parameters
        self._start, self._losses = time.perf_counter(), list[float]()

    def descend(self, loss: Tensor, rate: float) -> None:
        """One step along the gradient of a loss."""
        self.inner.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.inner.param_groups[0]["lr"] = rate
        self.inner.step()
        self.step += 1
        self._losses.append(loss.item())
        if self.step % 250 == 0:
            seconds, mean = time.perf_counter() - self._start, np.mean(self._losses[-250:])
            print(f"{self._name}, step {self.step}: loss {mean:.5f}, {seconds:.0f} s", flush=True)


def train_autoencoder(examples: Examples, rng: torch.Generator) -> AutoencoderKL:
    """Stage 1: trains the autoencoder on the images."""
    model = make_autoencoder()
    optimizer = Optimizer("autoencoder", list(model.parameters()))
    while optimizer.step < AUTOENCODER[0]:
        pick = torch.randint(len(examples.images), (BATCH["autoencoder"],), generator=rng)
        batch = mirror(examples.images[pick], torch.rand(len(pick), generator=rng) < 0.5)
        latents = model.encode(batch).latent_dist
        error = (model.decode(latents.sample(rng)).sample - batch).square().mean()
        loss = error + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()
        optimizer.descend(loss, falling(optimizer.step, *AUTOENCODER))
    model.eval().requires_grad_(False)
    model.register_to_config(scaling_factor=float(1.0 / encode(model, examples.images[::10]).std()))
    return model


def mirror(batch: Tensor, which: Tensor) -> Tensor:
    """Mirrors some images left to right."""
    return torch.where(which.reshape(-1, 1, 1, 1), batch.flip(3), batch)


def encode(model: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the latents of images, before scaling."""
    parts = [images[start : start + 128] for start in range(0, len(images), 128)]
    return torch.cat([model.encode(part).latent_dist.mean for part in parts])


class Denoiser:
    """Stage 2: the UNet and the text encoder, and the moving averages of their weights."""

    def __init__(self, tokenizer: CLIPTokenizer, texts: list[str]) -> None:
        self.ids, self.alpha_bar = token_table(tokenizer, texts), make_scheduler().alphas_cumprod
        self.text, self.unet = make_text_encoder(tokenizer).train(), make_unet().train()
        self.average = copy.deepcopy(nn.ModuleList((self.text, self.unet))).train(False)
        self._parameters = [*self.text.parameters(), *self.unet.parameters()]
        self.optimizer = Optimizer("denoiser", self._parameters)

    def step(self, z: Tensor, condition: Tensor, rng: torch.Generator) -> None:
        """Trains on latents (n, 4, LATENT, LATENT) and the numbers of their texts (n,)."""
        within, phase = phase_of(self.optimizer.step)
        count, last = len(z), len(self.alpha_bar) - 1
        condition = torch.where(torch.rand(count, generator=rng) < DROPOUT, len(self.ids) - 1, condition)
        t = ((last + 1) * torch.sigmoid(phase.middle + torch.randn(count, generator=rng))).long().clamp(max=last)
        alpha, sigma = (a.sqrt().reshape(-1, 1, 1, 1) for a in (self.alpha_bar[t], 1 - self.alpha_bar[t]))
        eps = torch.randn(z.shape, generator=rng)
        states = self.text(self.ids).last_hidden_state[condition]
        out = self.unet(alpha * z + sigma * eps, t, states).sample
        loss = (out - (alpha * eps - sigma * z)).square().mean()
        self.optimizer.descend(loss, falling(within, phase.cosine, phase.rate))
        now = self.optimizer.step
        decay = min(AVERAGE, now / (9 + now))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), self._parameters, 1 - decay)

    def renew(self, numbers: Sequence[int], rng: torch.Generator) -> None:
        """Draws the embeddings of tokens anew."""
        drawn = RENEWED * torch.randn((len(numbers), WIDTH), generator=rng)
        both: tuple[Any, ...] = (self.text, self.average[0])
        with torch.no_grad():
            for text in both:
                text.get_input_embeddings().weight[numbers] = drawn

    def state(self) -> dict[str, Any]:
        """All that a continued training needs, except the generator."""
        networks = [network.state_dict() for network in (self.text, self.unet, self.average)]
        return {"step": self.optimizer.step, "networks": networks, "optimizer": self.optimizer.inner.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state` returned."""
        for network, weights in zip((self.text, self.unet, self.average), state["networks"], strict=True):
            network.load_state_dict(weights)
        self.optimizer.inner.load_state_dict(state["optimizer"])
        self.optimizer.step = state["step"]


def train(examples: Examples, out: Path, seed: int, last: int) -> None:
    """Trains what is still to be trained, up to a step of the denoiser, and writes the pipeline and its state."""
    torch.manual_seed(seed)
    rng, state = torch.Generator().manual_seed(seed), out / "state.pt"
    tokenizer = clip_tokenizer(examples.texts, LENGTH)
    denoiser = Denoiser(tokenizer, examples.texts)
    if state.exists():
        found = torch.load(state, weights_only=True)
        vae = AutoencoderKL.from_pretrained(out / "vae").eval().requires_grad_(False)
        denoiser.load(found["denoiser"])
        rng.set_state(found["rng"])
    else:
        vae = train_autoencoder(examples, rng)
        save(out, vae, tokenizer, denoiser, rng)
    latents, mirrored = (
        encode(vae, images) * vae.config.scaling_factor for images in (examples.images, examples.images.flip(3))
    )
    while denoiser.optimizer.step < last:
        within, phase = phase_of(denoiser.optimizer.step)
        if not within and phase.renewed:
            denoiser.renew([tokenizer.get_vocab()[f"{word}</w>"] for word in phase.renewed], rng)
        pick = drawn(examples, phase.relational, rng)
        turned = examples.mirrored[pick] & (torch.rand(len(pick), generator=rng) < 0.5)
        z = torch.where(turned.reshape(-1, 1, 1, 1), mirrored[pick], latents[pick])
        chosen = torch.randint(examples.options.shape[1], (len(pick),), generator=rng)
        text, left = examples.options[pick, chosen], examples.left[pick]
        denoiser.step(z, torch.where((left >= 0) & torch.tensor(phase.left), left, text), rng)
        if denoiser.optimizer.step % SAVED == 0 or denoiser.optimizer.step == last:
            save(out, vae, tokenizer, denoiser, rng)


def drawn(examples: Examples, relational: float | None, rng: torch.Generator) -> Tensor:
    """Numbers of the images of a batch."""
    if relational is None:
        return torch.randint(len(examples.images), (BATCH["denoiser"],), generator=rng)
    share = torch.where(
        examples.mirrored, (1 - relational) / examples.mirrored.sum(), relational / (~examples.mirrored).sum()
    )
    return torch.multinomial(share, BATCH["denoiser"], replacement=True, generator=rng)


def save(out: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser, rng: torch.Generator) -> None:
    """Writes the pipeline with averaged weights, and then the state, in one move."""
    text, unet = denoiser.average
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
    pipeline.save_pretrained(out, safe_serialization=True)
    with whole_file(out / "state.pt") as file:
        torch.save({"denoiser": denoiser.state(), "rng": rng.get_state()}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small text-to-image diffusion model on rendered scenes.")
    parser.add_argument("data", type=Path, help="folder of make_scenes.py")
    parser.add_argument("out", type=Path, help="folder for the pipeline")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, images, noise and steps (default: 0)")
    parser.add_argument(
        "--stop-at",
        type=int,
        default=sum(phase.steps for phase in PHASES),
        help="last step of the denoiser (default: all)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples = read_examples(arguments.data / "scenes-train.npz")
    train(examples, arguments.out, arguments.seed, arguments.stop_at)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.out)
    sizes = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("vae", "text_encoder", "unet")
    }
    print(f"{arguments.out}: parameters {sizes}, scaling factor {pipeline.vae.config.scaling_factor:.4f}")


if __name__ == "__main__":
    main()
