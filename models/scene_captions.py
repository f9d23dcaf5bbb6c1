"""The training scenes with their texts, for the CLIP and the ViLT that are trained from scratch on them.

The file is scenes-train.npz of make_scenes.py. A text may be true of images that do not have it as their caption: the
other object of a pair, the same relation said the other way round, another colour that a shape does not have. So a
text counts as wrong for an image only if it is a caption of the same task and none of the image's true texts. Texts of
other tasks are left out, because nobody has said whether they are true: a blue cube is "a cube that is not red".
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from fastdc.matching import AbstractMatcher, Trials, read_layout
from fastdc.sources import ImageTextModel
from fastdc.support import Int64, Mask

SIZE = 32  # pixels per side
LENGTH = 20  # tokens per text: the longest caption has 15 with its ends, and there is a reserve
SHIFT = 3  # most pixels by which a training image is moved
FAMILIES = {"single": "object", "two_object": "object"}  # tasks with the same texts; other tasks are their own family


@dataclasses.dataclass(frozen=True, eq=False)
class Captioned:
    """Training images and what is known of their texts.

    Attributes:
        images: uint8 (n, 3, SIZE, SIZE).
        texts: P texts.
        labels: int64 (n,), the caption of each image, a position in `texts`.
        wrong: bool (n, P), whether a text is known to be wrong of an image.
    """

    images: npt.NDArray[np.uint8]
    texts: tuple[str, ...]
    labels: Int64
    wrong: Mask


def read_captions(file: Path) -> Captioned:
    """Reads scenes-train.npz."""
    with np.load(file) as data:
        images, captions = data["images"], data["captions"].tolist()
        others, tasks = data["other_captions"].tolist(), data["tasks"].tolist()
    place = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    families = [FAMILIES.get(task, task) for task in tasks]
    of_family: dict[str, set[int]] = {}
    for text, family in zip(captions, families, strict=True):
        of_family.setdefault(family, set()).add(place[text])
    wrong = np.zeros((len(images), len(place)), np.bool_)
    for i, (text, more, family) in enumerate(zip(captions, others, families, strict=True)):
        true = {place[one] for one in (text, *more.split("\n")) if one in place}
        wrong[i, sorted(of_family[family] - true)] = True
    return Captioned(images, tuple(place), np.array([place[text] for text in captions], np.int64), wrong)


def prepared(model: ImageTextModel, images: npt.NDArray[np.uint8]) -> Tensor:
    """The pixels of images (n, 3, SIZE, SIZE) as the model's processor makes them."""
    parts = [list(images[start : start + 256]) for start in range(0, len(images), 256)]
    return torch.cat([model.pixels(part)["pixel_values"] for part in parts])


def shifted(images: Tensor) -> Tensor:
    """Each image (b, c, h, w) moved by up to SHIFT pixels, at random; the edge is repeated."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (SHIFT,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count, 1))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def clip_tokenizer(texts: Iterable[str], length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's tokenizer over a small vocabulary in CLIP's order, in which each word of some texts is one token.

    The order: bytes, bytes that end a word, merges, begin, end. `length` is the number of tokens per text.
    """
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
    learner.train_from_iterator(list(texts), trainer)
    merges: list[Any] = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges), begin, end]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def validation(data: Path, images: int | None = None) -> dict[str, Trials]:
    """Each task's images of ID_val with the candidates of the training's classes.

    Args:
        data: The folder of make_scenes.py.
        images: Most images of a task; None: all.
    """
    cells = read_layout(data, splits=["id-val"], settings=["zsl"], images=images)
    return {cell.task: trials for cell, trials in cells.items()}


def accuracies(matcher: AbstractMatcher, tasks: Mapping[str, Trials]) -> str:
    """The share of each task's images whose text is chosen rightly, as a line."""
    shares = {task: matcher.match(trials).right(trials).mean() for task, trials in tasks.items()}
    return ", ".join(f"{task} {share:.3f}" for task, share in shares.items())
