"""Pipelines that hold the networks of a family are read as that family; any other is named in one line."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from fastdc import BundleError  # noqa: E402
from fastdc.bundle.prompts import prompts_of  # noqa: E402
from fastdc.sources import is_text_conditional, open_source  # noqa: E402
from fastdc.sources.pipelines import FAMILY_OF, PLAIN, family_of  # noqa: E402
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_sd3, tiny_sdxl, tiny_unet2d  # noqa: E402
from helpers.worlds import fails_with  # noqa: E402

PROMPTS = prompts_of(("cube", "cone"))

# The networks in the constructors of each family's pipelines.
CLIP = {"text_encoder": "CLIPTextModel", "vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}
NETWORKS: dict[str, dict[str, str]] = {
    "unet2d": {"unet": "UNet2DModel"},
    "dit": {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"},
    "stable-diffusion": CLIP,
    "stable-diffusion-xl": {**CLIP, "text_encoder_2": "CLIPTextModelWithProjection"},
    "stable-diffusion-3": {
        "transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection", "text_encoder_3": "T5EncoderModel",
    },
}  # fmt: skip

# Pipelines with these networks, trained for further inputs or other noise.
OTHERS = {
    "noise of other kinds": {"ConsistencyModelPipeline", "ScoreSdeVePipeline", "KarrasVePipeline"},
    "a low resolution image": {"StableDiffusionUpscalePipeline", "StableDiffusionLatentUpscalePipeline"},
    "an image to edit": {"StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"},
    "depth": {"StableDiffusionDepth2ImgPipeline", "StableDiffusionLDM3DPipeline"},
    "an image to analyse": {"MarigoldDepthPipeline", "MarigoldNormalsPipeline", "MarigoldIntrinsicsPipeline"},
    "the embedding of an image": {
        "StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline", "StableDiffusionGLIGENTextImagePipeline",
    },
    "the scale of guidance": {"LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"},
    "motion": {
        "AnimateDiffPipeline", "AnimateDiffControlNetPipeline", "AnimateDiffPAGPipeline", "AnimateDiffSDXLPipeline",
        "AnimateDiffSparseControlNetPipeline", "AnimateDiffVideoToVideoPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline", "PIAPipeline",
    },
}  # fmt: skip


def constructors() -> dict[str, dict[str, str]]:
    """The arguments of all pipelines of diffusers with their annotations, read without importing the pipelines."""
    found: dict[str, dict[str, str]] = {}
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        for text in file.read_text(encoding="utf-8").split("\nclass ")[1:]:
            name, head = text.split("(", 1)[0], re.search(r"    def (__init__\(.*?\))(?: -> \w+)?:\n", text, re.DOTALL)
            if "Pipeline" in name and head is not None:
                (made,) = ast.parse(f"def {head[1]}: pass").body
                assert isinstance(made, ast.FunctionDef)
                every = [*made.args.args, *made.args.kwonlyargs]
                found[name] = {one.arg: ast.unparse(one.annotation) for one in every if one.annotation}
    return found


def families(arguments: dict[str, str]) -> list[str]:
    """The families whose networks a constructor takes, and no other network."""
    own = {name: kind.split(" | ")[0] for name, kind in arguments.items()}
    every = {"unet", "transformer", "vae", "vqvae", "text_encoder", "text_encoder_2", "text_encoder_3"}
    return [
        family
        for family, networks in NETWORKS.items()
        if {name: kind for name, kind in own.items() if name in every} == networks
    ]


def test_the_list_is_that_of_diffusers() -> None:
    found = {name: family for name, arguments in constructors().items() for family in families(arguments)}
    others = set().union(*OTHERS.values())
    assert others <= set(found)
    assert {name: family for name, family in found.items() if name not in others} == {
        kind: family for kind, family in FAMILY_OF.items() if kind != "UNet2DModel"
    }
    for family, kind in PLAIN.items():
        assert family_of(kind) == family


MAKERS: dict[str, Any] = {
    "unet2d": tiny_unet2d,
    "dit": tiny_dit,
    "stable-diffusion": tiny_sd,
    "stable-diffusion-xl": tiny_sdxl,
    "stable-diffusion-3": tiny_sd3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {family: make(root / family) for family, make in MAKERS.items()}


def called(folder: Path, kind: str, **changes: Any) -> None:
    """Gives a pipeline's folder another class."""
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": kind, **changes}))


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("RePaintPipeline", "unet2d"),
        ("StableDiffusionImg2ImgPipeline", "stable-diffusion"),
        ("StableDiffusionInpaintPipeline", "stable-diffusion"),
        ("StableDiffusionControlNetPipeline", "stable-diffusion"),
        ("StableDiffusionXLImg2ImgPipeline", "stable-diffusion-xl"),
        ("StableDiffusion3InpaintPipeline", "stable-diffusion-3"),
    ],
)
def test_a_variant_is_read_as_the_plain_pipeline(kind: str, family: str, folders: dict[str, Path]) -> None:
    called(folders[family], kind, controlnet=["diffusers", "ControlNetModel"])
    prompts = None if family == "unet2d" else PROMPTS
    source = open_source(folders[family], prompts=prompts)
    assert (source.family, source.provenance["pipeline"]) == (family, kind)
    assert is_text_conditional(folders[family]) is (prompts is not None)


@pytest.mark.parametrize("kind", ["FluxPipeline", "KandinskyPipeline", "StableDiffusionUpscalePipeline", "os.system"])
@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_another_pipeline_is_named(kind: str, prompts: Any, folders: dict[str, Path]) -> None:
    for family in ("unet2d", "stable-diffusion"):
        called(folders[family], kind)
        message = f"{kind} cannot be exported; those that can: DDPMPipeline, DiTPipeline, StableDiffusionPipeline, "
        fails_with(lambda family=family: open_source(folders[family], prompts=prompts), message, kind=BundleError)  # type: ignore[misc]
        fails_with(lambda family=family: is_text_conditional(folders[family]), message, kind=BundleError)  # type: ignore[misc]


def test_networks_with_further_inputs_are_refused_with_the_reason(tmp_path: Path, folders: dict[str, Path]) -> None:
    folder = tiny_sd(tmp_path / "inpaint", unet={"in_channels": 9})
    called(folder, "StableDiffusionInpaintPipeline")
    fails_with(
        lambda: open_source(folder, prompts=PROMPTS),
        "the unet reads 9 channels, 5 more than the latents: models for inpainting",
        kind=BundleError,
    )
    called(folders["stable-diffusion-xl"], "StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)
    fails_with(
        lambda: open_source(folders["stable-diffusion-xl"], prompts=PROMPTS),
        "stable-diffusion-xl is a refiner, which reads an aesthetic score: expected a base model",
        kind=BundleError,
    )
