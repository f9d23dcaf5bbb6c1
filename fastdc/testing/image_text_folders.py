"""Tiny CLIP, SigLIP and ViLT with random weights, saved as transformers saves published ones."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltImageProcessorPil,
)

from fastdc.testing.tiny_pipelines import clip_tokenizer

WORDS = ("a", "photo", "of", "the", "to", "left", "right", "red", "blue", "cube", "cone", "sphere")
"""Words of the tokenizers that are not CLIP's; other words are unknown."""

LENGTH = 12
"""Number of tokens of all networks, with those that begin and end a text."""

SIDE, PATCH = 16, 8  # pixels

_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_image_text(folder: Path, kind: str, *, seed: int = 0, **config: Any) -> Path:
    """Writes a network of a kind that :func:`fastdc.sources.open_image_text` opens, for images of 16 x 16 pixels.

    Args:
        folder: The folder to write; it is made if it does not exist.
        kind: "clip", "siglip", "siglip2" or "vilt".
        seed: Seed of the weights.
        **config: Options of the network's config, such as max_image_length of ViLT.

    Returns:
        The folder.

    Example:
        >>> from fastdc.testing import tiny_image_text
        >>> (tiny_image_text(folder / "vilt", "vilt") / "model.safetensors").is_file()
        True
    """
    network, tokenizer, processor = _made(kind, config, seed)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def word_tokenizer(words: tuple[str, ...] = WORDS, *, length: int = LENGTH, bert: bool = False) -> Any:
    """A lower-case tokenizer of whole words; BERT's [CLS] and [SEP], or the end of a text, are added.

    Args:
        words: The words.
        length: Number of tokens that it states.
        bert: Whether it is like BERT's, with a mask and types of tokens, rather than SigLIP's.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if bert else ["<pad>", "<unk>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "[CLS] $A [SEP]" if bert else "$A </s>"
    ends = [(token, vocabulary[token]) for token in special[2:]]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids"]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        model_max_length=length,
        model_input_names=inputs,
        pad_token=special[0],
        unk_token=special[1],
        **({"cls_token": "[CLS]", "sep_token": "[SEP]"} if bert else {"eos_token": "</s>"}),
    )


def _siglip2_tokenizer() -> Siglip2Tokenizer:
    """SigLIP 2's tokenizer with merges for :data:`WORDS`; it spells out other words of small letters."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = ["\u2581", *word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += dict.fromkeys(first + second for first, second in merges)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return Siglip2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)  # type: ignore[arg-type]


def _made(kind: str, config: dict[str, Any], seed: int) -> tuple[Any, Any, Any]:
    """Network, tokenizer and image processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "clip":
            network, tokenizer = _clip(config)
            processor: Any = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
        elif kind == "siglip":
            patches = {"image_size": SIDE, "patch_size": PATCH}
            network, tokenizer = _siglip(SiglipModel, SiglipConfig, patches, word_tokenizer(), config)
            processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
        elif kind == "siglip2":
            patches = {"num_patches": 4, "patch_size": PATCH}
            network, tokenizer = _siglip(Siglip2Model, Siglip2Config, patches, _siglip2_tokenizer(), config)
            processor = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=6)
        else:
            network, tokenizer = _vilt(config)
            options: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "size_divisor": PATCH}
            processor = ViltImageProcessorPil(**options)
        with torch.no_grad():  # fresh biases are zeros and fresh norms ones, which would hide errors in their use
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return network.eval(), tokenizer, processor


def _clip(config: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    text = {
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**_TOWER, "image_size": SIDE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, **config)), tokenizer


def _siglip(network: Any, kind: Any, vision: dict[str, Any], tokenizer: Any, config: dict[str, Any]) -> tuple[Any, Any]:
    text = {
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "projection_size": _TOWER["hidden_size"],
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return network(kind(text_config=text, vision_config={**_TOWER, **vision}, **config)), tokenizer


def _vilt(config: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = word_tokenizer(bert=True)
    options = {
        **_TOWER,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "num_images": -1,
        **config,
    }
    return ViltForImageAndTextRetrieval(ViltConfig(**options)), tokenizer
