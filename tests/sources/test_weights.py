"""The rule that chooses weights among the files of a component, and the same rule on folders."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from fastdc import BundleError, InputError  # noqa: E402
from fastdc.bundle.prompts import prompts_of  # noqa: E402
from fastdc.sources import open_source  # noqa: E402
from fastdc.sources.folder import ModelFolder  # noqa: E402
from fastdc.sources.weights import choose_weights  # noqa: E402
from fastdc.testing.tiny_pipelines import tiny_sd, tiny_unet2d  # noqa: E402
from helpers.worlds import fails_with  # noqa: E402

STEM = "diffusion_pytorch_model"


def chosen(*names: str, wanted: str | None = None) -> tuple[str, str | None]:
    return choose_weights(names, "m", "unet", wanted)


def of(*variants: str) -> list[str]:
    return [f"{STEM}.{variant}.safetensors".replace("..", ".") for variant in variants]


def test_the_default_comes_first_and_then_the_precisions() -> None:
    order = ["", "fp32", "fp16", "bf16"]
    for start in range(len(order)):
        there = of(*order[start:], "non_ema", "ema")
        assert chosen(*reversed(there)) == (there[0], order[start] or None)
    assert chosen(*of("ema")) == (f"{STEM}.ema.safetensors", "ema")
    assert chosen("model.safetensors", "model.fp16.safetensors") == ("model.safetensors", None)
    assert chosen(*of("", "non_ema"), wanted="non_ema") == (f"{STEM}.non_ema.safetensors", "non_ema")
    assert chosen(*of("", "fp16"), wanted="non_ema") == (f"{STEM}.safetensors", None)  # another component has it


def test_shards_and_stems() -> None:
    index, halves = f"{STEM}.safetensors.index.json", f"{STEM}.safetensors.index.fp16.json"
    shard = f"{STEM}-00001-of-00002.safetensors"
    assert chosen(index, shard, halves) == (index, None)
    assert chosen(halves, f"{STEM}.fp16-00001-of-00002.safetensors") == (halves, "fp16")
    assert chosen(index, f"{STEM}.safetensors") == (f"{STEM}.safetensors", None)
    assert chosen(f"{STEM}.safetensors", "model.safetensors") == (f"{STEM}.safetensors", None)
    with pytest.raises(BundleError, match=f"m is incomplete: unet has no {STEM}.safetensors"):
        chosen(shard, "config.json", "other.safetensors", f"{STEM}.a.b.safetensors")


def test_a_choice_that_only_the_user_can_make() -> None:
    with pytest.raises(InputError, match=r"m: unet has weights of the variants ema, non_ema: choose one \(--variant\)"):
        chosen(*of("non_ema", "ema"))
    with pytest.raises(InputError, match="choose one"):
        chosen(*of("non_ema", "ema"), wanted="fp16")
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin", "weights.ckpt", "a.pt", "b.pth"):
        with pytest.raises(BundleError, match=f"m/unet/{name} is a pickle, which is not read: convert"):
            chosen("config.json", name)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32", "ema"])
def test_a_folder_with_a_variant_alone_is_read(variant: str, tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m")
    file = folder / "unet" / f"{STEM}.safetensors"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(variant, torch.float32)
    tensors = {key: value.to(dtype) for key, value in load_file(file).items()}
    file.unlink()
    save_file(tensors, folder / "unet" / f"{STEM}.{variant}.safetensors", {"format": "pt"})
    for wanted in (None, variant):
        source = open_source(folder, variant=wanted)
        assert source.provenance["variant"] == f"unet: {variant}"
        found = dict(source.denoiser.named_parameters())["unet.conv_in.weight"]
        assert torch.equal(found, tensors["conv_in.weight"].float())


def test_the_user_chooses_a_variant(tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m")
    file = folder / "unet" / f"{STEM}.safetensors"
    tensors = load_file(file)
    doubled = {key: 2 * value for key, value in tensors.items()}
    save_file(doubled, folder / "unet" / f"{STEM}.non_ema.safetensors", {"format": "pt"})
    assert "variant" not in open_source(folder).provenance
    for wanted, expected in ((None, tensors), ("non_ema", doubled)):
        found = dict(open_source(folder, variant=wanted).denoiser.named_parameters())["unet.conv_in.weight"]
        assert torch.equal(found, expected["conv_in.weight"])
    fails_with(
        lambda: open_source(folder, variant="fp16"),
        "m has no weights of the variant fp16 (--variant): it has non_ema",
        kind=InputError,
    )
    fails_with(lambda: open_source(folder, variant="../x"), "a variant must be letters, digits", kind=InputError)


def test_a_variant_of_one_component(tmp_path: Path) -> None:
    """The others have their default, as in published folders with non_ema weights of the UNet."""
    folder = tiny_sd(tmp_path / "m")
    file = folder / "unet" / f"{STEM}.safetensors"
    file.rename(folder / "unet" / f"{STEM}.non_ema.safetensors")
    source = open_source(folder, prompts=prompts_of(("a", "b")), variant="non_ema")
    assert source.provenance["variant"] == "unet: non_ema"


def test_shards_of_a_variant(tmp_path: Path) -> None:
    folder = tiny_unet2d(tmp_path / "m")
    kind = diffusers.UNet2DModel
    network = kind.from_pretrained(folder / "unet")
    (folder / "unet" / f"{STEM}.safetensors").unlink()
    network.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="50KB", variant="bf16")
    names = sorted(path.name for path in (folder / "unet").iterdir())
    assert f"{STEM}.safetensors.index.bf16.json" in names
    assert len(names) > 4
    source = open_source(folder)
    assert source.provenance["variant"] == "unet: bf16"
    for mine, theirs in zip(source.denoiser.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    index = folder / "unet" / f"{STEM}.safetensors.index.bf16.json"
    entry = json.loads(index.read_text())
    entry["weight_map"]["conv_in.weight"] = "none.safetensors"
    index.write_text(json.dumps(entry))
    with pytest.raises(BundleError, match=r"m is incomplete: unet has no none\.safetensors"):
        ModelFolder.open(folder).component("unet", {"UNet2DModel": kind})
