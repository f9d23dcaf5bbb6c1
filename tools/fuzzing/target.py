"""What a fuzz target is."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """Something that reads bytes.

    Attributes:
        seeds: Valid inputs.
        read: Reads an input; may raise fastdc's exceptions and no others.
        mutate: Makes another input of a seed.
    """

    seeds: list[bytes]
    read: Callable[[bytes], Any]
    mutate: Callable[[bytes, random.Random], bytes]
