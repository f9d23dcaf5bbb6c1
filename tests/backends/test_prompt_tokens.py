"""Prompts as tokens: what is cut, what becomes the same, and placeholders with several vectors."""

import warnings
from typing import Any

import pytest

from fastdc.backends.prompt_tokens import PromptTokenizer, check_prompts
from fastdc.bundle import Prompts
from fastdc.support import InputError, PromptWarning

tokenizers: Any = pytest.importorskip("tokenizers")

WORDS = ["<pad>", "<start>", "<end>", "?", "a", "red", "blue", "cube", "cone"]


def tokenizer(length: int, *added: str, lower: bool = True, direction: str = "right") -> PromptTokenizer:
    """Words, some of them added as placeholders are, between a start and an end; `length` tokens in all."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.normalizer = tokenizers.normalizers.Lowercase() if lower else None
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    made.add_special_tokens(["<start>", "<end>"])
    made.add_tokens(list(added))
    made.enable_truncation(length, direction=direction)
    made.enable_padding(length=length, pad_id=0, pad_token="<pad>")
    return PromptTokenizer(made)


@pytest.mark.parametrize("direction", ["left", "right"])
def test_lost_tokens_are_counted(direction: str) -> None:
    texts = ["", "red", "a red cube", "a red cube a", "a red cube a blue cone red blue a a a"]
    ids, lost = tokenizer(5, direction=direction).encode(texts)
    assert ids.shape == (5, 5)
    assert lost == [max(0, len(text.split()) - 3) for text in texts]


def test_prompts_of_two_classes_that_are_the_same_tokens_are_refused() -> None:
    for texts in (("a red cube", "A  Red cube"), ("a red cube cone", "a red cube cube"), ("zebra", "lion")):
        prompts = Prompts(("blue", *texts), (0, 1, 2), ("x", "y", "z"))
        with pytest.raises(
            InputError, match=r"prompts 1 \('.*'\) and 2 \('.*'\) of the classes 'y' and 'z' are the same"
        ):
            check_prompts(prompts, [tokenizer(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_prompts(Prompts(("a red cube", "a blue cube"), (0, 1), ("x", "y")), [tokenizer(5)])


def test_one_encoder_that_tells_the_prompts_apart_is_enough() -> None:
    prompts = Prompts(("a red cube", "a RED cube"), (0, 1), ("x", "y"))
    check_prompts(prompts, [tokenizer(5), tokenizer(5, lower=False)])
    with pytest.raises(InputError, match="the same to the text encoder"):
        check_prompts(prompts, [tokenizer(5), tokenizer(6)])


def test_a_cut_prompt_is_named_with_what_it_loses() -> None:
    texts = ("a cube", "a red cube a blue cone")
    with pytest.warns(
        PromptWarning, match=r"reads at most 5 tokens: prompt 1 \('a red cube a blue cone'\) loses 3 tokens$"
    ):
        check_prompts(Prompts(texts, (0, 1), ("x", "y")), [tokenizer(5)])
    with pytest.warns(PromptWarning, match=r"encoders read at most 9, 5 tokens: prompt 1 .* loses 3 tokens$"):
        check_prompts(Prompts(texts, (0, 1), ("x", "y")), [tokenizer(9), tokenizer(5)])
    many = tuple(f"{word} red cube cube" for word in ("a", "red", "blue", "cube", "cone"))
    with pytest.warns(PromptWarning, match=r"prompt 2 \('blue red cube cube'\) loses 1 token and 2 more$"):
        check_prompts(Prompts(many, (0,) * 5, ("x",)), [tokenizer(5)])


def test_equal_prompts_of_one_class_are_named() -> None:
    prompts = Prompts(("a cube", "cone", "A cube"), (0, 1, 0), ("x", "y"))
    with pytest.warns(PromptWarning, match=r"as the same: prompts 0 \('a cube'\) and 2 \('A cube'\) of class 'x'$"):
        check_prompts(prompts, [tokenizer(5)])


def test_a_placeholder_is_read_as_all_its_vectors() -> None:
    toys = tokenizer(9, "<toy>", "<toy>_1", "<toy>_2", "<one>", "<cat>", "<cat>_1")
    assert toys.vectors == {"<toy>": "<toy> <toy>_1 <toy>_2", "<cat>": "<cat> <cat>_1"}
    assert toys.expand("a <one> and a <toy> cube") == "a <one> and a <toy> <toy>_1 <toy>_2 cube"
    assert toys.expand("<cat> <toy>") == "<cat> <cat>_1 <toy> <toy>_1 <toy>_2"
    ids, lost = toys.encode(["a <toy> cube", "<toy> <toy> <toy>"])
    names = [toys._parsed.id_to_token(index) for index in ids[0]]
    assert names == ["<start>", "a", "<toy>", "<toy>_1", "<toy>_2", "cube", "<end>", "<pad>", "<pad>"]
    assert lost == [0, 2]
    # Beyond the cut, too: the placeholder is found in the whole prompt.
    assert toys.expand("a a a a a a a a a <cat>").endswith("<cat> <cat>_1")


def test_placeholders_that_cannot_be_told_apart_are_refused() -> None:
    toys = tokenizer(9, "toy", "toy_1", "toys", "toys_1")
    assert toys.expand("toys") == "toys toys_1"
    with pytest.raises(InputError, match="the placeholder 'toy' is a part of 'toys'"):
        toys.expand("toy toys")
