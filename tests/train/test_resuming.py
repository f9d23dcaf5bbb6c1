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


def of_an_earlier_version(data: str) -> dict[str, Any]:
    """The config of the folder "run" as earlier versions wrote it: their validation images are in the data's order."""
    values: dict[str, Any] = json.loads(Path("run/config.json").read_text())
    for name in ("levels", "extended", "class_counts", "val_by_class"):
        del values[name]
    values["val_digest"] = load_training_data(recipe("run", data=data)).val_digest_as_given
    return values


def measured(name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(name, "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "val_loss" in line]


def test_an_earlier_choice_on_images_that_calibrate_is_forgotten(place: Path) -> None:
    """Once; from then on the run is as one of this version."""
    train(recipe("run", steps=30))
    new = json.loads(Path("run/config.json").read_text())["val_digest"]
    old = of_an_earlier_version("data.npz")
    assert old["val_digest"] != new
    Path("run/config.json").write_text(json.dumps(old))
    before, kept = measured("run"), Path("run/val.npz").read_bytes()
    Path("run/val.npz").write_bytes(b"in another order")
    said: list[str] = []
    summary = train(recipe("run", steps=30), resume=True, notify=said.append)
    assert sum("the run is of an earlier version, whose best" in line for line in said) == 1
    assert summary.best is not None
    assert summary.best.step == 30  # measured once more; those before are gone
    assert Path("run/val.npz").read_bytes() == kept
    info = RunFolder("run").info()
    assert (info.val_by_class, info.val_digest) == (True, new)
    after = measured("run")
    assert [line["step"] for line in after] == [10, 20, 30]
    assert [line["val_loss"] for line in after] == [line["val_loss"] for line in before]
    assert [{"choosing_loss", "val_accuracy", "val_scored"} <= set(line) for line in after] == [False, False, True]
    again = train(recipe("run", steps=30), resume=True, notify=said.append)
    assert sum("the run is of an earlier version, whose best" in line for line in said) == 1
    assert (again.best, measured("run")) == (summary.best, after)


def test_an_earlier_choice_on_the_right_half_stays(place: Path) -> None:
    """Where the data are in the order of their classes, as folders are, the halves are the same."""
    with np.load("data.npz") as held:
        order = np.argsort(held["labels"], kind="stable")
        np.savez("sorted.npz", images=held["images"][order], labels=held["labels"][order])
    first = train(recipe("run", data="sorted.npz", steps=20))
    Path("run/config.json").write_text(json.dumps(of_an_earlier_version("sorted.npz")))
    before, said = measured("run"), list[str]()
    again = train(recipe("run", data="sorted.npz", steps=20), resume=True, notify=said.append)
    assert not [line for line in said if "earlier version" in line]
    assert (again.best, measured("run")) == (first.best, before)
    assert RunFolder("run").info().val_by_class


def test_another_distance_between_checkpoints_compares_the_same_images(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of two classes at 16 draws costs 32 evaluations, and ten steps of 16 images afford 96."""
    monkeypatch.setattr("fastdc.train.accuracy._SHARE", 0.2)
    monkeypatch.setattr("fastdc.train.accuracy._FEWEST_IMAGES", 1)
    train(recipe("run", steps=20, val="0.4"))
    scored = {line["val_scored"] for line in measured("run")}
    assert scored == {3}  # of the 8 that may choose
    train(recipe("run", steps=60, val="0.4", checkpoint_every=2), resume=True)
    lines = measured("run")
    assert [line["step"] for line in lines] == [10, *range(20, 61, 2)]
    assert {line["val_scored"] for line in lines if "val_scored" in line} == {3}
    every = [line["step"] for line in lines if "val_scored" in line and 20 < line["step"] < 60]
    assert set(np.diff(every)) == {10}  # as many evaluations per step as before
    train(recipe("run", steps=80, val="0.4", checkpoint_every=20), resume=True)
    assert measured("run")[-1]["val_scored"] == 3
    train(recipe("other", steps=20, val="0.4", checkpoint_every=20))
    assert measured("other")[-1]["val_scored"] == 6


def test_accuracies_of_other_images_do_not_compare(place: Path) -> None:
    """As a run of an earlier version may have them, that was resumed with another distance between checkpoints."""
    first = train(recipe("run", steps=20, val="0.4"))
    best = first.best
    assert best is not None
    log = Path("run/log.jsonl")
    text = log.read_text()
    other = {"step": 5, "val_loss": 0.1, "choosing_loss": 0.0, "val_accuracy": 1.0, "val_scored": 2, "seconds": 0}
    log.write_text(json.dumps(other) + "\n" + text)
    again = train(recipe("run", steps=30, val="0.4"), resume=True)
    log.write_text(text)
    assert again.best is not None
    assert (again.best.step, again.best.val_scored) != (5, 2)
    assert again.best.step == 30 or again.best == best


def test_a_run_of_an_earlier_version_is_read_and_goes_on(place: Path) -> None:
    """Its config has no fields of later versions, a relative path, and no width; its log has no accuracy."""
    train(recipe("whole", steps=20, width=256))
    train(recipe("run", steps=10, width=256))
    values = of_an_earlier_version("data.npz")
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
