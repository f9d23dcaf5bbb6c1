"""Trainings at the limits of precision, of a disk, and of the data."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError
from helpers.tiny_runs import same_bits, tensors, tiny

pytest.importorskip("torch")

import torch

from fastdc.train import RunFolder, train


def test_bfloat16_trains_nearly_the_same_and_is_resumed_to_the_bit(data: Path, tmp_path: Path) -> None:
    """Evaluations have 8 bits of precision: the loss differs by a percent or so, and weights are float32 still."""
    options: dict[str, Any] = {"val": "0", "lr": 1e-2, "steps": 40, "log_every": 40}
    full = train(tiny(data, tmp_path / "full", **options))
    half = train(tiny(data, tmp_path / "half", precision="bfloat16", **options))
    assert full.loss is not None
    assert full.loss != half.loss == pytest.approx(full.loss, rel=0.02)
    assert {tensor.dtype for tensor in tensors(tmp_path / "half").values()} == {torch.float32}
    with pytest.raises(InputError, match="started with precision = bfloat16, cannot resume with float32"):
        train(tiny(data, tmp_path / "half", **options), resume=True)
    with pytest.raises(InputError, match="precision float16 trains on a CUDA device: expected float32 or bfloat16"):
        train(tiny(data, tmp_path / "no", precision="float16", **options))
    assert not (tmp_path / "no").exists()


def test_a_step_whose_gradients_overflow_is_no_update_of_the_optimizer(data: Path, tmp_path: Path) -> None:
    """What float16 does on a GPU: the scale is halved, the weights stay, and a checkpoint remembers both."""
    from fastdc.train.state import TrainState
    from fastdc.train.trainee import make_trainee

    def squares(state: TrainState) -> torch.Tensor:
        return torch.stack([parameter.square().sum() for parameter in state.network.parameters()]).sum()

    folder = train(tiny(data, tmp_path / "run", steps=1, val="0")).path
    info = RunFolder(folder).info()
    one, two = (
        TrainState(info.config, make_trainee(info.config, info, None, info.shape), torch.device("cpu"))
        for _ in range(2)
    )
    for state in (one, two):
        state._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = [parameter.clone() for parameter in one.network.parameters()]
    wanted = 0
    for factor in (1e30, 1.0, 1.0):  # times 2^120, the first is not finite
        one.update([factor * squares(one)])
        wanted += factor == 1.0
    assert any(not torch.equal(now, then) for now, then in zip(one.network.parameters(), before, strict=True))
    checkpoint = one.checkpoint()
    assert (checkpoint.progress["step"], checkpoint.progress["updates"]) == (3, wanted)
    two.restore(checkpoint)
    for state in (one, two):
        state.update([squares(state)])
    for name, tensor in one.checkpoint().tensors.items():
        assert torch.equal(tensor, two.checkpoint().tensors[name])
    assert one.checkpoint().progress["scaler"] == two.checkpoint().progress["scaler"]
    assert one.checkpoint().progress["scaler"]["scale"] == 2.0**119


def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**4})())
    with pytest.raises(InputError, match=r"run needs room for [0-9.]+ MB of checkpoints, and 0\.01 MB are free"):
        train(tiny(data, tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    assert train(tiny(data, tmp_path / "run")).finished


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, checkpoint: Any) -> None:
        if checkpoint.progress["step"] == 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.checkpoint_file))
        save(self, checkpoint)

    save = RunFolder.save_checkpoint
    train(tiny(data, tmp_path / "whole"))
    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        train(tiny(data, tmp_path / "run"))
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    train(tiny(data, tmp_path / "run"), resume=True)
    assert same_bits(tmp_path / "whole", tmp_path / "run")


def test_two_classes_of_one_image_each_are_enough_to_train(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=[0, 1])
    said: list[str] = []
    assert train(tiny(tmp_path / "two.npz", tmp_path / "run", steps=2), notify=said.append).finished
    assert any("no images are kept aside" in line for line in said)
    with pytest.raises(InputError, match="needs at least 2 images per class, class 0 has 1"):
        train(tiny(tmp_path / "two.npz", tmp_path / "no", val="0.1"))
