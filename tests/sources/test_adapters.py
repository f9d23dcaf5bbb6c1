"""A LoRA that is trained here is one that diffusers and ``open_source`` read."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import diffusers
import safetensors.torch
import torch

from fastdc.bundle import prompts_of
from fastdc.sources import Lora, Source, WithTables, add_lora, lora_weights, open_source
from fastdc.support import InputError
from fastdc.testing.tiny_pipelines import tiny_sd, tiny_sd3, tiny_sdxl, tiny_unet2d

PROMPTS = prompts_of(("cube", "cone"))
FAMILIES: dict[str, tuple[Any, str]] = {
    "sd": (tiny_sd, "StableDiffusionPipeline"),
    "sdxl": (tiny_sdxl, "StableDiffusionXLPipeline"),
    "sd3": (tiny_sd3, "StableDiffusion3Pipeline"),
}


def output(source: Source) -> torch.Tensor:
    """F of a prompt at one latent and time."""
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out: torch.Tensor = WithTables(source.denoiser, source.tables)(sample, torch.tensor([300.0]), torch.tensor([1]))
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_is_read_by_diffusers_and_by_open_source(tmp_path: Path, family: str) -> None:
    make, pipeline = FAMILIES[family]
    folder = make(tmp_path / family)
    source = open_source(folder, prompts=PROMPTS)
    plain = output(source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(source, rank=3)
    assert torch.equal(output(source), plain)  # up is zero before the training
    trained = {name: one for name, one in source.denoiser.named_parameters() if one.requires_grad}
    assert all(".lora_" in name for name in trained)
    with torch.no_grad():
        for seed, one in enumerate(trained.values()):
            one.copy_(0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(seed)))
    changed = output(source)
    assert float((changed - plain).abs().max()) > 0.01
    file = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(lora_weights(source, trained), file)

    merged = open_source(folder, prompts=PROMPTS, lora=[Lora(file)])
    torch.testing.assert_close(output(merged), changed, rtol=1e-4, atol=1e-5)

    loaded = getattr(diffusers, pipeline).from_pretrained(folder)
    loaded.load_lora_weights(tmp_path, weight_name=file.name)
    theirs = loaded.transformer if family == "sd3" else loaded.unet
    mine = source.denoiser.transformer if family == "sd3" else source.denoiser.unet
    for (name, weight), (_, other) in zip(sorted(lora_of(theirs).items()), sorted(lora_of(mine).items()), strict=True):
        assert torch.equal(weight, other), name
    layers = [layer for layer in theirs.modules() if hasattr(layer, "lora_A") and hasattr(layer, "scaling")]
    assert layers
    assert all(set(layer.scaling.values()) == {1.0} for layer in layers)


def lora_of(network: Any) -> dict[str, torch.Tensor]:
    """The matrices of the only adapter of a network, by names without the adapter's."""
    return {
        name.rpartition(".lora_")[0] + name.rpartition(".lora_")[2][0]: one
        for name, one in network.named_parameters()
        if ".lora_" in name
    }


def test_only_text_conditional_models_take_a_lora(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a LoRA is for a text-conditional model, unet is none"):
        add_lora(open_source(tiny_unet2d(tmp_path / "unet")), 4)
