"""Folders in diffusers' format: their components are read, and broken or hostile ones are refused at no cost."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from fastdc import BundleError, InputError  # noqa: E402
from fastdc.sources.configs import MAX_JSON_BYTES  # noqa: E402
from fastdc.sources.folder import MAX_PARAMETERS, ModelFolder  # noqa: E402
from fastdc.testing.tiny_pipelines import tiny_dit, tiny_sd, tiny_unet2d, tiny_vae  # noqa: E402
from helpers.worlds import assert_one_line  # noqa: E402

UNET = {"UNet2DModel": diffusers.UNet2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_index_and_the_configs_of_a_pipeline_are_read(tmp_path: Path) -> None:
    made = tiny_sd(tmp_path / "tiny")
    folder = ModelFolder.open(made)
    assert (folder.name, folder.pipeline, folder.repository) == ("tiny", "StableDiffusionPipeline", None)
    assert ModelFolder.open(folder) is folder
    assert ModelFolder.open(str(made)) == folder
    assert [name for name in folder.index if folder.has(name)] == [
        "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip
    assert folder.class_of("tokenizer") == "CLIPTokenizer"
    assert folder.folder("tokenizer") == made / "tokenizer"
    assert folder.config("scheduler")["_class_name"] == "PNDMScheduler"
    assert folder.config("unet")["cross_attention_dim"] == 16


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_component_has_the_weights_of_its_file(name: str, tmp_path: Path) -> None:
    made = tiny_sd(tmp_path / "tiny")
    folder = ModelFolder.open(made)
    kind = folder.class_of(name)
    library: Any = transformers if name == "text_encoder" else diffusers
    module = folder.component(name, {kind: getattr(library, kind)})
    stored = load_file(made / name / ("model.safetensors" if name == "text_encoder" else WEIGHTS))
    found = module.state_dict()
    for key, value in stored.items():
        np.testing.assert_array_equal(found[key].numpy(), value.numpy())
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in module.parameters())
    assert not module.training
    assert not any(p.requires_grad or p.dtype != torch.float32 or p.device.type != "cpu" for p in module.parameters())


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_attention(key: str) -> str:
    return next((key.replace(f".{new}.", f".{old}.") for new, old in OLD.items() if f".{new}." in key), key)


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_weights_with_the_names_of_published_files(
    name: str, accelerate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first names of attention in diffusers, CLIP's prefix, and its list of positions."""
    monkeypatch.setattr("fastdc.sources.folder.installed", lambda _: accelerate)
    made = tiny_sd(tmp_path / "tiny")
    file = made / name / ("model.safetensors" if name == "text_encoder" else WEIGHTS)
    allowed = {"AutoencoderKL": diffusers.AutoencoderKL, "CLIPTextModel": transformers.CLIPTextModel}
    before = ModelFolder.open(made).component(name, allowed).state_dict()
    stored = load_file(file)
    if name == "vae":
        renamed = {_old_attention(key): value for key, value in stored.items()}
    else:
        renamed = {f"text_model.{key}": value for key, value in stored.items()}
        renamed["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    assert set(renamed) != set(stored)
    save_file(renamed, file, {"format": "pt"})
    after = ModelFolder.open(made).component(name, allowed).state_dict()
    assert set(before) == set(after)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key].numpy(), value.numpy())


def test_weights_of_half_precision_are_made_float32(tmp_path: Path) -> None:
    made = tiny_unet2d(tmp_path / "m")
    whole = made / "unet" / WEIGHTS
    halves = {key: value.half() for key, value in load_file(whole).items()}
    whole.unlink()
    save_file(halves, made / "unet" / WEIGHTS.replace(".", ".fp16."), {"format": "pt"})
    module = ModelFolder.open(made).component("unet", UNET)
    for key, value in module.state_dict().items():
        assert value.dtype == torch.float32
        np.testing.assert_array_equal(value.numpy(), halves[key].float().numpy())


def test_weights_in_shards(tmp_path: Path) -> None:
    made = tiny_unet2d(tmp_path / "m")
    whole = load_file(made / "unet" / WEIGHTS)
    (made / "unet" / WEIGHTS).unlink()
    network = diffusers.UNet2DModel.from_config(json.loads((made / "unet" / "config.json").read_text()))
    network.load_state_dict(whole)
    network.save_pretrained(made / "unet", safe_serialization=True, max_shard_size="50KB")
    assert len(list((made / "unet").glob("*.safetensors"))) > 2
    folder = ModelFolder.open(made)
    for key, value in folder.component("unet", UNET).state_dict().items():
        np.testing.assert_array_equal(value.numpy(), whole[key].numpy())
    index = made / "unet" / f"{WEIGHTS}.index.json"
    names = json.loads(index.read_text())["weight_map"]
    for bad in ("../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".safetensors", "weights.bin"):
        edit(index, weight_map={**names, "conv_in.weight": bad})
        assert_refused(folder, f"names '{bad}': expected a file beside it")
    edit(index, weight_map={**names, "conv_in.weight": "none.safetensors"})
    assert_refused(folder, "m is incomplete: unet has no none.safetensors")
    edit(index, weight_map={})
    assert_refused(folder, "has no weight_map")


def test_a_network_alone_and_the_oldest_layout(tmp_path: Path) -> None:
    alone = tiny_unet2d(tmp_path / "alone", bare=True)
    folder = ModelFolder.open(alone)
    assert (folder.pipeline, folder.class_of("unet"), folder.has("scheduler")) == ("UNet2DModel", "UNet2DModel", False)
    assert isinstance(folder.component("unet", UNET), diffusers.UNet2DModel)
    # model_index.json lies beside config.json and scheduler_config.json, without folders
    (alone / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
                    "scheduler": ["diffusers", "DDPMScheduler"]})
    )  # fmt: skip
    diffusers.DDPMScheduler().save_config(alone)
    folder = ModelFolder.open(alone)
    assert folder.config("scheduler")["beta_end"] == 0.02
    assert folder.config("unet")["num_class_embeds"] == 4
    assert isinstance(folder.component("unet", UNET), diffusers.UNet2DModel)


def assert_refused(folder: ModelFolder | Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        ModelFolder.open(folder).component("unet", UNET)
    assert_one_line(caught.value, *parts)


def _header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of a safetensors file, its data untouched."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def _enlarge(header: dict[str, Any]) -> None:
    header["conv_in.weight"]["shape"] = [25_000_000, 1000]  # 100 GB


def _enlarge_all(header: dict[str, Any]) -> None:
    """Makes the header consistent with itself, but not with the file."""
    entry = header["conv_in.weight"]
    last = max(value["data_offsets"][1] for key, value in header.items() if key != "__metadata__")
    entry["shape"], entry["data_offsets"] = [25_000_000, 1000], [last, last + 10**11]


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda p: os.truncate(p / "unet" / WEIGHTS, 9000), "is truncated or not safetensors"),
    "empty": (lambda p: os.truncate(p / "unet" / WEIGHTS, 0), "is truncated or not safetensors"),
    "giant header": (
        lambda p: (p / "unet" / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}"),
        "is truncated or not safetensors",
    ),
    "giant shape": (lambda p: _header(p / "unet" / WEIGHTS, _enlarge), "is truncated or not safetensors"),
    "giant tensor": (lambda p: _header(p / "unet" / WEIGHTS, _enlarge_all), "is truncated or not safetensors"),
    "pickle": (
        lambda p: (p / "unet" / WEIGHTS).rename(p / "unet" / "diffusion_pytorch_model.bin"),
        "m/unet/diffusion_pytorch_model.bin is a pickle, which is not read: convert",
    ),
    "no weights": (lambda p: (p / "unet" / WEIGHTS).unlink(), f"m is incomplete: unet has no {WEIGHTS}"),
    "no config": (lambda p: (p / "unet" / "config.json").unlink(), "m is incomplete: unet has no config.json"),
    "no folder": (lambda p: (p / "unet").rename(p / "other"), "m is incomplete: it has no folder unet"),
    "other class": (
        lambda p: edit(p / "model_index.json", unet=["diffusers", "UNet3DModel"]),
        "m: unet must be of class UNet2DModel, got 'UNet3DModel'",
    ),
    "absent": (lambda p: edit(p / "model_index.json", unet=[None, None]), "m has no component 'unet'"),
    "path": (lambda p: edit(p / "model_index.json", **{"../x": ["a", "b"]}), "plain words, got '../x'"),
    "no class": (lambda p: edit(p / "model_index.json", _class_name=None), "m/model_index.json has no _class_name"),
    "no object": (lambda p: (p / "model_index.json").write_text("[]"), "must be a JSON object, got list"),
    "no JSON": (lambda p: (p / "unet" / "config.json").write_text("{"), "m/unet/config.json is not valid JSON"),
    "NaN": (lambda p: (p / "unet" / "config.json").write_text('{"a": NaN}'), "m/unet/config.json is not valid JSON"),
    "long JSON": (
        lambda p: (p / "unet" / "config.json").write_text(" " * (MAX_JSON_BYTES + 1)),
        f"m/unet/config.json must be at most {MAX_JSON_BYTES} bytes",
    ),
    "wider": (
        lambda p: edit(p / "unet" / "config.json", block_out_channels=[2**20, 2**20]),
        f"at most {MAX_PARAMETERS:,} parameters, got",
    ),
    "a little wider": (
        lambda p: edit(p / "unet" / "config.json", block_out_channels=[64, 64]),
        " numbers by its config, but its weights hold 45,387",
    ),
    "deeper": (
        lambda p: edit(p / "unet" / "config.json", layers_per_block=10**9),
        "layers_per_block is 1000000000, for 145 tensors",
    ),
    "many blocks": (
        lambda p: edit(p / "unet" / "config.json", down_block_types=["DownBlock2D"] * 10**5),
        "down_block_types has 100000 entries, for 145 tensors",
    ),
    "giant number": (
        lambda p: edit(p / "unet" / "config.json", num_class_embeds=10**12),
        "num_class_embeds is 1000000000000, for 145 tensors",
    ),
    "nested": (
        lambda p: edit(p / "unet" / "config.json", inner={"num_layers": [10**6]}),
        "num_layers is 1000000, for 145 tensors",
    ),
    "unknown block": (
        lambda p: edit(p / "unet" / "config.json", down_block_types=["os.system", "os.system"]),
        "m/unet/config cannot be built",
    ),
    "no groups": (lambda p: edit(p / "unet" / "config.json", norm_num_groups=0), "m/unet/config cannot be built"),
    "same numbers": (
        lambda p: _header(p / "unet" / WEIGHTS, lambda h: h.update(renamed=h.pop("conv_in.bias"))),
        "m: weights of unet have missing keys: conv_in.bias",
    ),
    "remote code": (lambda p: edit(p / "unet" / "config.json", auto_map={"A": "b.C"}), "auto_map is not supported"),
    "quantised": (
        lambda p: edit(p / "unet" / "config.json", quantization_config={"quant_method": "torchao"}),
        "m/unet/config.json: quantization_config is not supported",
    ),
    "adapter": (
        lambda p: (p / "unet" / "adapter_config.json").write_text("{}"),
        "m/unet/adapter_config.json is not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_and_hostile_folders_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny_unet2d(tmp_path / "m")
    change, message = BROKEN[name]
    change(made)
    if name != "same numbers":  # all others are refused before a network takes memory
        monkeypatch.setattr(ModelFolder, "_load", lambda *_: pytest.fail("weights were loaded"))
    assert_refused(made, message)


def test_a_table_of_positions_is_bounded(tmp_path: Path) -> None:
    """The table is computed, so no file's size bounds it."""
    made = tiny_dit(tmp_path / "m")
    edit(made / "transformer" / "config.json", sample_size=2**20)
    with pytest.raises(BundleError) as caught:
        ModelFolder.open(made).component("transformer", {"DiTTransformer2DModel": diffusers.DiTTransformer2DModel})
    assert_one_line(caught.value, "m/transformer/config: a table of positions has at most 268435456 numbers")


def test_a_pickle_beside_the_weights_is_not_read(tmp_path: Path) -> None:
    made = tiny_unet2d(tmp_path / "m")
    (made / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    assert isinstance(ModelFolder.open(made).component("unet", UNET), diffusers.UNet2DModel)
    assert not Path("pwned").exists()


def test_a_class_that_the_folder_defines_is_not_run(tmp_path: Path) -> None:
    made = tiny_unet2d(tmp_path / "m")
    (made / "my_pipeline.py").write_text("raise SystemExit('run')")
    edit(made / "model_index.json", _class_name=["my_pipeline", "MyPipeline"])
    folder = ModelFolder.open(made)
    assert folder.pipeline == "MyPipeline"
    assert isinstance(folder.component("unet", UNET), diffusers.UNet2DModel)


ADVICE = (
    "holds a model in one file, which is not read: convert it with diffusers, for example "
    "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
)
SINGLE = ("a.safetensors", "a.ckpt", "a.pt", "a.pth", "a.bin", "a.gguf")


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    for name in (*SINGLE, "one/sd.ckpt"):
        (tmp_path / name).write_text("")
    vae = tmp_path / "vae"
    tiny_vae().save_pretrained(vae)
    edit(vae / "config.json", _class_name="AutoencoderTiny")
    cases: tuple[tuple[str | Path, type[Exception], str], ...] = (
        (tmp_path / "none", InputError, "does not exist: expected a folder with model_index.json"),
        ("./a/b", InputError, "./a/b does not exist: expected a folder"),
        ("a/b", InputError, "a/b does not exist here; for the Hugging Face hub write hf://a/b"),
        ("a/../b", InputError, "a/../b does not exist"),
        ("name", InputError, "name does not exist: expected a folder with model_index.json, or hf://org/name"),
        (tmp_path / "file", InputError, "is a file: expected a folder"),
        *((tmp_path / name, InputError, f"{name} {ADVICE}") for name in SINGLE),
        (tmp_path / "one", BundleError, "expected model_index.json or config.json; sd.ckpt holds a model in one file"),
        (tmp_path / "empty", BundleError, "is not a model in diffusers' format: expected model_index.json"),
        (vae, BundleError, "vae/config.json must be of a class in UNet2DModel"),
    )
    for source, kind, message in cases:
        with pytest.raises(kind) as caught:
            ModelFolder.open(source)
        assert_one_line(caught.value, message)


def test_infinities_of_other_tools_are_read(tmp_path: Path) -> None:
    """diffusers writes "lambda_min_clipped": -Infinity for its multistep solvers."""
    folder = tiny_unet2d(tmp_path / "pipeline")
    config = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values |= {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": float("-inf")}
    config.write_text(json.dumps(values), encoding="utf-8")
    assert "-Infinity" in config.read_text(encoding="utf-8")
    assert ModelFolder.open(folder).config("scheduler")["lambda_min_clipped"] == float("-inf")
