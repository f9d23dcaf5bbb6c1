"""CLIP's fine-tuning: its loss by hand, batches of different classes, and the same bits again, also when resumed."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

import fastdc  # noqa: E402
from fastdc.bundle import Prompts  # noqa: E402
from fastdc.matching import ClipMatcher, Trials  # noqa: E402
from fastdc.testing import tiny_image_text  # noqa: E402
from fastdc.train import (  # noqa: E402
    ContrastiveRecipe,
    DistinctBatches,
    Tuning,
    contrastive_loss,
    is_image_text,
    tune_image_text,
)
from helpers.cli_runs import Cli  # noqa: E402

QUICK = ContrastiveRecipe(epochs=3, lr=3e-3, batch=3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_image_text(tmp_path_factory.mktemp("models") / "clip", "clip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of three colours, four classes."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.arange(12) % 4
    images = rng.integers(0, 60, (12, 3, 16, 16), dtype=np.uint8)
    for i, label in enumerate(labels):
        images[i, label % 3, : 8 + 8 * (label // 3)] += 180
    np.savez(folder / "data.npz", images=images, labels=labels, class_names=["red cube", "cone", "blue cube", "red"])
    return folder / "data.npz"


def by_hand(logits: Any, left_out: Any) -> float:
    """The formula, in float64 and loops."""
    b, total = len(logits), 0.0
    for i in range(b):
        row = [j for j in range(b) if j == i or not left_out[i, j]]
        column = [j for j in range(b) if j == i or not left_out[j, i]]
        total -= logits[i, i] - np.log(np.exp(logits[i, row]).sum())
        total -= logits[i, i] - np.log(np.exp(logits[column, i]).sum())
    return float(total / (2 * b))


def test_the_loss_is_the_formula(rng: np.random.Generator) -> None:
    logits = rng.normal(0, 3, (7, 7))
    left_out = rng.random((7, 7)) < 0.4
    for mask in (np.zeros((7, 7), bool), left_out):
        found = contrastive_loss(torch.from_numpy(logits), torch.from_numpy(mask))
        assert float(found) == pytest.approx(by_hand(logits, mask), abs=1e-12)
    assert float(contrastive_loss(torch.from_numpy(logits))) == pytest.approx(by_hand(logits, left_out & False))
    assert by_hand(logits, left_out) < by_hand(logits, left_out & False)


@pytest.mark.parametrize("counts", [(5,) * 17, (9, 1, 1, 1), (3, 40, 7, 2, 2, 2, 8, 1, 1)])
def test_batches_hold_different_classes_and_epochs_every_image_once(counts: tuple[int, ...]) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    order = DistinctBatches(labels, 8, seed=3)
    for number in (0, 1):
        batches = order.epoch(number)
        assert all(len(set(labels[one])) == len(one) <= 8 for one in batches)
        assert all(len(one) > 1 for one in batches)
        shown = np.concatenate(batches)
        assert len(set(shown)) == len(shown)
        lost = np.setdiff1d(np.arange(len(labels)), shown)
        assert len(set(labels[lost])) <= 1
        if len(set(counts)) == 1:
            assert len(lost) <= 2
    again = DistinctBatches(labels, 8, seed=3).epoch(1)
    assert [one.tolist() for one in again] == [one.tolist() for one in order.epoch(1)]
    assert [one.tolist() for one in order.epoch(0)] != [one.tolist() for one in order.epoch(1)]


def test_one_class_is_no_contrast() -> None:
    with pytest.raises(fastdc.InputError, match="two classes or more, got 1"):
        DistinctBatches(np.zeros(5, np.int64), 8, seed=0)


def test_two_runs_are_equal_and_learn(clip: Path, data: Path, tmp_path: Path) -> None:
    weights, told = [], list[str]()
    recipe = ContrastiveRecipe(epochs=20, lr=5e-3, batch=4)
    for name in ("one", "two"):
        made = tune_image_text(
            Tuning(model=clip, data=data, out=tmp_path / name, recipe=recipe, threads=1), notify=told.append
        )
        assert (made.step, made.stopped_by, made.images) == (made.steps, None, 12)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.endswith(".lock")) == ["one", "two"]
    assert told[0].startswith("note: ") or "12 images of 4 texts" in told[0]
    with np.load(data) as held:
        texts = [f"a photo of a {name}" for name in held["class_names"]]
        trials = Trials.of(held["images"], [texts] * 12, held["labels"])
    before, after = (
        ClipMatcher(folder, threads=1).match(trials).right(trials).mean() for folder in (clip, tmp_path / "one")
    )
    assert after >= 0.9 > before


def test_a_siglip_is_trained_as_well(data: Path, tmp_path: Path) -> None:
    siglip = tiny_image_text(tmp_path / "siglip", "siglip")
    assert is_image_text(siglip)
    names = ("red", "blue cube", "cone", "red cube")
    prompts = Prompts(("a red one", "blue cube", "cone", "red cube"), (0, 1, 2, 3), names)
    made = tune_image_text(
        Tuning(model=siglip, data=data, out=tmp_path / "tuned", recipe=QUICK, prompts=prompts, threads=1)
    )
    assert made.loss > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (siglip, tmp_path / "tuned"))
    assert not torch.equal(before["logit_scale"], after["logit_scale"])
    assert torch.equal(before["logit_bias"], after["logit_bias"])  # which the softmax does not see


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_ends_as_another(clip: Path, data: Path, tmp_path: Path, stop: int) -> None:
    how: dict[str, Any] = {"model": clip, "data": data, "recipe": QUICK, "threads": 1}
    whole, part_of = tune_image_text(Tuning(out=tmp_path / "whole", **how)), Tuning(out=tmp_path / "part", **how)
    assert whole.steps > 9

    def interrupt(done: int, _: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGINT)

    part = tune_image_text(part_of, progress=interrupt)
    assert (part.step, part.stopped_by) == (stop, "SIGINT")
    assert not (tmp_path / "part").exists()
    with pytest.raises(fastdc.InputError, match="was begun and is not finished"):
        tune_image_text(part_of)
    other = ContrastiveRecipe(epochs=3, lr=1e-3, batch=3)
    with pytest.raises(fastdc.InputError, match="begun with another recipe"):
        tune_image_text(dataclasses.replace(part_of, recipe=other), resume=True)
    tune_image_text(part_of, resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_cannot_be_trained_is_refused_in_one_line(clip: Path, data: Path, tmp_path: Path) -> None:
    def refused(told: str, resume: bool = False, **options: Any) -> None:
        given: dict[str, Any] = {"model": clip, "data": data, "out": tmp_path / "new"} | options
        with pytest.raises(fastdc.InputError, match=told):
            tune_image_text(Tuning(**given), resume=resume)
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / ".new.training").exists()

    (tmp_path / "there").mkdir()
    refused("exists already", out=tmp_path / "there")
    refused("no checkpoint to resume", resume=True)
    refused("a template must have exactly one", template="a photo")
    refused("none for 'red cube'", prompts=Prompts(("a cone",), (0,), ("cone",)))
    refused("nowhere does not exist", model="nowhere")
    refused("nothing.npz: does not exist", data="nothing.npz")
    for wrong in ({"batch": 1}, {"epochs": 0}, {"lr": 0.0}, {"clip": 0.0}):
        with pytest.raises(fastdc.InputError):
            ContrastiveRecipe(**wrong)


def test_a_vilt_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    vilt = tiny_image_text(tmp_path / "vilt", "vilt")
    call = ("train", data, "--from", vilt, "--out", tmp_path / "new")
    Cli(monkeypatch, capfd).refuses(*call, naming="a ViLT cannot be fine-tuned here: expected a CLIP or SigLIP")
    assert not (tmp_path / "new").exists()


def test_the_command_fine_tunes(
    clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(monkeypatch, capfd)
    call = ("train", data, "--from", clip, "--out", tmp_path / "new", "--epochs", "2")
    done = cli(*call, "--threads", "1")
    assert (done.code, (tmp_path / "new" / "model.safetensors").is_file()) == (0, True), done
    assert f"trained {tmp_path}/new: from {clip}, 12 images" in done.out
    assert "epoch 1: loss" in done.err
    cli.refuses(*call[:-2], "--steps", "5", naming="--steps cannot be given with a CLIP to fine-tune (--from)")
    cli.refuses("train", data, "--out", tmp_path / "run", "--epochs", "2", naming="is for a CLIP to fine-tune")
