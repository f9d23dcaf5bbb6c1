"""Training on tiny images: it learns, it is repeatable, it survives interruption, and it refuses what cannot work."""

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastdc.cli.main import cli
from fastdc.support import InputError
from helpers.paths import ROOT
from helpers.tiny_runs import same_bits, tiny

pytest.importorskip("torch")

import torch

from fastdc.train import RunFolder, loop, loss, train
from fastdc.train.loss import denoising_loss
from fastdc.train.state import schedule


def log_of(run: Path, key: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def test_the_loss_falls_and_the_run_folder_is_complete(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    summary = train(tiny(data, tmp_path / "run", steps=300, lr=1e-2, val="0.25"), notify=notes.append)
    losses = log_of(summary.path, "loss")
    assert list(losses) == list(range(10, 301, 10))
    assert losses[300] < 0.7 * losses[10]
    assert summary.finished
    assert summary.stopped_by is None
    assert summary.loss == losses[300]
    assert summary.val_loss == log_of(summary.path, "val_loss")[300] < losses[10]
    assert sorted(p.name for p in summary.path.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "log.jsonl",
        "val.npz",
    ]
    assert notes[0] == "data: 48 images 1x4x4 in 2 classes, 16 for validation"


def test_the_seed_decides_the_weights_and_the_callers_generator_is_left_alone(data: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(data, tmp_path / name, seed=seed))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_bits(tmp_path / "a", tmp_path / "b")
    assert not same_bits(tmp_path / "a", tmp_path / "c")


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"flip": True, "dropout": 0.2, "val": "0.25"}
    train(tiny(data, tmp_path / "whole", **options))

    class Killed(BaseException):
        """Stands for the process disappearing."""

    real, logged = RunFolder.log, []

    def die_at_50(self: RunFolder, record: dict[str, Any]) -> None:
        real(self, record)
        logged.append(record["step"])
        if record["step"] == 50:  # after the checkpoint of step 40
            raise Killed

    broken = tiny(data, tmp_path / "broken", **options)
    monkeypatch.setattr(RunFolder, "log", die_at_50)
    with pytest.raises(Killed):
        train(broken)
    monkeypatch.undo()
    assert logged[-1] == 50
    summary = train(broken, resume=True)
    assert summary.step == 60
    assert same_bits(tmp_path / "whole", tmp_path / "broken")
    for key in ("loss", "val_loss", "val_accuracy"):
        assert log_of(tmp_path / "whole", key) == log_of(tmp_path / "broken", key)
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "broken")]
    assert best[0] == best[1]
    # The line of step 50 was written twice, and is there once.
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert len([step for step in steps if step == 50]) == 1


def test_a_run_killed_before_its_first_checkpoint_starts_over(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path / "whole"))
    train(tiny(data, tmp_path / "broken"))
    (tmp_path / "broken" / "checkpoint.safetensors").unlink()
    train(tiny(data, tmp_path / "broken"), resume=True)
    assert same_bits(tmp_path / "whole", tmp_path / "broken")
    assert log_of(tmp_path / "whole", "loss") == log_of(tmp_path / "broken", "loss")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_to_resume_from(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    options = ["--model", "mlp", "--width", "16", "--batch", "16", "--steps", "100000", "--threads", "1"]
    script = "import sys; from fastdc.cli.commands.train import command; command(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(data), "--out", str(run), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not (run / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"stopped by {number.name} and saved" in out
    checkpoint = RunFolder(run).load_checkpoint()
    assert checkpoint is not None
    step = checkpoint.progress["step"]
    assert 50 <= step < 100_000
    assert f"{step} of 100000 steps" in out
    assert not [path for path in run.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    "at", ["step 30", "step 40", "step 60", "saving 40", "validation 1", "validation 3", "saving 60", "best 20"]
)
def test_a_signal_saves_first_and_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr("fastdc.train.accuracy._SHARE", 10.0)  # so that every checkpoint is measured
    options = {"val": "0.25", "steps": 60}
    train(tiny(data, tmp_path / "whole", **options))
    events: list[str] = []

    def event(name: str) -> None:
        events.append(name)
        if name == at:
            signal.raise_signal(signal.SIGINT)
            if name.startswith(("saving", "best")):
                signal.raise_signal(signal.SIGINT)  # the second one waits until the checkpoint is complete

    step, save, validate = loop._Trainer._train_step, RunFolder.save_checkpoint, denoising_loss
    keep = RunFolder.save_best
    evaluations = itertools.count(1)

    def stepping(self: Any) -> Any:
        event(f"step {self.state.step + 1}")
        return step(self)

    def saving(self: RunFolder, checkpoint: Any) -> None:
        event(f"saving {checkpoint.progress['step']}")
        save(self, checkpoint)

    def keeping(self: RunFolder, found: Any, average: Any) -> None:
        event(f"best {found.step}")
        keep(self, found, average)

    def losing(network: Any, *arguments: Any, **more: Any) -> Any:
        if not network.training:
            event(f"validation {next(evaluations)}")
        return validate(network, *arguments, **more)

    broken = tiny(data, tmp_path / "broken", **options)
    monkeypatch.setattr(loop._Trainer, "_train_step", stepping)
    monkeypatch.setattr(RunFolder, "save_checkpoint", saving)
    monkeypatch.setattr(RunFolder, "save_best", keeping)
    monkeypatch.setattr(loss, "denoising_loss", losing)
    said: list[str] = []
    summary = train(broken, notify=said.append)
    after = events[events.index(at) + 1 :]
    assert after == ([f"saving {at[5:]}"] if at.startswith("step") else [])
    began = next(k for k, line in enumerate(said) if line.startswith("model: "))
    others = [line for line in said[began + 1 :] if "val accuracy" not in line]
    assert others == ([f"SIGINT: saving step {at[5:]}"] if at.startswith("step") else [])
    assert summary.stopped_by == (None if summary.finished else "SIGINT")
    for owner, name, real in (
        (loop._Trainer, "_train_step", step),
        (RunFolder, "save_checkpoint", save),
        (RunFolder, "save_best", keep),
        (loss, "denoising_loss", validate),
    ):
        monkeypatch.setattr(owner, name, real)
    assert train(broken, resume=True).val_loss == log_of(tmp_path / "whole", "val_loss")[60]
    assert same_bits(tmp_path / "whole", tmp_path / "broken")
    for key in ("loss", "val_loss", "val_accuracy"):
        assert log_of(tmp_path / "whole", key) == log_of(tmp_path / "broken", key)
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "broken")]
    assert best[0] == best[1]


def test_a_second_signal_stops_a_step_that_takes_too_long(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(self: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(loop._Trainer, "_train_step", stuck)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(data, tmp_path / "run"))
    assert signal.signal(signal.SIGINT, handler) is signal.default_int_handler
    monkeypatch.undo()
    train(tiny(data, tmp_path / "run"), resume=True)  # the folder is free again


def test_two_runs_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunFolder(run).kept(), pytest.raises(InputError, match=r"run is in use: this process .* is writing to it"):
        train(tiny(data, run))
    train(tiny(data, run, steps=2, val="0.25"))
    with RunFolder(run).kept(), pytest.raises(InputError, match="run is in use"):
        train(tiny(data, run, steps=2, val="0.25"), resume=True)
    (run / "val.npz").unlink()  # as if killed before it was written
    train(tiny(data, run, steps=2, val="0.25"), resume=True)
    assert (run / "val.npz").exists()


def test_a_run_that_was_killed_as_it_began_can_be_started_again(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("1 elsewhere")
    (run / ".config.json-00ff.tmp").write_text("{")
    assert train(tiny(data, run, steps=2)).finished


def test_resume_refuses_another_config_or_other_data_and_names_the_field(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(data, run))
    for name, value in {"lr": 0.1, "seed": 5, "width": 32, "label_dropout": 0.2}.items():
        with pytest.raises(InputError, match=f"started with {name} = .*cannot resume with {value}"):
            train(tiny(data, run, **{name: value}), resume=True)
    with np.load(data) as held:
        arrays = dict(held)
    arrays["images"] = arrays["images"].copy()
    arrays["images"][0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(InputError, match=r"other data images than .*other\.npz: the hashes differ"):
        train(tiny(tmp_path / "other.npz", run), resume=True)
    moved = data.rename(tmp_path / "moved.npz")  # the same content elsewhere is the same data
    assert train(tiny(moved, run, checkpoint_every=7), resume=True).finished


def test_a_taken_folder_and_a_missing_run_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="exists and is not empty"):
        train(tiny(data, tmp_path / "full"))
    with pytest.raises(InputError, match="holds no training run"):
        train(tiny(data, tmp_path / "none"), resume=True)
    train(tiny(data, tmp_path / "run"))
    with pytest.raises(InputError, match="already holds a run"):
        train(tiny(data, tmp_path / "run"))
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="is damaged"):
        train(tiny(data, tmp_path / "run"), resume=True)
    (tmp_path / "run" / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(InputError, match="is not valid JSON"):
        train(tiny(data, tmp_path / "run"), resume=True)


@pytest.mark.parametrize(
    ("arrays", "changes", "message"),
    [
        ({"labels": np.zeros(6, np.int64)}, {}, "at least 2 classes, got 1"),
        ({"labels": np.array([0, 2] * 3)}, {}, "every class needs images, these have none: '1'"),
        ({"labels": np.array([0, 1])}, {}, "labels"),
        ({"images": np.full((6, 4, 4), np.nan, np.float32)}, {}, "bad.npz"),
        ({"images": np.zeros((6, 1, 1), np.uint8)}, {}, "sides must be 2 to 1024 pixels"),
        ({"images": np.zeros((6, 4, 4), np.uint8)}, {}, "all the same single colour"),
        ({}, {"val": "0.9"}, "val as a fraction must be above 0 and at most 0.5, got 0.9"),
        ({}, {"val": "nowhere.npz"}, "nowhere.npz"),
        ({"labels": np.array([0, 1, 1, 1, 1, 1])}, {"val": "0.1"}, "at least 2 images per class, class 0 has 1"),
    ],
)
def test_bad_data_are_refused_before_anything_is_written(
    tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "bad.npz", **({"images": images, "labels": np.array([0, 1] * 3)} | arrays))
    with pytest.raises(InputError) as caught:
        train(tiny(tmp_path / "bad.npz", tmp_path / "run", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet"}, "model must be one of unet, mlp, unet-cross, dit, got 'resnet'"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"lr": float("nan")}, "lr must be a number in"),
        ({"ema": 1.0}, r"ema must be a number in \[0, 0\.999999\], got 1\.0"),
        ({"channels": 3}, "size must be given with channels, got none"),
        ({"data": ""}, "data must be a path"),
        ({"device": "tpu9"}, "device must be"),
    ],
)
def test_bad_options_are_refused(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny(data, tmp_path / "run", **changes))


def test_a_diverging_run_is_refused_and_leaves_no_checkpoint(data: Path, tmp_path: Path) -> None:
    # A decay of 1 - lr * weight_decay = -99 multiplies the weights until they overflow.
    with pytest.raises(InputError, match=r"no longer finite at step 50.*lr below 10"):
        train(tiny(data, tmp_path / "run", lr=10.0, weight_decay=10.0, warmup=0, log_every=50, checkpoint_every=100))
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_folder_of_images_with_one_sub_folder_per_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    with pytest.raises(InputError, match="size"):
        train(tiny(tmp_path / "pets", tmp_path / "run"))
    summary = train(tiny(tmp_path / "pets", tmp_path / "run", size=8, channels=1, steps=2))
    info = RunFolder(summary.path).info()
    assert info.shape == (1, 8, 8)
    assert info.class_names == ("cat", "dog")


def fastdc_train(*args: str) -> Result:
    """Runs the command through its group, because a command that ran alone keeps its own help options."""
    return CliRunner().invoke(cli, ["train", *args])


def test_the_command_trains_resumes_and_says_what_comes_next(data: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    options = ["--model", "mlp", "--width", "16", "--steps", "4", "--batch", "8", "--val", "0.25", "--threads", "1"]
    first = fastdc_train(str(data), "--out", run, *options)
    assert first.exit_code == 0, first.output
    assert f"trained {run}: mlp" in first.stdout
    assert f"next: fastdc export {run} BUNDLE --calibrate {run}/val.npz" in first.stdout
    before = (tmp_path / "run" / "log.jsonl").read_text()
    again = fastdc_train("--out", run, "--resume", "--quiet")
    assert (tmp_path / "run" / "log.jsonl").read_text() == before  # a finished run is left as it is
    assert again.exit_code == 0, again.output
    assert "4 of 4 steps" in again.stdout
    other = fastdc_train("--out", run, "--resume", "--lr", "0.5")
    assert isinstance(other.exception, InputError)
    assert "lr" in str(other.exception)
    nothing = fastdc_train("--out", str(tmp_path / "new"))
    assert "give DATA" in str(nothing.exception)


def test_the_next_command_is_quoted(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    line = fastdc_train(
        str(data), "--out", str(out), "--model", "mlp", "--width", "8", "--steps", "2"
    ).stdout.splitlines()[-1]
    assert shlex.split(line) == ["next:", "fastdc", "export", str(out), "BUNDLE", "--calibrate", str(out / "val.npz")]


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    factors = [schedule(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[10] == 1.0
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert schedule(0, 1, 100) == 1.0


def test_validation_images_that_are_trained_on_are_reported(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    train(tiny(data, tmp_path / "run", val=str(data), steps=2), notify=notes.append)
    assert "note: 64 validation images are training images too: the validation loss is too good" in notes


def test_the_command_shows_the_best_checkpoint_and_asks_for_data_that_are_gone(data: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    first = fastdc_train(str(data), "--out", run, "--model", "mlp", "--width", "16", "--steps", "4", "--threads", "1")
    assert first.exit_code == 0, first.output
    summary = RunFolder(run).load_best()
    assert summary is not None
    assert f"best checkpoint: {summary[0]}" in first.stdout
    assert str(summary[0]) in first.stderr
    more = fastdc_train("--out", run, "--resume", "--steps", "6")
    assert "6 of 6 steps" in more.stdout
    data.rename(tmp_path / "moved.npz")
    gone = fastdc_train("--out", run, "--resume")
    assert f"{data} is gone, with which {run} was started: give DATA, where the images are now" in str(gone.exception)
    moved = fastdc_train(str(tmp_path / "moved.npz"), "--out", run, "--resume", "--steps", "7")
    assert "7 of 7 steps" in moved.stdout
    assert RunFolder(run).info().config.data == str(tmp_path / "moved.npz")
