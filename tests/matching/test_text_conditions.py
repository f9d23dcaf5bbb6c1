"""Texts that a diffusion model does not know, or cannot tell apart, are refused without opening its network."""

import numpy as np
import pytest

from fastdc import InputError
from fastdc.bundle import find_model, load_bundle
from fastdc.matching import Trials, check_texts
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
