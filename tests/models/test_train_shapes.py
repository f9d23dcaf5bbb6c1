"""The shapes pipeline: its tokenizer, its training, which repeats itself, its files, and its score.

The training here is far too short to classify anything. The tests are slow because importing diffusers takes seconds.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts of models/."""
    return {name: importlib.import_module(name) for name in ("make_shapes", "train_shapes", "score_shapes")}


@pytest.fixture(scope="module")
def data(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts["make_shapes"], "COUNTS", {"train": 4, "val": 1, "test": 1})
        patch.setattr("sys.argv", ["make_shapes.py", str(folder)])
        scripts["make_shapes"].main()
    return folder


@pytest.fixture(scope="module")
def train(scripts: dict[str, ModuleType], data: Path) -> Any:
    """A function that trains for a few steps and writes the pipeline to a folder."""

    def run(out: Path) -> Path:
        threads = torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scripts["train_shapes"], "STEPS", {"autoencoder": 12, "denoiser": 8})
            patch.setattr("sys.argv", ["train_shapes.py", str(data), str(out), "--seed", "3"])
            scripts["train_shapes"].main()
        torch.set_num_threads(threads)
        return out

    return run


@pytest.fixture(scope="module")
def pipeline(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusers.StableDiffusionPipeline.from_pretrained(train(tmp_path_factory.mktemp("pipeline")))


def test_every_word_of_a_prompt_is_one_token(scripts: dict[str, ModuleType]) -> None:
    make, tokenizer = scripts["make_shapes"], scripts["train_shapes"].make_tokenizer()
    for name in make.CLASS_NAMES:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(make.prompt(name)).input_ids)
        words = [f"{word}</w>" for word in make.prompt(name).split()]
        assert tokens == ["<|startoftext|>", *words, "<|endoftext|>"]


def test_other_texts_have_tokens_too(scripts: dict[str, ModuleType]) -> None:
    """At worst the tokens are bytes, so that no text is unknown: the end token stands only at the end."""
    tokenizer = scripts["train_shapes"].make_tokenizer()
    ids = tokenizer("Zwölf 7!").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "zwölf7!"
    table = scripts["train_shapes"].token_table(tokenizer)
    assert table.shape == (33, 12)
    assert table[-1].tolist() == [tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 11]


def test_the_pipeline_is_small_and_complete(pipeline: Any) -> None:
    assert type(pipeline.tokenizer).__name__ == "CLIPTokenizer"
    assert pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    count = sum(p.numel() for part in ("vae", "text_encoder", "unet") for p in getattr(pipeline, part).parameters())
    assert count < 1.1e6  # parameters of 4 bytes
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id


def test_training_repeats_itself(pipeline: Any, train: Any, tmp_path: Path) -> None:
    again = diffusers.StableDiffusionPipeline.from_pretrained(train(tmp_path))
    for part in ("vae", "text_encoder", "unet"):
        one, two = getattr(pipeline, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one | two), part
    assert again.vae.config.scaling_factor == pipeline.vae.config.scaling_factor


def test_latents_are_scaled_to_unit_variance(pipeline: Any, data: Path) -> None:
    with np.load(data / "shapes-train.npz") as arrays:
        pixels = torch.from_numpy(arrays["images"]).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert latents.shape == (96, 4, 8, 8)
    assert abs(latents.std().item() - 1) < 0.1  # the script measures every tenth image


def test_the_pipeline_makes_images(pipeline: Any) -> None:
    """diffusers' own sampler makes an image from a text: noise after so few steps, but of the right shape."""
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a photo of a red cone", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert np.isfinite(images).all()


def test_errors_are_those_of_the_definition(pipeline: Any, scripts: dict[str, ModuleType]) -> None:
    """The same errors from diffusers' scheduler: its noisy sample, and its velocity solved for the noise."""
    rng = torch.Generator().manual_seed(0)
    latents, states = torch.randn((2, 4, 8, 8), generator=rng), torch.randn((3, 12, 48), generator=rng)
    steps = [100, 900]
    with torch.no_grad():
        errors = scripts["score_shapes"].class_errors(pipeline, latents, steps, states, 5)
        again = torch.Generator().manual_seed(5)
        scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)
        for image in range(2):
            eps = torch.randn((2, 4, 8, 8), generator=again)
            for draw, step in enumerate(steps):
                t = torch.tensor([step])
                noisy = scheduler.add_noise(latents[image : image + 1], eps[draw : draw + 1], t)
                bar = scheduler.alphas_cumprod[step]
                for label in range(3):
                    v = pipeline.unet(noisy, t, states[label : label + 1]).sample
                    found = bar.sqrt() * v + (1 - bar).sqrt() * noisy
                    expected = (found - eps[draw]).square().mean().item()
                    assert errors[image, draw, label] == pytest.approx(expected, rel=1e-4)


def test_the_report_counts_seen_and_held_out(scripts: dict[str, ModuleType]) -> None:
    """A red cube and a held-out yellow cube are recognised; a held-out red sphere is taken for a red cone."""
    labels = np.array([1, 0, 5])
    errors = np.ones((3, 32))
    errors[[0, 1, 2], [1, 3, 5]] = 0.0
    errors[1, 0] = 0.5
    line = scripts["score_shapes"].report(errors, labels)
    assert "seen 100.0 % of 1, held out 50.0 % of 2 (among held-out prompts 100.0 %)" in line
    assert "1 wrong, 1 of them with the colour right and 0 with the shape right" in line


def test_levels_find_their_steps(scripts: dict[str, ModuleType]) -> None:
    bars = scripts["train_shapes"].make_scheduler().alphas_cumprod
    ratios = np.sqrt((1 - bars.double().numpy()) / bars.double().numpy())
    assert scripts["score_shapes"].level_steps(bars, ratios[[0, 17, 500, 999]]) == [0, 17, 500, 999]
    assert scripts["score_shapes"].level_steps(bars, np.array([1e-9, 1e9])) == [0, 999]
