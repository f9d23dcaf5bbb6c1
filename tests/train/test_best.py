"""Accuracy during a training, the best checkpoint, and a training that ends when it no longer improves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError
from fastdc.train import Best, RunFolder, RunSummary, TrainConfig, train
from fastdc.train.best import Measurements

pytest.importorskip("torch")

import torch

from fastdc.train import validation
from fastdc.train.accuracy import Accuracy, QuickScore, measurement_plan, stratified


@pytest.fixture(autouse=True)
def _every_checkpoint_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few steps there are in between."""
    monkeypatch.setattr("fastdc.train.accuracy._SHARE", 10.0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of noisy 4x4 stripes: horizontal and vertical, 40 of each."""
    rng = np.random.default_rng(0)
    stripes = np.zeros((2, 4, 4))
    stripes[0, ::2] = stripes[1, :, ::2] = 200.0
    labels = np.arange(80) % 2
    images = (stripes[labels] + rng.uniform(0, 50, (80, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "stripes.npz", images=images, labels=labels)
    return tmp_path / "stripes.npz"


def run(data: Path, name: str, /, *, resume: bool = False, notify: Any = None, **changes: Any) -> RunSummary:
    recipe: dict[str, Any] = {"model": "mlp", "width": 16, "batch": 16, "threads": 1, "checkpoint_every": 10}
    out = str(data.parent / name)
    return train(TrainConfig(data=str(data), out=out, **(recipe | changes)), resume=resume, notify=notify)


def lines(summary: RunSummary) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (summary.path / "log.jsonl").read_text().splitlines()]
    return [line for line in found if "val_loss" in line]


def scripted(monkeypatch: pytest.MonkeyPatch, choosing: list[float], right: list[int], of: int = 100) -> None:
    """Measurements with given results, one after another."""
    left = iter(zip(choosing, right, strict=True))
    now: list[int] = []

    def losses(*_: Any) -> tuple[float, float]:
        value, count = next(left)
        now[:] = [count]
        return 1 - value, value  # only the half that chooses counts

    monkeypatch.setattr(validation.Validation, "_losses", losses)
    monkeypatch.setattr(QuickScore, "__call__", lambda *_: Accuracy(now[0], of))


def test_checkpoints_are_measured_logged_and_said(data: Path) -> None:
    said: list[str] = []
    summary = run(data, "run", steps=20, lr=1e-2, notify=said.append)
    assert [(line["step"], line["val_scored"]) for line in lines(summary)] == [(10, 4), (20, 4)]
    assert summary.val_accuracy == lines(summary)[-1]["val_accuracy"]
    assert said[-1] == f"{Best.of(lines(summary)[-1])}, the best so far"
    assert "step 20: val accuracy 100.0 % (4/4), loss 0." in said[-1]
    best = RunFolder(summary.path).load_best()
    assert best is not None
    assert best[0] == summary.best
    assert {name.partition(".")[0] for name in best[1].tensors} == {"ema"}


def test_the_best_checkpoint_has_the_weights_of_its_step(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.3, 0.4], [80, 95, 96])
    summary = run(data, "run", steps=30)
    assert summary.best == Best(20, 0.3, 0.95, 100)  # 96 of 100 is no better beyond the error, and its loss is higher
    scripted(monkeypatch, [0.5, 0.3], [80, 95])
    run(data, "other", steps=30, checkpoint_every=20)
    found = {name: RunFolder(data.parent / name) for name in ("run", "other")}
    best, other = found["run"].load_best(), found["other"].load_best()
    last = found["run"].load_checkpoint(), found["other"].load_checkpoint()
    assert best is not None
    assert other is not None
    assert last[0] is not None
    assert last[1] is not None
    for name, tensor in other[1].tensors.items():  # of step 30
        assert torch.equal(tensor, last[0].tensors[name])
        assert torch.equal(tensor, last[1].tensors[name])
    assert any(not torch.equal(tensor, last[0].tensors[name]) for name, tensor in best[1].tensors.items())


@pytest.mark.parametrize(
    ("losses", "right", "kept"),
    [
        ([0.5, 0.4, 0.3], [90, 90, 90], [1, 2, 3]),  # equal accuracy: the lower loss
        ([0.5, 0.5], [90, 90], [1, 2]),  # equal in both: the later one
        ([0.4, 0.5], [90, 91], [1]),  # within a standard error: the lower loss
        ([0.4, 0.5], [80, 95], [1, 2]),  # better beyond it
        ([0.5, 0.1], [95, 80], [1]),  # worse beyond it
        ([0.5, 0.4, 0.3, 0.2], [96, 94, 93, 92], [1, 2]),  # no drift: all are compared with the highest
        ([0.5, 0.4, 0.3], [100, 99, 97], [1, 2]),
    ],
)
def test_which_checkpoint_is_the_best(losses: list[float], right: list[int], kept: list[int]) -> None:
    measured, found = Measurements(), []
    for step, (loss, count) in enumerate(zip(losses, right, strict=True), 1):
        accuracy = {"choosing_loss": loss, "val_accuracy": count / 100, "val_scored": 100}
        record = {"step": step, "val_loss": 1 - loss, **accuracy}
        if measured.better(record) is not None:
            found.append(step)
        measured.add(record)
        assert measured.best is not None
        assert measured.since_best == step - measured.best.step
    measured.add({"step": 99, "val_loss": 0.0})  # a checkpoint whose accuracy was not measured
    assert found == kept
    assert measured.best is not None
    assert measured.best.step == kept[-1]
    assert measured.val_loss == 0.0


def test_a_training_ends_when_it_no_longer_improves(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.3, 0.4, 0.35, 0.36], [80, 95, 95, 95, 95])
    summary = run(data, "run", steps=100, patience=2)
    assert (summary.step, summary.stopped_by, summary.finished) == (40, "patience", True)
    assert summary.best is not None
    assert summary.best.step == 20
    again = run(data, "run", resume=True)  # nothing is left to do
    assert (again.step, again.stopped_by, again.best) == (40, "patience", summary.best)
    more = run(data, "run", resume=True, patience=3)  # but a more patient one goes on
    assert (more.step, more.stopped_by) == (50, "patience")
    assert RunFolder(more.path).info().config.patience == 3
    with pytest.raises(InputError, match="patience needs validation images"):
        TrainConfig(data="x", out="y", val="0", patience=1)


def test_a_kill_between_the_best_checkpoint_and_its_line_loses_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, "whole", steps=30)

    class Killed(BaseException):
        """Stands for the process disappearing."""

    real = RunFolder.log

    def log(self: RunFolder, record: dict[str, Any]) -> None:
        if record["step"] == 20 and "val_loss" in record:
            raise Killed
        real(self, record)

    monkeypatch.setattr(RunFolder, "log", log)
    with pytest.raises(Killed):
        run(data, "broken", steps=30)
    monkeypatch.setattr(RunFolder, "log", real)
    broken = run(data, "broken", steps=30, resume=True)
    assert broken.best == whole.best
    assert (broken.path / "best.safetensors").read_bytes() == (whole.path / "best.safetensors").read_bytes()
    without = [[line | {"seconds": 0} for line in lines(one)] for one in (whole, broken)]
    assert without[0] == without[1]


def test_a_best_checkpoint_after_the_last_checkpoint_is_forgotten(data: Path) -> None:
    summary = run(data, "run", steps=20)
    (summary.path / "checkpoint.safetensors").unlink()
    before = (summary.path / "best.safetensors").read_bytes()
    run(data, "run", steps=20, resume=True)
    assert (summary.path / "best.safetensors").read_bytes() == before
    (summary.path / "best.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"best\.safetensors is damaged"):
        run(data, "run", resume=True)


def test_the_measured_images_are_a_stratified_part_of_the_half_that_chooses() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    for count in (10, 50, 100):
        chosen = stratified(labels, count, seed=3)
        assert np.array_equal(np.bincount(labels[chosen]), np.array([6, 3, 1]) * count // 10)
        assert np.array_equal(chosen, np.unique(chosen))
    assert not np.array_equal(stratified(labels, 50, seed=3), stratified(labels, 50, seed=4))


@pytest.mark.parametrize(
    ("images", "classes", "budget", "plan"),
    [
        (500, 10, 1e6, (200, 1)),  # at most 200 images
        (70, 10, 1e6, (70, 1)),
        (500, 10, 100 * 160, (100, 1)),  # as many as the budget allows, at 16 draws
        (500, 10, 25 * 160, (50, 2)),  # but at least 50, at every second checkpoint
        (30, 1000, 1600, (30, 300)),
    ],
)
def test_a_measurement_costs_a_tenth_of_the_training(
    images: int, classes: int, budget: float, plan: tuple[int, int]
) -> None:
    count, period = measurement_plan(images, classes, budget)
    assert (count, period) == plan
    assert count * classes * 16 <= budget * period


def test_only_due_checkpoints_are_measured_and_the_last_one_always(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdc.train.accuracy.measurement_plan", lambda *_: (4, 3))
    summary = run(data, "run", steps=70)
    assert [line["step"] for line in lines(summary)] == list(range(10, 71, 10))
    assert [line["step"] for line in lines(summary) if "val_accuracy" in line] == [30, 60, 70]


@pytest.mark.parametrize("val", [None, "0", "0.0"])
def test_no_validation_images_are_no_accuracy(data: Path, val: str | None) -> None:
    summary = run(data, "run", steps=10, val=val)
    assert (summary.val_loss, summary.val_accuracy, summary.best) == (None, None, None)
    assert not (summary.path / "best.safetensors").exists()


def test_a_tenth_is_kept_aside_where_every_class_has_ten_images(data: Path) -> None:
    said: list[str] = []
    info = RunFolder(run(data, "run", steps=1, notify=said.append).path).info()
    assert (info.config.val, info.images, info.val_images) == ("0.1", 72, 8)
    with np.load(data) as held:
        kept = np.concatenate([np.arange(0, 80, 2), np.arange(1, 18, 2)])  # 40 of class 0, 9 of class 1
        np.savez(data.parent / "few.npz", images=held["images"][kept], labels=held["labels"][kept])
    info = RunFolder(run(data.parent / "few.npz", "few", steps=1, notify=said.append).path).info()
    assert (info.config.val, info.images, info.val_images) == (None, 49, 0)
    assert (
        "note: no images are kept aside for validation, because a class has fewer than 10: give some (--val" in said[-2]
    )


def test_the_weights_are_measured_and_not_changed(data: Path) -> None:
    run(data, "with", steps=20, val="0.25")
    run(data, "without", steps=20, val="0.25", checkpoint_every=100)
    found = [RunFolder(data.parent / name).load_checkpoint() for name in ("with", "without")]
    assert found[0] is not None
    assert found[1] is not None
    assert all(torch.equal(tensor, found[1].tensors[name]) for name, tensor in found[0].tensors.items())


def test_the_half_that_calibrates_has_no_say(data: Path) -> None:
    """Other pixels in every second image change the validation loss, and nothing that chooses."""
    with np.load(data) as held:
        images, labels = held["images"], held["labels"]
    found = []
    for name in ("as it is", "inverted"):
        val = images[:20].copy()
        if name == "inverted":
            second = np.argsort(labels[:20], kind="stable")[1::2]
            val[second] = 255 - val[second]
        np.savez(data.parent / "val.npz", images=val, labels=labels[:20])
        found.append(lines(run(data, name, steps=10, val=str(data.parent / "val.npz")))[0])
    assert found[0]["val_loss"] != found[1]["val_loss"]
    for key in ("choosing_loss", "val_accuracy", "val_scored"):
        assert found[0][key] == found[1][key]
    assert found[0]["val_scored"] == 10


def test_more_steps_for_a_run_without_patience_need_more_patience(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.5, 0.3, 0.4, 0.35, 0.36, 0.37], [80, 95, 95, 95, 95, 95])
    first = run(data, "run", steps=50, patience=2)
    with pytest.raises(InputError, match="has ended at step 40: the last 2 measured checkpoints were no better"):
        run(data, "run", resume=True, steps=60)
    assert RunFolder(first.path).info().extended == ()
    more = run(data, "run", resume=True, steps=60, patience=0)
    assert (more.step, RunFolder(more.path).info().extended) == (60, ((40, 50),))


@pytest.mark.parametrize(
    ("each", "told"),
    [
        (10, "note: 1 validation image of class '0': it takes two"),
        (
            40,
            "note: 8 validation images are too few for export --calibrate to choose the noise levels on, which matter ",
        ),
    ],
)
def test_few_validation_images_are_told(data: Path, each: int, told: str) -> None:
    with np.load(data) as held:
        few = {name: values[: 2 * each] for name, values in held.items()}
    np.savez(data, **few)
    said: list[str] = []
    run(data, "run", steps=2, notify=said.append)
    assert [line for line in said if line.startswith(told)]
    said.clear()
    run(data, "without", steps=2, val="0", notify=said.append)
    assert not [line for line in said if "note" in line]
