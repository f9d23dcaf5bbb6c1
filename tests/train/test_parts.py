"""Batches in parts: the same training in less memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastdc.cli.main import cli
from fastdc.support import InputError
from helpers.tiny_runs import differences, same_bits, tiny

pytest.importorskip("torch")

import torch
from torch import nn
from torch.nn import functional

from fastdc.train import RunFolder, step, train
from fastdc.train.loss import denoising_loss
from fastdc.train.step import parts_of

# With dropout, and with AdamW's steps, of which each is as large as the learning rate however small a gradient is.
RECIPE: dict[str, Any] = {"steps": 8, "batch": 10, "dropout": 0.3, "val": "0", "checkpoint_every": 4, "log_every": 4}


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("accumulate", [2, 3, 10])
def test_a_batch_in_parts_trains_the_same(data: Path, tmp_path: Path, accumulate: int) -> None:
    """Parts of different size, parts of one image, labels dropped at random, changed images: only sums differ."""
    options = RECIPE | {"augment": "photo", "label_dropout": 0.5}
    train(tiny(data, tmp_path / "whole", **options))
    train(tiny(data, tmp_path / "parts", accumulate=accumulate, **options))
    assert differences(tmp_path / "whole", tmp_path / "parts") < 1e-5
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), rel=1e-6)
    assert not same_bits(tmp_path / "whole", tmp_path / "parts")


def test_the_unet_in_parts(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    for name, accumulate in (("whole", 1), ("parts", 2)):
        train(tiny(data, tmp_path / name, model="unet", accumulate=accumulate, **(RECIPE | {"steps": 4})))
    # The biases of keys, which softmax ignores, have gradients of rounding alone, which AdamW makes steps of.
    assert differences(tmp_path / "whole", tmp_path / "parts", "to_k.bias") < 1e-5


def test_a_part_is_evaluated_when_the_one_before_is_gone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never two parts at a time, which is what saves the memory; and only rows of a part reach the network."""
    real, order = denoising_loss, []

    def watched(network: nn.Module, x0: torch.Tensor, *more: Any) -> torch.Tensor:
        order.append(len(x0))
        found = real(network, x0, *more)
        hooked: Any = found
        hooked.register_hook(lambda grad: order.append(-len(grad)))
        return found

    monkeypatch.setattr(step, "denoising_loss", watched)
    train(tiny(data, tmp_path / "run", accumulate=3, **(RECIPE | {"steps": 1})))
    assert order == [3, -3, 3, -3, 4, -4]


def test_the_number_of_parts_may_change_when_a_run_is_resumed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(data, run, accumulate=2, **(RECIPE | {"steps": 4})))
    assert RunFolder(run).info().config.accumulate == 2
    assert train(tiny(data, run, accumulate=5, **RECIPE), resume=True).step == 8
    found = CliRunner().invoke(cli, ["train", "--out", str(run), "--resume", "--steps", "9", "--quiet"])
    assert found.exit_code == 0, found.output
    config = RunFolder(run).info().config
    assert (config.accumulate, config.steps) == (5, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 11}, "accumulate must be at most the batch, 10, got 11"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"accumulate": 257, "batch": None}, "accumulate must be at most the batch, 256, got 257"),  # the preset's
    ],
)
def test_what_cannot_be_cut_is_refused(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny(data, tmp_path / "run", **(RECIPE | changes)))
    assert not (tmp_path / "run" / "config.json").exists()


def test_parts_have_all_rows_once_and_differ_by_one_at_most() -> None:
    for batch, parts in ((1, 1), (10, 3), (7, 7), (64, 5)):
        cut = parts_of(batch, parts)
        assert [row for rows in cut for row in range(batch)[rows]] == list(range(batch))
        sizes = [rows.stop - rows.start for rows in cut]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_rows_is_that_of_the_batch(dtype: torch.dtype) -> None:
    """Also of a network that holds two rows per image, and also if dropout is called as a function."""
    with torch.random.fork_rng(devices=[]):
        x = torch.randn(12, 3, 5, dtype=dtype)
        torch.manual_seed(1)
        whole = functional.dropout(x, 0.4, True)
        torch.manual_seed(1)
        with step._Dropout(slice(1, 3), 6):
            assert torch.equal(nn.Dropout(0.4)(x[2:6]), whole[2:6])
            assert torch.equal(functional.dropout(x[2:6], p=0.4, training=False), x[2:6])
            assert torch.equal(nn.Dropout(0.0)(x[2:6]), x[2:6])
        images = torch.randn(6, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
        torch.manual_seed(2)
        whole = functional.dropout(images, 0.4, True)
        torch.manual_seed(2)
        with step._Dropout(slice(1, 3), 6):
            assert torch.equal(functional.dropout(images[1:3], 0.4, True), whole[1:3])


def test_too_little_memory_is_one_line_with_a_way_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(step, "denoising_loss", full)
    for name, accumulate, says in (
        (
            "a",
            1,
            r"^give accumulate=2 \(parts of the batch, one after the other\), or a smaller batch or width; CUDA out of",
        ),
        ("b", 8, "^give accumulate=10 "),
        ("c", 10, "^give a smaller batch or width; CUDA"),
    ):
        with pytest.raises(MemoryError, match=says):
            train(tiny(data, tmp_path / name, accumulate=accumulate, **RECIPE))
