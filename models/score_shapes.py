"""Prints the accuracy of a pipeline of train_shapes.py, in a plain loop that shares no code with fastdc.

    python models/score_shapes.py DATA PIPELINE [--task single] [--split ID_test] [--zsl] [--images 300] [--draws 16]
    python models/score_shapes.py DATA PIPELINE --split ID_val --images 96 --scan

DATA is a folder of make_scenes.py. The score of a text c for latents z is the mean over draws of
|v - v_hat(alpha z + sigma eps, t, c)|^2, with v = alpha eps - sigma z, which the network predicts. All candidates of an
image see the same draws (Li et al., arXiv 2303.16203, who take the error of eps; it is that of v times alpha^2, so that
high noise would hardly count). The levels sigma / alpha of the draws are spread evenly over a band on a logarithmic
scale. ``--scan`` instead tries one level after another, to show
which levels tell texts apart.

The candidates of single objects are all 32 classes; those of the other tasks are in the table of the image's group, the
right one first: the one with all candidates (its name ends in _gen), or with ``--zsl`` the one of the image's side.
"""

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

Errors = npt.NDArray[np.float64]

TABLES = {
    "two_object": "two_object_prompts/two_obj",
    "relational": "rel_prompts/rel",
    "counting": "count_prompts/count",
    "negation": "negation_prompts/negation",
}
SPLITS = {"ID_val": "train", "ID_test": "train", "ood_val": "val", "ood_test": "test"}  # and those of the tables


class Question(NamedTuple):
    """An image, its candidate texts, and the place of the right one."""

    path: Path
    texts: tuple[str, ...]
    right: int


def read_questions(data: Path, task: str, split: str, zsl: bool, images: int) -> list[Question]:
    """About `images` images of a split, spread evenly over all, with their candidates."""
    folder = data / ("single_object" if task == "single" else task) / split
    paths = sorted(folder.glob("**/*.png"))
    found = []
    for path in paths[:: max(len(paths) // images, 1)]:
        if task == "single":
            texts, names = read_table(data / "single_prompts.csv")
            right = names.index(path.parent.name)
        else:
            table = f"{TABLES[task]}_{SPLITS[split]}{'' if zsl else '_gen'}"
            texts, names = read_table(data / table / f"{path.parent.parent.name}.csv")
            right = 0
            assert names[0] == path.parent.name
        found.append(Question(path, texts, right))
    return found


def read_table(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and names of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(row["prompt"] for row in rows), tuple(row["class_name"] for row in rows)


def level_steps(alpha_bar: torch.Tensor, levels: npt.NDArray[np.float64]) -> list[int]:
    """Steps of the schedule whose sigma / alpha are nearest to `levels`, on a logarithmic scale."""
    ratios = ((1 - alpha_bar) / alpha_bar).sqrt().log().numpy()
    return [int(np.abs(ratios - np.log(level)).argmin()) for level in levels]


def text_errors(pipeline: Any, z: torch.Tensor, steps: list[int], states: torch.Tensor, seed: int) -> Errors:
    """Mean squared errors, float64 (draws, texts), of one image. Its texts share its noise.

    Args:
        pipeline: A pipeline of train_shapes.py.
        z: Scaled latents, (c, h, w).
        steps: Step of each draw.
        states: Output of the text encoder, (texts, length, width).
        seed: Seed of the noise.
    """
    alpha_bar = pipeline.scheduler.alphas_cumprod
    eps = torch.randn((len(steps), *z.shape), generator=torch.Generator().manual_seed(seed))
    found = []
    for step, noise in zip(steps, eps, strict=True):
        alpha, sigma = alpha_bar[step].sqrt(), (1 - alpha_bar[step]).sqrt()
        noisy = (alpha * z + sigma * noise).expand(len(states), *z.shape)
        v = pipeline.unet(noisy, torch.full((len(states),), step), states).sample
        found.append((v - (alpha * noise - sigma * z)).square().mean(dim=(1, 2, 3)).double().numpy())
    return np.stack(found)


class Scorer:
    """A pipeline, and the output of its text encoder for every text that was asked about."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline, self._states = pipeline, dict[str, torch.Tensor]()
        self.alpha_bar = pipeline.scheduler.alphas_cumprod

    def latents(self, path: Path) -> torch.Tensor:
        """Scaled latents of an image, (c, h, w)."""
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None] / 127.5 - 1.0
        vae = self._pipeline.vae
        found: torch.Tensor = vae.encode(pixels).latent_dist.mean[0] * vae.config.scaling_factor
        return found

    def states(self, texts: tuple[str, ...]) -> torch.Tensor:
        """Output of the text encoder, (texts, length, width)."""
        for text in set(texts) - set(self._states):
            tokens = self._pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
            self._states[text] = self._pipeline.text_encoder(tokens.input_ids).last_hidden_state[0]
        return torch.stack([self._states[text] for text in texts])

    def right(self, questions: list[Question], steps: list[int], seed: int) -> float:
        """Percentage of questions whose right text has the smallest error; of equal errors, the last counts."""
        found = 0
        for index, question in enumerate(questions):
            errors = text_errors(
                self._pipeline, self.latents(question.path), steps, self.states(question.texts), seed + index
            ).mean(axis=0)
            found += len(errors) - 1 - int(errors[::-1].argmin()) == question.right
        return 100 * found / len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the accuracy of a pipeline of train_shapes.py.")
    parser.add_argument("data", type=Path, help="folder of make_scenes.py")
    parser.add_argument("pipeline", type=Path, help="folder of train_shapes.py")
    parser.add_argument("--task", choices=("single", *TABLES), default="single", help="question (default: single)")
    parser.add_argument("--split", choices=SPLITS, default="ID_test", help="set of images (default: ID_test)")
    parser.add_argument("--zsl", action="store_true", help="candidates of the image's side alone")
    parser.add_argument("--images", type=int, default=300, help="about how many images (default: 300)")
    parser.add_argument("--draws", type=int, default=16, help="draws, or with --scan draws per level (default: 16)")
    parser.add_argument(
        "--levels", type=float, nargs=2, default=(0.5, 7.0), help="band of sigma / alpha (default: 0.5 7)"
    )
    parser.add_argument("--scan", action="store_true", help="score single levels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)

    questions = read_questions(arguments.data, arguments.task, arguments.split, arguments.zsl, max(arguments.images, 1))
    scorer = Scorer(StableDiffusionPipeline.from_pretrained(arguments.pipeline))
    what = f"{arguments.task}, {arguments.split}, {len(questions)} images"
    if arguments.scan:
        for level in np.geomspace(0.25, 12.0, 12):
            steps = level_steps(scorer.alpha_bar, np.full(arguments.draws, level))
            found = scorer.right(questions, steps, arguments.seed)
            print(f"{what}, sigma/alpha {level:.2f} (step {steps[0]}): {found:.1f} %", flush=True)
        return
    low, high = np.log(arguments.levels)
    levels = np.exp(low + (high - low) * (np.arange(arguments.draws) + 0.5) / arguments.draws)
    found = scorer.right(questions, level_steps(scorer.alpha_bar, levels), arguments.seed)
    print(f"{what}, {arguments.draws} draws: {found:.1f} %")


if __name__ == "__main__":
    main()
