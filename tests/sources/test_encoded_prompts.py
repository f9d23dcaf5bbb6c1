"""Condition tables equal the pipelines' own encode_prompt, whatever is written in a prompt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import text_pipelines

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import safetensors.torch
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from fastdc.bundle import Prompts
from fastdc.sources import open_source
from fastdc.support import BundleError, PromptWarning
from fastdc.testing.tiny_pipelines import tiny_sd, tiny_sd3, tiny_sdxl

one_thread = text_pipelines.one_thread  # applies to every test here

TEXTS: tuple[str, ...] = (
    "a photo of a red cube",
    "A  Photo\tof\na BLUE cube!",
    "it's the dog's, isn't it? 1234",
    "鶴 Ünï ﬁ 👍🏽 e\u0301",
    "the red the blue the red the blue the red cube",
    "(the) [red:1.2] cone, --- ...",
    "a <|endoftext|> cone",
)
PLACEHOLDERS = ("a photo of a <one>", "a <two> and a <two>", "<two>'s <one>, <TWO>", "a " * 9 + "<two>")


def _with_placeholders(folder: Path) -> Path:
    """The pipeline with a placeholder of one vector and one of two, as its own loader adds them."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    encoders = [(pipe.text_encoder, pipe.tokenizer)]
    if isinstance(pipe, StableDiffusionXLPipeline):
        encoders.append((pipe.text_encoder_2, pipe.tokenizer_2))
    torch.manual_seed(0)
    for encoder, tokenizer in encoders:
        width = encoder.config.hidden_size
        for name, shape in (("<one>", (1, width)), ("<two>", (2, width))):
            file = folder.parent / "learned.safetensors"
            safetensors.torch.save_file({name: torch.randn(shape)}, file)
            pipe.load_textual_inversion(str(file), token=name, text_encoder=encoder, tokenizer=tokenizer)
    pipe.save_pretrained(folder.parent / "with", safe_serialization=True)
    return folder.parent / "with"


def _encoded(folder: Path, texts: tuple[str, ...]) -> list[Any]:
    """The conditions of the texts and, last, of no prompt, as the pipeline's encode_prompt gives them."""
    missing = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
    pipe: Any = DiffusionPipeline.from_pretrained(folder, **(missing if "3" in folder.name else {}))
    with torch.inference_mode():
        if "3" in folder.name:
            states, no_states, pooled, no_pooled = pipe.encode_prompt(list(texts), None, None)
        elif isinstance(pipe, StableDiffusionXLPipeline):
            states, no_states, pooled, no_pooled = pipe.encode_prompt(list(texts))
        else:
            states, no_states = pipe.encode_prompt(list(texts), "cpu", 1, True)
            return [torch.cat([states, no_states[:1]]).numpy()]
    return [torch.cat([states, no_states[:1]]).numpy(), torch.cat([pooled, no_pooled[:1]]).numpy()]


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sd3-without-t5"])
def test_conditions_are_those_of_encode_prompt(tmp_path: Path, family: str) -> None:
    folder, texts = tmp_path / family, TEXTS
    if family.startswith("sd3"):
        tiny_sd3(folder, t5=family == "sd3")
    else:
        folder = _with_placeholders((tiny_sdxl if family == "sdxl" else tiny_sd)(folder))
        texts += PLACEHOLDERS
    prompts = Prompts(texts, tuple(range(len(texts))), texts)
    with pytest.warns(PromptWarning, match="loses"):
        found = open_source(folder, prompts=prompts).tables
    for table, wanted in zip(found.values(), _encoded(folder, texts), strict=True):
        more = [(0, whole - own) for whole, own in zip(wanted.shape, table.shape, strict=True)]
        assert family == "sd3-without-t5" or not np.any(more)  # there, the pipeline adds zeros
        np.testing.assert_allclose(np.pad(table, more), wanted, atol=1e-5)
        assert len(np.unique(table[:-1], axis=0)) == len(texts)


def test_several_vectors_in_a_pipeline_without_textual_inversion_are_refused(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=False)
    pipe: Any = DiffusionPipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipe.tokenizer_2.add_tokens(["<two>", "<two>_1"])
    pipe.text_encoder_2.resize_token_embeddings(len(pipe.tokenizer_2))
    pipe.save_pretrained(folder, safe_serialization=True)
    with pytest.raises(BundleError, match="reads only the first vector of the placeholder '<two>'"):
        open_source(folder, prompts=Prompts(("a <two>",), (0,), ("x",)))
