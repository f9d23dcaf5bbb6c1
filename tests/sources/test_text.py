"""Tokenizers as JSON give the ids of transformers; a text is encoded once; tokenizers that do not fit are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from fastdc.sources.text import (
    JointStates,
    LastState,
    PenultimateStates,
    TextSource,
    check_tokens,
    read_tokenizer,
)
from fastdc.support.exceptions import BundleError, InputError, MissingDependencyError
from fastdc.testing.tiny_pipelines import clip_tokenizer, t5_tokenizer, tiny_clip, tiny_t5

TEXTS = (
    "",
    " ",
    "a photo of a red cube",
    "A  Photo\tof\na RED cube!",
    "it's the dog's, isn't it? 1234 <|endoftext|> more",
    "鶴 Ünïcödé ﬁ 👍🏽 naïve e\u0301",
    "red " * 40,
    "<|startoftext|>a photo</s>",
    "\x00\u200b\ufeff",
)


def _saved(tmp_path: Path, tokenizer: object) -> Path:
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def _old_clip(tmp_path: Path) -> Path:
    """A CLIP tokenizer in the older form, vocab.json and merges.txt, which pads with "!"."""
    folder = tmp_path / "old"
    folder.mkdir()
    model = json.loads(clip_tokenizer().backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9, "pad_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.mark.parametrize("kind", ["clip", "old", "t5"])
def test_ids_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    if kind == "old":
        folder = _old_clip(tmp_path)
        theirs = CLIPTokenizer.from_pretrained(folder)
        assert theirs.pad_token_id == theirs.convert_tokens_to_ids("!") != theirs.eos_token_id
    else:
        theirs = clip_tokenizer() if kind == "clip" else t5_tokenizer()
        folder = _saved(tmp_path, theirs)
    ours = read_tokenizer(folder, "T5TokenizerFast" if kind == "t5" else "CLIPTokenizer")
    source = TextSource((ours,), nn.Identity())
    (ids,) = source.input_ids(TEXTS)
    wanted = theirs(list(TEXTS), padding="max_length", max_length=theirs.model_max_length, truncation=True)["input_ids"]
    assert ids.dtype == np.int64
    assert ids.tolist() == wanted
    assert len({tuple(row) for row in wanted}) >= len(TEXTS) - 3  # the texts differ after all


def test_another_length_than_the_tokenizers_own(tmp_path: Path) -> None:
    theirs = t5_tokenizer()
    text = read_tokenizer(_saved(tmp_path, theirs), "T5Tokenizer", length=24)
    (ids,) = TextSource((text,), nn.Identity()).input_ids(TEXTS)
    assert ids.tolist() == theirs(list(TEXTS), padding="max_length", max_length=24, truncation=True)["input_ids"]


class _Count(nn.Module):
    """Two tables that are plain functions of the ids; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, input_ids: Tensor, input_ids_2: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(input_ids))
        return torch.stack([input_ids, input_ids_2], dim=1).float(), input_ids.sum(dim=1).half()


def _source(tmp_path: Path, *, null_is_zero: bool = False) -> tuple[TextSource, _Count]:
    text = read_tokenizer(_saved(tmp_path, clip_tokenizer()), "CLIPTokenizer")
    module = _Count()
    return TextSource((text, text), module, ("states", "pooled"), null_is_zero), module


def test_a_text_is_encoded_once_and_in_batches(tmp_path: Path) -> None:
    source, module = _source(tmp_path)
    unique = [f"{word} {number}" for word in ("red", "cube", "the") for number in range(12)]
    texts = [*unique, "red 3", "blue cone", "cube 0"]
    tables = source.encode(texts)
    assert module.batches == [16, 16, 5]
    (ids, _) = source.input_ids(texts)
    assert list(tables) == ["states", "pooled"]
    np.testing.assert_array_equal(tables["states"], np.stack([ids, ids], axis=1))
    assert tables["pooled"].dtype == np.float32
    np.testing.assert_array_equal(tables["pooled"], ids.sum(axis=1).astype(np.float16).astype(np.float32))


def test_the_row_of_no_prompt_is_last(tmp_path: Path) -> None:
    source, _ = _source(tmp_path)
    tables = source.tables(["red", "red", "cube"])
    for name, table in source.encode(["red", "red", "cube", ""]).items():
        np.testing.assert_array_equal(tables[name], table)
        assert len(tables[name]) == 4
    zeros, _ = _source(tmp_path / "zeros", null_is_zero=True)
    for name, table in zeros.tables(["red", "red", "cube"]).items():
        np.testing.assert_array_equal(table[:-1], tables[name][:-1])
        assert not table[-1].any()
        assert table[:-1].all(axis=-1).any()


def test_no_texts_are_refused(tmp_path: Path) -> None:
    source, _ = _source(tmp_path)
    with pytest.raises(InputError, match="at least one text"):
        source.encode([])
    with pytest.raises(InputError, match="at least one text"):
        source.encode("red")
    with pytest.raises(InputError, match="at least one text"):
        source.tables([])


def test_the_pooled_text_is_that_of_the_second_clip() -> None:
    tokenizer = clip_tokenizer()
    first, second = tiny_clip(tokenizer), tiny_clip(tokenizer, width=24, projection=12, seed=3)
    ids = torch.tensor(tokenizer(["red cube", "the"], padding="max_length")["input_ids"])
    with torch.inference_mode():
        states, pooled = PenultimateStates(first, second)(ids, ids)
        (last,) = LastState(first)(ids)
        # The second CLIP, layer by layer: the states before its last layer, and the projected last state at the end.
        layers = second.text_model.encoder.layers
        hidden = second.text_model.embeddings(ids)
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]
        for layer in layers[:-1]:
            hidden = layer(hidden, attention_mask=mask)
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        top = second.text_model.final_layer_norm(layers[-1](hidden, attention_mask=mask))
        wanted = second.text_projection(top[torch.arange(2), end])
    assert states.shape == (2, tokenizer.model_max_length, 16 + 24)
    assert last.shape == (2, tokenizer.model_max_length, 16)
    np.testing.assert_allclose(states[:, :, 16:].numpy(), hidden.numpy(), atol=1e-5)
    np.testing.assert_allclose(pooled.numpy(), wanted.numpy(), atol=1e-5)


def test_joint_states_are_filled_up_to_the_width_of_t5() -> None:
    tokenizer, words = clip_tokenizer(), t5_tokenizer()
    first = tiny_clip(tokenizer, width=8, projection=8)
    second = tiny_clip(tokenizer, width=16, projection=12, seed=3)
    third = tiny_t5(words)
    ids = torch.tensor(tokenizer(["red cube"], padding="max_length")["input_ids"])
    ids_3 = torch.tensor(words(["red cube"], padding="max_length", max_length=7)["input_ids"])
    with torch.inference_mode():
        alone, pooled = JointStates(first, second, None)(ids, ids)
        joint, again = JointStates(first, second, third)(ids, ids, ids_3)
        t5 = third(ids_3)[0]
    length = tokenizer.model_max_length
    assert alone.shape == (1, length, 24)
    assert joint.shape == (1, length + 7, 32)
    np.testing.assert_array_equal(joint[:, :length, :24].numpy(), alone.numpy())
    assert not joint[:, :length, 24:].any()
    np.testing.assert_array_equal(joint[:, length:].numpy(), t5.numpy())
    np.testing.assert_array_equal(pooled.numpy(), again.numpy())
    assert pooled.shape == (1, 8 + 12)


def test_tokenizers_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved(tmp_path, clip_tokenizer())
    with pytest.raises(BundleError, match="must be one of CLIPTokenizer"):
        read_tokenizer(folder, "LlamaTokenizer")
    with pytest.raises(BundleError, match="is missing"):
        read_tokenizer(tmp_path / "none", "CLIPTokenizer")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BundleError):
        read_tokenizer(empty, "CLIPTokenizer")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:100])
    with pytest.raises(BundleError, match="cannot be read") as caught:
        read_tokenizer(broken, "CLIPTokenizer")
    assert "\n" not in str(caught.value)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": int(1e30)}))
    with pytest.raises(BundleError, match="must state model_max_length"):
        read_tokenizer(folder, "CLIPTokenizer")
    monkeypatch.setattr("fastdc.sources.text.MAX_TOKENIZER_BYTES", 1000)
    with pytest.raises(BundleError, match="at most"):
        read_tokenizer(folder, "CLIPTokenizer")


class Panic(BaseException):
    """What a panic in Rust, such as that of a vocabulary without an entry, becomes in Python: no Exception."""


@pytest.mark.parametrize(("raised", "told"), [(Panic, BundleError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_panic_of_a_tokenizer_is_refused_and_ctrl_c_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], told: type[BaseException]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise raised("no entry found for key")

    monkeypatch.setattr("transformers.CLIPTokenizer.from_pretrained", fails)
    with pytest.raises(told, match="no entry found for key"):
        read_tokenizer(_old_clip(tmp_path), "CLIPTokenizer")


def test_transformers_4_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved(tmp_path, clip_tokenizer())
    monkeypatch.setattr("transformers.__version__", "4.57.3")
    with pytest.raises(MissingDependencyError, match=r"transformers 5 or newer is needed here, got 4\.57\.3"):
        read_tokenizer(folder, "CLIPTokenizer")


def test_a_tokenizer_must_fit_its_encoder(tmp_path: Path) -> None:
    tokenizer = clip_tokenizer()
    text = read_tokenizer(_saved(tmp_path, tokenizer), "CLIPTokenizer")
    check_tokens(text, tiny_clip(tokenizer), "text_encoder")
    with pytest.raises(BundleError, match=f"text_encoder knows 100 tokens.*up to {len(tokenizer) - 1}"):
        check_tokens(text, tiny_clip(tokenizer, vocab_size=100), "text_encoder")
    with pytest.raises(BundleError, match="text_encoder reads 8 tokens, but its tokenizer makes 12"):
        check_tokens(text, tiny_clip(tokenizer, max_position_embeddings=8), "text_encoder")
