"""How long a training takes, and a training that takes as long as it may."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdc.support import InputError
from fastdc.train import RunFolder, TrainConfig, duration, train
from fastdc.train.duration import Estimate, in_words, steps_within

pytest.importorskip("torch")


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(duration, "time", clock)
    return clock


def test_the_number_of_steps_leaves_a_tenth_of_the_time_for_everything_else(clock: Clock) -> None:
    times = iter([30.0, 5.0, 5.0, *[0.5] * 100])

    def step() -> None:
        clock.now += next(times)

    assert steps_within(60, step) == 60 * 60 * 0.9 / 0.5  # the first steps do not count
    assert clock.now == 100 + 40 + 10  # ten seconds are enough


def test_a_time_too_short_for_a_step_is_one_step(clock: Clock) -> None:
    def step() -> None:
        clock.now += 100.0

    assert steps_within(0.01, step) == 1


def test_the_time_that_is_left_is_said_once_if_it_is_long(clock: Clock) -> None:
    def lines(left: int, seconds: float) -> list[str]:
        estimate, found = Estimate(left), []
        for number in range(60):
            clock.now += 60 if number < 3 else seconds
            found.append(estimate.after_step())
        return [line for line in found if line is not None]

    assert lines(5000, 0.5) == ["about 42 min for 4980 steps"]
    assert lines(100_000, 0.5) == ["about 13.9 h for 99980 steps"]
    assert lines(130, 0.5) == []
    assert in_words(1) == "1 min"


def test_a_run_of_some_time_stores_its_steps_and_is_resumed_with_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    recipe: dict[str, Any] = {"data": str(tmp_path / "data.npz"), "model": "mlp", "width": 16, "threads": 1}
    began = time.monotonic()
    said: list[str] = []
    first = train(TrainConfig(out=str(tmp_path / "a"), minutes=0.02, **recipe), notify=said.append)
    assert time.monotonic() - began < 60
    assert "measuring how many steps 1 min have" in said
    config = RunFolder(first.path).info().config
    assert (config.steps, config.minutes) == (first.step, None)
    assert any("too few to learn from" in line for line in said) == (first.step < 100)
    assert first.step > 20
    # Measuring leaves no trace: the same number of steps gives the same weights.
    train(TrainConfig(out=str(tmp_path / "b"), steps=first.step, **recipe))
    files = [(tmp_path / name / "best.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    with pytest.raises(InputError, match="minutes is for a new run: give steps"):
        train(TrainConfig(out=str(tmp_path / "a"), minutes=1, **recipe), resume=True)
    with pytest.raises(InputError, match="expected one of them, got both"):
        TrainConfig(minutes=1, steps=5, out="x", **recipe)
    with pytest.raises(InputError, match="minutes must be a number in"):
        TrainConfig(minutes=0, out="x", **recipe)
