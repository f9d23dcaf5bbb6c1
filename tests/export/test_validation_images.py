"""``--calibrate RUN/val.npz`` of a run that was given its validation images, and so keeps none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fastdc.export import export_run
from fastdc.support import FastdcError
from fastdc.train import TrainConfig, train
from helpers.cli_runs import Cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a manifest with a split "val", which keeps no images itself."""
    folder = tmp_path_factory.mktemp("run")
    rng, rows = np.random.default_rng(0), ["path,label,split"]
    for k in range(40):
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{k}.png")
        rows.append(f"{k}.png,{'ab'[k % 2]},{'train' if k < 20 else 'val'}")
    (folder / "set.csv").write_text("\n".join(rows))
    recipe = TrainConfig(
        data=str(folder / "set.csv"), out=str(folder / "run"), model="mlp", width=8, steps=2, threads=1
    )
    train(recipe, progress=False)
    assert not (folder / "run/val.npz").exists()
    return folder / "run"


def test_the_command_of_the_docs_works_for_a_manifest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    cli = Cli(monkeypatch, capsys)
    made = cli("export", "run", tmp_path / "m", "--calibrate", "run/val.npz", "--draws", "2", "--levels", "all")
    assert made.code == 0, made.err
    assert f"run/val.npz stands for its validation images, {run.parent / 'set.csv'}" in made.err
    assert "levels all" in cli("info", tmp_path / "m").out
    assert export_run("run", tmp_path / "p", calibrate="run/val.npz", draws=2).model.defaults.levels is not None


def test_other_missing_images_stay_missing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FastdcError, match=r"val\.npz"):
        export_run(run, tmp_path / "m", calibrate=run / "other/val.npz")
    shutil.copytree(run, tmp_path / "moved")
    config = tmp_path / "moved/config.json"
    config.write_text(config.read_text().replace('"auto"', '"0"'))
    with pytest.raises(FastdcError, match=r"val\.npz"):
        export_run(tmp_path / "moved", tmp_path / "m", calibrate=tmp_path / "moved/val.npz")
