"""Trainings of seconds, and what they left."""

from pathlib import Path
from typing import Any

from fastdc.train import RunFolder, TrainConfig

TINY: dict[str, Any] = {
    "model": "mlp",
    "width": 16,
    "steps": 60,
    "batch": 32,
    "warmup": 5,
    "threads": 1,
    "checkpoint_every": 20,
    "log_every": 10,
}


def tiny(data: Path, out: Path, /, **changes: Any) -> TrainConfig:
    return TrainConfig(**({"data": str(data), "out": str(out)} | TINY | changes))


def tensors(run: Path) -> dict[str, Any]:
    checkpoint = RunFolder(run).load_checkpoint()
    assert checkpoint is not None
    return checkpoint.tensors


def same_bits(a: Path, b: Path) -> bool:
    x, y = tensors(a), tensors(b)
    return x.keys() == y.keys() and all(x[name].equal(y[name]) for name in x)


def differences(a: Path, b: Path, but: str = "nothing") -> float:
    """The largest difference between the tensors of two checkpoints, without those of a certain ending."""
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys()
    return max(float((x[name] - y[name]).abs().max()) for name in x if not name.endswith(but))
