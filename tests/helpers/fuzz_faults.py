"""Fuzz targets that fail in every way, and one that does not."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdc import InputError
from fuzzing.target import Target


def _when_damaged(fault: Callable[[], Any]) -> Callable[[Path], Target]:
    """A target that fails on every input but the seed."""

    def made(_: Path) -> Target:
        return Target([b"seed"], lambda data: data == b"seed" or fault(), lambda data, rng: rng.randbytes(4))

    return made


def _refuse(message: str) -> None:
    raise InputError(message)


def _spin() -> None:
    start = time.process_time()
    while time.process_time() < start + 60:
        pass


TARGETS: dict[str, Callable[[Path], Target]] = {
    "fine": _when_damaged(lambda: _refuse("expected a seed, got none")),
    "lines": _when_damaged(lambda: _refuse("expected\na seed")),
    "foreign": _when_damaged(lambda: dict[str, int]()["seed"]),
    "crash": _when_damaged(os.abort),
    "memory": _when_damaged(lambda: bytearray(2**31)),
    "hang": _when_damaged(_spin),
    "wrong-seed": lambda _: Target([b"seed"], lambda _: dict[str, int]()["seed"], lambda data, _: data),
}
