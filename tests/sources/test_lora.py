"""LoRAs merged into a model: W + scale alpha / r up down in each format; files that do not fit are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import safetensors.torch
import torch
from diffusers import SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from fastdc.sources.lora import Lora, fuse_lora
from fastdc.support.exceptions import BundleError, InputError
from fastdc.testing.tiny_pipelines import clip_tokenizer, tiny_clip, tiny_sd, tiny_sd3

RANK = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd"))


def _networks(folder: Path) -> dict[str, Any]:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    return {"unet": unet, "text_encoder": tiny_clip(clip_tokenizer())}


def _pair(layer: nn.Module, seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Thin factors (down, up) for a linear map or a convolution, large enough that a wrong scale shows."""
    shape = layer.get_parameter("weight").shape
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator)
    return down, up


def _product(down: Tensor, up: Tensor) -> Tensor:
    """The change of the weight as a plain sum over the rank, in float64."""
    change = torch.zeros(up.shape[0], *down.shape[1:], dtype=torch.float64)
    for r in range(len(down)):
        change += up.double()[:, r].reshape(-1, *(1 for _ in down.shape[1:])) * down.double()[r]
    return change


def _check(networks: dict[str, Any], before: dict[str, dict[str, Tensor]], changes: dict[str, Tensor]) -> None:
    """Each weight grew by its entry of `changes`, keyed "network.weight"; the adapters' modules are gone."""
    left = dict(changes)
    for name, network in networks.items():
        after = network.state_dict()
        assert after.keys() == before[name].keys()
        for key, value in after.items():
            change = left.pop(f"{name}.{key}", None)
            wanted = before[name][key] if change is None else before[name][key].double() + change
            np.testing.assert_allclose(value.numpy(), wanted.numpy(), rtol=1e-6, atol=2e-6)
            assert change is None or change.abs().max() > 0.1
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not network.training
    assert not left


def _copies(networks: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.clone() for key, value in network.state_dict().items()} for name, network in networks.items()
    }


UNET_LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
)
TEXT_LAYERS = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj", "encoder.layers.1.mlp.fc1")


def _plain_file(networks: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Writes peft's names, as diffusers' save_lora_weights does; alpha = r."""
    weights, changes = {}, {}
    for name, layers in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS)):
        for seed, layer in enumerate(layers):
            down, up = _pair(networks[name].get_submodule(layer), seed)
            inner = layer if name == "unet" else f"text_model.{layer}"  # as in files of earlier transformers
            weights[f"{name}.{inner}.lora_A.weight"] = down
            weights[f"{name}.{inner}.lora_B.weight"] = up
            changes[f"{name}.{layer}.weight"] = _product(down, up)
    safetensors.torch.save_file(weights, path)
    return changes


def _kohya_file(networks: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Writes kohya's names and alphas; one layer is a convolution."""
    weights, changes = {}, {}
    convolution = "down_blocks.0.attentions.0.proj_in"
    for prefix, name, layers in (
        ("lora_unet", "unet", (*UNET_LAYERS, convolution)),
        ("lora_te", "text_encoder", TEXT_LAYERS),
    ):
        for seed, layer in enumerate(layers):
            down, up = _pair(networks[name].get_submodule(layer), seed)
            inner = layer if name == "unet" else f"text_model.{layer}"
            key = f"{prefix}_{inner.replace('.', '_')}"
            weights[f"{key}.lora_down.weight"] = down
            weights[f"{key}.lora_up.weight"] = up
            weights[f"{key}.alpha"] = torch.tensor(1.5)
            changes[f"{name}.{layer}.weight"] = 1.5 / RANK * _product(down, up)
    safetensors.torch.save_file(weights, path)
    return changes


@pytest.mark.parametrize("kind", ["plain", "kohya"])
@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_weights_are_changed_by_the_product(folder: Path, tmp_path: Path, kind: str, scale: float) -> None:
    networks = _networks(folder)
    before = _copies(networks)
    path = tmp_path / "style.safetensors"
    changes = (_plain_file if kind == "plain" else _kohya_file)(networks, path)
    fuse_lora("StableDiffusionPipeline", networks, [Lora(path, scale)])
    _check(networks, before, {key: scale * change for key, change in changes.items()})


# Of each layer: its rank, and its alpha or None if the file has none. No two layers have the same factor.
_UNEQUAL: tuple[tuple[int, float | None], ...] = ((4, 4.0), (4, 1.0), (3, None), (2, 5.0), (4, 0.5), (1, 4.0), (2, 1.0))


@pytest.mark.parametrize("large", [False, True])
def test_every_layer_has_its_own_rank_and_alpha(folder: Path, tmp_path: Path, large: bool) -> None:
    networks = _networks(folder)
    encoders = {"lora_te": "text_encoder"}
    pipeline = "StableDiffusionPipeline"
    if large:
        from fastdc.testing.tiny_pipelines import tiny_sdxl

        tokenizer, pipeline = clip_tokenizer(), "StableDiffusionXLPipeline"
        networks["unet"] = UNet2DConditionModel.from_pretrained(tiny_sdxl(tmp_path / "xl"), subfolder="unet")
        networks["text_encoder_2"] = tiny_clip(tokenizer, width=24, projection=12, seed=3)
        encoders = {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
    before = _copies(networks)
    attention = "down_blocks.1" if large else "down_blocks.0"
    block = f"{attention}.attentions.0.transformer_blocks.0"
    unet = [f"{block}.{name}" for name in ("attn1.to_q", "attn1.to_k", "attn2.to_k", "attn2.to_out.0")]
    unet += ["down_blocks.0.resnets.0.conv1"]  # LoCon: a convolution of 3 x 3
    layers = [("lora_unet", "unet", name, name) for name in unet]
    for prefix, name in encoders.items():
        # The second encoder of XL keeps the prefix text_model in its modules, as its class does.
        for inner in TEXT_LAYERS[:2]:
            module = inner if hasattr(networks[name], "encoder") else f"text_model.{inner}"
            layers.append((prefix, name, module, f"text_model.{inner}"))
    weights: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for seed, (prefix, name, module, written) in enumerate(layers):
        rank, alpha = _UNEQUAL[seed % len(_UNEQUAL)]
        down, up = _pair(networks[name].get_submodule(module), seed, rank)
        key = f"{prefix}_{written.replace('.', '_')}"
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            weights[f"{key}.alpha"] = torch.tensor(alpha)
        changes[f"{name}.{module}.weight"] = (1.0 if alpha is None else alpha / rank) * _product(down, up)
    path = tmp_path / "unequal.safetensors"
    safetensors.torch.save_file(weights, path)
    fuse_lora(pipeline, networks, [Lora(path)])
    _check(networks, before, changes)


def test_ranks_and_alphas_in_the_names_of_peft(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)
    before = _copies(networks)
    weights: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for seed, layer in enumerate(UNET_LAYERS):
        rank, alpha = _UNEQUAL[seed + 1]
        down, up = _pair(networks["unet"].get_submodule(layer), seed, rank)
        weights |= {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
        if alpha is not None:
            weights[f"unet.{layer}.alpha"] = torch.tensor(alpha)
        changes[f"unet.{layer}.weight"] = (1.0 if alpha is None else alpha / rank) * _product(down, up)
    path = tmp_path / "unequal.safetensors"
    safetensors.torch.save_file(weights, path)
    fuse_lora("StableDiffusionPipeline", networks, [Lora(path)])
    _check(networks, before, changes)


def test_tensors_that_are_no_part_of_a_lora_are_named(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)
    path = tmp_path / "more.safetensors"
    _kohya_file(networks, path)
    plain = safetensors.torch.load_file(path)
    key = "lora_unet_" + UNET_LAYERS[0].replace(".", "_")
    elsewhere = "lora_unet_" + UNET_LAYERS[1].replace(".", "_").replace("attn1", "attn7")
    for more, message in (
        (
            {f"{key}.lora_mid.weight": torch.ones(3, 3)},
            f"holds {key}.lora_mid.weight, which is no part of a plain LoRA",
        ),
        ({f"{key}.hada_w1_a": torch.ones(3, 3)}, f"holds {key}.hada_w1_a"),
        ({"lora_unet_conv_in.diff_b": torch.ones(8)}, "holds lora_unet_conv_in.diff_b"),
        ({"lora_unet_conv_in.alpha": torch.ones(())}, "holds lora_unet_conv_in.alpha"),
        ({f"{key}.alpha": torch.tensor(torch.nan)}, f"{key}.alpha must be a finite number"),
        ({f"{key}.lora_up.weight": torch.ones(8, 2)}, f"{key} has no pair of matrices of one rank"),
        (
            {f"{elsewhere}.lora_down.weight": torch.ones(1, 8), f"{elsewhere}.lora_up.weight": torch.ones(8, 1)},
            f"changes 8 layers, of which the model has 7: not {elsewhere}",
        ),
    ):
        safetensors.torch.save_file({**plain, **more}, path)
        with pytest.raises(BundleError, match=message):
            fuse_lora("StableDiffusionPipeline", networks, [Lora(path)])
        networks = _networks(folder)


def test_several_are_merged_one_after_the_other(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)
    before = _copies(networks)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    one, two = _plain_file(networks, first), _kohya_file(networks, second)
    fuse_lora("StableDiffusionPipeline", networks, [Lora(first, 0.5), Lora(second, 2.0)])
    changes = {key: 0.5 * one[key] if key in one else torch.zeros(()) for key in {**one, **two}}
    for key, change in two.items():
        changes[key] = changes[key] + 2.0 * change
    _check(networks, before, changes)


def test_no_loras_change_nothing(folder: Path) -> None:
    networks = _networks(folder)
    before = _copies(networks)
    fuse_lora("StableDiffusionPipeline", networks, [])
    for name, network in networks.items():
        assert all(torch.equal(before[name][key], value) for key, value in network.state_dict().items())


def test_a_lora_trained_by_peft_and_saved_by_diffusers_gives_the_same_network(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    targets = ["to_k", "to_v", "conv1"]
    config = LoraConfig(r=2, lora_alpha=5, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata={**config.to_dict(), "target_modules": targets},  # type: ignore[no-untyped-call]
    )
    fuse_lora("StableDiffusionPipeline", networks, [Lora(tmp_path / "pytorch_lora_weights.safetensors")])
    sample, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.inference_mode():
        trained = unet.eval()(sample, torch.tensor([3, 700]), context).sample
        merged = networks["unet"](sample, torch.tensor([3, 700]), context).sample
        bare = _networks(folder)["unet"](sample, torch.tensor([3, 700]), context).sample
    np.testing.assert_allclose(merged.numpy(), trained.numpy(), atol=1e-5)
    assert (trained - bare).abs().max() > 1e-2


def test_transformers_and_two_text_encoders(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "sd3", t5=False)
    tokenizer = clip_tokenizer()
    networks: dict[str, Any] = {
        "transformer": SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer"),
        "text_encoder": tiny_clip(tokenizer, width=8, projection=8),
        "text_encoder_2": tiny_clip(tokenizer, width=16, projection=12, seed=3),
    }
    before = _copies(networks)
    layers = {
        "transformer": "transformer_blocks.0.attn.add_k_proj",
        "text_encoder": "text_model.encoder.layers.0.self_attn.v_proj",
        "text_encoder_2": "text_model.encoder.layers.1.self_attn.k_proj",
    }
    weights, changes = {}, {}
    for name, layer in layers.items():
        down, up = _pair(networks[name].get_submodule(layer), 7)
        weights[f"{name}.{layer}.lora_A.weight"], weights[f"{name}.{layer}.lora_B.weight"] = down, up
        changes[f"{name}.{layer}.weight"] = 0.3 * _product(down, up)
    path = tmp_path / "three.safetensors"
    safetensors.torch.save_file(weights, path)
    fuse_lora("StableDiffusion3Pipeline", networks, [Lora(path, 0.3)])
    _check(networks, before, changes)


def test_files_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)

    def refused(path: Path, error: type[Exception], message: str, pipeline: str = "StableDiffusionPipeline") -> None:
        with pytest.raises(error, match=message) as caught:
            fuse_lora(pipeline, networks, [Lora(path)])
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.safetensors", InputError, "must be a .safetensors file")
    pickled = tmp_path / "lora.bin"
    torch.save({}, pickled)
    refused(pickled, InputError, "must be a .safetensors file")
    whole = tmp_path / "whole.safetensors"
    _plain_file(networks, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    refused(cut, BundleError, "does not fit")
    huge = tmp_path / "huge.safetensors"
    huge.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    refused(huge, BundleError, "does not fit")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"unet.conv_in.weight": torch.zeros(2, 2)}, other)
    refused(other, BundleError, "other.safetensors")
    elsewhere = tmp_path / "elsewhere.safetensors"
    names = ("unet.down_blocks.7.attentions.0.to_k", UNET_LAYERS[0].join(("unet.", "")))
    pairs = {
        f"{name}.lora_{side}.weight": torch.ones(3, 16).T if side == "B" else torch.ones(3, 16)
        for name in names
        for side in "AB"
    }
    pairs = {key: value.contiguous() for key, value in pairs.items()}
    pairs[f"{names[1]}.lora_B.weight"] = torch.ones(8, 3)
    safetensors.torch.save_file(pairs, elsewhere)
    refused(elsewhere, BundleError, "changes 2 layers, of which the model has 1")
    shape = tmp_path / "shape.safetensors"
    wide = {f"{names[1]}.lora_A.weight": torch.ones(3, 99), f"{names[1]}.lora_B.weight": torch.ones(8, 3)}
    safetensors.torch.save_file(wide, shape)
    networks = _networks(folder)
    refused(shape, BundleError, "does not fit")
    nothing = tmp_path / "nan.safetensors"
    nan = {f"{names[1]}.lora_A.weight": torch.full((3, 16), torch.nan), f"{names[1]}.lora_B.weight": torch.ones(8, 3)}
    safetensors.torch.save_file(nan, nothing)
    networks = _networks(folder)
    refused(nothing, BundleError, "does not fit|finite")
    for scale in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError, match="the scale of a LoRA must be finite, got"):
            Lora(whole, scale)  # type: ignore[arg-type]


def test_a_dora_whose_scales_the_loader_ignores_is_refused(folder: Path, tmp_path: Path) -> None:
    networks = _networks(folder)
    path = tmp_path / "dora.safetensors"
    _kohya_file(networks, path)
    key = "lora_unet_" + UNET_LAYERS[0].replace(".", "_")
    weights = safetensors.torch.load_file(path) | {f"{key}.dora_scale": torch.ones(8, 1)}
    safetensors.torch.save_file(weights, path)
    with pytest.raises(BundleError, match="dora_scale"):
        fuse_lora("StableDiffusionPipeline", networks, [Lora(path)])


def test_a_lora_prints_its_file_and_scale() -> None:
    assert str(Lora(Path("/somewhere/private/style.safetensors"), 0.75)) == "style.safetensors x 0.75"
