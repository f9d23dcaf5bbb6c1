"""Models are recognised by their path; an option that does not fit is one line, before any weights are read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from fastdc.bundle.prompts import prompts_of
from fastdc.sources import Lora, is_text_conditional, open_source
from fastdc.sources.folder import ModelFolder
from fastdc.support.exceptions import BundleError, InputError
from fastdc.testing import edm_files, tiny_pipelines
from helpers.worlds import fails_with

PROMPTS = prompts_of(("cube", "cone"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind that has a path."""
    root = tmp_path_factory.mktemp("models")
    return {
        "unet2d": tiny_pipelines.tiny_unet2d(root / "unet2d"),
        "dit": tiny_pipelines.tiny_dit(root / "dit"),
        "stable-diffusion": tiny_pipelines.tiny_sd(root / "sd"),
        "stable-diffusion-xl": tiny_pipelines.tiny_sdxl(root / "sdxl"),
        "stable-diffusion-3": tiny_pipelines.tiny_sd3(root / "sd3"),
        "edm": edm_files.write_edm(root / "edm.pkl", "ddpmpp"),
    }


TEXT = ("stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3")
KINDS = ("unet2d", "dit", *TEXT, "edm")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised(kind: str, models: dict[str, Path]) -> None:
    text = kind in TEXT
    assert is_text_conditional(models[kind]) is text
    prompts = PROMPTS if text else None
    source = open_source(models[kind], prompts=prompts)
    assert source.family == kind
    assert bool(source.tables) is text
    assert source.model.class_names == (PROMPTS.class_names if text else source.model.conditions)
    assert open_source(str(models[kind]), prompts=prompts).model == source.model


def _refused(path: str | Path, *parts: str, kind: type[Exception] = InputError, **options: Any) -> None:
    fails_with(lambda: open_source(path, **options), *parts, kind=kind)


def test_options_of_another_kind_are_refused_before_weights_are_read(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(ModelFolder, "component", never)
    lora = [Lora(Path("a.safetensors"))]
    for kind in ("unet2d", "dit", "edm"):
        _refused(models[kind], "prompts cannot be given", prompts=PROMPTS)
        _refused(models[kind], "lora cannot be given", lora=lora)
    _refused(models["dit"], "null_class cannot be given for a DiTPipeline", null_class=True)
    _refused(models["edm"], "null_class cannot be given for an EDM pickle", null_class=False)
    _refused(models["edm"], "image_size cannot be given for an EDM pickle", image_size=16)
    for kind in TEXT:
        _refused(models[kind], "whose classes are prompts", "class_names", class_names=("a", "b"), prompts=PROMPTS)
        _refused(models[kind], "whose classes are prompts", "null_class", null_class=True, prompts=PROMPTS)
        _refused(models[kind], "give the prompts that describe the classes (--prompts, --classes)")


def test_classes_and_sizes_that_do_not_fit_are_refused(models: dict[str, Path]) -> None:
    _refused(models["unet2d"], "4 class rows", class_names=("a", "b"))
    _refused(models["unet2d"], "divisible by 2", "got 9", image_size=9)
    _refused(models["dit"], "5 classes", class_names=("a", "b"))
    _refused(models["dit"], "divisible by 4", "got 18", image_size=18)
    _refused(models["dit"], "square", image_size=(16, 20))
    _refused(models["edm"], "4 names, got 2", class_names=("a", "b"))
    for kind in TEXT:
        _refused(models[kind], "divisible by", image_size=17, prompts=PROMPTS)


def test_paths_without_a_model_are_refused(tmp_path: Path, models: dict[str, Path]) -> None:
    _refused(tmp_path / "nothing", "does not exist")
    _refused(tmp_path / "nothing.pkl", "nothing.pkl")
    _refused("no such model", "does not exist", "hf://org/name for the Hugging Face hub")
    (tmp_path / "file").write_text("x")
    _refused(tmp_path / "file", "is a file")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "is not a model in diffusers' format", kind=BundleError)
    (tmp_path / "other").mkdir()
    index = json.loads((models["unet2d"] / "model_index.json").read_text())
    for name in ("KandinskyPipeline", "os.system", "FluxPipeline"):
        (tmp_path / "other" / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))
        _refused(tmp_path / "other", kind=BundleError)
    with pytest.raises(BundleError):
        is_text_conditional(tmp_path / "empty")


@pytest.mark.slow
def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, because the hub's library reads its settings once."""
    program = (
        "from fastdc.support.exceptions import InputError\nfrom fastdc.sources import open_source\n"
        "try:\n    open_source('hf://no-such-org/no-such-model')\nexcept InputError as error:\n    print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("hf://no-such-org/no-such-model cannot be fetched from the Hugging Face hub: ")
    assert len(line) < 600
