"""Other classes for a model: rows by name, "no class" for the rest, everything else unchanged."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from torch import Tensor

from fastdc.bundle import prompts_of
from fastdc.sources import Source, open_source, open_vae, with_classes, with_prompts
from fastdc.support import BundleError, InputError
from fastdc.testing.edm_files import write_edm
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_unet2d, tiny_vae


def outputs(source: Source, labels: Any) -> Tensor:
    """F for each label, at one sample and time."""
    generator = torch.Generator().manual_seed(0)
    shape = source.model.sample_shape
    sample = torch.randn(1, *shape, generator=generator).expand(len(labels), *shape)
    with torch.inference_mode():
        out: Tensor = source.denoiser(sample, torch.full((len(labels),), 0.3), torch.tensor(labels))
    return out


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_edm_keeps_known_classes_and_starts_others_from_no_class(tmp_path: Path, variant: str, dropout: float) -> None:
    path = write_edm(tmp_path / "net.pkl", variant, label_dropout=dropout)
    source = open_source(path, class_names=("cat", "dog", "cow", "owl"))
    old = outputs(source, [0, 1, 2, 3, 4])
    other = with_classes(source, ("owl", "hen", "cat", "elk", "eel", "ant"))[0]
    new = outputs(other, range(7))
    assert other.model.null_class == 6
    assert close(new[[0, 2]], old[[3, 0]])
    assert not close(old[0], old[3])
    if dropout:
        assert close(new[[1, 3, 4, 5, 6]], old[4].expand(5, *old.shape[1:]))
    else:
        assert not close(new[1], old[0])
    assert close(new[1], new[5])


@pytest.mark.parametrize("variant", ["ddpmpp", "adm"])
def test_edm_without_classes_gets_some(tmp_path: Path, variant: str) -> None:
    source = open_source(write_edm(tmp_path / "net.pkl", variant, label_dim=0))
    old = outputs(source, [0])
    new = outputs(with_classes(source, ("cat", "dog"))[0], [0, 1, 2])
    assert close(new, old.expand(3, *old.shape[1:]))


def test_edm_that_predicts_a_variance(tmp_path: Path) -> None:
    path = write_edm(tmp_path / "net.pkl", "adm", preconditioner="iDDPMPrecond", out_channels=6, label_dropout=0.1)
    source = open_source(path, class_names=("cat", "dog", "cow", "owl"))
    old = outputs(source, [1, 4])
    assert close(outputs(with_classes(source, ("dog", "x"))[0], [0, 1]), old)


def test_a_unet_keeps_known_classes_and_starts_others_from_no_class(tmp_path: Path) -> None:
    source = open_source(tiny_unet2d(tmp_path / "unet", classes=4), class_names=("cat", "dog", "cow"))
    old = outputs(source, [0, 1, 2, 3])
    other = with_classes(source, ("dog", "hen", "cow"))[0]
    assert close(outputs(other, [0, 1, 2, 3]), old[[1, 3, 2, 3]])
    assert other.model.class_names == ("dog", "hen", "cow")
    assert other.model.schedule == source.model.schedule


def test_numbers_that_a_reader_made_up_are_no_names(tmp_path: Path) -> None:
    source = open_source(tiny_unet2d(tmp_path / "unet", classes=3))
    unet: Any = source.denoiser
    mean = unet.unet.class_embedding.weight.mean(dim=0)
    spread = unet.unet.class_embedding.weight.std(dim=0, correction=0).square().mean().sqrt()
    _, scales = with_classes(source, ("2", "1"))
    assert scales == {"unet.class_embedding.weight": pytest.approx(float(spread))}
    assert close(unet.unet.class_embedding.weight, mean.expand(3, -1))


def test_a_unet_without_classes_gets_some(tmp_path: Path) -> None:
    source = open_source(tiny_unet2d(tmp_path / "unet", classes=None))
    old = outputs(source, [0])
    other = with_classes(source, ("cat", "dog"))[0]
    assert close(outputs(other, [0, 1, 2]), old.expand(3, *old.shape[1:]))


def test_every_block_of_a_dit_gets_the_classes(tmp_path: Path) -> None:
    source = open_source(tiny_dit(tmp_path / "dit"))
    old = outputs(source, [2, 5])
    other = with_classes(source, ("thing 2, also 2", "hen"))[0]
    assert close(outputs(other, [0, 1, 2]), old[[0, 1, 1]])
    other.denoiser.train()  # no block drops classes of its own
    assert close(outputs(other, [0] * 64), old[:1].expand(64, *old.shape[1:]))


def test_a_text_conditional_model_takes_prompts_instead(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "sd")
    source = open_source(folder, prompts=prompts_of(("cube", "cone")))
    other, direct = prompts_of(("red", "blue", "photo")), None
    direct = open_source(folder, prompts=other)
    changed = with_prompts(source, other)
    assert changed.model == direct.model
    assert all((changed.tables[name] == table).all() for name, table in direct.tables.items())
    with pytest.raises(InputError, match="its classes are prompts"):
        with_classes(source, ("cat", "dog"))
    with pytest.raises(InputError, match="its classes are no prompts"):
        with_prompts(open_source(tiny_unet2d(tmp_path / "unet")), other)


def test_an_encoder_comes_from_a_pipeline_or_alone(tmp_path: Path) -> None:
    tiny_vae().save_pretrained(tmp_path / "vae")
    images = torch.rand(2, 3, 16, 16)
    alone, origin = open_vae(tmp_path / "vae")
    with torch.inference_mode():
        assert torch.equal(alone(images), open_vae(tiny_dit(tmp_path / "dit"))[0](images))
    assert origin == {"pipeline": "AutoencoderKL", "source": "vae"}
    with pytest.raises(BundleError, match="no component 'vae'"):
        open_vae(tiny_unet2d(tmp_path / "unet"))
    tiny_vae(in_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(BundleError, match="must read 3 channels, got 1"):
        open_vae(tmp_path / "grey")


def test_numbers_of_training_images_are_of_the_old_classes(tmp_path: Path) -> None:
    source = open_source(write_edm(tmp_path / "net.pkl", "adm"), class_names=("cat", "dog", "cow", "owl"))
    counts = (5, 6, 7, 8)
    counted = dataclasses.replace(
        source, model=dataclasses.replace(source.model, class_counts=counts), class_counts=counts
    )
    other = with_classes(counted, ("cat", "hen"))[0]
    assert (other.model.class_counts, other.class_counts) == (None, ())
    texts = open_source(tiny_sd(tmp_path / "sd"), prompts=prompts_of(("cat", "dog")))
    texts = dataclasses.replace(texts, model=dataclasses.replace(texts.model, class_counts=(3, 4)), class_counts=(3, 4))
    other = with_prompts(texts, prompts_of(("cat", "dog", "cow")))
    assert (other.model.class_counts, other.class_counts) == (None, ())
