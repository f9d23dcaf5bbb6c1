"""Resuming with more steps, from another place, and runs of earlier versions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError
from fastdc.train import RunFolder, TrainConfig, train
from fastdc.train.dataset import load_training_data

pytest.importorskip("torch")

import torch

from fastdc.train import loop

RECIPE: dict[str, Any] = {
    "model": "mlp", "width": 16, "batch": 16, "threads": 1, "checkpoint_every": 10, "log_every": 5, "val": "0.2",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, in which the process stands."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastdc.train.accuracy._SHARE", 10.0)  # so that every checkpoint is measured
    return tmp_path


def recipe(name: str, /, **changes: Any) -> TrainConfig:
    return TrainConfig(**(RECIPE | {"data": "data.npz", "out": name} | changes))


def weights(name: str) -> dict[str, Any]:
    checkpoint = RunFolder(name).load_checkpoint()
    assert checkpoint is not None
    return checkpoint.tensors


def rates_of(name: str) -> dict[int, float]:
    lines = map(json.loads, Path(name, "log.jsonl").read_text().splitlines())
    return {line["step"]: line["lr"] for line in lines if "lr" in line}


def same(a: str, b: str) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_a_run_goes_on_with_more_steps_on_their_schedule(place: Path) -> None:
    train(recipe("run", steps=20))
    summary = train(recipe("run", steps=50), resume=True)
    assert (summary.step, summary.steps) == (50, 50)
    info = RunFolder("run").info()
    assert (info.config.steps, info.extended) == (50, ((20, 20),))
    rates = rates_of("run")
    train(recipe("long", steps=50))
    long = rates_of("long")
    assert rates[20] < rates[25]  # the first 20 steps ended at a low rate
    assert all(rates[step] == long[step] for step in range(25, 51, 5))  # the others have that of a run of 50
    assert not same("run", "long")
    train(recipe("run"), resume=True)  # without steps, those of the run
    assert RunFolder("run").info() == info


def test_the_same_commands_give_the_same_bits_also_if_interrupted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        train(recipe(name, steps=20))
    train(recipe("a", steps=40), resume=True)

    class Killed(BaseException):
        """Stands for the process disappearing."""

    real = loop._Trainer._train_step

    def step(self: Any) -> None:
        if self.state.step == 33:
            raise Killed
        real(self)

    monkeypatch.setattr(loop._Trainer, "_train_step", step)
    with pytest.raises(Killed):
        train(recipe("b", steps=40), resume=True)
    monkeypatch.setattr(loop._Trainer, "_train_step", real)
    train(recipe("b"), resume=True)
    assert same("a", "b")
    assert (place / "a" / "best.safetensors").read_bytes() == (place / "b" / "best.safetensors").read_bytes()
    assert RunFolder("b").info().extended == ((20, 20),)


def test_fewer_steps_than_done_are_refused_before_anything_is_changed(place: Path) -> None:
    train(recipe("run", steps=20))
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    with pytest.raises(InputError, match="run has done 20 steps: steps must be at least that, got 10"):
        train(recipe("run", steps=10), resume=True)
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_a_run_is_resumed_from_another_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load("data.npz") as held:
        np.savez("val.npz", images=255 - held["images"], labels=held["labels"])
    train(recipe("run", steps=5, val="val.npz"))
    config = RunFolder("run").info().config
    assert (config.data, config.out, config.val) == tuple(str(place / name) for name in ("data.npz", "run", "val.npz"))
    (place / "else").mkdir()
    monkeypatch.chdir(place / "else")
    resumed = TrainConfig.from_dict(RunFolder("../run").info().config.to_dict() | {"out": "../run", "steps": 7})
    assert train(resumed, resume=True).step == 7


def test_a_run_of_an_earlier_version_is_read_and_goes_on(place: Path) -> None:
    """Its config has no fields of later versions, a relative path, and no width; its log has no accuracy."""
    train(recipe("whole", steps=20, width=256))
    train(recipe("run", steps=10, width=256))
    values = json.loads(Path("run/config.json").read_text())
    for name in ("levels", "extended", "class_counts", "val_by_class"):
        del values[name]
    # Their validation images are in the order of the data.
    old_data = load_training_data(recipe("run"), by_class=False)
    assert values["val_digest"] != old_data.val_digest
    values["val_digest"] = old_data.val_digest
    later = {"patience"}
    old = [name for name in values["config"] if name not in later]
    values["config"] = {name: values["config"][name] for name in old} | {"data": "data.npz", "width": None}
    Path("run/config.json").write_text(json.dumps(values))
    Path("run/best.safetensors").unlink()
    info = RunFolder("run").info()
    assert (info.levels, info.extended, info.config.val, info.config.width) == ((0.2, 2.0), (), "0.2", None)
    train(TrainConfig.from_dict(info.config.to_dict() | {"steps": 20}), resume=True)
    assert RunFolder("run").info().config.data == str(place / "data.npz")
    assert Path("run/best.safetensors").exists()
