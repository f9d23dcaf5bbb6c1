"""Texts that a diffusion model does not know, or cannot tell apart, are refused without opening its network."""

import numpy as np
import pytest

from fastdc import InputError
from fastdc.bundle import find_model, load_bundle
from fastdc.matching import Trials, check_texts
from fastdc.matching.text_conditions import different_texts
from helpers.matching_worlds import with_prompts

IMAGES = np.zeros((2, 3, 32, 32), np.uint8)
OTHERS = ["a photo of a red cube", "a photo of a blue cone"]


def test_a_model_without_a_text_encoder_knows_its_own_texts() -> None:
    clf = with_prompts()
    check_texts(clf, Trials.of(IMAGES, [list(clf.model.conditions[:2])] * 2))
    with pytest.raises(InputError, match="has no text encoder: expected texts that are its prompts"):
        check_texts(clf, Trials.of(IMAGES, [[clf.model.conditions[0], "a cat"]] * 2))


def test_texts_of_one_image_must_be_apart() -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    bundle = load_bundle(find_model("shapes"))
    check_texts(bundle, Trials.of(IMAGES, [OTHERS, ["a photo of a RED cube", "a photo of a blue cube"]]))
    with pytest.raises(InputError, match=r"image 1: the texts .* are the same to the text encoder"):
        check_texts(bundle, Trials.of(IMAGES, [OTHERS, ["a photo of a red cube", "a photo of a RED cube"]]))


def test_the_order_of_lists_says_nothing_about_the_order_of_conditions() -> None:
    """Rules and votes prefer the first of equal conditions: it must not be the first text of a list, the right one."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnxruntime")
    bundle = load_bundle(find_model("shapes"))
    texts = [f"a photo of a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("cube", "cone")]
    once, conditions = different_texts(bundle, [*texts, texts[0].upper()])
    assert [once[k] for k in conditions.tolist()] == [*texts, texts[0]]
    assert different_texts(bundle, texts[::-1])[0] == once
    firsts = [different_texts(bundle, [f"right {i}", f"wrong {i}"])[0][0] for i in range(40)]
    assert 10 < sum(text.startswith("right") for text in firsts) < 30
