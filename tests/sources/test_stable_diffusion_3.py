"""Stable Diffusion 3, with and without T5: tables and errors equal those of a plain loop over the pipeline itself."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import safetensors.torch
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from fastdc.bundle import DENOISER, TEXT
from fastdc.diffusion.kernels import philox_normal
from fastdc.sources.base import Source, WithTables
from fastdc.sources.lora import Lora
from fastdc.sources.stable_diffusion_3 import open_stable_diffusion_3
from fastdc.support.exceptions import BundleError, InputError
from fastdc.testing.tiny_pipelines import tiny_sd, tiny_sd3
from helpers import text_pipelines
from helpers.text_pipelines import DRAWS, PROMPTS, SEED, STREAMS, check_graphs, classifier, graphs_of, images_of

Floats = npt.NDArray[np.float32]

one_thread = text_pipelines.one_thread  # applies to every test here
pytestmark = pytest.mark.filterwarnings("ignore::fastdc.support.PromptWarning")  # one of PROMPTS is too long


def _pipeline(folder: Path, *, t5: bool) -> Any:
    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder, **without)


@torch.inference_mode()
def naive(pipe: Any, images: npt.NDArray[np.uint8], ratios: npt.NDArray[np.float64]) -> Floats:
    """mean |F - (e - z)|^2 with z_t = (1 - t) z + t e, one row at a time: F was trained to be the velocity e - z."""
    config = pipe.vae.config
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    texts = [pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False) for prompt in PROMPTS.texts]
    out = np.zeros((len(images), len(PROMPTS), len(ratios)), np.float32)
    for i, image in enumerate(images):
        x = torch.from_numpy(image).float()[None] / 127.5 - 1
        z = (pipe.vae.encode(x).latent_dist.mode() - config.shift_factor) * config.scaling_factor
        for j, ratio in enumerate(ratios):
            t = float(ratio / (1 + ratio))  # sigma / alpha = t / (1 - t)
            row = philox_normal(np.array([STREAMS[i]]), np.array([j], np.int32), z.numel(), seed=SEED)
            e = torch.from_numpy(np.asarray(row)).reshape(z.shape)
            # The scheduler's own noising at the single level t, and its time input.
            scheduler.sigmas = torch.tensor([t], dtype=torch.float32)
            scheduler.timesteps = torch.tensor([t * scheduler.config.num_train_timesteps], dtype=torch.float32)
            z_t = scheduler.scale_noise(z, scheduler.timesteps, e)
            for p, (states, _, pooled, _) in enumerate(texts):
                f = pipe.transformer(
                    hidden_states=z_t,
                    timestep=scheduler.timesteps,
                    encoder_hidden_states=states,
                    pooled_projections=pooled,
                ).sample
                out[i, p, j] = float(((f - (e - z)) ** 2).mean())
    return out


@pytest.mark.parametrize(
    ("t5", "size", "options"),
    [
        (True, None, {}),
        (False, None, {}),
        (True, (24, 32), {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}),
    ],
)
def test_errors_are_those_of_the_pipeline(tmp_path: Path, t5: bool, size: Any, options: dict[str, Any]) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=t5, transformer=options)
    source = open_stable_diffusion_3(folder, prompts=PROMPTS, image_size=size)
    sides = size or (16, 16)
    assert source.model.image_shape == (3, *sides)
    assert source.model.latent_shape == (4, sides[0] // 2, sides[1] // 2)
    assert source.model.parameterization.kind == "flow"
    assert source.model.defaults.weighting == "velocity"
    assert source.model.schedule.to_dict() == {"kind": "flow", "shift": 3.0, "timestep_scale": 1000.0}
    images = images_of(source)
    table = classifier(source).errors(images, draws=DRAWS, seed=SEED, streams=STREAMS, levels=(0.1, 8.0))
    wanted = naive(_pipeline(folder, t5=t5), images, table.sigma)
    assert np.ptp(wanted, axis=1).min() > 1e-5  # the prompts matter at every level
    np.testing.assert_allclose(table.errors, wanted, rtol=2e-4)


def _rows(source: Source, padded_to: tuple[int, int]) -> Floats:
    """The rows of the states as the transformer gets them."""
    table = source.tables["encoder_hidden_states"]
    return np.pad(table, [(0, 0), (0, padded_to[0] - table.shape[1]), (0, padded_to[1] - table.shape[2])])


@pytest.mark.parametrize("t5", [True, False])
def test_tables_equal_the_encodings_of_the_pipeline(tmp_path: Path, t5: bool) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=t5)
    source = open_stable_diffusion_3(folder, prompts=PROMPTS)
    pipe = _pipeline(folder, t5=t5)
    with torch.inference_mode():
        states, no_states, pooled, no_pooled = pipe.encode_prompt(list(PROMPTS.texts), None, None)
    wanted = torch.cat([states, no_states[:1]]).numpy()
    assert list(source.tables) == ["encoder_hidden_states", "pooled_projections"]
    assert source.tables["encoder_hidden_states"].shape == ((5, 12 + 256, 32) if t5 else (5, 12, 24))
    np.testing.assert_allclose(_rows(source, wanted.shape[1:]), wanted, atol=2e-5)
    found = source.tables["pooled_projections"]
    np.testing.assert_allclose(found, torch.cat([pooled, no_pooled[:1]]).numpy(), atol=2e-6)
    assert (source.family, source.model.null_class) == ("stable-diffusion-3", 4)


def test_a_lora_is_merged(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=False)
    path = tmp_path / "style.safetensors"
    layer = "transformer.transformer_blocks.1.attn.to_q"
    torch.manual_seed(0)
    weights = {f"{layer}.lora_A.weight": torch.randn(2, 16), f"{layer}.lora_B.weight": torch.randn(16, 2)}
    safetensors.torch.save_file(weights, path)
    plain = open_stable_diffusion_3(folder, prompts=PROMPTS)
    source = open_stable_diffusion_3(folder, prompts=PROMPTS, lora=[Lora(path, -0.5)])
    name = layer.replace("transformer.", "", 1) + ".weight"
    before = plain.denoiser.get_submodule("transformer").state_dict()[name]
    after = source.denoiser.get_submodule("transformer").state_dict()[name]
    change = weights[f"{layer}.lora_B.weight"] @ weights[f"{layer}.lora_A.weight"]
    np.testing.assert_allclose((after - before).numpy(), -0.5 * change.numpy(), atol=1e-5)
    assert source.provenance["lora"] == "style.safetensors x -0.5"


def test_pipelines_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected StableDiffusion3Pipeline, got StableDiffusionPipeline"):
        open_stable_diffusion_3(tiny_sd(tmp_path / "sd"), prompts=PROMPTS)
    folder = tiny_sd3(tmp_path / "sd3", t5=False)
    for size in (18, (16, 2)):
        with pytest.raises(InputError, match="divisible by 4"):
            open_stable_diffusion_3(folder, prompts=PROMPTS, image_size=size)
    with pytest.raises(InputError, match="at most 48, where position codes end, got 52 x 16"):
        open_stable_diffusion_3(folder, prompts=PROMPTS, image_size=(52, 16))
    narrow = tiny_sd3(tmp_path / "narrow", t5=False, transformer={"joint_attention_dim": 20})
    with pytest.raises(BundleError, match="reads texts of width 20, but they have width 24"):
        open_stable_diffusion_3(narrow, prompts=PROMPTS)
    wide = tiny_sd3(tmp_path / "wide", transformer={"joint_attention_dim": 40})
    with pytest.raises(BundleError, match="reads texts of width 40, but they have width 32"):
        open_stable_diffusion_3(wide, prompts=PROMPTS)
    pooled = tiny_sd3(tmp_path / "pooled", t5=False, transformer={"pooled_projection_dim": 19})
    with pytest.raises(BundleError, match="reads pooled texts of width 19, but they have width 20"):
        open_stable_diffusion_3(pooled, prompts=PROMPTS)
    channels = tiny_sd3(tmp_path / "channels", t5=False, transformer={"in_channels": 5})
    with pytest.raises(BundleError, match="the transformer reads 5 channels, 1 more than the latents"):
        open_stable_diffusion_3(channels, prompts=PROMPTS)


@pytest.mark.parametrize("size", [(16, 16), (12, 48)])
def test_position_codes_are_cut_from_the_middle(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=False)
    source = open_stable_diffusion_3(folder, prompts=PROMPTS, image_size=size)
    transformer: Any = source.denoiser.get_submodule("transformer")
    h, w = size[0] // 4, size[1] // 4
    side = 12
    codes = transformer.pos_embed.pos_embed.reshape(side, side, -1)
    top, left = (side - h) // 2, (side - w) // 2
    sample = torch.zeros(1, *source.model.sample_shape)
    found = transformer.pos_embed(sample)[0] - transformer.pos_embed.proj(sample).flatten(2)[0].T
    np.testing.assert_allclose(found, codes[top : top + h, left : left + w].reshape(h * w, -1), atol=1e-6)
    with torch.inference_mode():
        out = WithTables(source.denoiser, source.tables)(sample, torch.tensor([500.0]), torch.tensor([0]))
    assert out.shape == sample.shape


@pytest.mark.slow
def test_the_bundle_computes_the_same_at_other_batches_and_conditions(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from helpers.exported import exported, shared_folder

    source, bundle = exported("stable-diffusion-3", shared_folder(tmp_path_factory))
    check_graphs(source, bundle.path / DENOISER, bundle.path / TEXT)


@pytest.mark.slow
def test_graphs_without_t5_compute_the_same_on_images_that_are_not_square(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = open_stable_diffusion_3(tiny_sd3(tmp_path / "sd3", t5=False), prompts=PROMPTS, image_size=(16, 24))
    check_graphs(source, *graphs_of(source))
