"""Inputs that stand for one file of a folder: the file's name, a zero byte, and the file's content."""

import random
from pathlib import Path

from fuzzing.mutations import Mutation


def seeds_of(folder: Path, names: list[str]) -> list[bytes]:
    """An input for each of some files of a folder."""
    return [name.encode() + b"\0" + (folder / name).read_bytes() for name in names]


def split(data: bytes) -> tuple[str, bytes]:
    """Name and content of an input."""
    name, _, content = data.partition(b"\0")
    return name.decode(), content


def changes(by_suffix: dict[str, Mutation]) -> Mutation:
    """Changes the content of an input, in the way of its name's suffix."""

    def change(data: bytes, rng: random.Random) -> bytes:
        name, content = split(data)
        return name.encode() + b"\0" + by_suffix[Path(name).suffix](content, rng)

    return change
