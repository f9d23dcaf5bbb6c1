"""``fastdc export`` on sources of other tools: the hub's, networks without a pipeline, and variants of weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runs import Cli

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

import fastdc.export
import fastdc.sources
from fastdc.sources import Source, open_source
from fastdc.testing import edm_files, tiny_pipelines
from helpers.exported import small_source
from helpers.hub import COMMIT, served


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


class Exported:
    """Runs the command up to the export, which is tested elsewhere, and returns what it would export."""

    def __init__(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cli, self.sources = cli, list[Source]()
        monkeypatch.setattr(fastdc.export, "export_source", self._export)

    def _export(self, source: Source, *_: Any, **__: Any) -> None:
        self.sources.append(source)
        raise KeyboardInterrupt

    def of(self, *args: str | Path) -> Source:
        done = self.cli(*args)
        assert done.code == 130, done.err
        return self.sources.pop()


@pytest.fixture
def exported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Exported:
    return Exported(cli, monkeypatch)


def _refuses_late(cli: Cli, *args: str | Path, naming: str) -> None:
    """One line at the end; a line that reports progress may precede it."""
    result = cli(*args)
    assert (result.code, result.out) == (2, "")
    *before, last = result.err.splitlines()
    assert all(line.startswith("reading ") for line in before), result.err
    assert last.startswith("fastdc: error: ")
    assert naming in last


def test_a_mistyped_path_is_not_fetched_from_the_hub(
    cli: Cli, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = served(tiny_pipelines.tiny_unet2d(tmp_path / "repository"), tmp_path / "cache", monkeypatch)
    out = tmp_path / "out"
    cli.refuses(
        "export", "org/name", out, naming="org/name does not exist here; for the Hugging Face hub write hf://org"
    )
    assert (hub.asked, hub.fetched) == ([], [])
    found = exported.of("export", "hf://org/name@v1", out).provenance
    assert set(hub.asked) == {"v1"}
    assert (found["source"], found["revision"]) == ("org/name", COMMIT)


def test_a_unet_alone_takes_a_scheduler_and_a_variant(cli: Cli, exported: Exported, tmp_path: Path) -> None:
    """The scheduler is a file, its folder, or a pipeline's folder; the bundle is that of the pipeline."""
    pipeline = tiny_pipelines.tiny_unet2d(tmp_path / "pipeline", prediction_type="sample")
    unet, out = tiny_pipelines.tiny_unet2d(tmp_path / "unet", bare=True), tmp_path / "out"
    _refuses_late(cli, "export", unet, out, naming="its training (--scheduler), or put it beside the config.json")
    _refuses_late(cli, "export", unet, out, "--scheduler", tmp_path / "no", naming="no is no --scheduler: expected a")
    pkl = edm_files.write_edm(tmp_path / "m.pkl", "ddpmpp")
    for option, value in (("--scheduler", pipeline), ("--variant", "fp16")):
        naming = f"{option} cannot be given for an EDM pickle"
        _refuses_late(cli, "export", pkl, out, option, value, naming=naming)
    weights = unet / "diffusion_pytorch_model.safetensors"
    for name in ("ema", "non_ema"):
        shutil.copy(weights, unet / f"diffusion_pytorch_model.{name}.safetensors")
    weights.unlink()
    _refuses_late(cli, "export", unet, out, naming="has weights of the variants ema, non_ema: choose one (--variant)")
    config = pipeline / "scheduler" / "scheduler_config.json"
    source = open_source(unet, scheduler=config, variant="ema")
    for place in (pipeline, config.parent):
        assert open_source(unet, scheduler=place, variant="ema").model == source.model
    read = exported.of("export", unet, out, "--scheduler", config, "--variant", "ema")
    assert read.model.parameterization.kind == "sample"
    assert (read.provenance["variant"], read.provenance["scheduler"]) == ("unet: ema", "DDPMScheduler, given")


def test_no_text_encoder_reaches_the_export(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    def made(*_: Any, text: bool, **__: Any) -> Any:
        taken.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(fastdc.sources, "open_source", lambda *_, **__: small_source())
    monkeypatch.setattr(fastdc.sources, "is_text_conditional", lambda _: True)
    monkeypatch.setattr(fastdc.export, "export_source", made)
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,classname,classidx\na cat,cat,0\na dog,dog,1\n")
    line = ("export", tmp_path, tmp_path / "out", "--prompts", prompts)
    for more in ((), ("--no-text-encoder",)):
        assert cli(*line, *more).code == 130
    assert taken == [True, False]
