"""Stable Diffusion 1, 2 and XL: tables and errors equal those of a plain loop over the pipeline itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers import text_pipelines
from helpers.text_pipelines import DRAWS, PROMPTS, SECOND, SEED, STREAMS, check_graphs, classifier, images_of

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import safetensors.torch
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from fastdc.bundle import DENOISER, TEXT
from fastdc.diffusion.kernels import philox_normal
from fastdc.sources.base import WithTables
from fastdc.sources.lora import Lora
from fastdc.sources.stable_diffusion import open_stable_diffusion
from fastdc.support.exceptions import BundleError, InputError
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_sdxl

Floats = npt.NDArray[np.float32]

one_thread = text_pipelines.one_thread  # applies to every test here
pytestmark = pytest.mark.filterwarnings("ignore::fastdc.support.PromptWarning")  # one of PROMPTS is too long


def texts_of(pipe: Any, prompt: str, sides: tuple[int, ...]) -> dict[str, Any]:
    """The inputs that the pipeline gives its UNet for a prompt."""
    if isinstance(pipe, StableDiffusionXLPipeline):
        states, _, pooled, _ = pipe.encode_prompt(prompt)
        sizes = torch.tensor([[*sides, 0, 0, *sides]], dtype=torch.float32)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    return {"encoder_hidden_states": pipe.encode_prompt(prompt, "cpu", 1, False)[0]}


@torch.inference_mode()
def naive(pipe: Any, images: npt.NDArray[np.uint8], ratios: npt.NDArray[np.float64], target: str) -> Floats:
    """Li et al., arXiv 2303.16203, algorithm 1: mean |e - e_hat(x_t, t, c)|^2, one evaluation at a time."""
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    alpha_bar = noising.alphas_cumprod.double().numpy()
    texts = [texts_of(pipe, prompt, images.shape[2:]) for prompt in PROMPTS.texts]
    out = np.zeros((len(images), len(PROMPTS), len(ratios)), np.float32)
    for i, image in enumerate(images):
        x = torch.from_numpy(image).float()[None] / 127.5 - 1
        z = pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor
        for j, ratio in enumerate(ratios):
            t = int(np.argmin(np.abs(np.sqrt((1 - alpha_bar) / alpha_bar) / ratio - 1)))
            row = philox_normal(np.array([STREAMS[i]]), np.array([j], np.int32), z.numel(), seed=SEED)
            e = torch.from_numpy(np.asarray(row)).reshape(z.shape)
            z_t = noising.add_noise(z, e, torch.tensor([t]))
            alpha, sigma = float(np.sqrt(alpha_bar[t])), float(np.sqrt(1 - alpha_bar[t]))
            for p, text in enumerate(texts):
                f = pipe.unet(z_t, t, **text).sample
                of = {"epsilon": f, "v_prediction": alpha * f + sigma * z_t, "sample": (z_t - alpha * f) / sigma}
                e_hat = of[target]
                out[i, p, j] = float(((e - e_hat) ** 2).mean())
    return out


@pytest.mark.parametrize(
    ("large", "scheduler", "target", "size", "options"),
    [
        (False, "PNDMScheduler", "epsilon", None, {}),
        (False, "DDIMScheduler", "v_prediction", None, SECOND),
        (False, "UniPCMultistepScheduler", "sample", (24, 18), {}),
        (True, "EulerDiscreteScheduler", "epsilon", None, {}),
        (True, "EulerDiscreteScheduler", "v_prediction", (20, 32), {}),
    ],
)
def test_errors_are_those_of_the_pipeline(
    tmp_path: Path, large: bool, scheduler: str, target: str, size: Any, options: dict[str, Any]
) -> None:
    make = tiny_sdxl if large else tiny_sd
    clip = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    folder = make(tmp_path / "model", scheduler=scheduler, unet=options, prediction_type=target, **clip)
    source = open_stable_diffusion(folder, prompts=PROMPTS, image_size=size)
    sides = size or (16, 16)
    assert source.model.image_shape == (3, *sides)
    assert source.model.latent_shape == (4, sides[0] // 2, sides[1] // 2)
    assert source.model.parameterization.kind == target
    images = images_of(source)
    table = classifier(source).errors(images, draws=DRAWS, seed=SEED, streams=STREAMS, levels=(0.1, 8.0))
    pipe = (StableDiffusionXLPipeline if large else StableDiffusionPipeline).from_pretrained(folder)
    wanted = naive(pipe, images, table.sigma, target)
    assert np.ptp(wanted, axis=1).min() > 1e-4  # the prompts matter at every level
    np.testing.assert_allclose(table.errors, wanted, rtol=2e-4)


@pytest.mark.parametrize("zeros", [True, False, None])
def test_tables_equal_the_encodings_of_the_pipeline(tmp_path: Path, zeros: bool | None) -> None:
    large = zeros is not None
    folder = tiny_sdxl(tmp_path / "xl", zeros_for_empty=bool(zeros)) if large else tiny_sd(tmp_path / "sd")
    source = open_stable_diffusion(folder, prompts=PROMPTS)
    kind = StableDiffusionXLPipeline if large else StableDiffusionPipeline
    pipe = kind.from_pretrained(folder)
    with torch.inference_mode():
        if large:
            states, no_states, pooled, no_pooled = pipe.encode_prompt(list(PROMPTS.texts))
        else:
            states, no_states = pipe.encode_prompt(list(PROMPTS.texts), "cpu", 1, True)
    wanted = {"encoder_hidden_states": torch.cat([states, no_states[:1]])}
    if large:
        wanted["text_embeds"] = torch.cat([pooled, no_pooled[:1]])
    assert list(source.tables) == list(wanted)
    for name, table in source.tables.items():
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, wanted[name].numpy(), atol=2e-6)
        assert bool(table[-1].any()) != bool(zeros)
    model = source.model
    assert model.null_class == len(PROMPTS)
    assert (model.prompts, model.class_of, model.class_names) == (PROMPTS.texts, PROMPTS.class_of, PROMPTS.class_names)
    assert source.family == ("stable-diffusion-xl" if large else "stable-diffusion")
    assert not any(parameter.requires_grad for parameter in source.denoiser.parameters())


def test_no_prompt_is_the_row_after_the_last(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "sd")
    source = open_stable_diffusion(folder, prompts=PROMPTS)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    sample = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([0.0, 400.0, 999.0])
    null = torch.full((3,), len(PROMPTS))
    with torch.inference_mode():
        found = WithTables(source.denoiser, source.tables)(sample, timestep, null)
        for row, t in enumerate((0, 400, 999)):
            f = pipe.unet(sample[row : row + 1], t, **texts_of(pipe, "", (16, 16))).sample[0]
            np.testing.assert_allclose(found[row].numpy(), f.numpy(), atol=1e-5)


def test_a_lora_is_merged_and_named(tmp_path: Path) -> None:
    folder = tiny_sd(tmp_path / "sd")
    path = tmp_path / "style.safetensors"
    text, layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "unet.mid_block.attentions.0.proj_in"
    torch.manual_seed(0)
    weights = {
        f"{text}.lora_A.weight": torch.randn(2, 16),
        f"{text}.lora_B.weight": torch.randn(16, 2),
        f"{layer}.lora_A.weight": torch.randn(2, 16, 1, 1),
        f"{layer}.lora_B.weight": torch.randn(16, 2, 1, 1),
    }
    safetensors.torch.save_file(weights, path)
    plain = open_stable_diffusion(folder, prompts=PROMPTS)
    source = open_stable_diffusion(folder, prompts=PROMPTS, lora=[Lora(path, 0.5)])
    assert source.provenance["lora"] == "style.safetensors x 0.5"
    assert "lora" not in plain.provenance
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)  # not merged, so the adapter's own forward runs
    pipe.set_adapters(pipe.get_active_adapters(), adapter_weights=0.5)
    sample, t = torch.randn(1, 4, 8, 8), torch.tensor([321.0])
    with torch.inference_mode():
        context = texts_of(pipe, PROMPTS.texts[0], (16, 16))
        f = pipe.unet(sample, t, **context).sample
        label = torch.tensor([0])
        found = WithTables(source.denoiser, source.tables)(sample, t, label)
        bare = WithTables(plain.denoiser, plain.tables)(sample, t, label)
    np.testing.assert_allclose(source.tables["encoder_hidden_states"][:1], context["encoder_hidden_states"], atol=1e-5)
    np.testing.assert_allclose(found.numpy(), f.numpy(), atol=1e-4)
    assert (bare - f).abs().max() > 1e-2


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pipelines_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected Stable Diffusion 1, 2 or XL, got DiTPipeline"):
        open_stable_diffusion(tiny_dit(tmp_path / "dit"), prompts=PROMPTS)
    folder = tiny_sd(tmp_path / "sd")
    for size in (15, 0, (16, 17), -2, "16", (16,), True, 2**14):
        with pytest.raises(InputError, match="divisible by 2"):
            open_stable_diffusion(folder, prompts=PROMPTS, image_size=size)  # type: ignore[arg-type]
    inpainting = tiny_sd(tmp_path / "inpainting", unet={"in_channels": 9})
    with pytest.raises(BundleError, match="the unet reads 9 channels, 5 more than the latents: models for inpainting"):
        open_stable_diffusion(inpainting, prompts=PROMPTS)
    wide = tiny_sd(tmp_path / "wide", unet={"cross_attention_dim": 24})
    with pytest.raises(BundleError, match="reads texts of width 24, but they have width 16"):
        open_stable_diffusion(wide, prompts=PROMPTS)
    guided = tiny_sd(tmp_path / "guided", unet={"time_cond_proj_dim": 8})
    with pytest.raises(BundleError, match="time_cond_proj_dim = 8"):
        open_stable_diffusion(guided, prompts=PROMPTS)
    _edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=77)
    with pytest.raises(BundleError, match="text_encoder reads 12 tokens, but its tokenizer makes 77"):
        open_stable_diffusion(folder, prompts=PROMPTS)
    _edit(folder / "text_encoder" / "config.json", use_attention_mask=True)
    with pytest.raises(BundleError, match="attention mask"):
        open_stable_diffusion(folder, prompts=PROMPTS)
    _edit(folder / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
    _edit(folder / "text_encoder" / "config.json", use_attention_mask=False)
    with pytest.raises(BundleError, match="must be one of CLIPTokenizer"):
        open_stable_diffusion(folder, prompts=PROMPTS)
    _edit(folder / "model_index.json", text_encoder=[None, None])
    with pytest.raises(BundleError, match="no component 'text_encoder'"):
        open_stable_diffusion(folder, prompts=PROMPTS)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl"])
def test_the_bundle_computes_the_same_at_other_batches_and_conditions(
    family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from helpers.exported import exported, shared_folder

    source, bundle = exported(family, shared_folder(tmp_path_factory))
    check_graphs(source, bundle.path / DENOISER, bundle.path / TEXT)
