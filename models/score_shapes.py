"""Prints the accuracy of a pipeline of train_shapes.py, in a plain loop that shares no code with fastdc.

    python models/score_shapes.py DATA PIPELINE [--split test] [--images 640] [--draws 16] [--levels LOW HIGH]
    python models/score_shapes.py DATA PIPELINE --split val --images 160 --scan
    python models/score_shapes.py DATA --bundle fastdc/models/shapes    by fastdc's race instead

The score of a prompt c for latents z is the mean over draws of |eps - eps_hat(alpha z + sigma eps, t, c)|^2, where the
network predicts v and eps_hat = alpha v + sigma (alpha z + sigma eps). All prompts see the same draws (Li et al., arXiv
2303.16203). The levels sigma / alpha of the draws are spread evenly over a band on a logarithmic scale. ``--scan``
instead tries one level after another, to show which levels separate the classes.

The accuracy is printed for classes seen in training and for held-out classes, both with all 32 prompts as candidates,
and for held-out classes with only the held-out prompts as candidates.

Seed 0 of train_shapes.py on 640 test images with 4 draws: 98.5 % of seen classes, 96.2 % of held-out ones (99.4 % among
held-out prompts). Single levels with 2 draws on 96 validation images: 94 to 96 % of all from 0.25 to 2, 84 % at 3, and
less above.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline

from make_shapes import CLASS_NAMES, HELD_OUT, SHAPES, prompt

Errors = npt.NDArray[np.float64]


def level_steps(alpha_bar: torch.Tensor, levels: npt.NDArray[np.float64]) -> list[int]:
    """Steps of the schedule whose sigma / alpha are nearest to `levels`, on a logarithmic scale."""
    ratios = ((1 - alpha_bar) / alpha_bar).sqrt().log().numpy()
    return [int(np.abs(ratios - np.log(level)).argmin()) for level in levels]


def class_errors(pipeline: Any, latents: torch.Tensor, steps: list[int], states: torch.Tensor, seed: int) -> Errors:
    """Mean squared errors, float64 (images, draws, classes). Each image has its own noise, which its classes share.

    Args:
        pipeline: A pipeline of train_shapes.py.
        latents: Scaled latents, (images, c, h, w).
        steps: Step of each draw.
        states: Output of the text encoder, (classes, length, width).
        seed: Seed of the noise.
    """
    rng = torch.Generator().manual_seed(seed)
    alpha_bar, found = pipeline.scheduler.alphas_cumprod, []
    for z in latents:
        eps = torch.randn((len(steps), *z.shape), generator=rng)
        per_draw = []
        for step, noise in zip(steps, eps, strict=True):
            alpha, sigma = alpha_bar[step].sqrt(), (1 - alpha_bar[step]).sqrt()
            noisy = (alpha * z + sigma * noise).expand(len(states), *z.shape)
            v = pipeline.unet(noisy, torch.full((len(states),), step), states).sample
            per_draw.append((alpha * v + sigma * noisy - noise).square().mean(dim=(1, 2, 3)).double().numpy())
        found.append(np.stack(per_draw))
    return np.stack(found)


def report(errors: Errors, labels: npt.NDArray[np.int64]) -> str:
    """A line with the accuracies of errors (images, classes)."""
    guess, held_out = errors.argmin(axis=1), np.isin(labels, HELD_OUT)
    among = np.array(HELD_OUT)[errors[:, HELD_OUT].argmin(axis=1)]
    right, wrong = guess == labels, guess != labels
    shapes = len(SHAPES)
    return (
        f"seen {100 * right[~held_out].mean():.1f} % of {np.sum(~held_out)}, "
        f"held out {100 * right[held_out].mean():.1f} % of {held_out.sum()} "
        f"(among held-out prompts {100 * (among == labels)[held_out].mean():.1f} %); {wrong.sum()} wrong, "
        f"{np.sum(guess[wrong] // shapes == labels[wrong] // shapes)} of them with the colour right and "
        f"{np.sum(guess[wrong] % shapes == labels[wrong] % shapes)} with the shape right"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the accuracy of a pipeline of train_shapes.py.")
    parser.add_argument("data", type=Path, help="folder of make_shapes.py")
    parser.add_argument("pipeline", type=Path, nargs="?", help="folder of train_shapes.py")
    parser.add_argument("--bundle", help="a bundle to score instead, by its race and its draws")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="set of images (default: test)")
    parser.add_argument("--images", type=int, default=640, help="number of images, from the first (default: 640)")
    parser.add_argument("--draws", type=int, default=16, help="draws, or with --scan draws per level (default: 16)")
    parser.add_argument(
        "--levels", type=float, nargs=2, default=(0.4, 3.0), help="band of sigma / alpha (default: 0.4 3)"
    )
    parser.add_argument("--scan", action="store_true", help="score single levels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    if (arguments.pipeline is None) == (arguments.bundle is None):
        parser.error("expected a pipeline or --bundle")
    with np.load(arguments.data / f"shapes-{arguments.split}.npz") as data:
        images, labels = data["images"][: arguments.images], data["labels"][: arguments.images]
    if arguments.bundle is not None:
        import fastdc  # the plain loop does not use it

        result = fastdc.load(arguments.bundle).classify(images, seed=arguments.seed)
        print(f"race, {result.evaluations.mean():.1f} evaluations per image: {report(result.errors, labels)}")
        return
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.pipeline)
    pixels = torch.from_numpy(images).float() / 127.5 - 1.0
    latents = pipeline.vae.encode(pixels).latent_dist.mean
    back = pipeline.vae.decode(latents).sample
    print(f"autoencoder: root mean square error {(back - pixels).square().mean().sqrt():.4f} of [-1, 1]")
    latents = latents * pipeline.vae.config.scaling_factor
    texts = [prompt(name) for name in CLASS_NAMES]
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = pipeline.text_encoder(tokens).last_hidden_state

    alpha_bar = pipeline.scheduler.alphas_cumprod
    if arguments.scan:
        for level in np.geomspace(0.25, 12.0, 12):
            steps = level_steps(alpha_bar, np.full(arguments.draws, level))
            errors = class_errors(pipeline, latents, steps, states, arguments.seed)
            print(f"sigma/alpha {level:.2f} (step {steps[0]}): {report(errors.mean(axis=1), labels)}", flush=True)
        return
    low, high = np.log(arguments.levels)
    levels = np.exp(low + (high - low) * (np.arange(arguments.draws) + 0.5) / arguments.draws)
    errors = class_errors(pipeline, latents, level_steps(alpha_bar, levels), states, arguments.seed)
    print(f"{arguments.draws} draws: {report(errors.mean(axis=1), labels)}")


if __name__ == "__main__":
    main()
