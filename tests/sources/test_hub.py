"""Models of the hub, with a stand-in for its client: the commit comes first, then the files that a reader needs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import huggingface_hub
import torch
from safetensors.torch import load_file, save_file

from fastdc import BundleError, InputError
from fastdc.bundle.prompts import prompts_of
from fastdc.sources import Source, is_text_conditional, open_source
from fastdc.sources.folder import ModelFolder
from fastdc.testing.tiny_pipelines import DDPM, tiny_dit, tiny_sd, tiny_sd3, tiny_sdxl, tiny_unet2d
from helpers.hub import COMMIT, Hub, served
from helpers.worlds import assert_one_line, fails_with

HUB = "hf://org/name"
PROMPTS = prompts_of(("cube", "cone"))
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLUTTER = (
    "README.md", "code.py", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "unet/code.py", "safety_checker/config.json",
    "safety_checker/model.safetensors", f"unet/{WEIGHTS.replace('.', '.non_ema.')}", "unet/flax_model.msgpack",
    "unet/diffusion_pytorch_model.bin", "vae_decoder/model.onnx", "unet/openvino_model.bin",
)  # fmt: skip


def with_clutter(folder: Path) -> Path:
    """Adds the files that published repositories hold besides."""
    for name in CLUTTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    return folder


FAMILIES: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "unet2d": (tiny_unet2d, False),
    "dit": (tiny_dit, False),
    "stable-diffusion": (tiny_sd, True),
    "stable-diffusion-xl": (tiny_sdxl, True),
    "stable-diffusion-3": (tiny_sd3, True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_the_hub_is_the_folder_at_its_commit(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, text = FAMILIES[family]
    repository = make(tmp_path / "repository")
    needed = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*.*"))
    hub = served(with_clutter(repository), tmp_path / "cache", monkeypatch)
    options: dict[str, Any] = {"prompts": PROMPTS} if text else {}
    source, here = open_source(f"{HUB}@main", **options), open_source(repository, **options)
    assert source.family == family
    assert hub.asked == ["main"]
    assert sorted(hub.fetched) == needed
    assert source.provenance == {**here.provenance, "source": "org/name", "revision": COMMIT}
    assert "revision" not in here.provenance
    for mine, theirs in zip(source.denoiser.parameters(), here.denoiser.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_only_the_index_is_fetched_to_learn_the_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = served(tiny_sd(tmp_path / "repository"), tmp_path / "cache", monkeypatch)
    assert is_text_conditional(HUB)
    fails_with(lambda: open_source(HUB), "is a StableDiffusionPipeline: give the prompts", kind=InputError)
    fails_with(lambda: open_source(HUB, null_class=True, prompts=PROMPTS), "null_class", kind=InputError)
    assert hub.fetched == ["model_index.json"]


def renamed(folder: Path, change: Callable[[str], str]) -> Path:
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(change(file.name)))
    return folder


def opened(path: str | Path) -> Source:
    return open_source(path, prompts=PROMPTS)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_a_repository_with_a_variant_alone_is_read_as_the_folder_is(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = renamed(tiny_sd(tmp_path / "repository"), lambda name: name.replace(".", f".{variant}."))
    hub = served(repository, tmp_path / "cache", monkeypatch)
    source = opened(HUB)
    assert [name for name in hub.fetched if name.endswith(".safetensors")] == [
        f"text_encoder/model.{variant}.safetensors",
        f"unet/diffusion_pytorch_model.{variant}.safetensors",
        f"vae/diffusion_pytorch_model.{variant}.safetensors",
    ]
    assert source.provenance["variant"] == f"unet: {variant}, vae: {variant}, text_encoder: {variant}"
    assert opened(repository).provenance["variant"] == source.provenance["variant"]


def test_shards_are_fetched_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tiny_unet2d(tmp_path / "repository")
    tensors = load_file(repository / "unet" / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:70], "b.safetensors": names[70:]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, repository / "unet" / file, {"format": "pt"})
    of_tensor = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {"total_size": 1}, "weight_map": of_tensor}
    (repository / "unet" / WEIGHTS).unlink()
    (repository / "unet" / "unused.safetensors").write_text("x")
    (repository / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    hub = served(repository, tmp_path / "cache", monkeypatch)
    source = open_source(HUB)
    assert [name for name in hub.fetched if name.endswith(".safetensors")] == [f"unet/{file}" for file in parts]
    found = dict(source.denoiser.named_parameters())
    np.testing.assert_array_equal(found["unet.conv_in.weight"].numpy(), tensors["conv_in.weight"].numpy())


def test_what_cannot_be_read_is_refused_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickles = renamed(tiny_unet2d(tmp_path / "pickles"), lambda _: "diffusion_pytorch_model.bin")
    without = tiny_unet2d(tmp_path / "without")
    (without / "unet" / WEIGHTS).unlink()
    flux = tiny_sd(tmp_path / "flux")
    index = json.loads((flux / "model_index.json").read_text())
    (flux / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    single = tmp_path / "single"
    single.mkdir()
    (single / "sd15.safetensors").write_text("x")
    for repository, message in (
        (pickles, "org/name/unet/diffusion_pytorch_model.bin is a pickle, which is not read: convert"),
        (without, f"org/name is incomplete: unet has no {WEIGHTS}"),
        (flux, "FluxPipeline cannot be exported; those that can: "),
        (single, "org/name is not a model in diffusers' format: expected model_index.json or config.json; sd15.saf"),
    ):
        hub = served(repository, tmp_path / f"cache-{repository.name}", monkeypatch)
        fails_with(lambda: open_source(HUB), message, kind=BundleError)
        assert all(name.endswith("json") for name in hub.fetched)
    fails_with(lambda: open_source(HUB, variant="fp16"), kind=BundleError)


def test_a_unet_alone_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    hub = served(tiny_unet2d(tmp_path / "repository", bare=True), tmp_path / "cache", monkeypatch)
    fails_with(lambda: open_source(HUB), "org/name has no scheduler: give the scheduler_config.json", kind=InputError)
    diffusers.DDPMScheduler(**DDPM).save_config(tmp_path / "here")
    assert open_source(HUB, scheduler=tmp_path / "here").provenance["revision"] == COMMIT
    assert hub.fetched == ["config.json", WEIGHTS]


def test_names_need_the_prefix_and_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path is not looked up on the hub."""
    hub = served(tiny_unet2d(tmp_path / "repository"), tmp_path / "cache", monkeypatch)
    for text in ("a/b", "a/b@main", "org/name"):
        fails_with(
            lambda text=text: open_source(text),  # type: ignore[misc]
            f"{text} does not exist here; for the Hugging Face hub write hf://{text}",
            kind=InputError,
        )
    for text in ("hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@../c", "hf://", "hf://a b/c"):
        fails_with(
            lambda text=text: open_source(text),  # type: ignore[misc]
            "must be hf://org/name or hf://org/name@revision, got ",
            kind=InputError,
        )
    assert (hub.asked, hub.fetched) == ([], [])


def test_files_with_hostile_names_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are patterns for the hub's client, and become paths."""
    hub = served(tiny_unet2d(tmp_path / "repository"), tmp_path / "cache", monkeypatch)
    names = ["unet/*.json", "unet/../x.json", "/etc/a.json", "../b.json", "unet/[a].json", "unet/a/b.json"]
    monkeypatch.setattr(Hub, "files", lambda self: names)
    fails_with(lambda: open_source(HUB), "org/name is not a model in diffusers' format", kind=BundleError)
    assert hub.fetched == []


def test_the_hub_must_name_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Info:
        sha, siblings = None, None

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    fails_with(lambda: open_source(HUB), "must name a commit of 40 hexadecimal digits, got None", kind=InputError)


def test_without_a_connection_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    with pytest.raises(InputError) as caught:
        ModelFolder.open(HUB)
    assert_one_line(caught.value, "hf://org/name cannot be fetched from the Hugging Face hub: no route to host")


def test_offline_the_cache_is_read_at_the_commit_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE with the real client: nothing is resolved, and the commit is that of the cached folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        ModelFolder.open(HUB)
    assert_one_line(caught.value, "hf://org/name cannot be fetched from the Hugging Face hub: ")
    place = tmp_path / "models--org--name"
    tiny_unet2d(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for name in (HUB, f"{HUB}@main", f"{HUB}@{COMMIT}"):
        assert open_source(name).provenance["revision"] == COMMIT
