"""Trains a small CLIP from scratch on the scenes of make_scenes.py, saved as transformers saves published ones.

    python models/train_clip.py DATA OUT [--epochs 12] [--seed 0]     DATA: the folder of make_scenes.py

A CLIPModel for 32 x 32 pixels in patches of 4, with 4 layers for images and 3 for texts. Loss and batches are those
with which fastdc fine-tunes CLIP (fastdc.train.ContrastiveTraining): the symmetric contrastive loss over batches of
different captions. What differs is the start, the rate, the size of a batch, and that captions which are true of
another image of the batch do not stand against it (scene_captions.py). Training images are shifted by up to 3 pixels;
they are not mirrored, which would turn left into right. The last weights are saved.

The number of epochs was chosen by the accuracy on ID_val, which is printed every 500 steps.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fastdc.matching import ClipMatcher, Trials
from fastdc.sources import ImageTextModel
from fastdc.train import CaptionedImages, ContrastiveRecipe, ContrastiveTraining
from scene_captions import (
    LENGTH,
    SIZE,
    Captioned,
    accuracies,
    clip_tokenizer,
    prepared,
    read_captions,
    shifted,
    validation,
)

PATCH = 4  # pixels
IMAGE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
PROJECTION = 64  # width of the embeddings
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CHECKED = 500  # steps between measurements
RECIPE: dict[str, Any] = {"batch": 32, "lr": 1e-3, "warmup": 200, "weight_decay": 0.05, "clip": 1.0}


def make_model(tokenizer: CLIPTokenizer, name: str) -> ImageTextModel:
    """The network with random weights, and what prepares images and texts for it."""
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**IMAGE, "image_size": SIZE, "patch_size": PATCH}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=SIZE, image_mean=list(MEAN), image_std=list(STD)
    )
    return ImageTextModel(name, "clip", network, tokenizer, processor, LENGTH, "")


def training_data(data: Captioned, model: ImageTextModel) -> CaptionedImages:
    """The images as the processor prepares them, moved at random, and their texts."""
    pixels = prepared(model, data.images)
    return CaptionedImages(
        lambda batch: {"pixel_values": shifted(pixels[torch.from_numpy(batch)])}, data.labels, data.texts, ~data.wrong
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CLIP on rendered scenes.")
    parser.add_argument("data", type=Path, help="folder of make_scenes.py")
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the images (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and shifts (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    data = read_captions(arguments.data / "scenes-train.npz")
    model = make_model(clip_tokenizer(data.texts), arguments.out.name)
    recipe = ContrastiveRecipe(epochs=arguments.epochs, seed=arguments.seed, **RECIPE)
    training = ContrastiveTraining(model, training_data(data, model), recipe)
    tasks = validation(arguments.data)
    start, losses = time.perf_counter(), list[float]()
    for epoch, loss in training.run():
        losses.append(loss)
        if training.step % CHECKED == 0 or training.step == training.steps:
            done = f"epoch {epoch}, step {training.step} of {training.steps}, {time.perf_counter() - start:.0f} s"
            print(f"{done}: loss {np.mean(losses[-CHECKED:]):.4f}; {checked(model, tasks)}", flush=True)
    model.save(arguments.out)
    count = sum(one.numel() for one in model.network.parameters())
    print(f"{arguments.out}: {count:,} parameters, {time.perf_counter() - start:.0f} s")


def checked(model: ImageTextModel, tasks: dict[str, Trials]) -> str:
    """Accuracy of each task."""
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place))
        return accuracies(ClipMatcher(place, device="cpu", threads=1, batch=128), tasks)


if __name__ == "__main__":
    main()
