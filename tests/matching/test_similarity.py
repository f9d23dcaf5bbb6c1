"""Pairs of texts that differ in one word, and the cosines of their embeddings as transformers computes them."""

from pathlib import Path

import numpy as np
import pytest

import fastdc
from fastdc.matching import CaptionSimilarity, ClipMatcher, caption_pairs, caption_similarity

TEXTS = (
    "a cone to the left of a cube",
    "a cone to the right of a cube",
    "a cube to the left of a cone",
    "a red cube",
    "a blue cube",
    "a red cone",
    "a Blue cone",
    "one cube",
    "two cube",
    "a red box",
)


def test_pairs_differ_in_one_word_of_a_kind() -> None:
    found = caption_pairs(TEXTS)
    assert found == {
        "relation": [(0, 1)],
        "colour": [(3, 4), (5, 6)],
        "shape": [(3, 5), (4, 6)],
        "number": [(7, 8)],
        "order": [(0, 2)],
    }
    assert caption_pairs(["a cat", "a dog", "a cat"], {"animal": frozenset({"cat", "dog"})}) == {
        "animal": [(0, 1), (1, 2)]
    }


def test_one_pair_is_no_pairs() -> None:
    assert str(CaptionSimilarity(0.5, 0.5, 0.5, 1)) == "0.500 (0.500 to 0.500, 1 pair)"


def test_similarities_are_those_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from fastdc.testing import tiny_image_text

    folder = tiny_image_text(tmp_path / "clip", "clip")
    network = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ("a red cube", "a blue cube", "a red cone", "a blue cone")
    with torch.inference_mode():
        rows = [network.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0] for text in texts]
    cosine = np.array([[float(torch.cosine_similarity(a, b, dim=0)) for a in rows] for b in rows])
    found = caption_similarity(ClipMatcher(folder, threads=1), texts)
    for kind, values in (("colour", cosine[[0, 2], [1, 3]]), ("shape", cosine[[0, 1], [2, 3]])):
        one = found[kind]
        wanted = (values.mean(), values.min(), values.max())
        np.testing.assert_allclose((one.mean, one.low, one.high), wanted, atol=1e-6)
        assert one.pairs == 2
        assert one.low < one.high < 0.9999
    with pytest.raises(fastdc.InputError, match="of which two differ in one word"):
        caption_similarity(ClipMatcher(folder, threads=1), ["a red cube", "two cones"])
