"""Trains a small ViLT on the scenes of make_scenes.py alone, saved as transformers saves published ones.

    python models/train_vilt.py DATA OUT --clip CLIP [--steps 2000] [--seed 0]     DATA: the folder of make_scenes.py

A ViltForImageAndTextRetrieval (Kim et al., arXiv 2102.03334) for 32 x 32 pixels in patches of 4, with 4 layers that
read the patches of an image and the words of a text together. As the published ViLT begins with a ViT, this one begins
with the image tower of the CLIP of train_clip.py, which has seen the same images and no others; 3,000 steps from random
weights gave half of the single objects, 500 from the tower nearly all.

The loss is that of ViLT's fine-tuning for retrieval: of an image's right text and some wrong ones, the cross-entropy of
a softmax over their scores. Half of the wrong texts are any, and half differ from the right one in a single word, if
there are such. A text is wrong only if it is known to be (scene_captions.py). Training images are shifted by up to 3
pixels, not mirrored. The last weights are saved; the accuracy on 60 images of each task of ID_val is printed every 500
steps.

transformers' network picks the patches of each image one by one and in random order, which is slow and needless where
all images have one size; in training, the embeddings of patches are computed here, by the same weights.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertTokenizer, ViltConfig, ViltForImageAndTextRetrieval, ViltImageProcessorPil

from fastdc.matching import Trials, ViltMatcher
from fastdc.sources import ImageTextModel, open_image_text
from fastdc.support import Int64
from scene_captions import LENGTH, SIZE, Captioned, accuracies, prepared, read_captions, shifted, validation
from train_clip import IMAGE, MEAN, PATCH, STD

BATCH, HARD, EASY = 16, 1, 1  # images per step; wrong texts per image
RATE, WARMUP, DECAY = 1e-3, 200, 0.05  # highest learning rate, steps in which it rises, weight decay
CHECKED = 500  # steps between measurements


def make_tokenizer(texts: Iterable[str]) -> BertTokenizer:
    """BERT's tokenizer over the words of some texts; it spells out other words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted({word for text in texts for word in text.lower().split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocabulary, model_max_length=LENGTH)


def make_model(tokenizer: BertTokenizer, name: str) -> ImageTextModel:
    """The network with random weights, and what prepares images and texts for it."""
    config = ViltConfig(
        **IMAGE,
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
        num_images=-1,
    )
    options: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "size_divisor": PATCH}
    options |= {"image_mean": list(MEAN), "image_std": list(STD)}
    network = ViltForImageAndTextRetrieval(config)
    return ImageTextModel(name, "vilt", network, tokenizer, ViltImageProcessorPil(**options), LENGTH, "")


def distances(texts: Iterable[str]) -> Int64:
    """How many words differ between each two of P texts, place by place, int64 (P, P)."""
    words = [text.split() for text in texts]
    longest = max(map(len, words))
    table = np.array([[*one, *[""] * (longest - len(one))] for one in words])
    return np.asarray((table[:, None] != table[None]).sum(axis=2), np.int64)


def begin_with(network: Any, clip: ImageTextModel, images: Tensor) -> None:
    """Gives a ViLT the image tower of a CLIP of the same sizes, as the published one begins with that of a ViT.

    CLIP normalises the embeddings of patches, x -> g (x - mean x) / std x + b, which ViLT does not. The tower's first
    weights take over all of that but the change of std x from patch to patch, in whose place its mean is.

    Args:
        network: The ViLT, whose activation must be CLIP's.
        clip: The CLIP.
        images: Prepared images (n, 3, SIZE, SIZE) on which std x is measured.
    """
    tower: Any = clip.network.vision_model
    own, norm, patches = network.vilt.embeddings, tower.pre_layrnorm, tower.embeddings
    with torch.no_grad():
        std = patches(images).std(dim=-1, correction=0).mean()
        centred = torch.eye(norm.weight.numel()) - 1 / norm.weight.numel()
        fold = (norm.weight / std)[:, None] * centred
        weight = patches.patch_embedding.weight
        own.patch_embeddings.projection.weight.copy_((fold @ weight.flatten(1)).reshape(weight.shape))
        own.patch_embeddings.projection.bias.zero_()
        own.cls_token.copy_(fold @ patches.class_embedding)
        own.position_embeddings.copy_((patches.position_embedding.weight @ fold.T + norm.bias)[None])
        for layer, given in zip(network.vilt.encoder.layer, tower.encoder.layers, strict=True):
            attention = layer.attention.attention
            for mine, theirs in (
                (attention.query, given.self_attn.q_proj),
                (attention.key, given.self_attn.k_proj),
                (attention.value, given.self_attn.v_proj),
                (layer.attention.output.dense, given.self_attn.out_proj),
                (layer.layernorm_before, given.layer_norm1),
                (layer.layernorm_after, given.layer_norm2),
                (layer.intermediate.dense, given.mlp.fc1),
                (layer.output.dense, given.mlp.fc2),
            ):
                mine.load_state_dict(theirs.state_dict())


class Negatives:
    """Wrong texts of training images.

    Args:
        data: Images and texts.
    """

    def __init__(self, data: Captioned) -> None:
        near = data.wrong & (distances(data.texts)[data.labels] == 1)
        self._near = np.where(near.any(axis=1, keepdims=True), near, data.wrong)
        self._wrong = data.wrong

    def draw(self, batch: Int64, rng: np.random.Generator) -> Int64:
        """HARD and EASY wrong texts of each image, int64 (b, HARD + EASY); a text may come twice."""
        keys = rng.random((HARD + EASY, len(batch), self._wrong.shape[1]))
        allowed = np.stack([self._near[batch]] * HARD + [self._wrong[batch]] * EASY)
        return np.asarray(np.where(allowed, keys, -1.0).argmax(axis=2).T, np.int64)


def patch_embeddings(network: Any, pixels: Tensor) -> Tensor:
    """What ViLT makes of images (b, 3, SIZE, SIZE) before it adds the type of its tokens: (b, 1 + patches, width)."""
    embeddings = network.vilt.embeddings
    patches = embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
    first = embeddings.cls_token.expand(len(pixels), -1, -1)
    whole: Tensor = torch.cat([first, patches], dim=1) + embeddings.position_embeddings
    return whole


def scores(network: Any, pixels: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """Scores (b, m) of images (b, 3, SIZE, SIZE) and m texts each, whose tokens are (b * m, length)."""
    several = len(tokens["input_ids"]) // len(pixels)
    images = patch_embeddings(network, pixels).repeat_interleave(several, dim=0)
    seen = torch.ones(images.shape[:2], dtype=torch.long)
    logits: Tensor = network(**tokens, image_embeds=images, pixel_mask=seen).logits
    return logits.reshape(len(pixels), several)


def train(model: ImageTextModel, data: Captioned, steps: int, seed: int, tasks: dict[str, Trials]) -> None:
    """Trains the network in place."""
    network: Any = model.network.train()
    pixels = prepared(model, data.images)
    tokens, negatives, rng = model.tokens(data.texts), Negatives(data), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    start, losses, order = time.perf_counter(), list[float](), np.empty(0, np.int64)
    for step in range(steps):
        while len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(data.images))])
        batch, order = order[:BATCH], order[BATCH:]
        texts = np.column_stack([data.labels[batch], negatives.draw(batch, rng)]).ravel()
        images = shifted(pixels[torch.from_numpy(batch)])
        found = scores(network, images, {name: values[texts] for name, values in tokens.items()})
        loss = nn.functional.cross_entropy(found, torch.zeros(BATCH, dtype=torch.long))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = RATE * min((step + 1) / WARMUP, 1.0) * falling
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % CHECKED == 0 or step + 1 == steps:
            done = f"step {step + 1} of {steps}, {time.perf_counter() - start:.0f} s"
            print(f"{done}: loss {np.mean(losses[-CHECKED:]):.4f}; {checked(model, tasks)}", flush=True)


def checked(model: ImageTextModel, tasks: dict[str, Trials]) -> str:
    """Accuracy of each task."""
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place))
        return accuracies(ViltMatcher(place, device="cpu", threads=1, batch=128), tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small ViLT on rendered scenes.")
    parser.add_argument("data", type=Path, help="folder of make_scenes.py")
    parser.add_argument("out", type=Path, help="folder for the model")
    parser.add_argument("--clip", type=Path, required=True, help="folder of train_clip.py, whose image tower it takes")
    parser.add_argument("--steps", type=int, default=2000, help="steps of 16 images (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and shifts (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    data = read_captions(arguments.data / "scenes-train.npz")
    model = make_model(make_tokenizer(data.texts), arguments.out.name)
    begin_with(model.network, open_image_text(arguments.clip, ["clip"]), prepared(model, data.images[::20]))
    start = time.perf_counter()
    train(model, data, arguments.steps, arguments.seed, validation(arguments.data, images=60))
    model.save(arguments.out)
    print(f"all of ID_val: {checked(model, validation(arguments.data))}")
    count = sum(one.numel() for one in model.network.parameters())
    print(f"{arguments.out}: {count:,} parameters, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
